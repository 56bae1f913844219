"""A teacher's vectors: computed once, the same as computed anew, and never read from a damaged file."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from rich.console import Console

from slimseek import choose, plugins
from slimseek.encoder import Encoder
from slimseek.errors import UsageError
from slimseek.inputs.samples import TEXTS
from slimseek.progress import shown_on
from slimseek.schema import Array, Model, ModelSpec, Samples, TensorSpec
from slimseek.training import teacher
from small import tiny_model

ITEMS = [f"{text} {number}" for number in range(3) for text in TEXTS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items each call of the encoder took."""
    calls: list[int] = []
    plain = Encoder.documents

    def counted(self: Encoder, items: list[str], advance: object = None) -> Array:
        calls.append(len(items))
        return plain(self, items, advance)

    monkeypatch.setattr(Encoder, "documents", counted)
    return calls


def direct(model: Model, items: list[str]) -> Array:
    encoder = choose.encoder(model, "x", 1)
    return encoder.vectors(items, encoder.input.document_prefix)


def test_vectors_are_those_of_the_model_and_are_computed_once(
    model: Model, tmp_path: Path, computed: list[int]
) -> None:
    first = teacher.vectors(model, ITEMS, str(tmp_path))
    assert np.array_equal(first, direct(model, ITEMS))
    assert computed == [len(ITEMS)]
    again = teacher.vectors(model, ITEMS, str(tmp_path))
    assert computed == [len(ITEMS)], "read, not computed"
    assert np.array_equal(again, first)
    assert not again.flags.writeable
    [file] = tmp_path.iterdir()
    assert np.array_equal(np.load(file), first), "any library reads it"
    assert file.read_bytes()[-32:] == hashlib.sha256(file.read_bytes()[:-32]).digest()
    assert teacher.vectors(model, [], str(tmp_path)).shape == (0, 32)


def test_what_the_vectors_hang_on_is_in_the_key(model: Model, tmp_path: Path, computed: list[int]) -> None:
    """Another tensor, file, longest sequence, rounding, item or order is another file."""
    name = next(name for name in model.tensors if name.endswith("query.weight"))
    moved = dict(model.tensors) | {name: np.asarray(model.tensors[name]) * np.float32(1.0001)}
    cut = msgspec.structs.replace(model.spec.preprocess, max_length=8)
    others = [
        (dataclasses.replace(model, tensors=moved), ITEMS),
        (dataclasses.replace(model, files=dict(model.files) | {"config_sentence_transformers.json": b"{}"}), ITEMS),
        (dataclasses.replace(model, spec=msgspec.structs.replace(model.spec, preprocess=cut)), ITEMS),
        (plugins.load("methods", "quantize.weights_int")().apply(model, Samples(calibration=[], texts=[])), ITEMS),
        (model, ITEMS[::-1]),
        (model, ITEMS[:-1]),
        (model, [*ITEMS[:-2], ITEMS[-2] + ITEMS[-1]]),
    ]
    for number, (one, items) in enumerate([(model, ITEMS), *others], 1):
        found = teacher.vectors(one, items, str(tmp_path))
        assert len(computed) == number
        assert np.array_equal(found, direct(one, items))
    assert len(list(tmp_path.iterdir())) == len(others) + 1


def test_items_of_files_count_by_their_content(tmp_path: Path, model: Model) -> None:
    inputs = (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),)
    spec = ModelSpec(family="onnx_array", modality="array", output="embedding", inputs=inputs, dim=3, normalised=False,
                     preprocess=None)  # fmt: skip
    arrays = Model(spec=spec, files={}, tensors={}, layers=())
    np.save(tmp_path / "a.npy", np.zeros(4, np.float32))
    path = str(tmp_path / "a.npy")
    first = teacher._key(arrays, [path, "random:1"])
    np.save(tmp_path / "a.npy", np.ones(4, np.float32))
    assert teacher._key(arrays, [path, "random:1"]) != first
    np.save(tmp_path / "a.npy", np.zeros(4, np.float32))
    assert teacher._key(arrays, [path, "random:1"]) == first
    with pytest.raises(UsageError, match=r"b\.npy cannot be read"):
        teacher._key(arrays, [str(tmp_path / "b.npy")])


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty", "text", "longer", "header only"])
def test_a_damaged_file_is_made_anew(model: Model, tmp_path: Path, computed: list[int], damage: str) -> None:
    expected = np.array(teacher.vectors(model, ITEMS, str(tmp_path)))
    [file] = tmp_path.iterdir()
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    file.write_bytes({"cut": content[:-40], "one bit": bytes(flipped), "empty": b"", "text": b"nothing", "longer":
                      content + b"x", "header only": content[:128]}[damage])  # fmt: skip
    assert np.array_equal(teacher.vectors(model, ITEMS, str(tmp_path)), expected)
    assert computed == [len(ITEMS)] * 2
    assert file.read_bytes() == content


