"""Paddle Lite: the second interpreter and what may happen to it, the file formats, packages of every kind."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from slimseek import choose, deploy, integers, plugins, setup
from slimseek.backends._paddlelite import format as formats
from slimseek.backends._paddlelite import package, weights
from slimseek.backends._paddlelite.process import Worker
from slimseek.errors import UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.samples import examples
from slimseek.plugins import require
from slimseek.schema import Model, QuantizedTensor, QuantSpec, Samples
from small import bare, conv_network, packaged, tiny_model

TEXTS = ["the cat sleeps", "a dog runs through the winter forest near the river", "stone", "apple"]
REASON = setup.missing("paddlelite")
needs_interpreter = pytest.mark.skipif(REASON is not None, reason=str(REASON))
RESNET8 = Path(__file__).parent.parent.parent / "shared" / "data" / "tinymodels" / "resnet8_cifar10.onnx"
ONNX_IN = Path(__file__).parent / "data" / "onnx_in"
FAKE = """
import json, os, sys, time
for line in sys.stdin.buffer:
    order = json.loads(line)
    if order["do"] == "abort":
        sys.stderr.write("[F 11/26 10: 2: 2.433 x.cc:326 Add] Check failed: no kernel\\nlast line\\n")
        sys.stderr.flush()
        os.abort()
    if order["do"] == "sleep":
        time.sleep(60)
    if order["do"] == "fail":
        answer = {"error": "ValueError: two\\nlines"}
    else:
        held = sys.stdin.buffer.read(8 * sum(shape[0] for _, _, shape in order["arrays"]))
        answer = {"process": os.getpid()}
    arrays = [["vector", "float64", [len(held) // 8]]] if order["do"] == "echo" else []
    sys.stdout.buffer.write(json.dumps(dict(answer, arrays=arrays)).encode() + b"\\n" + (held if arrays else b""))
    sys.stdout.buffer.flush()
"""


def fake(folder: Path) -> Worker:
    """A worker that answers without the library."""
    script = folder / "fake.py"
    script.write_text(FAKE)
    return Worker(Path(sys.executable), script)


def method(name: str, model: Model, items: list[str], **parameters: object) -> Model:
    return plugins.load("methods", name)(**parameters).apply(model, Samples(calibration=items, texts=items))


# ---------------------------------------------------------------- the process


def test_arrays_go_to_the_worker_and_back(tmp_path: Path) -> None:
    worker = fake(tmp_path)
    given = np.arange(5, dtype=np.float64)
    _, arrays = worker.ask({"do": "echo"}, {"x": given}, seconds=20)
    assert np.array_equal(arrays["vector"], given)
    assert worker.ask({"do": "echo"}, {"x": given}, seconds=20)[0]["process"]
    assert worker.started == 1
    worker.close()
    assert not worker.alive


def test_an_abort_is_one_line_and_the_next_order_starts_another_process(tmp_path: Path) -> None:
    worker = fake(tmp_path)
    first = worker.ask({"do": "who"}, seconds=20)[0]["process"]
    with pytest.raises(UsageError, match=r"^Paddle Lite ended while it did abort: Check failed: no kernel$"):
        worker.ask({"do": "abort"}, seconds=20)
    assert not worker.alive
    assert worker.ask({"do": "who"}, seconds=20)[0]["process"] != first
    assert worker.started == 2
    worker.close()


def test_an_order_that_takes_too_long_ends_the_process(tmp_path: Path) -> None:
    worker = fake(tmp_path)
    process = worker.ask({"do": "who"}, seconds=20)[0]["process"]
    with pytest.raises(UsageError, match=r"no answer in 0\.5 s"):
        worker.ask({"do": "sleep"}, seconds=0.5)
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the process is still there")


def test_an_error_of_the_worker_is_one_line_and_the_process_lives(tmp_path: Path) -> None:
    worker = fake(tmp_path)
    with pytest.raises(UsageError, match=r"^Paddle Lite: fail failed: ValueError: two lines$"):
        worker.ask({"do": "fail"}, seconds=20)
    assert worker.alive
    worker.close()


def test_an_interpreter_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not start: No such file"):
        Worker(tmp_path / "python").ask({"do": "version"}, seconds=5)


def test_the_reason_and_the_remedy_where_there_is_no_interpreter(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delenv("SLIMSEEK_PADDLELITE_PYTHON", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    reason = plugins.load("backends", "paddlelite")().available()
    assert reason == "no CPython 3.8 to 3.10 with paddlelite; run: slimseek setup paddlelite"
    monkeypatch.setenv("SLIMSEEK_PADDLELITE_PYTHON", sys.executable)  # a Python, without the library
    assert plugins.load("backends", "paddlelite")().available() == reason


def test_setup_refuses_unknown_targets_and_other_interpreters(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="unknown target 'abacus'; slimseek setup knows: paddlelite, paddle"):
        setup.install("abacus")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    with pytest.raises(UsageError, match=f"is {version}"):
        setup.install("paddlelite", sys.executable)
    (tmp_path / "slimseek" / "paddlelite").mkdir(parents=True)
    monkeypatch.setattr(setup, "_version", lambda interpreter: "3.10")
    with pytest.raises(UsageError, match="is no virtual environment"):
        setup.install("paddlelite", sys.executable)


# ---------------------------------------------------------------- formats


def test_a_program_is_the_protobuf_of_paddle() -> None:
    """Bytes worked out by hand from framework.proto."""
    operator = formats.Operator(kind="relu", inputs={"X": ["a"]}, outputs={"Out": ["b"]}, attributes={"axis": -1})
    written = formats._prefixed(operator)
    expected = (
        b"\x0a\x08\x0a\x01X\x12\x03x.a" + b"\x12\x0a\x0a\x03Out\x12\x03x.b" + b"\x1a\x04relu"
        + b"\x22\x13\x0a\x04axis\x10\x00\x18" + b"\xff" * 9 + b"\x01"
    )  # fmt: skip
    assert written == expected


def test_parameters_are_written_in_the_order_of_their_names() -> None:
    arrays = {"b": np.zeros((2, 3), np.int8), "a": np.ones(2, np.float32)}
    held = b"".join(formats.parameters_file(arrays))
    head = b"\0" * 16
    first = head + b"\x04\0\0\0" + b"\x08\x05\x10\x02" + np.ones(2, np.float32).tobytes()
    assert held == first + head + b"\x06\0\0\0" + b"\x08\x15\x10\x02\x10\x03" + b"\0" * 6


def test_constants_that_grow_are_fed_their_part() -> None:
    fed = package.Fed(whole=np.arange(8).reshape(1, 8), axes=(package.BATCH, package.LENGTH))
    assert np.array_equal(package.part(fed, 2, 3), [[0, 1, 2], [0, 1, 2]])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("bits", "granularity"), [(8, "channel"), (8, "tensor"), (4, "channel"), (4, "group"), (8, "group")]
)
def test_weights_are_the_artifacts_or_half_a_step_away(bits: int, granularity: str, symmetric: bool) -> None:
    spec = QuantSpec(bits=bits, granularity=granularity, group_size=16 if granularity == "group" else None,
                     symmetric=symmetric)  # fmt: skip
    values = np.random.default_rng(0).standard_normal((24, 40)).astype(np.float32)
    tensor = integers.quantize(values, spec)
    kept = weights.stored(tensor, 0)
    expected = integers.dequantize(tensor)
    found = weights.values(kept.integers, kept.scale, 0)
    if granularity != "group" and (symmetric or bits < 8):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (np.abs(found - expected) <= kept.scale[:, None] * 0.5001).all()
    if kept.exact:
        assert np.array_equal(kept.integers, tensor.integers)
    assert kept.exact == (symmetric and granularity != "group")


def test_no_pair_of_products_leaves_sixteen_bits() -> None:
    """The library adds two products of an input, 1 to 127, and a weight in 16 bits."""
    products = require("slimseek.backends._paddlelite.products")
    largest_input = 128 - products.LOWEST + products.LEVELS
    assert largest_input == 127
    assert 2 * largest_input * 127 < 2**15
    assert 2 * (largest_input + 3) * 127 > 2**15


# ---------------------------------------------------------------- packages


@needs_interpreter
@pytest.mark.parametrize(
    ("form", "bits"), [({}, 8), ({"bits": 4}, 8), ({"symmetric": False}, 8), ({"granularity": "tensor"}, 8)]
)
def test_the_package_stores_the_artifacts_integers(tmp_path: Path, form: dict[str, object], bits: int) -> None:
    model = method("quantize.weights_int", tiny_model(tmp_path / "m"), TEXTS, **form)
    packaged(model, "paddlelite", tmp_path / "p")
    stored = plugins.load("backends", "paddlelite")().stored(tmp_path / "p")
    compared = 0
    for layer in model.layers:
        tensor = model.tensors[layer.weight]
        assert isinstance(tensor, QuantizedTensor)
        if "pooler" in layer.name:
            continue
        found = stored[layer.weight]
        if found.dtype == np.float32:
            assert not tensor.spec.symmetric
            expected = integers.dequantize(tensor)
            assert np.abs(found - expected).max() <= np.abs(expected).max() / 127 * 0.5001
        else:
            assert np.array_equal(found, tensor.integers)
            compared += 1
    assert compared >= (3 if "symmetric" in form else 15)


@needs_interpreter
def test_few_bits_make_a_small_file(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m", width=128, layers=2)
    sizes = {}
    for name, steps in {"float": (), "fp16": ("quantize.float",), "int8": ("quantize.weights_int",)}.items():
        changed = model
        for step in steps:
            changed = method(step, changed, TEXTS)
        packaged(changed, "paddlelite", tmp_path / name)
        sizes[name] = (tmp_path / name / "model.nb").stat().st_size
    weights_of = sum(tensor.size for tensor in model.tensors.values() if getattr(tensor, "ndim", 0) == 2)
    assert sizes["float"] - sizes["fp16"] > 1.5 * weights_of
    assert sizes["float"] - sizes["int8"] > 2.3 * weights_of


@needs_interpreter
def test_any_batch_and_length_and_what_is_too_long(tmp_path: Path) -> None:
    model = method("quantize.weights_int", tiny_model(tmp_path / "m"), TEXTS)
    found, expected = packaged(model, "paddlelite", tmp_path / "p"), choose.encoder(model, "artifact", 1)
    random = np.random.default_rng(0)
    for count, length in [(1, 1), (3, 17), (1, 64), (8, 2), (3, 17)]:
        ids = random.integers(5, 60, (count, length))
        batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        assert cosines(expected.encode(batch), found.encode(batch)).min() > 0.99999
    assert found.encode({"input_ids": ids[:0], "attention_mask": ids[:0]}).shape == (0, 32)
    long = np.ones((1, 65), np.int64)
    with pytest.raises(UsageError, match="a row has 65 tokens; the package takes at most 64"):
        found.encode({"input_ids": long, "attention_mask": long})


@needs_interpreter
def test_a_crash_while_it_runs_is_one_line_and_the_next_call_works(tmp_path: Path) -> None:
    """A token that the table does not have makes the library abort or read what lies behind; a wrong rank aborts."""
    encoder = packaged(tiny_model(tmp_path / "m"), "paddlelite", tmp_path / "p")
    before = encoder.documents(TEXTS)
    bad = np.ones((2, 3, 2), np.int64)
    with pytest.raises(UsageError, match="Paddle Lite"):
        encoder.encode({"input_ids": bad, "attention_mask": bad})
    assert np.array_equal(encoder.documents(TEXTS), before)


@needs_interpreter
def test_a_static_convolution_runs_on_integers(tmp_path: Path) -> None:
    path, _ = conv_network(tmp_path)
    model = choose.model(path)
    items = list(examples(model.spec))
    model = method("quantize.weights_int", model, items)
    model = method("quantize.activations_int", model, items, mode="static")
    found = packaged(model, "paddlelite", tmp_path / "p").documents(items)
    assert cosines(choose.encoder(model, "artifact", 1).documents(items), found).min() > 0.99
    parameters, scales = require("slimseek.backends._paddlelite.nb").read(tmp_path / "p" / "model.nb")
    kernels = [layer.weight for layer in model.layers if layer.kind == "convolution"]
    assert len(kernels) == 3
    assert all(parameters[name].dtype == np.int8 and name in scales for name in kernels)
    stored = plugins.load("backends", "paddlelite")().stored(tmp_path / "p")
    for name in kernels:
        tensor = model.tensors[name]
        assert isinstance(tensor, QuantizedTensor)
        assert np.array_equal(stored[name], tensor.integers)


@needs_interpreter
@pytest.mark.parametrize("kind", ["texts", "convolutions"])
def test_a_file_for_arm_has_the_same_integers_and_counts_for_nothing_here(kind: str, tmp_path: Path) -> None:
    """It is never run; its kernels are those of the target 4, arm, in the library's list, where 2 is x86."""
    model = tiny_model(tmp_path / "m") if kind == "texts" else choose.model(conv_network(tmp_path / "m")[0])
    items = list(examples(model.spec))
    for step in ("quantize.weights_int", "quantize.activations_int"):
        model = method(step, model, items)
    place = tmp_path / "p"
    place.mkdir()
    written = deploy.export(model, "paddlelite", place)
    read = require("slimseek.backends._paddlelite.nb").read
    here, there = read(place / "model.nb")[0], read(place / "model.arm.nb")[0]
    rounded = [name for name, array in here.items() if array.dtype in (np.int8, np.uint8)]
    assert len(rounded) >= 3
    assert all(np.array_equal(here[name], there[name]) for name in rounded)
    for name, mine, other in (("model.nb", b"2", b"4"), ("model.arm.nb", b"4", b"2")):
        targets = set(re.findall(rb"/\w+/(\d)/\d/\d", (place / name).read_bytes()))
        assert mine in targets
        assert other not in targets
    sizes = {entry.path: entry.bytes for entry in written.files}
    rest = sum(size for name, size in sizes.items() if name != "model.arm.nb") + (place / "package.json").stat().st_size
    assert sum(choose.choose(place, 1).shipped.values()) == rest
    assert sizes["model.arm.nb"] < 1.1 * sizes["model.nb"]
    assert require("msgspec").json.decode((place / "paddlelite.json").read_bytes())["not_executed"] == ["model.arm.nb"]


@needs_interpreter
def test_what_has_no_kernel_for_arm_has_the_reason_and_a_file_for_x86(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library ends its process over a file that is not there, as over a kernel that it does not have."""
    backend = require(plugins.load("backends", "paddlelite").__module__)
    built = backend._built

    def without_arm(order: dict[str, object]) -> None:
        built(order | {"parameters": "none"} if order["for"] == "ARM" else order)

    monkeypatch.setattr(backend, "_built", without_arm)
    found = packaged(choose.model(ONNX_IN / "sklearn_mlp.onnx"), "paddlelite", tmp_path)
    assert np.isfinite(found.documents(list(examples(found.spec))[:2])).all()
    assert not (tmp_path / "model.arm.nb").exists()
    settings = require("msgspec").json.decode((tmp_path / "paddlelite.json").read_bytes())
    assert settings["not_executed"] == []
    assert settings["no_arm"].startswith("Paddle Lite")


@needs_interpreter
@pytest.mark.parametrize("kind", ["MPNet", "DistilBert"])
def test_other_text_encoders(kind: str, tmp_path: Path) -> None:
    """MPNet counts its positions and looks up distances of a table that grows with the text."""
    (tmp_path / "m").mkdir()
    bare(tmp_path / "m", kind)
    model = choose.model(tmp_path / "m")
    found = packaged(model, "paddlelite", tmp_path / "p").documents(TEXTS)
    assert cosines(choose.encoder(model, "artifact", 1).documents(TEXTS), found).min() > 0.99999


@needs_interpreter
@pytest.mark.parametrize(
    "name", ["keras_attention", "keras_convolutions", "keras_flat", "keras_words", "paddle_convolutions",
             "paddle_words", "sklearn_linear", "sklearn_logistic", "sklearn_mlp", "sklearn_pca"],
)  # fmt: skip
def test_networks_of_other_frameworks(name: str, tmp_path: Path) -> None:
    model = choose.model(ONNX_IN / f"{name}.onnx")
    items = list(examples(model.spec))[:4]
    found = packaged(model, "paddlelite", tmp_path).documents(items)
    assert cosines(choose.encoder(model, "artifact", 1).documents(items), found).min() > 0.99999


def test_operators_without_a_form_are_refused_before_any_work() -> None:
    model = choose.model(ONNX_IN / "keras_gru.onnx")
    with pytest.raises(UsageError, match="no form for Loop here; deploy for onnxruntime instead"):
        plugins.load("backends", "paddlelite")().preflight(model)


@needs_interpreter
@pytest.mark.skipif(not RESNET8.is_file(), reason="shared/data/tinymodels is missing")
def test_a_real_network(tmp_path: Path) -> None:
    model = choose.model(RESNET8)
    items = list(examples(model.spec))
    model = method("quantize.weights_int", model, items)
    found = packaged(model, "paddlelite", tmp_path).documents(items)
    assert cosines(choose.encoder(model, "artifact", 1).documents(items), found).min() > 0.99999
    assert (tmp_path / "model.nb").stat().st_size < 0.4 * RESNET8.stat().st_size


PADDLE = Path(__file__).parent / "data" / "paddle"


@pytest.mark.skipif(setup.missing("paddle") is not None, reason=str(setup.missing("paddle")))
def test_a_model_of_paddlepaddle_comes_in(tmp_path: Path) -> None:
    """``net`` is a random Conv2D, BatchNorm2D, ReLU, AdaptiveAvgPool2D, Flatten and Linear, saved by paddle.jit.save of
    PaddlePaddle 2.6.2, its stacks of calls taken out; ``net.npz`` holds items and what PaddlePaddle gives for them.
    """
    setup.paddle_to_onnx(PADDLE / "net.pdmodel", tmp_path / "net.onnx")
    with np.load(PADDLE / "net.npz") as held:
        found = choose.choose(tmp_path / "net.onnx", 1).encode({"pixels": held["pixels"]})
        np.testing.assert_array_equal(
            choose.choose(PADDLE / "net.pdmodel", 1).encode({"pixels": held["pixels"]}), found
        )
        expected = held["expected"] / np.linalg.norm(held["expected"], axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_model_of_paddlepaddle_without_its_parameters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pdmodel").write_bytes(b"")
    with pytest.raises(UsageError, match=r"there is no .*net\.pdiparams; a model of PaddlePaddle is"):
        setup.paddle_to_onnx(tmp_path / "net.pdmodel", tmp_path / "net.onnx")


def test_a_file_that_is_no_nb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.nb").write_bytes(b"\1\0nothing")
    with pytest.raises(UsageError, match=r"is not a \.nb file of Paddle Lite"):
        require("slimseek.backends._paddlelite.nb").read(tmp_path / "model.nb")
