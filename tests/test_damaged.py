"""Faults that damaged inputs have brought to light, each by its name: now one line of ours."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from slimseek import artifact, choose, data, documents, plugins, reading, recipe, search
from slimseek import folder as folders
from slimseek.encoder import Encoder
from slimseek.errors import ArtifactError, SlimseekError, UsageError
from slimseek.inputs.text import TextInput, tokenizer_of
from slimseek.scale import bulk
from small import CORPUS, tiny_bert, tiny_encoder, tiny_tokenizer

GOLDEN = Path(__file__).parent / "golden"


def refused(read: Callable[[], object], words: str) -> None:
    """Ended within ten seconds by an error of ours, of one line, that has the words."""
    found: list[BaseException] = []

    def run() -> None:
        try:
            read()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it hangs"
    assert [type(error) for error in found if not isinstance(error, SlimseekError)] == [], found
    assert found, "nothing was refused"
    assert words in str(found[0]), found[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN / "artifact", tmp_path / "artifact")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    search.index(tiny_encoder(), CORPUS, tmp_path / "index")
    return tmp_path / "index"


def seal(folder: Path, name: str, manifest: str = "index.json") -> None:
    """Make size and hash of a changed file right."""
    listed = json.loads((folder / manifest).read_bytes())
    for entry in listed["files"]:
        if entry["path"] == name:
            content = (folder / name).read_bytes()
            entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / manifest).write_text(json.dumps(listed))


# ---------------------------------------------------------------- what slimseek wrote


@pytest.mark.parametrize(
    "content", [b'{"format_version": "\xff"}', b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{\x00}\x00"], ids=repr
)
def test_a_manifest_that_is_no_text_or_nested_without_end(content: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(content)
    refused(lambda: artifact.read(folder), "is not valid JSON")
    refused(lambda: folders.read_json(folder / "manifest.json", artifact.Artifact), "is not valid")


@pytest.mark.parametrize("version", ["true", "-1", "0", "1e300", "null", '"1"'])
def test_a_version_that_is_none(version: str, folder: Path) -> None:
    (folder / "manifest.json").write_text(f'{{"format_version": {version}}}')
    refused(lambda: artifact.read(folder), "format version")


def test_a_pipe_in_the_place_of_a_manifest_or_of_weights_keeps_nobody_waiting(folder: Path) -> None:
    for name in ("manifest.json", "weights.safetensors"):
        (folder / name).rename(folder / "kept")
        os.mkfifo(folder / name)
        refused(lambda: artifact.read(folder), "is no file" if name == "manifest.json" else "is missing")
        (folder / name).unlink()
        (folder / "kept").rename(folder / name)


def test_links_that_leave_the_folder_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").rename(tmp_path / "elsewhere.json")
    (folder / "manifest.json").symlink_to(tmp_path / "elsewhere.json")
    refused(lambda: artifact.read(folder), "is a link that leaves its folder")
    refused(lambda: folders.read_json(folder / "manifest.json", artifact.Artifact), "is a link that leaves its folder")
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to("/dev/zero")
    refused(lambda: artifact.read(folder), "is a link that leaves its folder")


@pytest.mark.parametrize("path", ["model/a\0b", "x" * 5000, "../secret", "/etc/passwd", "model/../../secret"])
def test_a_list_of_files_with_what_can_be_no_path(path: str, folder: Path) -> None:
    listed = json.loads((folder / "manifest.json").read_bytes())
    listed["files"][0]["path"] = path
    (folder / "manifest.json").write_text(json.dumps(listed))
    with pytest.raises(ArtifactError, match=r"outside the folder|is missing"):
        artifact.read(folder)


def test_a_link_to_itself(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").symlink_to("weights.safetensors")
    with pytest.raises(ArtifactError, match=r"is missing|outside the folder"):
        artifact.read(folder)


def test_weights_that_no_hash_covers(folder: Path) -> None:
    listed = json.loads((folder / "manifest.json").read_bytes())
    listed["files"] = [entry for entry in listed["files"] if entry["path"] != "weights.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(listed))
    refused(lambda: artifact.read(folder), "does not list weights.safetensors")


def test_a_header_of_an_array_that_is_none(index: Path) -> None:
    """NumPy hands it to Python's own tokenizer, whose errors are of a kind of their own."""
    for name in ("probe.npy", "offsets.npy", "index/vectors.npy"):
        kept = (index / name).read_bytes()
        (index / name).write_bytes(kept[:10] + b"(" * (len(kept) - 10))
        seal(index, name)
        refused(lambda: search.open(index, tiny_encoder()), "cannot be read")
        (index / name).write_bytes(kept)
        seal(index, name)
    search.open(index, tiny_encoder())


def test_an_array_that_says_it_is_larger_than_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**50, 8)})
    for mapped in (False, True):
        with pytest.raises((ValueError, OSError)):
            reading.array(tmp_path / "a.npy", mapped=mapped)


