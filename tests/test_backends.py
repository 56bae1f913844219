"""Every backend: the same integers, the same vectors, every shape."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from slimseek import choose, deploy, integers, plugins
from slimseek.backends import executorch
from slimseek.errors import GateFailed, UsageError
from slimseek.evaluate import cosines
from slimseek.plugins import require
from slimseek.schema import Model, QuantizedTensor, QuantSpec, Samples, Tensor
from small import bare, conv_network, optimised, packaged, tiny_bert, tiny_model

TEXTS = [
    "the cat sleeps",
    "a dog runs through the winter forest near the river",
    "stone",
    "engine of stone",
    "apple",
    "winter river",
]
BACKENDS = [name for name, reason in deploy.targets().items() if reason is None]
ONNX = [name for name in BACKENDS if name in ("onnxruntime", "openvino")]
"""Those whose packages are graphs with constants of these names."""


def weights(**parameters: object) -> Callable[[Model], Model]:
    return lambda model: plugins.load("methods", "quantize.weights_int")(**parameters).apply(model, SAMPLES)


def inputs(mode: str) -> Callable[[Model], Model]:
    return lambda model: plugins.load("methods", "quantize.activations_int")(mode=mode).apply(model, SAMPLES)


SAMPLES = Samples(calibration=TEXTS, texts=TEXTS)
FORMS: dict[str, tuple[tuple[Callable[[Model], Model], ...], float]] = {
    "float32": ((), 0.99999),
    "fp16": ((lambda model: plugins.load("methods", "quantize.float")().apply(model, SAMPLES),), 0.99999),
    "int8 channel": ((weights(),), 0.9999),
    "int8 tensor": ((weights(granularity="tensor"),), 0.9999),
    "int8 asymmetric": ((weights(symmetric=False),), 0.9999),
    "int8 group": ((weights(granularity="group", group_size=16),), 0.9999),
    "int4 group": ((weights(bits=4, granularity="group", group_size=16),), 0.999),
    "int4 asymmetric": ((weights(bits=4, granularity="group", group_size=16, symmetric=False),), 0.999),
    "int4 odd group": ((weights(bits=4, granularity="group", group_size=24),), 0.999),
    "int4 channel": ((weights(bits=4),), 0.999),
    "int3 group": ((weights(bits=3, granularity="group", group_size=16),), 0.999),
    "int6 channel": ((weights(bits=6),), 0.9999),
    "int8 static": ((weights(), inputs("static")), 0.99),
    "int8 dynamic": ((weights(), inputs("dynamic")), 0.99),
    "int8 asymmetric static": ((weights(symmetric=False), inputs("static")), 0.99),
    "int4 static": ((weights(bits=4, granularity="group", group_size=16), inputs("static")), 0.99),
    "int4 dynamic": ((weights(bits=4, granularity="group", group_size=16), inputs("dynamic")), 0.98),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_bert(path)
    return choose.model(path)


def formed(model: Model, form: str) -> Model:
    for step in FORMS[form][0]:
        model = step(model)
    return model


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_package_gives_the_vectors_of_the_artifact_and_holds_its_integers(
    original: Model, backend: str, form: str, tmp_path: Path
) -> None:
    """CASES C4: integers are read from the files. The same to the last bit; where the runtime has a grid of its own,
    half a step of the coarser of both away at most, and none is coarser than eight symmetric bits a channel.
    """
    model = formed(original, form)
    expected = choose.encoder(model, "artifact", 1).documents(TEXTS)
    found = packaged(model, backend, tmp_path).documents(TEXTS)
    assert cosines(expected, found).min() >= FORMS[form][1]
    stored = plugins.load("backends", backend)().stored(tmp_path)
    quantized = {name for name, tensor in model.tensors.items() if isinstance(tensor, QuantizedTensor)}
    assert set(stored) <= set(model.tensors)
    assert quantized - choose.family(model).unused(model) <= set(stored)
    for name in quantized & set(stored):
        assert_stored(model.tensors[name], stored[name], name)


def assert_stored(tensor: Tensor, found: np.ndarray, name: str) -> None:
    assert isinstance(tensor, QuantizedTensor)
    assert found.shape == tensor.shape, name
    if found.dtype.kind == "f":
        values = integers.dequantize(tensor)
        others = tuple(axis for axis in range(values.ndim) if axis != tensor.spec.axis)
        step = np.maximum(
            np.abs(values - integers.dequantize(moved(tensor))), np.abs(values).max(others, keepdims=True) / 127
        )
        limit = 0.0 if tensor.spec.float8 else step / 2
        assert (np.abs(found - values) <= limit * 1.001 + 1e-7).all(), name
        return
    if found.dtype == np.uint8 and tensor.integers.dtype == np.int8:  # for CPUs that saturate
        found = (found.astype(np.int16) - 128).astype(np.int8)
    assert found.dtype == tensor.integers.dtype, name
    assert np.array_equal(found, tensor.integers), name


def moved(tensor: QuantizedTensor) -> QuantizedTensor:
    """One step away everywhere."""
    wide = tensor.integers.astype(np.int16)
    return dataclasses.replace(tensor, integers=np.where(wide > 0, wide - 1, wide + 1).astype(tensor.integers.dtype))


STORED = {
    "planes": {"bits": 3, "granularity": "group", "group_size": 20, "symmetric": False},
    "planes of 5": {"bits": 5},
    "planes of 2, tensor": {"bits": 2, "granularity": "tensor"},
    "mse": {"bits": 4, "granularity": "group", "group_size": 16, "scaling": "mse"},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("form", STORED)
def test_integers_are_read_back_from_planes_and_masks(backend: str, form: str, pruned: bool, tmp_path: Path) -> None:
    """With nine in ten weights zero too, whose places are a mask in the package."""
    model = tiny_model(tmp_path / "wide", width=256, heads=4)
    if pruned:
        model = plugins.load("methods", "prune.weights")(ratio=0.9).apply(model, SAMPLES)
    model = weights(**STORED[form])(model)
    (tmp_path / "package").mkdir()
    runtime = plugins.load("backends", backend)()
    runtime.export(model, tmp_path / "package")
    stored = runtime.stored(tmp_path / "package")
    quantized = {name for name, tensor in model.tensors.items() if isinstance(tensor, QuantizedTensor)}
    assert quantized - choose.family(model).unused(model) <= set(stored)
    for name in quantized & set(stored):
        assert_stored(model.tensors[name], stored[name], name)


@pytest.mark.parametrize("backend", ONNX)
@pytest.mark.parametrize("parameters", [{"bits": 4}, {"bits": 3, "granularity": "channel"}])
def test_places_in_a_code_book_are_read_back(original: Model, backend: str, parameters: dict[str, object],
                                             tmp_path: Path) -> None:  # fmt: skip
    model = plugins.load("methods", "simplify.share")(**parameters).apply(original, SAMPLES)
    runtime = plugins.load("backends", backend)()
    runtime.export(model, tmp_path)
    stored = runtime.stored(tmp_path)
    shared = {name for name, tensor in model.tensors.items() if integers.is_shared(tensor)}
    assert len(shared & set(stored)) >= 12
    for name in shared & set(stored):
        assert_stored(model.tensors[name], stored[name], name)


@pytest.mark.parametrize("backend", ONNX)
@pytest.mark.parametrize("step", ["weights", "e4m3"])
def test_kernels_and_columns_are_read_back_in_the_orientation_of_the_artifact(
    backend: str, step: str, tmp_path: Path
) -> None:
    """A convolution, and matrices that stand [in, out] in the graph as in the artifact; eight-bit floats as values."""
    model = choose.model(conv_network(tmp_path)[0])
    if step == "weights":
        model = weights(bits=6, granularity="group", group_size=5)(model)
    else:
        model = plugins.load("methods", "quantize.float")(format="e4m3").apply(model, SAMPLES)
    runtime = plugins.load("backends", backend)()
    (tmp_path / "package").mkdir()
    runtime.export(model, tmp_path / "package")
    stored = runtime.stored(tmp_path / "package")
    quantized = {name for name, tensor in model.tensors.items() if isinstance(tensor, QuantizedTensor)}
    assert len(quantized) >= 4
    for name in quantized:
        assert_stored(model.tensors[name], stored[name], name)


@pytest.mark.parametrize("backend", ONNX)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_bits_that_onnx_has_no_type_for_take_their_true_width(
    original: Model, backend: str, bits: int, symmetric: bool, tmp_path: Path
) -> None:
    """And their values are those of the artifact, in linear layers and in tables; 20 divides no width."""
    step = plugins.load("methods", "quantize.weights_int")(
        bits=bits, granularity="group", group_size=20, symmetric=symmetric, skip=("pooler",)
    )
    model = step.apply(original, SAMPLES)
    found = packaged(model, backend, tmp_path).documents(TEXTS)
    assert cosines(choose.encoder(model, "artifact", 1).documents(TEXTS), found).min() > 1 - 1e-5
    stored = onnx.load(tmp_path / "model.onnx").graph.initializer
    sizes = {initializer.name: len(initializer.raw_data) for initializer in stored}
    compared = 0
    for name, tensor in model.tensors.items():
        size = sizes.get(f"{name}.blocks", sizes.get(f"{name}.table"))
        if size is not None:
            padded = tensor.shape[0] * -(-tensor.shape[1] // 20) * 20
            assert size <= padded * bits / 8 + bits
            compared += 1
    assert compared >= 12


@pytest.mark.parametrize("backend", ONNX)
def test_four_bits_take_four_bits_on_disk(original: Model, backend: str, tmp_path: Path) -> None:
    sizes = {}
    for form in ("float32", "int8 static", "int4 static"):
        (tmp_path / form).mkdir()
        packaged(formed(original, form), backend, tmp_path / form)
        graph = onnx.load(tmp_path / form / "model.onnx").graph
        sizes[form] = sum(len(initializer.raw_data) for initializer in graph.initializer)
    assert sizes["int8 static"] < 0.5 * sizes["float32"]
    assert sizes["int4 static"] < 0.8 * sizes["int8 static"]


def test_static_eight_bits_really_run_as_integers_in_onnxruntime(original: Model, tmp_path: Path) -> None:
    packaged(formed(original, "int4 static"), "onnxruntime", tmp_path)
    kinds = [node.op_type for node in optimised(tmp_path).node]
    assert (kinds.count("QAttention"), kinds.count("MatMulIntegerToFloat")) == (2, 6)
    assert not {"MatMul", "MultiHeadAttention"} & set(kinds)
    assert "DequantizeLinear" not in kinds, "packed weights are expanded once, when the graph is loaded"


@pytest.mark.parametrize("form", ["float32", "int8 static", "int8 dynamic"])
def test_layer_norms_stay_apart_from_the_sums_before_them(form: str, original: Model, tmp_path: Path) -> None:
    """In the runtime's hands too; a product of rounded inputs takes its bias along."""
    packaged(formed(original, form), "onnxruntime", tmp_path)
    graph = optimised(tmp_path)
    kinds = [node.op_type for node in graph.node]
    assert (kinds.count("Sum"), kinds.count("LayerNormalization"), kinds.count("SkipLayerNormalization")) == (4, 5, 0)
    made = {name: node.op_type for node in graph.node for name in node.output}
    [summed] = {made[node.input[0]] for node in graph.node if node.op_type == "Sum"}
    assert summed == ("MatMulIntegerToFloat" if form == "int8 static" else "Add")


