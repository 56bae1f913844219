"""LiteRT: the artifact's integers in the file, the artifact's vectors out of it, at every length and batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from slimseek import choose, deploy, integers, plugins
from slimseek.errors import ArtifactError, UsageError
from slimseek.evaluate import cosines
from slimseek.plugins import require
from slimseek.schema import Array, Model, QuantizedTensor, Samples
from small import KINDS, bare, conv_network, packaged, tiny_model

interpreters = pytest.importorskip("ai_edge_litert.interpreter")
files = require("slimseek.backends._litert.file")
weights = require("slimseek.backends._litert.weights")

TEXTS = ["the cat sleeps", "a dog runs through the winter forest near the river", "stone", "engine of stone"]
SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
FILE = "model.tflite"
EXACT: dict[str, dict[str, Any]] = {
    "int8 channel": {},
    "int8 tensor": {"granularity": "tensor"},
    "int8 asymmetric": {"symmetric": False},
    "int8 group": {"granularity": "group", "group_size": 16},
    "int6 channel": {"bits": 6},
    "int4 channel": {"bits": 4},
    "int4 asymmetric": {"bits": 4, "granularity": "group", "group_size": 16, "symmetric": False},
    "int4 odd group": {"bits": 4, "granularity": "group", "group_size": 24},
    "int3 group": {"bits": 3, "granularity": "group", "group_size": 16},
    "int2 channel": {"bits": 2},
    "int2 asymmetric": {"bits": 2, "symmetric": False},
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return choose.model(conv_network(tmp_path_factory.mktemp("net") / "net")[0])


def applied(model: Model, method: str, samples: Samples = SAMPLES, **parameters: Any) -> Model:
    changed: Model = plugins.load("methods", method)(**parameters).apply(model, samples)
    return changed


def quantized(model: Model, mode: str = "", samples: Samples = SAMPLES, **parameters: Any) -> Model:
    model = applied(model, "quantize.weights_int", samples, skip=("pooler",), **parameters)
    return applied(model, "quantize.activations_int", samples, mode=mode) if mode else model


def backend() -> Any:
    return plugins.load("backends", "litert")()


def operators(folder: Path) -> Counter[str]:
    interpreter = interpreters.Interpreter(
        model_path=str(folder / FILE),
        experimental_op_resolver_type=interpreters.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    return Counter(one["op_name"] for one in interpreter._get_ops_details())


def random_pictures(count: int) -> dict[str, Array]:
    return {"pixels": np.random.default_rng(0).standard_normal((count, 3, 12, 12)).astype(np.float32)}


@pytest.mark.parametrize("form", EXACT)
def test_the_file_holds_the_artifacts_integers_and_computes_with_them(
    original: Model, form: str, tmp_path: Path
) -> None:
    model = quantized(original, **EXACT[form])
    found = packaged(model, "litert", tmp_path).documents(TEXTS)
    np.testing.assert_allclose(found, choose.encoder(model, "artifact", 1).documents(TEXTS), atol=1e-5)
    stored = backend().stored(tmp_path)
    compared = [name for name, tensor in model.tensors.items() if isinstance(tensor, QuantizedTensor)]
    assert len(compared) >= 12
    for name in compared:
        tensor = model.tensors[name]
        assert isinstance(tensor, QuantizedTensor)
        assert stored[name].dtype == tensor.integers.dtype
        assert np.array_equal(stored[name], tensor.integers), name


@pytest.mark.parametrize("parameters", [{"bits": 4, "granularity": "group", "group_size": 16}, {"symmetric": False}])
def test_what_meets_rounded_inputs_is_within_half_a_step_of_eight_bits(
    original: Model, parameters: dict[str, Any], tmp_path: Path
) -> None:
    model = quantized(original, "static", **parameters)
    packaged(model, "litert", tmp_path)
    stored = backend().stored(tmp_path)
    assert len(model.activations) == 12
    for name in model.activations:
        tensor = model.tensors[name]
        assert isinstance(tensor, QuantizedTensor)
        step = integers.eight_bit_scale(tensor)[:, None]
        assert stored[name].dtype == np.float32
        assert (np.abs(stored[name] - integers.dequantize(tensor)) <= step * 0.5001).all()


def test_a_static_range_is_the_runtimes_own_and_linear_layers_run_on_integers(original: Model, tmp_path: Path) -> None:
    """Without the two columns of the range's ends, rows are rounded to ranges of their own: cosine 0.998."""
    model = quantized(original, "static")
    found = packaged(model, "litert", tmp_path).documents(TEXTS)
    assert cosines(choose.encoder(model, "artifact", 1).documents(TEXTS), found).min() > 0.99999
    tensors, _ = files.read_tensors(tmp_path / FILE)
    name = next(iter(model.activations))
    held, _ = tensors[f"{name}@0_1"]
    tensor = model.tensors[name]
    assert isinstance(tensor, QuantizedTensor)
    assert held.dtype == np.int8
    assert np.array_equal(held, np.pad(tensor.integers, ((0, 0), (0, 2))))
    assert operators(tmp_path)["DEQUANTIZE"] == 0, "no weight becomes a float"