@pytest.mark.parametrize("line", [b'{"id": "\xff", "text": ""}\n', b'{"id": "d1"', b"[" * 50_000, b"\n"], ids=repr)
def test_a_document_that_is_none(line: bytes, index: Path) -> None:
    lines = (index / documents.FILE).read_bytes().splitlines(keepends=True)
    offsets = np.cumsum([0, *map(len, [line] * len(lines))])
    (index / documents.FILE).write_bytes(line * len(lines))
    np.save(index / documents.OFFSETS, offsets.astype(np.int64))
    for name in (documents.FILE, documents.OFFSETS):
        seal(index, name)
    refused(lambda: search.open(index, tiny_encoder()).query(["river"], 1), "is not valid")


def test_places_of_documents_that_go_backwards(index: Path) -> None:
    offsets = np.load(index / documents.OFFSETS)
    offsets[[1, 2]] = offsets[[2, 1]]
    np.save(index / documents.OFFSETS, offsets)
    seal(index, documents.OFFSETS)
    refused(lambda: search.open(index, tiny_encoder()), "does not fit")


def test_an_index_of_more_vectors_than_documents(index: Path) -> None:
    vectors = np.load(index / "index" / "vectors.npy")
    np.save(index / "index" / "vectors.npy", np.concatenate([vectors, 2 * vectors]))
    seal(index, "index/vectors.npy")
    refused(lambda: search.open(index, tiny_encoder()).query(["river"], 3), "and documents.jsonl holds 6")


def test_a_probe_that_is_no_vector(index: Path) -> None:
    np.save(index / "probe.npy", np.zeros((3, 3), np.float32))
    seal(index, "probe.npy")
    refused(lambda: search.open(index, tiny_encoder()), "no vector")


# ---------------------------------------------------------------- recipes


LAUGHS = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9) if n else 'x'}]\n" for n in range(12))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "names of other parts"),
        ("version: 1\nsteps: &a [{x: *a}]\n", "names of other parts"),
        ("version: 1\nversion: 1\nsteps: []\n", "stands twice"),
        ("version: " + "9" * 5000, "limit"),
        ("[" * 5000, "recursion"),
        ('version: 1\nsteps: ["\\ud800"]\n', "recipe"),
        ("!!python/object/apply:os.system [id]\n", "could not determine a constructor"),
    ],
    ids=["laughs", "itself", "twice", "digits", "deep", "surrogate", "python"],
)
def test_yaml_that_is_small_and_means_much(text: str, words: str) -> None:
    refused(lambda: recipe.parse(text), words)


def test_a_recipe_that_is_a_pipe_or_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    refused(lambda: recipe.load(tmp_path / "a.yaml"), "is no file")
    (tmp_path / "b.yaml").symlink_to("/dev/zero")
    refused(lambda: recipe.load(tmp_path / "b.yaml"), "is no file")


# ---------------------------------------------------------------- collections


def test_a_line_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").symlink_to("/dev/zero")
    refused(lambda: bulk.texts(tmp_path / "corpus.jsonl"), "is no file")
    with (tmp_path / "long.jsonl").open("wb") as file:
        file.truncate(80 * 1024 * 1024)
    refused(lambda: bulk.texts(tmp_path / "long.jsonl"), "this is no text")


@pytest.mark.parametrize("name", ["data.csv", "labels.csv", "train.tsv", "corpus.jsonl"])
def test_a_pipe_in_the_place_of_a_table(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    refused(lambda: data.load(str(tmp_path)), "")


@pytest.mark.parametrize("name", ["x" * 5000 + ".png", "a\0b.png", "../secret.png", "/etc/hostname"])
def test_a_table_that_names_what_can_be_no_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"path,label,split\n{name},a,test\n")
    refused(lambda: data.load(str(tmp_path)), "labels.csv")
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "data.csv").write_text(f"audio,text\n{name.replace('png', 'wav')},a\n")
    refused(lambda: data.load(str(tmp_path)), "")


# ---------------------------------------------------------------- models


def test_an_id_of_a_token_that_would_take_all_memory() -> None:
    """The library takes memory for each id up to the highest, and ends the process where there is not enough."""
    document = json.loads(tiny_tokenizer())
    document["added_tokens"] = [{"id": 2**31 - 1, "content": "x", "single_word": False, "lstrip": False,
                                 "rstrip": False, "normalized": False, "special": True}]  # fmt: skip
    refused(lambda: tokenizer_of(json.dumps(document).encode()), "has the id 2147483647")
    document = json.loads(tiny_tokenizer())
    document["model"]["vocab"]["cat"] = 2**31
    refused(lambda: tokenizer_of(json.dumps(document).encode()), "has the id 2147483648")


def test_a_tokenizer_that_puts_more_around_a_text_than_the_model_takes() -> None:
    document = json.loads(tiny_tokenizer())
    document["post_processor"]["special_tokens"]["[CLS]"] |= {"ids": [2] * 2000, "tokens": ["[CLS]"] * 2000}
    refused(lambda: TextInput(tiny_encoder().spec, json.dumps(document).encode()).rows(["cat"]), "tokens of a text")