def test_attention_under_another_mask_than_padding_is_not_joined(original: Model, tmp_path: Path) -> None:
    packaged(formed(original, "int8 static"), "onnxruntime", tmp_path)
    assert "QAttention" in {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    lowering, fusion = require("slimseek.backends._lowering"), require("slimseek.backends._fusion")
    model = formed(original, "int8 static")
    rules = require("slimseek.backends.onnxruntime")
    graph = lowering.lower(fusion.fused(model), model, rules._linear, rules._table)
    for initializer in graph.graph.initializer:
        values = numpy_helper.to_array(initializer)
        if values.size == 1 and values.dtype == np.float32 and values.min() <= -1e4:
            initializer.CopyFrom(numpy_helper.from_array(np.full_like(values, -2.0), initializer.name))
    kinds = {node.op_type for node in require("slimseek.backends._attention").join_projections(graph).graph.node}
    assert "MultiHeadAttention" in kinds
    assert "QAttention" not in kinds


@pytest.mark.parametrize("form", ["float32", "int8 static", "int4 dynamic"])
def test_attention_under_a_position_bias_is_one_operator(form: str, tmp_path: Path) -> None:
    """MPNet adds a bias and the padding mask to the scores of each block: the sum is computed once."""
    bare(tmp_path / "m", "MPNet")
    model = formed(choose.model(tmp_path / "m"), form)
    encoder = packaged(model, "onnxruntime", tmp_path / "p")
    graph = onnx.load(tmp_path / "p" / "model.onnx").graph
    biases = [node.input[5] for node in graph.node if node.op_type == "MultiHeadAttention"]
    assert (len(biases), len(set(biases))) == (6, 1)
    assert not {"Softmax", "Attention"} & {node.op_type for node in graph.node}
    reference = choose.encoder(model, "artifact", 1)
    for texts in (TEXTS, TEXTS[1:2], TEXTS[2:4]):
        assert cosines(reference.documents(texts), encoder.documents(texts)).min() > FORMS[form][1]
    assert cosines(encoder.documents(TEXTS), np.concatenate([encoder.documents([text]) for text in TEXTS])).min() > 0.99


def test_blocks_that_share_their_weights_are_split_apart() -> None:
    """Two attentions over one joined weight: it goes with the second, not with the first."""
    names = ["q", "k", "v"]
    nodes = [helper.make_node("Concat", names, ["joined"], axis=1)]
    nodes += [
        helper.make_node("Attention", [given, "joined", "bias"], [out], domain="com.microsoft", num_heads=2)
        for given, out in (("x", "y"), ("y", "z"))
    ]
    constants = [numpy_helper.from_array(np.eye(4, dtype=np.float32), name) for name in names]
    constants.append(numpy_helper.from_array(np.arange(12, dtype=np.float32), "bias"))
    x, z = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 4]) for name in "xz")
    graph = helper.make_graph(nodes, "shared", [x], [z], constants)
    require("slimseek.backends._fusion")._split_attention(graph)
    kinds = [node.op_type for node in graph.node]
    assert kinds == [*["MatMul", "Add"] * 3, "MultiHeadAttention"] * 2
    biases = [numpy_helper.to_array(one).tolist() for one in graph.initializer if one.name.endswith(".bias")]
    assert biases == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] * 2


