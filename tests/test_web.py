"""Packages for the web: the graph of onnxruntime in WebAssembly, Python's tokens, Python's hits, in node and a browser."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from typer.testing import CliRunner

from slimseek import choose, cli, deploy, folder, integers, plugins, search
from slimseek.backends import _web, _web_node
from slimseek.errors import UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.samples import examples
from slimseek.inputs.text import TOKENIZER, TextInput, bucket
from slimseek.schema import Array, KeptIndex, Model, QuantizedTensor, Samples, TextPreprocess
from small import CORPUS, Page, bare, conv_network, packaged, tiny_bert, tiny_collection, tiny_model

WEB = plugins.load("backends", "web")()
REASON = WEB.runs()
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECONDS = 120
SAMPLES = Samples(calibration=list(CORPUS.values()), texts=list(CORPUS.values()))
QUERIES = ("a cat on the bridge", "winter", "stone engine near a river", "Apple?")
SHARED = Path(__file__).parents[2] / "shared" / "data"
in_node = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def step(name: str, samples: Samples = SAMPLES, **parameters: object) -> Any:
    return lambda model: plugins.load("methods", name)(**parameters).apply(model, samples)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def small(original: Model) -> Model:
    return step("quantize.activations_int", mode="static")(step("quantize.weights_int")(original))


@pytest.fixture
def deployed(tmp_path: Path) -> Path:
    """A package with the six documents in it, by the command line."""
    tiny_bert(tmp_path / "m")
    tiny_collection(tmp_path / "data")
    arguments = ["deploy", tmp_path / "m", "--target", "web", "--data", tmp_path / "data", "--out", tmp_path / "out"]
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert f"next: python3 -m http.server --directory {tmp_path / 'out'}" in done.output
    return tmp_path / "out"


# ---------------------------------------------------------------- what is here


def test_without_the_modules_the_command_that_brings_them_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLIMSEEK_WEB_MODULES", str(tmp_path / "none"))
    pinned = json.loads(_web.page_file("package.json").read_text())["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in pinned.values())
    assert WEB.available() == (
        f"onnxruntime-web and @huggingface/tokenizers not found in {tmp_path / 'none'}; run: npm install --prefix "
        f"{tmp_path / 'none'} onnxruntime-web@{pinned['onnxruntime-web']} "
        f"@huggingface/tokenizers@{pinned['@huggingface/tokenizers']}"
    )
    with pytest.raises(UsageError, match=r"target web does not work here: .*npm install"):
        deploy.deploy("nowhere", "web", tmp_path / "out")


def test_a_module_that_lacks_a_file_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLIMSEEK_WEB_MODULES", str(tmp_path))
    for module, files in _web.COPIED.items():
        for file in ("package.json", *files):
            path = tmp_path / "node_modules" / module / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"version": "1.2.3"}')
    assert WEB.available() is None
    assert _web.installed() == dict.fromkeys(_web.COPIED, "1.2.3")
    (tmp_path / "node_modules" / "onnxruntime-web" / "dist" / _web.RUNTIME).unlink()
    assert str(WEB.available()).startswith("onnxruntime-web not found in ")


@in_node
def test_without_node_a_package_is_written_and_its_stand_in_is_the_native_runtime(
    small: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert WEB.available() is None
    assert WEB.runs() == "node is not installed; install Node.js 20 or newer"
    (tmp_path / "package").mkdir()
    WEB.export(small, tmp_path / "package")
    with pytest.raises(UsageError, match="node is not installed"):
        WEB.open(tmp_path / "package", 1)
    run = WEB.stand_in(tmp_path / "package", 1)
    encoder = choose.assemble("web", small.spec, small.files, run, shipped={}, runtime="web", threads=1)
    assert cosines(choose.encoder(small, "artifact", 1).documents(QUERIES), encoder.documents(QUERIES)).min() > 0.99


# ---------------------------------------------------------------- the graph

FORMS = {
    "e4m3": [step("quantize.float", format="e4m3")],
    "bf16": [step("quantize.float", format="bf16")],
    "planes of 2": [step("quantize.weights_int", bits=2, granularity="group", group_size=20, symmetric=False)],
    "planes of 5": [step("quantize.weights_int", bits=5)],
    "code book": [step("simplify.share", bits=4)],
    "static": [step("quantize.weights_int"), step("quantize.activations_int", mode="static")],
    "mask, static": [step("prune.weights", ratio=0.9), step("quantize.weights_int"),
                     step("quantize.activations_int", mode="static")],
}  # fmt: skip


@in_node
@pytest.mark.parametrize("form", FORMS)
def test_the_graph_is_that_of_onnxruntime_and_its_vectors_too(form: str, original: Model, tmp_path: Path) -> None:
    """Forms beyond those of test_backends; the same bytes, so that every size and integer is the same."""
    model = tiny_model(tmp_path / "wide", width=128) if form.startswith("mask") else original
    for apply in FORMS[form]:
        model = apply(model)
    native, web = packaged(model, "onnxruntime", tmp_path / "native"), packaged(model, "web", tmp_path / "web")
    assert (tmp_path / "web" / "model.onnx").read_bytes() == (tmp_path / "native" / "model.onnx").read_bytes()
    assert cosines(native.documents(QUERIES), web.documents(QUERIES)).min() > 1 - 1e-6
    stored = WEB.stored(tmp_path / "web")
    quantized = [name for name, tensor in model.tensors.items() if isinstance(tensor, QuantizedTensor)]
    for name in quantized:
        if integers.is_integer(model.tensors[name]) and name in stored:
            shift = 128 if stored[name].dtype != model.tensors[name].integers.dtype else 0
            assert np.array_equal(stored[name].astype(int) - shift, model.tensors[name].integers), name
    assert len(stored) >= 12 or form == "bf16"


@in_node
@pytest.mark.parametrize("kind", ["MPNet", "ModernBert"])
def test_other_families_run(kind: str, tmp_path: Path) -> None:
    bare(tmp_path / kind, kind)
    model = choose.model(tmp_path / kind)
    expected = choose.encoder(model, "artifact", 1).documents(QUERIES)
    assert cosines(expected, packaged(model, "web", tmp_path / "web").documents(QUERIES)).min() > 0.99999


@in_node
def test_a_model_of_arrays_runs_though_the_page_has_no_box_for_them(tmp_path: Path) -> None:
    model = choose.model(conv_network(tmp_path)[0])
    items = examples(model.spec)
    samples = Samples(calibration=items, texts=items)
    model = step("quantize.activations_int", samples, mode="static")(step("quantize.weights_int", samples)(model))
    native, web = packaged(model, "onnxruntime", tmp_path / "native"), packaged(model, "web", tmp_path / "web")
    assert cosines(native.documents(items), web.documents(items)).min() > 1 - 1e-6
    assert json.loads((tmp_path / "web" / "page.json").read_text())["text"] is None


@in_node
def test_a_graph_that_the_runtime_does_not_take_gives_one_line(small: Model, tmp_path: Path) -> None:
    WEB.export(small, tmp_path)
    whole = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"^onnxruntime-web cannot run .*; deploy for onnxruntime instead$") as caught:
        WEB.open(tmp_path, 1)
    assert "\n" not in str(caught.value)


@in_node
def test_a_wrong_input_gives_one_line_and_the_process_goes_on(small: Model, tmp_path: Path) -> None:
    run = packaged(small, "web", tmp_path).encode
    ids = np.ones((1, 4), np.int64)
    with pytest.raises(UsageError, match="onnxruntime-web cannot run"):
        run({"input_ids": ids})
    assert run({"input_ids": ids, "attention_mask": ids}).shape == (1, 32)


@in_node
def test_the_process_ends_with_its_encoder(small: Model, tmp_path: Path) -> None:
    WEB.export(small, tmp_path)
    node = _web_node.Node(tmp_path)
    process = node._process
    assert process.poll() is None
    del node
    assert process.wait(timeout=10) is not None


def test_a_model_that_no_page_can_hold_is_refused(original: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_web, "MOST_BYTES", 1000)
    with pytest.raises(UsageError, match=r"^web: the weights take .* GiB; a page can load 1 GiB"):
        WEB.preflight(original)


# ---------------------------------------------------------------- tokens


def ids_in_node(tokenizer: Tokenizer, texts: list[str], place: Path, longest: int) -> tuple[Any, Any]:
    """Token ids by Python and by the page; no model is run."""
    place.mkdir(exist_ok=True)
    spec = dataclasses.replace  # noqa: F841
    return None, None