def test_a_file_of_another_shape_or_type_under_the_name_is_not_read(
    model: Model, tmp_path: Path, computed: list[int]
) -> None:
    expected = np.array(teacher.vectors(model, ITEMS, str(tmp_path)))
    [file] = tmp_path.iterdir()
    for wrong in (expected[:-1], expected.astype(np.float64), expected.astype(np.int32)):
        np.save(file, wrong)
        with file.open("ab") as opened:
            opened.write(hashlib.sha256(file.read_bytes()).digest())
        assert np.array_equal(teacher.vectors(model, ITEMS, str(tmp_path)), expected)
    assert len(computed) == 4


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_killed_evaluation_goes_on_at_its_last_part(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    monkeypatch.setattr(teacher, "PART", 16)
    counted = Encoder.documents

    def dies(self: Encoder, items: list[str], advance: object = None) -> Array:
        if len(computed) == 3:
            raise Killed
        return counted(self, items, advance)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "documents", dies)
        with pytest.raises(Killed):
            teacher.vectors(model, ITEMS, str(tmp_path / "caches"))
    [parts] = (tmp_path / "caches").iterdir()
    assert len(list(parts.iterdir())) == 3
    second = sorted(parts.iterdir())[1]
    second.write_bytes(second.read_bytes()[:-1])
    (parts / ".half.npy.x").write_bytes(b"left by the kill")
    found = teacher.vectors(model, ITEMS, str(tmp_path / "caches"))
    assert computed == [16, 16, 16, 16, 16, 8], "the damaged part and those that were missing"
    assert [path.suffix for path in (tmp_path / "caches").iterdir()] == [".npy"], "no part is left"
    assert np.array_equal(found, teacher.vectors(model, ITEMS, str(tmp_path / "others"))), "as without the kill"
    assert np.allclose(found, direct(model, ITEMS), atol=1e-6)


def test_a_file_that_is_half_written_has_another_name(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(teacher.os, "replace", dies)
    with pytest.raises(Killed):
        teacher.vectors(model, ITEMS, str(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_users_folder_is_used_and_named_and_a_folder_that_cannot_be_written_is_said(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    def said() -> str:
        with (tmp_path / "log").open("w") as file, shown_on(Console(file=file, width=10_000)):
            teacher.vectors(model, ITEMS)
        return (tmp_path / "log").read_text()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    place = tmp_path / "caches" / "slimseek" / "teachers"
    assert f"vectors of the teacher are kept in {place}\n" in said()
    [file] = place.iterdir()
    assert said() == f"vectors of the teacher: read from {file}\n"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "vectors of the teacher are not kept: cannot write to" in said()
    assert len(computed) == 2
    with pytest.raises(UsageError, match="cannot write to the cache") as error:
        teacher.vectors(model, ITEMS, str(tmp_path / "file" / "here"))
    assert "\n" not in str(error.value)


def test_a_teacher_stays_as_it_is_and_does_not_drop_out(tmp_path: Path) -> None:
    """CASES D3: dropout of its configuration is off, nothing of it is changed, no gradient is kept."""
    given = tiny_model(tmp_path / "tiny")
    config = msgspec.json.decode(given.files["config.json"]) | {"hidden_dropout_prob": 0.5,
                                                                "attention_probs_dropout_prob": 0.5}  # fmt: skip
    given = dataclasses.replace(given, files=dict(given.files) | {"config.json": msgspec.json.encode(config)})
    before = {name: np.array(value) for name, value in given.tensors.items()}
    rows = [np.array(teacher.vectors(given, ITEMS, str(tmp_path / folder))) for folder in ("a", "b")]
    assert np.array_equal(*rows)
    network = choose.family(given).trainable(given)
    assert any(module.p == 0.5 for module in network.modules() if isinstance(module, torch.nn.Dropout))
    assert all(np.array_equal(given.tensors[name], value) for name, value in before.items())