def test_static_eight_bits_really_run_as_integers_in_openvino(original: Model, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    packaged(formed(original, "int4 static"), "openvino", tmp_path)
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [
        (operation.get_rt_info()["layerType"].astype(str), operation.get_rt_info()["runtimePrecision"].astype(str))
        for operation in compiled.get_runtime_model().get_ordered_ops()
    ]
    products = [precision for kind, precision in kinds if kind == "FullyConnected"]
    assert len(products) >= 8
    assert set(products) <= {"u8", "i8"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dynamic_package_does_not_mix_rows(original: Model, backend: str, tmp_path: Path) -> None:
    """CASES Q4: a text alone and beside another."""
    encoder = packaged(formed(original, "int8 dynamic"), backend, tmp_path)
    ids = np.array([[2, 5, 6, 7, 3], [2, 11, 12, 13, 3]])
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    alone = encoder.encode({name: array[:1] for name, array in batch.items()})
    assert cosines(alone, encoder.encode(batch)[:1]).min() > 0.9999


def test_deploy_writes_reopens_and_compares(original: Model, tmp_path: Path) -> None:
    tiny_bert(tmp_path / "m")
    deployed = deploy.deploy(tmp_path / "m", "onnxruntime", tmp_path / "out", texts=TEXTS, threads=1)
    assert {gate.gate for gate in deployed.gates} == {"parity", "shapes", "invariance"}
    assert all(gate.status == "passed" for gate in deployed.gates)
    opened = choose.choose(tmp_path / "out", 1)
    assert cosines(opened.documents(TEXTS), choose.choose(tmp_path / "m", 1).documents(TEXTS)).min() > 0.99999
    assert sum(opened.shipped.values()) == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())


def test_auto_takes_one_of_the_targets_and_leaves_nothing_else(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "m")
    deployed = deploy.deploy(tmp_path / "m", "auto", tmp_path / "out", texts=TEXTS, threads=1)
    assert deployed.target in BACKENDS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]