def test_fewer_bits_take_fewer_bytes(original: Model, tmp_path: Path) -> None:
    sizes = []
    for bits in (8, 4, 2):
        folder = tmp_path / str(bits)
        packaged(quantized(original, bits=bits), "litert", folder)
        sizes.append((folder / FILE).stat().st_size)
    packaged(original, "litert", tmp_path / "float")
    count = sum(tensor.size for name, tensor in original.tensors.items() if "pooler" not in name and tensor.ndim == 2)  # type: ignore[union-attr]
    whole = (tmp_path / "float" / FILE).stat().st_size
    assert whole - sizes[0] > 2.5 * count, "three bytes of four, less scales"
    assert sizes[0] - sizes[1] == pytest.approx(count / 2, rel=0.05)
    rows = sum(original.tensors[layer.weight].size for layer in original.layers if layer.kind == "embedding")  # type: ignore[union-attr]
    assert sizes[1] - sizes[2] == pytest.approx((count - rows) / 4, rel=0.05), "tables keep four bits"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_encoder_runs_at_every_length(kind: str, tmp_path: Path) -> None:
    bare(tmp_path / "m", kind)
    model = choose.model(tmp_path / "m")
    package, reference = packaged(model, "litert", tmp_path / "p"), choose.encoder(model, "m", 1)
    for count, length in ((1, 1), (3, 17), (2, 40), (1, 2)):
        ids = np.random.default_rng(length).integers(5, 90, (count, length))
        mask = np.ones_like(ids)
        mask[0, length // 2 + 1 :] = 0
        batch = {"input_ids": np.where(mask == 1, ids, 0), "attention_mask": mask}
        np.testing.assert_allclose(package.encode(batch), reference.encode(batch), atol=2e-6)


@pytest.mark.parametrize("form", ["float32", "int8", "int8 asymmetric", "int4", "fp16"])
def test_convolutions_take_any_batch(pictures: Model, form: str, tmp_path: Path) -> None:
    forms: dict[str, dict[str, Any]] = {
        "int8": {}, "int8 asymmetric": {"symmetric": False}, "int4": {"bits": 4, "granularity": "group"},
    }  # fmt: skip
    model = quantized(pictures, **forms[form]) if form in forms else pictures
    model = applied(model, "quantize.float") if form == "fp16" else model
    backend().export(model, tmp_path)
    run, expected = backend().open(tmp_path, 1), choose.family(model).run(model, 1)
    for count in (1, 5, 2):
        np.testing.assert_allclose(run(random_pictures(count)), expected(random_pictures(count)), atol=1e-5)


def test_static_convolutions_run_on_integers_from_end_to_end(pictures: Model, tmp_path: Path) -> None:
    items = [f"random:{seed}" for seed in range(16)]
    model = quantized(pictures, "static", Samples(calibration=items, texts=items))
    backend().export(model, tmp_path)
    counts = operators(tmp_path)
    assert (counts["CONV_2D"], counts["DEPTHWISE_CONV_2D"], counts["FULLY_CONNECTED"]) == (2, 1, 2)
    assert (counts["QUANTIZE"], counts["DEQUANTIZE"]) == (1, 1), "the picture in, the last convolution's result out"
    stored = backend().stored(tmp_path)
    for layer in model.layers:
        tensor = model.tensors[layer.weight]
        assert isinstance(tensor, QuantizedTensor)
        assert np.array_equal(stored[layer.weight], tensor.integers), layer.weight
    found = backend().open(tmp_path, 1)(random_pictures(4))
    assert cosines(choose.family(model).run(model, 1)(random_pictures(4)), found).min() > 0.999


def network(folder: Path, nodes: list[Any], shape: list[Any], constants: dict[str, Array], dim: int) -> Path:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", dim])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path = folder / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    "pool",
    [
        helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("AveragePool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("AveragePool", ["a"], ["b"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
                         count_include_pad=1),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("HardSwish", ["a"], ["b"]),
        helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.2),
        helper.make_node("Erf", ["a"], ["b"]),
    ],
    ids=lambda node: f"{node.op_type}{len(node.attribute)}",
)  # fmt: skip
def test_operators_between_convolutions(pool: Any, tmp_path: Path) -> None:
    """An uneven stride and padding that is not LiteRT's SAME, values around zero, a mean over the picture."""
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 1], pads=[1, 1, 1, 1]),
        pool,
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "m"], ["y"], transB=1),
    ]
    constants = {"w": generator.normal(size=(8, 2, 3, 3)), "m": generator.normal(size=(6, 8))}
    path = network(tmp_path, nodes, ["N", 2, 10, 9], {k: v.astype(np.float32) for k, v in constants.items()}, 6)
    model = choose.model(path)
    batch = {"x": generator.normal(size=(3, 2, 10, 9)).astype(np.float32)}
    batch["x"][0] = 0
    backend().export(model, tmp_path)
    expected = choose.family(model).run(model, 1)(batch)
    np.testing.assert_allclose(backend().open(tmp_path, 1)(batch), expected, atol=2e-6)