def test_a_tokenizer_that_panics() -> None:
    """A panic of the library is no Exception; here its template names a token that it has not."""
    document = json.loads(tiny_tokenizer())
    document["post_processor"]["special_tokens"] = {}
    refused(
        lambda: TextInput(tiny_encoder().spec, json.dumps(document).encode()).rows(["cat"]), "tokenizer.json cannot"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"preprocess": {"max_length": -1}}, "the model takes -1 tokens"),
        ({"preprocess": {"pad_id": 2**63}}, "the padding id is 9223372036854775808"),
        ({"inputs": [{"name": "../x", "dtype": "int64", "shape": ["batch", "sequence"]}]}, "the model takes '../x'"),
    ],
)
def test_a_manifest_that_asks_for_what_no_text_has(change: dict[str, Any], words: str) -> None:
    written = msgspec.to_builtins(tiny_encoder().spec) | change
    if "preprocess" in change:
        written["preprocess"] = msgspec.to_builtins(tiny_encoder().spec.preprocess) | change["preprocess"]
    spec = msgspec.convert(written, type(tiny_encoder().spec))
    refused(lambda: TextInput(spec, tiny_tokenizer()), words)


def test_vectors_of_two_billion_dimensions() -> None:
    encoder = tiny_encoder()
    spec = msgspec.structs.replace(encoder.spec, dim=2**31 - 1)
    wide = Encoder(name="wide", spec=spec, input=encoder.input, encode=encoder.encode, model=None, shipped={},
                   runtime="numpy", threads=1)  # fmt: skip
    refused(lambda: wide.queries(["cat"]), "2147483647 dimensions")


def test_vectors_of_another_width_than_the_manifest_says() -> None:
    encoder = tiny_encoder()
    spec = msgspec.structs.replace(encoder.spec, dim=1)
    other = Encoder(name="other", spec=spec, input=encoder.input, encode=encoder.encode, model=None, shipped={},
                    runtime="numpy", threads=1)  # fmt: skip
    refused(lambda: other.queries(["cat"]), "gave [1, 32] for 1 items of 1 dimensions")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"intermediate_size": [64]}),
        ("config.json", {"num_attention_heads": 1e30}),
        ("config.json", {"num_hidden_layers": 2**31 - 1}),
        ("config.json", {"hidden_act": {}}),
        ("config.json", {"model_type": {"a": 1}}),
        ("sentence_bert_config.json", {"max_seq_length": "64"}),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_settings_of_another_type(file: str, change: dict[str, Any], tmp_path: Path) -> None:
    tiny_bert(tmp_path, layers=1, width=8, heads=2)
    (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_bytes()) | change))
    refused(lambda: choose.model(tmp_path), str(tmp_path))


@pytest.mark.parametrize("place", ["../outside", "/etc"])
def test_modules_that_lie_elsewhere(place: str, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "model", layers=1, width=8, heads=2)
    modules = json.loads((tmp_path / "model" / "modules.json").read_bytes())
    modules[1]["path"] = place
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    refused(lambda: choose.model(tmp_path / "model"), "which lies outside of the folder")


def test_a_module_whose_name_is_too_long_for_a_folder(tmp_path: Path) -> None:
    tiny_bert(tmp_path, layers=1, width=8, heads=2)
    kinds = {"Transformer": "", "Pooling": "x" * 5000}
    modules = [{"idx": number, "name": str(number), "path": place, "type": f"sentence_transformers.models.{kind}"}
               for number, (kind, place) in enumerate(kinds.items())]  # fmt: skip
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError):
        choose.model(tmp_path)


def test_a_pipe_in_the_place_of_a_network(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    refused(lambda: choose.model(tmp_path / "model.onnx"), "")
    refused(lambda: choose.model(tmp_path), "")


def test_an_operator_whose_name_is_no_text(tmp_path: Path) -> None:
    onnx = plugins.require("onnx")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [onnx.helper.make_tensor_value_info("x", 1, ("N", 3))],
                                   [onnx.helper.make_tensor_value_info("y", 1, ("N", 3))])  # fmt: skip
    content = onnx.helper.make_model(graph).SerializeToString()
    (tmp_path / "model.onnx").write_bytes(content.replace(b"Relu", b"R\xff\xfeu"))
    refused(lambda: choose.model(tmp_path / "model.onnx"), "")


def test_a_fault_of_the_disk_is_not_taken_for_one_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line about a damaged file is not said of an error of the system, nor over an error of ours."""
    tiny_bert(tmp_path, layers=1, width=8, heads=2)
    family = plugins.load("models", "transformer")

    def full(self: object, path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(family, "open", full)
    with pytest.raises(PermissionError):
        choose.model(tmp_path)
    monkeypatch.setattr(family, "open", lambda self, path: (_ for _ in ()).throw(UsageError("ours")))
    with pytest.raises(UsageError, match=r"^ours$"):
        choose.model(tmp_path)