def test_an_unknown_target_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown target 'abacus'"):
        deploy.deploy("nowhere", "abacus", tmp_path / "out")


def test_a_backend_that_lacks_a_part_of_its_extra_is_not_offered(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """ExecuTorch opens programs by itself, and writes none without torchao."""
    found = {library: "1.0" for library in ("executorch", "torch")}
    monkeypatch.setattr(executorch, "versions", lambda asked: {name: found[name] for name in asked if name in found})
    why = "torchao is not installed; run: pip install 'slimseek[executorch]'"
    assert deploy.targets()["executorch"] == why
    with pytest.raises(UsageError, match=re.escape(f"target executorch does not work here: {why}")):
        deploy.check_target("executorch")


def test_a_package_that_differs_from_its_artifact_is_not_written(original: Model, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The real exporter, given other weights than the artifact has."""
    tiny_bert(tmp_path / "m")
    backend = plugins.load("backends", "onnxruntime")
    export = backend.export
    name = original.layers[0].weight
    noise = np.random.default_rng(0).standard_normal(original.tensors[name].shape).astype(np.float32)

    def spoiled(self, model: Model, folder: Path, ready: object = None) -> None:  # type: ignore[no-untyped-def]
        export(self, dataclasses.replace(model, tensors=dict(model.tensors) | {name: noise}), folder)

    monkeypatch.setattr(backend, "export", spoiled)
    with pytest.raises(GateFailed, match="parity"):
        deploy.deploy(tmp_path / "m", "onnxruntime", tmp_path / "out", texts=TEXTS, threads=1)
    assert not (tmp_path / "out").exists()


def test_packing_into_four_bit_initializers_keeps_every_value() -> None:
    tensor = integers.quantize(
        np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16), QuantSpec(bits=4, granularity="channel")
    )
    lowering = plugins.require("slimseek.backends._lowering")
    editor = lowering.Editor(onnx.GraphProto())
    name = lowering.integer_constant(editor, "w", tensor, transposed=False)
    stored = editor.constants[name]
    assert stored.data_type == onnx.TensorProto.INT4
    assert len(stored.raw_data) == 32
    assert np.array_equal(numpy_helper.to_array(stored).astype(np.int8), tensor.integers)
