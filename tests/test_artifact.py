"""The artifact: bit for bit what was written, as small as it says, and one clear line when it is broken.

``tests/golden/artifact`` was written once by ``python tests/golden/make.py``; every later slimseek must read it.
"""

from __future__ import annotations

import dataclasses
import json
import pickletools
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from golden import make
from slimseek import artifact
from slimseek.errors import ArtifactError, UsageError
from slimseek.folder import FileEntry, entries
from slimseek.integers import dequantize, quantize, stored_bytes
from slimseek.schema import Array, Model, QuantizedTensor, QuantSpec, Tensor

QUANTIZED = {"table.weight": (35, 4), "linear.weight": (28, 8), "three.weight": (10, 3), "one_scale": (9, 2)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "artifact"
    path.mkdir()
    make.write(path)
    return path


def raw(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """A safetensors file read by its specification: name to dtype, shape and bytes."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    body = content[8 + length :]
    return {
        name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])]) for name, entry in header.items()
    }


def bits_of(content: bytes, bits: int, count: int) -> list[int]:
    """Integers cut from one long number, least significant bit first."""
    whole = int.from_bytes(content, "little")
    return [whole >> bits * position & 2**bits - 1 for position in range(count)]


def assert_same_array(found: Array, expected: Array, name: str) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes(), name


def assert_same(found: Model, expected: Model) -> None:
    """Equal to the last bit."""
    assert found.spec == expected.spec
    assert found.layers == expected.layers
    assert dict(found.activations) == dict(expected.activations)
    assert dict(found.files) == dict(expected.files)
    assert dict(found.tied) == dict(expected.tied)
    assert set(found.smoothing) == set(expected.smoothing)
    for name, factors in expected.smoothing.items():
        assert_same_array(found.smoothing[name], factors, name)
    assert set(found.tensors) == set(expected.tensors)
    for name, tensor in expected.tensors.items():
        other = found.tensors[name]
        if not isinstance(tensor, QuantizedTensor):
            assert isinstance(other, np.ndarray)
            assert_same_array(other, tensor, name)
            continue
        assert isinstance(other, QuantizedTensor)
        assert other.spec == tensor.spec
        assert_same_array(other.integers, tensor.integers, name)
        assert_same_array(other.scale, tensor.scale, name)
        assert (other.zero_point is None) == (tensor.zero_point is None)
        if tensor.zero_point is not None:
            assert other.zero_point is not None
            assert_same_array(other.zero_point, tensor.zero_point, name)
        assert (other.codebook is None) == (tensor.codebook is None)
        if tensor.codebook is not None:
            assert other.codebook is not None
            assert_same_array(other.codebook, tensor.codebook, name)


def with_tensors(**tensors: Tensor) -> Model:
    return dataclasses.replace(
        make.model(), layers=(), tensors={name.replace("__", "."): value for name, value in tensors.items()}
    )


def round_trip(model: Model, path: Path) -> Model:
    path.mkdir()
    artifact.write(model, path)
    return artifact.read(path)[1]


# ---------------------------------------------------------------- round trip


def test_what_is_written_is_read_back_bit_for_bit(folder: Path) -> None:
    manifest, model = artifact.read(folder)
    assert_same(model, make.model())
    assert manifest.recipe == make.recipe()
    assert manifest.records == make.comparison().records
    assert (manifest.collection, manifest.versions) == (make.COLLECTION, make.VERSIONS)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_every_width_comes_back_bit_for_bit(bits: int, symmetric: bool, granularity: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(bits).standard_normal((5, 9)).astype(np.float32)
    spec = QuantSpec(
        bits=bits, granularity=granularity, group_size=4 if granularity == "group" else None, symmetric=symmetric
    )
    model = with_tensors(weight=quantize(values, spec))
    assert_same(round_trip(model, tmp_path / "a"), model)


def test_a_second_writing_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """CASES E7: nothing is appended, nothing depends on the time."""
    again = tmp_path / "again"
    again.mkdir()
    make.write(again)
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()} == files


def test_arrays_that_do_not_lie_in_order_keep_their_values(tmp_path: Path) -> None:
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    integers = np.arange(-6, 6, dtype=np.int8).reshape(3, 4).T
    quantized = QuantizedTensor(
        spec=QuantSpec(bits=4, granularity="tensor"), integers=integers, scale=np.ones((1, 1), np.float32)
    )
    model = with_tensors(turned=grid.T, strided=grid[:, ::2], quantized=quantized)
    assert_same(round_trip(model, tmp_path / "a"), model)


def test_a_buffer_without_axes_stays_one(tmp_path: Path) -> None:
    """Batch norm's counter and CLIP's temperature are such; as a vector of one they would not load."""
    model = with_tensors(num_batches_tracked=np.array(7, np.int64), logit_scale=np.array(4.6, np.float32))
    assert_same(round_trip(model, tmp_path / "a"), model)


@pytest.mark.parametrize(
    "name", ["weight__scale", "weight__zero_point", "weight#scale", "weight#zero_point", "weight#2"]
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_tensor_named_like_a_part_of_another_is_not_lost(name: str, symmetric: bool, tmp_path: Path) -> None:
    """A model may own ``weight`` and ``weight.scale``; losing one silently is not an answer, refusing is.

    Exported graphs call a second copy of a weight ``weight#2``.
    """
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    quantized = quantize(values, QuantSpec(bits=8, granularity="channel", symmetric=symmetric))
    for tensors in ({"weight": quantized, name: values}, {name: values, "weight": quantized}):
        model = with_tensors(**tensors)
        try:
            found = round_trip(model, tmp_path / f"a{len(list(tmp_path.iterdir()))}")
        except UsageError:
            continue
        assert_same(found, model)


# ---------------------------------------------------------------- on disk


def test_integers_take_their_bits_and_no_more(folder: Path) -> None:
    stored = raw(folder / "weights.safetensors")
    for name, (count, bits) in QUANTIZED.items():
        dtype, shape, content = stored[name]
        assert (dtype, shape) == ("U8", [len(content)])
        assert len(content) == -(-count * bits // 8)
    assert len(stored["three.weight#zero_point"][2]) == 2  # five zero points of three bits
    model = make.model()
    assert sum(len(content) for _, _, content in stored.values()) == sum(map(stored_bytes, model.tensors.values()))


def test_the_file_of_four_bits_is_an_eighth_and_its_scales(tmp_path: Path) -> None:
    """By hand: 64 x 320 values: 10,240 bytes at 4 bits and 640 float16 scales, beside 81,920 bytes of float32."""
    values = np.random.default_rng(0).standard_normal((64, 320)).astype(np.float32)
    (tmp_path / "a").mkdir()
    artifact.write(
        with_tensors(weight=quantize(values, QuantSpec(bits=4, granularity="group", group_size=32))), tmp_path / "a"
    )
    size = (tmp_path / "a" / "weights.safetensors").stat().st_size
    assert 10_240 + 1_280 < size < 10_240 + 1_280 + 300


def test_the_bytes_are_those_that_the_document_describes(folder: Path) -> None:
    """docs/artifact.md read literally, without a line of slimseek."""
    stored = raw(folder / "weights.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, tensor in make.model().tensors.items():
        if not isinstance(tensor, QuantizedTensor):
            dtype, shape, content = stored[name]
            kinds = {"F16": "<f2", "F32": "<f4", "I64": "<i8", "BOOL": "?"}
            assert_same_array(np.frombuffer(content, kinds[dtype]).reshape(shape), tensor, name)
            continue
        how = manifest["quant"][name]
        bits, symmetric = how["spec"]["bits"], how["spec"]["symmetric"]
        unsigned = bits_of(stored[name][2], bits, tensor.integers.size)
        half = 2 ** (bits - 1)
        integers = [value - 2 * half if symmetric and value >= half else value for value in unsigned]
        assert integers == tensor.integers.reshape(-1).tolist(), name
        assert how["shape"] == list(tensor.shape)
        scales = np.frombuffer(stored[f"{name}#scale"][2], {"F16": "<f2", "F32": "<f4"}[stored[f"{name}#scale"][0]])
        assert scales.tolist() == tensor.scale.reshape(-1).tolist()
        if tensor.zero_point is not None:
            zeros = bits_of(stored[f"{name}#zero_point"][2], bits, tensor.zero_point.size)
            assert zeros == tensor.zero_point.reshape(-1).tolist()


def test_there_is_no_pickle_in_the_folder(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors", ".txt"}
    for path in files:
        content = path.read_bytes()
        assert not content.startswith((b"PK", b"\x93NUMPY"))
        with pytest.raises(Exception, match=r"."):
            list(pickletools.genops(content))


def test_every_file_but_the_manifest_is_listed_with_its_hash(folder: Path) -> None:
    listed = {entry.path for entry in artifact.read(folder)[0].files}
    assert listed == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {"manifest.json"}  # fmt: skip
    assert {"weights.safetensors", "report.json", "model/1_Pooling/config.json"} <= listed


def test_only_a_folder_with_a_manifest_is_an_artifact(folder: Path, tmp_path: Path) -> None:
    assert artifact.is_artifact(folder)
    assert not artifact.is_artifact(tmp_path)
    assert not artifact.is_artifact(folder / "manifest.json")


# ---------------------------------------------------------------- golden


def test_an_artifact_of_an_earlier_slimseek_is_read_as_it_was_written() -> None:
    manifest, model = artifact.read(make.FOLDER)
    assert_same(model, make.model())
    assert manifest.format_version == 1
    assert manifest.recipe == make.recipe()
    assert manifest.records == make.comparison().records
    assert (manifest.collection, manifest.versions) == (make.COLLECTION, make.VERSIONS)


def test_the_values_of_the_golden_artifact_are_those_worked_by_hand() -> None:
    """(integer - zero point) * scale, for the first values of each tensor."""
    model = artifact.read(make.FOLDER)[1]
    table = dequantize(model.tensors["table.weight"])
    assert table[0].tolist() == [-7 / 8, -2 / 8, 3 / 8, -7 / 4, -2 / 4, 3 / 4, -21 / 8]  # groups of three
    assert dequantize(model.tensors["linear.weight"])[3, :2].tolist() == [-22 * 250, -17 * 250]
    three = dequantize(model.tensors["three.weight"])
    assert three[0].tolist() == [0 * 0.5, (5 - 1) * 0.25, (2 - 3) * 1.0, (7 - 7) * 2.0, (4 - 4) * 4.0]
    assert dequantize(model.tensors["one_scale"])[0].tolist() == [-0.75, 0.75, 0.0]


def test_todays_slimseek_writes_the_golden_bytes(folder: Path) -> None:
    """Should this fail on purpose, raise FORMAT_VERSION, and keep the old folder as a test of reading."""
    for path in ("weights.safetensors", "manifest.json", "report.json", "model/config.json"):
        assert (folder / path).read_bytes() == (make.FOLDER / path).read_bytes(), path


def test_the_golden_artifact_of_shared_values_reads_as_ever_and_is_written_so_today(tmp_path: Path) -> None:
    """value = codebook[channel, place]: the first places of a row are 0, 5, 10, ... in steps that wrap round."""
    golden = artifact.read(make.SHARED)[1]
    assert_same(golden, make.shared_model())
    table, linear, three = (dequantize(golden.tensors[f"{name}.weight"]) for name in ("table", "linear", "three"))
    assert table[0].tolist() == [-1.5, np.float32(1e-40), 0.0, -1.5, np.float32(1e-40), 0.0, -1.5]  # 0, 2, 1, 0, ...
    assert linear[:, 0].tolist() == [0.0, 5 / 8, 10 / 8, 15 / 8]  # place 0 of each channel's own book
    assert three[2].tolist() == [1.0, 1.125, 1.25, 1.375]  # 2, 2.25, 2.5, 2.75 times a half
    assert golden.named["output.weight"] is golden.tensors["table.weight"]
    artifact.write(make.shared_model(), tmp_path, collection=make.COLLECTION, versions=make.VERSIONS)
    for path in ("weights.safetensors", "manifest.json"):
        assert (tmp_path / path).read_bytes() == (make.SHARED / path).read_bytes(), path


# ---------------------------------------------------------------- many zeros


@pytest.fixture
def thin(tmp_path: Path) -> Path:
    path = tmp_path / "thin"
    path.mkdir()
    artifact.write(make.sparse_model(), path, collection=make.COLLECTION, versions=make.VERSIONS)
    return path


def test_the_golden_artifact_of_many_zeros_reads_as_ever_and_is_written_so_today(thin: Path) -> None:
    assert_same(artifact.read(make.SPARSE)[1], make.sparse_model())
    assert_same(artifact.read(thin)[1], make.sparse_model())
    for path in ("weights.safetensors", "manifest.json"):
        assert (thin / path).read_bytes() == (make.SPARSE / path).read_bytes(), path


def test_zeros_take_one_bit_and_the_document_says_where(thin: Path) -> None:
    """docs/artifact.md read literally, without a line of slimseek; -0.0 and the least float are values."""
    stored = raw(thin / "weights.safetensors")
    listed = json.loads((thin / "manifest.json").read_text())["sparse"]
    tensors = make.sparse_model().tensors
    assert set(listed) == {"table.weight", "linear.weight", "three.weight", "half", "linear.bias"}
    for name, entry in listed.items():
        tensor = tensors[name]
        whole = dequantize(tensor).reshape(-1)
        assert entry["shape"] == list(tensor.shape)
        dtype, shape, content = stored[f"{name}#mask"]
        assert (dtype, shape) == ("U8", [-(-whole.size // 8)])
        places = [place for place, bit in enumerate(bits_of(content, 1, whole.size)) if bit]
        assert len(places) == entry["values"]
        assert set(np.flatnonzero(whole)) <= set(places)
        if isinstance(tensor, QuantizedTensor):
            unsigned = bits_of(stored[name][2], tensor.spec.bits, len(places))
            held = tensor.integers.reshape(-1)[places] & 2**tensor.spec.bits - 1
            assert unsigned == held.tolist()
            assert set(places) == set(np.flatnonzero(whole)), "asymmetric ones too leave out what stands for 0.0"
        else:
            assert stored[name][2] == tensor.reshape(-1)[places].tobytes()
    values = raw(thin / "weights.safetensors")["linear.weight"][2]
    assert np.frombuffer(values, np.float32)[:2].tobytes() == np.array([-0.0, -0.0], np.float32).tobytes()
    assert sum(len(content) for _, _, content in stored.values()) == sum(map(stored_bytes, tensors.values()))


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "e4m3", *range(2, 9)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_every_width_with_zeros_comes_back_bit_for_bit_and_never_larger(
    kind: Any, share: float, tmp_path: Path
) -> None:
    """Bytes by hand: places / 8 and the values that are left, where that is a tenth smaller than dense."""
    generator = np.random.default_rng(4)
    values = generator.standard_normal((33, 101)).astype(np.float32)
    values[generator.random(values.shape) < share] = 0
    forms: list[Tensor]
    if kind == "e4m3":
        forms = [quantize(values, QuantSpec(bits=8, granularity="channel", float8="e4m3"))]
    elif isinstance(kind, str):
        forms = [values.astype(np.dtype(kind))]
    else:
        group = {"granularity": "group", "group_size": 8}
        forms = [quantize(values, QuantSpec(bits=kind, symmetric=symmetric, **group)) for symmetric in (True, False)]  # type: ignore[arg-type]
    for number, tensor in enumerate(forms):
        model = with_tensors(weight=tensor)
        assert_same(round_trip(model, tmp_path / str(number)), model)
        bits = tensor.spec.bits if isinstance(tensor, QuantizedTensor) else 8 * tensor.dtype.itemsize
        scales = sum(
            len(content)
            for name, (_, _, content) in raw(tmp_path / str(number) / "weights.safetensors").items()
            if name.partition("#")[2] in ("scale", "zero_point")
        )
        dense = -(-values.size * bits // 8)
        thin = -(-values.size // 8) + -(-np.count_nonzero(dequantize(tensor)) * bits // 8)
        assert stored_bytes(tensor) - scales == (thin if thin + 128 <= 0.9 * dense else dense)
        if share >= 0.5 and bits > 3:
            assert stored_bytes(tensor) - scales < 0.9 * dense


def test_integer_buffers_and_small_tensors_stay_dense(tmp_path: Path) -> None:
    model = with_tensors(ids=np.zeros(4000, np.int64), few=np.zeros(32, np.float32), flags=np.zeros(4000, bool))
    assert_same(round_trip(model, tmp_path / "a"), model)
    assert artifact.read(tmp_path / "a")[0].sparse is msgspec.UNSET
    assert "sparse" not in json.loads((tmp_path / "a" / "manifest.json").read_text())


def restored(folder: Path, **arrays: Array | None) -> str:
    """The refusal of the folder with other arrays in its weights, whose hash is right; ``None`` takes one out."""
    stored = load_file(folder / "weights.safetensors")
    for name, array in arrays.items():
        stored.pop(name)
        if array is not None:
            stored[name] = array
    save_file(stored, folder / "weights.safetensors")
    entry = next(e for e in entries(folder, leave_out="manifest.json") if "weights" in e.path)
    return edited(folder, lambda manifest: relist(manifest, entry))


@pytest.mark.parametrize("name", ["linear.weight", "table.weight", "three.weight", "linear.bias"])
def test_a_mask_that_does_not_fit_its_values_is_one_line_that_names_the_tensor(thin: Path, name: str) -> None:
    stored = load_file(thin / "weights.safetensors")
    mask, values = stored[f"{name}#mask"], stored[name]
    flipped = mask.copy()
    flipped[3] ^= 1
    beyond = mask.copy()
    beyond[-1] ^= 0x80
    for part, array in [
        (f"{name}#mask", None),
        (f"{name}#mask", mask[:-1]),
        (f"{name}#mask", flipped),
        (f"{name}#mask", beyond),
        (f"{name}#mask", mask.astype(np.int16)),
        (f"{name}#mask", mask[None]),
        (name, np.append(values, values[:1]) if values.size else np.ones(1, np.float32)),
        *([(name, values[:-1])] if values.size else []),
    ]:
        copy = thin.parent / "copy"
        shutil.copytree(thin, copy, dirs_exist_ok=True)
        assert f"the tensor {name} is not whole" in restored(copy, **{part: array}), part


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["sparse"]["linear.weight"].update(values=3),
        lambda m: m["sparse"]["linear.weight"].update(shape=[30, 40]),
        lambda m: m["sparse"]["linear.weight"].update(shape=[-30, -41]),
        lambda m: m["sparse"]["table.weight"].update(shape=[41, 40]),
        lambda m: m["sparse"].update(absent=m["sparse"]["half"]),
    ],
)
def test_a_manifest_that_does_not_fit_its_masks_is_refused(
    thin: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    assert "is not whole" in edited(thin, change)


# ---------------------------------------------------------------- broken


def refused(folder: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        artifact.read(folder)
    text = str(error.value)
    assert str(folder) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("path", ["weights.safetensors", "report.json", "model/config.json", "model/vocab.txt"])
def test_a_file_that_is_missing_cut_changed_or_longer_is_named(folder: Path, path: str) -> None:
    whole = (folder / path).read_bytes()
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    for content in (b"", whole[: len(whole) // 2], whole[:-1], whole + b"\0", flipped, whole[:-1] + b"#"):
        (folder / path).write_bytes(content)
        assert path in refused(folder)
    (folder / path).unlink()
    assert f"{path} is missing" in refused(folder)


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_cut_manifest_is_refused(folder: Path, length: int) -> None:
    whole = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(whole[:length])
    assert "manifest.json is not valid JSON" in refused(folder)


def test_a_folder_without_a_manifest_is_refused(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert "manifest.json: No such file" in refused(folder)


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return refused(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format_version=2), "format version 2; this slimseek reads up to 1: upgrade it"),
        (lambda m: m.pop("format_version"), "format version None"),
        (lambda m: m.update(colour="red"), "colour"),
        (lambda m: m["spec"].update(colour="red"), "colour"),
        (lambda m: m["quant"]["table.weight"]["spec"].update(colour="red"), "colour"),
        (lambda m: m.pop("layers"), "layers"),
        (lambda m: m["spec"].update(dim="four"), "spec.dim"),
        (lambda m: m["quant"]["table.weight"]["spec"].update(bits=5), "table.weight is not whole"),
        (lambda m: m["quant"]["table.weight"].update(shape=[5, 8]), "table.weight is not whole"),
        (lambda m: m["quant"]["table.weight"]["spec"].update(symmetric=False), "table.weight is not whole"),
        (lambda m: m["files"][0].update(path="../secret"), "outside the folder"),
        (lambda m: m["files"][0].update(path="/etc/passwd"), "outside the folder"),
        (lambda m: m["files"][0].update(sha256="0" * 64), "sha256 differs"),
    ],
)
def test_an_edited_manifest_gives_one_line(
    folder: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    assert words in edited(folder, change)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["quant"]["table.weight"]["spec"].update(group_size=2),
        lambda m: m["quant"]["table.weight"]["spec"].update(group_size=None),
        lambda m: m["quant"]["table.weight"]["spec"].update(granularity="tensor", group_size=None),
        lambda m: m["quant"]["linear.weight"]["spec"].update(axis=1),
        lambda m: m["quant"]["linear.weight"]["spec"].update(axis=2),
        lambda m: m["quant"]["linear.weight"].update(shape=[-4, -7]),
        lambda m: m["quant"]["linear.weight"].update(shape=[7, 4]),
        lambda m: m["quant"].update(absent=m["quant"]["linear.weight"]),
        lambda m: m["layers"][0].update(weight="absent"),
    ],
    ids=["smaller groups", "no group size", "one scale", "other axis", "no such axis", "negative shape", "turned shape",
         "no such tensor", "layer without a weight"],
)  # fmt: skip
def test_a_manifest_that_does_not_fit_its_weights_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """Each of these would be read as other numbers, or fail somewhere later with an error of numpy."""
    edited(folder, change)


def test_weights_that_are_no_safetensors_are_refused_though_their_hash_is_right(folder: Path) -> None:
    """CASES X4: a pointer file in place of the weights; trailing bytes."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    whole = (folder / "weights.safetensors").read_bytes()
    for content in (b"", pointer, whole[:-1], whole + b"\0\0", b"\xff" * 8 + whole[8:]):
        (folder / "weights.safetensors").write_bytes(content)
        entry = next(e for e in entries(folder, leave_out="manifest.json") if "weights" in e.path)
        assert "weights.safetensors cannot be read" in edited(folder, lambda m, e=entry: relist(m, e))


def relist(manifest: dict[str, Any], entry: FileEntry) -> None:
    listed = next(file for file in manifest["files"] if file["path"] == entry.path)
    listed.update(bytes=entry.bytes, sha256=entry.sha256)


def test_a_copy_elsewhere_reads_the_same(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder, tmp_path / "moved" / "deeper")
    assert_same(artifact.read(tmp_path / "moved" / "deeper")[1], make.model())
