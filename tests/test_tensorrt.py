"""TensorRT: what its graphs hold, what its own parser and builder say of them, and the code around an engine.

Engines are built here and not run: no test needs a GPU.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from slimseek import choose, integers, plugins
from slimseek.backends._session import open_session
from slimseek.backends._tensorrt import engine as engines
from slimseek.backends._tensorrt import graph as graphs
from slimseek.backends._tensorrt import half as halves
from slimseek.backends._tensorrt.package import MOST_ROWS, Settings, profiles
from slimseek.backends.tensorrt import TensorRt
from slimseek.errors import UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.samples import examples
from slimseek.schema import ActivationQuant, Model, QuantizedTensor, Samples
from small import conv_network, tiny_bert

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed: pip install 'slimseek[tensorrt]'",
)
TEXTS = ["the cat sleeps", "a dog runs through the winter forest near the river", "stone", "engine of stone", "apple"]
Step = tuple[str, dict[str, Any]]
WEIGHTS, INPUTS, FLOAT = "quantize.weights_int", ("quantize.activations_int", {"mode": "static"}), "quantize.float"
GROUPS = {"granularity": "group", "group_size": 24}
FORMS: dict[str, tuple[Step, ...]] = {
    "float32": (),
    "fp16": ((FLOAT, {}),),
    "e4m3": ((FLOAT, {"format": "e4m3"}),),
    "e5m2": ((FLOAT, {"format": "e5m2"}),),
    "int8": ((WEIGHTS, {}),),
    "int8 asymmetric": ((WEIGHTS, {"symmetric": False}),),
    "int8 groups": ((WEIGHTS, GROUPS),),
    "int4 groups": ((WEIGHTS, {"bits": 4, **GROUPS}),),
    "int4 asymmetric groups": ((WEIGHTS, {"bits": 4, "symmetric": False, **GROUPS}),),
    "int6 tensor": ((WEIGHTS, {"bits": 6, "granularity": "tensor", "symmetric": False}),),
    "shared": (("simplify.share", {"bits": 4}),),
    "shared, one book": (("simplify.share", {"bits": 3, "granularity": "tensor"}),),
    "int8 static": ((WEIGHTS, {}), INPUTS),
    "int8 asymmetric static": ((WEIGHTS, {"symmetric": False}), INPUTS),
    "int4 static": ((WEIGHTS, {"bits": 4, **GROUPS}), INPUTS),
}
STATIC = [form for form in FORMS if form.endswith("static")]


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("text") / "tiny"
    tiny_bert(path)
    return choose.model(path)


@pytest.fixture(scope="module")
def picture_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return choose.model(conv_network(tmp_path_factory.mktemp("pictures"))[0])


@pytest.fixture(params=["text", "pictures"])
def original(request: pytest.FixtureRequest) -> Model:
    name = "text_model" if request.param == "text" else "picture_model"
    model: Model = request.getfixturevalue(name)
    return model


def items(model: Model) -> list[str]:
    return TEXTS if model.spec.preprocess is not None else list(examples(model.spec)[:6])


def formed(model: Model, form: str) -> Model:
    samples = Samples(calibration=items(model), texts=items(model))
    for method, given in FORMS[form]:
        model = plugins.load("methods", method)(**given).apply(model, samples)
    return model


def float_graph(model: Model) -> onnx.ModelProto:
    return plugins.load("models", model.spec.family)().to_onnx(model)


def lowered(model: Model) -> onnx.ModelProto:
    return TensorRt().lowered(float_graph(model), model)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# ---------------------------------------------------------------- the graph


@pytest.mark.parametrize(
    ("scale", "zero_point", "expected"),
    [(0.1, 128, 0.1), (0.1, 0, 25.5 / 127), (0.1, 255, 25.5 / 128), (0.1, 100, 15.5 / 127), (0.1, 200, 20.0 / 128)],
)
def test_a_signed_range_covers_the_unsigned_one(scale: float, zero_point: int, expected: float) -> None:
    """Worked by hand: 0.1 around 100 covers -10 to 15.5; a range that is symmetric already keeps its step."""
    found = graphs.symmetric(ActivationQuant(mode="static", scale=scale, zero_point=zero_point))
    assert found.scale == pytest.approx(expected, rel=1e-12)
    assert found.zero_point == 128


@pytest.mark.parametrize("form", FORMS)
def test_the_stand_in_gives_the_vectors_of_the_artifact(original: Model, form: str, tmp_path: Path) -> None:
    model = formed(original, form)
    onnx.save(halves.halved(lowered(model), model), tmp_path / "model.onnx")
    run = TensorRt().stand_in(tmp_path, 1)
    found = choose.assemble("", model.spec, model.files, run, shipped={}, runtime="", threads=1)
    expected = choose.encoder(model, "artifact", 1)
    least = 0.999 if form in STATIC else 1 - 1e-6
    assert cosines(expected.documents(items(model)), found.documents(items(model))).min() >= least


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_holds_what_tensorrt_takes_and_nothing_else(original: Model, form: str) -> None:
    graph = lowered(formed(original, form)).graph
    constants = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert not {np.dtype(np.uint8), np.dtype(ml_dtypes.uint4)} & {array.dtype for array in constants.values()}
    made_by = {node.output[0]: node.op_type for node in graph.node}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    rounded = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert bool(rounded) == (form in STATIC)
    for node in rounded:
        assert not constants[node.input[2]].any()
        [mark] = readers[node.output[0]]
        assert mark.op_type == "DequantizeLinear"
        assert len(readers[mark.output[0]]) == 1, "a pair serves one reader"
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            assert constants[node.input[0]].dtype in (np.int8, ml_dtypes.int4, ml_dtypes.float8_e4m3fn)
            assert len(node.input) < 3 or not constants[node.input[2]].any()
        if node.op_type == "Conv" and len(node.input) > 2:
            assert made_by.get(node.input[2]) in (None, "Cast"), "biases are not rounded"


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("float32", "fp16")])
@needs_rtx
def test_the_package_stores_the_artifacts_integers(
    original: Model, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "CAPABILITIES", ("SM89",))
    model = formed(original, form)
    TensorRt().export(model, tmp_path)
    stored = TensorRt().stored(tmp_path)
    quantized = {name: one for name, one in model.tensors.items() if isinstance(one, QuantizedTensor)}
    assert {name for name in quantized if "pooler" not in name} == set(stored)
    for name, found in stored.items():
        if quantized[name].spec.float8:
            assert np.allclose(found, integers.dequantize(quantized[name]), rtol=1e-6, atol=0)
        else:
            assert found.dtype == quantized[name].integers.dtype
            assert np.array_equal(found, quantized[name].integers), name


@pytest.mark.parametrize("form", ["int8 asymmetric static", "int4 static"])
def test_weights_are_rounded_to_eight_bits_before_an_engine_is_built(original: Model, form: str) -> None:
    model = formed(original, form)
    graph = engines.folded(lowered(model)).graph
    constants = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    made = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    assert all(node.input[0] in made for node in graph.node if node.op_type == "QuantizeLinear")
    assert ml_dtypes.int4 not in {array.dtype.type for name, array in constants.items() if "embeddings" not in name}
    compared = 0
    for node in graph.node:
        name = node.input[1].removesuffix(".int8_scale") if node.op_type == "DequantizeLinear" else ""
        if name in model.tensors and node.input[0] in constants:
            values, scale = integers.dequantize(model.tensors[name]), constants[node.input[1]]
            axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
            found = constants[node.input[0]].astype(np.float32)
            found = found * scale.reshape([-1 if place == axis else 1 for place in range(found.ndim)])
            found = found.T if axis == 1 else found
            half = integers.eight_bit_scale(model.tensors[name]).reshape(-1, *[1] * (values.ndim - 1)) / 2
            assert (np.abs(found - values) <= half * (1 + 1e-5)).all(), name
            compared += 1
    assert compared >= 5


def products_in_half(graph: onnx.ModelProto) -> int:
    halves_of = {constant.name for constant in graph.graph.initializer if constant.data_type == TensorProto.FLOAT16}
    return sum(node.op_type in halves.PRODUCTS and node.input[1] in halves_of for node in graph.graph.node)


def test_products_of_float16_weights_run_in_float16(original: Model) -> None:
    model = formed(original, "fp16")
    assert products_in_half(halves.halved(lowered(model), model)) == (12 if model.spec.preprocess else 5)


def test_products_that_float16_cannot_hold_stay_in_float32(picture_model: Model) -> None:
    """A first bias of 20,000 gives the second layer inputs beyond an eighth of the largest float16 number."""
    model = formed(picture_model, "fp16")
    tensors = dict(model.tensors)
    first = next(name for name, array in tensors.items() if array.shape == (32,))
    tensors[first] = np.full(32, 20000, np.float16)
    model = dataclasses.replace(model, tensors=tensors)
    graph = halves.halved(lowered(model), model)
    assert products_in_half(graph) < 5
    vectors = open_session(graph.SerializeToString(), 1)({"pixels": np.ones((2, 3, 12, 12), np.float32)})
    assert np.isfinite(vectors).all()


# ---------------------------------------------------------------- the parser and the builder


@pytest.mark.parametrize("form", FORMS)
@needs_rtx
def test_tensorrt_rtx_parses_and_builds_an_engine(
    original: Model, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "CAPABILITIES", ("SM89",))
    model = formed(original, form)
    TensorRt().preflight(model)
    TensorRt().export(model, tmp_path)
    settings = msgspec.json.decode((tmp_path / "tensorrt.json").read_bytes(), type=Settings)
    assert settings.built_for == ("SM89",)
    assert settings.engine_bytes > 10_000
    assert settings.refused == {}
    assert settings.checked_with["tensorrt_rtx_cu12"]
    assert settings.precision == ("int8" if form in STATIC else "fp16" if form == "fp16" else "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "tensorrt.json"]


@needs_rtx
def test_eight_bit_floats_are_built_where_gpus_have_them(picture_model: Model, tmp_path: Path) -> None:
    TensorRt().export(formed(picture_model, "e4m3"), tmp_path)
    settings = msgspec.json.decode((tmp_path / "tensorrt.json").read_bytes(), type=Settings)
    assert settings.built_for == ("SM89", "SM120")
    assert set(settings.refused) == {"SM80", "SM86"}
    assert "fp8" in settings.refused["SM80"]


@needs_rtx
def test_few_bits_make_a_smaller_package(picture_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "CAPABILITIES", ("SM89",))
    sizes = {}
    for form in ("float32", "fp16", "int8", "int4 groups"):
        (tmp_path / form).mkdir()
        TensorRt().export(formed(picture_model, form), tmp_path / form)
        graph = onnx.load(tmp_path / form / "model.onnx").graph
        sizes[form] = sum(len(constant.raw_data) for constant in graph.initializer)
    assert sizes["fp16"] < 0.55 * sizes["float32"]
    assert sizes["int8"] < 0.3 * sizes["float32"]
    assert sizes["int4 groups"] < 0.65 * sizes["int8"]


@needs_rtx
def test_an_operator_that_tensorrt_lacks_is_named_before_any_work(tmp_path: Path) -> None:
    """CASES S4."""
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["pixels", "square"], ["squares"]),
            helper.make_node("Det", ["squares"], ["determinant"]),
            helper.make_node("Reshape", ["determinant", "column"], ["columns"]),
            helper.make_node("MatMul", ["columns", "weight"], ["embedding"]),
        ],
        "determinants",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 8])],
        [
            numpy_helper.from_array(np.array([-1, 2, 2]), "square"),
            numpy_helper.from_array(np.array([-1, 1]), "column"),
            numpy_helper.from_array(np.arange(1, 9, dtype=np.float32)[None], "weight"),
        ],
    )
    path = tmp_path / "determinants.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(UsageError, match=r"does not take this model .*Det.*deploy for onnxruntime instead") as caught:
        TensorRt().preflight(choose.model(path))
    one_line(caught.value)


def test_profiles_hold_one_item_and_batches(text_model: Model, picture_model: Model) -> None:
    one, many = profiles(text_model.spec)
    assert set(one) == set(many) == {"input_ids", "attention_mask"}
    assert (one["input_ids"].min, one["input_ids"].opt, one["input_ids"].max) == ((1, 1), (1, 16), (1, 64))
    assert (many["input_ids"].min, many["input_ids"].opt, many["input_ids"].max) == ((2, 1), (32, 64), (32, 64))
    one, many = profiles(picture_model.spec)
    assert one["pixels"].min == one["pixels"].max == (1, 3, 12, 12)
    assert many["pixels"].max == (MOST_ROWS, 3, 12, 12)


# ---------------------------------------------------------------- around the engine


def test_without_the_library_the_reason_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert TensorRt().available() == (
        "neither tensorrt_rtx nor tensorrt is installed; run: pip install 'slimseek[tensorrt]'"
    )
    assert TensorRt().runs() == TensorRt().available()


@needs_rtx
def test_a_package_is_not_opened_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    reason = "this machine has no NVIDIA driver, and TensorRT runs on NVIDIA GPUs only"
    assert TensorRt().runs() == reason
    with pytest.raises(UsageError, match=reason):
        TensorRt().open(tmp_path, 1)


@pytest.mark.parametrize(("capability", "runs"), [((9, 0), False), ((10, 0), False), ((8, 9), True), ((12, 1), True)])
def test_a_gpu_that_the_library_does_not_know_is_named(
    capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(engines, "_devices", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    reason = engines.device(engines.RTX)
    assert (reason is None) == runs
    if reason is not None:
        assert reason.startswith(
            f"TensorRT-RTX does not run on NVIDIA H100, whose compute capability is {capability[0]}.0"
        )
    assert engines.device(engines.CLASSIC) is None


def test_a_batch_is_cut_into_what_an_engine_takes(text_model: Model) -> None:
    seen = []

    def run(batch: dict[str, np.ndarray], profile: int) -> np.ndarray:
        seen.append((len(batch["input_ids"]), profile))
        return batch["input_ids"][:, :1].astype(np.float32)

    encode = engines.in_parts(run, profiles(text_model.spec))
    ids = np.arange(65)[:, None].repeat(7, 1)
    assert np.array_equal(encode({"input_ids": ids, "attention_mask": ids})[:, 0], np.arange(65))
    assert seen == [(32, 1), (32, 1), (1, 0)]
    long = np.zeros((1, 65), np.int64)
    with pytest.raises(UsageError, match=r"input_ids has rows of shape \[65\]; the package takes at most \[64\]"):
        encode({"input_ids": long, "attention_mask": long})


class PretendedContext:
    """Reads and writes the addresses that it is given, as an engine would, and computes by ONNX Runtime."""

    def __init__(self, graph: onnx.ModelProto, width: int) -> None:
        self.run, self.width = open_session(graph.SerializeToString(), 1), width
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.output = graph.graph.output[0].name
        self.profile: int | None = None

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        self.profile = number
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == self.output
        return next(iter(self.shapes.values()))[0], self.width

    def execute_async_v3(self, stream: int) -> bool:
        batch = {}
        for name, shape in self.shapes.items():
            held = (ctypes.c_int64 * int(np.prod(shape))).from_address(self.addresses[name])
            batch[name] = np.ctypeslib.as_array(held).reshape(shape).copy()
        vectors = np.ascontiguousarray(self.run(batch))
        ctypes.memmove(self.addresses[self.output], vectors.ctypes.data, vectors.nbytes)
        return True


@needs_rtx
def test_an_engine_gets_its_shapes_and_addresses(
    text_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real code around an engine, with memory of the CPU and a context that computes there."""
    torch = plugins.require("torch")
    graph = lowered(text_model)
    made: list[PretendedContext] = []

    def context() -> PretendedContext:
        made.append(PretendedContext(graph, text_model.spec.dim))
        return made[-1]

    real = plugins.require("tensorrt_rtx")
    opened = SimpleNamespace(create_execution_context=context)
    runtime = SimpleNamespace(
        ILogger=real.ILogger, __version__="0", Runtime=lambda logger: SimpleNamespace(
            deserialize_cuda_engine=lambda content: opened if content == b"engine" else None
        ),
    )  # fmt: skip
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
    monkeypatch.setattr(engines, "DEVICE", "cpu")
    monkeypatch.setattr(engines, "build", lambda graph, profiles, library: b"engine")
    monkeypatch.setattr(engines, "require", lambda name: torch if name == "torch" else runtime)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    settings = Settings(precision="float32", profiles=profiles(text_model.spec), checked_with={}, built_for=(),
                        engine_bytes=0, refused={}, weights={})  # fmt: skip
    run = engines.runner(graph, settings, "tensorrt_rtx")
    assert [one.profile for one in made] == [0, 1]
    found = choose.assemble("", text_model.spec, text_model.files, run, shipped={}, runtime="", threads=1)
    expected = choose.encoder(text_model, "artifact", 1)
    assert cosines(expected.documents(TEXTS), found.documents(TEXTS)).min() > 1 - 1e-6
    assert cosines(expected.documents(TEXTS[:1]), found.documents(TEXTS[:1])).min() > 1 - 1e-6
    monkeypatch.setattr(engines, "build", lambda graph, profiles, library: b"broken")
    with pytest.raises(UsageError, match="TensorRT-RTX 0 cannot open its engine here"):
        engines.runner(graph, settings, "tensorrt_rtx")


@needs_rtx
def test_the_script_for_owners_of_a_gpu_rehearses_without_one(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "tiny")
    script = Path(__file__).parent.parent / "benchmarks" / "verify_tensorrt.py"
    command = [sys.executable, str(script), "--model", str(tmp_path / "tiny"), "--out", str(tmp_path / "found.json")]
    done = subprocess.run([*command, "--rehearse", "--threads", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode((tmp_path / "found.json").read_bytes())
    assert found["ran on"] == "stand-ins"
    assert set(found["packages"]) == {"float32", "fp16", "int8"}
    assert found["packages"]["float32"]["against the artifact"]["cosine_min"] > 0.9999
    assert len(found["seconds"]) == 4
    if TensorRt().runs() is not None:
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "nothing was verified: " in refused.stderr