def test_an_operator_that_litert_lacks_is_named_with_what_takes_it(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "m"], ["a"]), helper.make_node("ThresholdedRelu", ["a"], ["y"])]
    path = network(tmp_path, nodes, ["N", 4], {"m": np.ones((4, 3), np.float32)}, 3)
    with pytest.raises(UsageError, match="LiteRT takes no ThresholdedRelu here; deploy for onnxruntime instead"):
        backend().preflight(choose.model(path))


def test_a_text_that_is_too_long_or_a_broken_file_is_one_line(original: Model, tmp_path: Path) -> None:
    packaged(original, "litert", tmp_path)
    ids = np.ones((1, 65), np.int64)
    with pytest.raises(UsageError, match="LiteRT cannot run"):
        backend().open(tmp_path, 1)({"input_ids": ids, "attention_mask": ids})
    (tmp_path / FILE).write_bytes(b"no model")
    with pytest.raises(UsageError, match="LiteRT cannot load"):
        backend().open(tmp_path, 1)
    with pytest.raises(ArtifactError, match="is not a LiteRT file"):
        backend().stored(tmp_path)


def test_it_deploys_and_passes_its_gates(original: Model, tmp_path: Path) -> None:
    package = deploy.write(quantized(original, "static"), "litert", tmp_path, texts=TEXTS, threads=1)
    assert [gate.status for gate in package.gates] == ["passed"] * 3
    assert "ai-edge-litert" in package.tested_with
    assert {path.name for path in tmp_path.iterdir()} == {FILE, "tokenizer.json", "package.json"}


@pytest.mark.parametrize("bits", [2, 4])
def test_packing_of_few_bits_is_undone(bits: int) -> None:
    """The first value stands in the lowest bits."""
    values = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=np.int8)[:-1]
    content = files.pack_few(values, bits)
    assert len(content) == -(-len(values) * bits // 8)
    assert content[0] & (2**bits - 1) == 2 ** (bits - 1)
    assert np.array_equal(files.unpack_few(np.frombuffer(content, np.uint8), bits, len(values)), values)
