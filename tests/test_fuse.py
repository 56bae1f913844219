"""simplify.fuse: the same outputs by fewer operators, against ONNX Runtime on the graph as it was."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from slimseek import artifact, choose, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.methods.simplify._fusion import Fusion
from slimseek.models._onnx.graph import GRAPH
from slimseek.schema import ActivationQuant, Array, Model, Samples
from small import BACKENDS, tiny_model

SAMPLES = Samples(calibration=(), texts=())
GENERATOR = np.random.default_rng(0)
Node = tuple[str, Sequence[str], str, dict[str, Any]]


def normal(*shape: int) -> Array:
    return GENERATOR.standard_normal(shape).astype(np.float32)


def network(
    path: Path, nodes: Sequence[Node], constants: dict[str, Array], shape: Sequence[int | str], dim: int
) -> Model:
    graph = helper.make_graph(
        [
            helper.make_node(kind, list(inputs), [output], name=output, **settings)
            for kind, inputs, output, settings in nodes
        ],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", dim])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(whole)
    onnx.save(whole, path)
    return choose.model(path)


def fused(model: Model) -> Model:
    changed: Model = plugins.load("methods", "simplify.fuse")().apply(model, SAMPLES)
    return changed


def kinds(model: Model) -> Counter[str]:
    """Without the end that opening puts there, which brings the vector to length one."""
    nodes = Counter(node.op_type for node in onnx.ModelProto.FromString(model.files[GRAPH]).graph.node)
    return nodes - Counter({"ReduceL2": 1, "Max": 1, "Div": 1})


def outputs(session: onnxruntime.InferenceSession, batch: dict[str, Array]) -> Array:
    """What the file gives, brought to length one."""
    [found] = session.run(["logits"], batch)
    unit: Array = found / np.linalg.norm(found, axis=1, keepdims=True)
    return unit


def check(path: Path, model: Model, shape: Sequence[int]) -> None:
    """At three batch sizes, against the file as it was."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    run = choose.family(model).run(model, 1)
    for rows in (1, 2, 7):
        batch = {"x": normal(rows, *shape)}
        expected = outputs(session, batch)
        np.testing.assert_allclose(run(batch), expected, atol=1e-5)


def test_linear_layers_in_a_row_become_one(tmp_path: Path) -> None:
    """MatMul, bias, MatMul, bias, Gemm, and a Relu that stops it."""
    nodes: list[Node] = [
        ("MatMul", ["x", "a"], "h1", {}), ("Add", ["h1", "a_bias"], "h2", {}),
        ("MatMul", ["h2", "b"], "h3", {}), ("Add", ["b_bias", "h3"], "h4", {}),
        ("Gemm", ["h4", "c", "c_bias"], "h5", {"transB": 1}), ("Relu", ["h5"], "h6", {}),
        ("MatMul", ["h6", "d"], "logits", {}),
    ]  # fmt: skip
    constants = {"a": normal(20, 16), "a_bias": normal(16), "b": normal(16, 12), "b_bias": normal(12),
                 "c": normal(10, 12), "c_bias": normal(10), "d": normal(10, 6)}  # fmt: skip
    model = network(tmp_path / "n.onnx", nodes, constants, [20], 6)
    changed = fused(model)
    assert kinds(changed) == {"Gemm": 1, "Relu": 1, "MatMul": 1}
    assert changed.parameters == 20 * 10 + 10 + 60
    assert [layer.weight for layer in changed.layers] == ["c", "d"]
    check(tmp_path / "n.onnx", changed, [20])


def test_layers_whose_product_would_be_larger_stay_two(tmp_path: Path) -> None:
    nodes: list[Node] = [("MatMul", ["x", "a"], "h", {}), ("MatMul", ["h", "b"], "logits", {})]
    model = network(tmp_path / "n.onnx", nodes, {"a": normal(30, 4), "b": normal(4, 30)}, [30], 30)
    with pytest.raises(NoEffect, match=r"simplify\.fuse: no layer"):
        fused(model)


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_a_value_that_others_read_too_stays(kind: str, tmp_path: Path) -> None:
    nodes: list[Node] = [
        (kind, ["x", "a"], "h", {}), (kind, ["h", "b"], "z", {}), ("Add", ["h", "z"], "logits", {}),
    ]  # fmt: skip
    model = network(tmp_path / "n.onnx", nodes, {"a": normal(8, 8), "b": normal(8, 8)}, [8], 8)
    with pytest.raises(NoEffect):
        fused(model)


@pytest.mark.parametrize("constant", [(8,), (1, 8), (1,), ()])
@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_scaled_and_shifted_inputs_go_into_the_layer(kind: str, constant: tuple[int, ...], tmp_path: Path) -> None:
    """((x - mean) / deviation) W, and a bias that follows takes the rest."""
    nodes: list[Node] = [
        ("Sub", ["x", "mean"], "h1", {}), ("Div", ["h1", "deviation"], "h2", {}),
        (kind, ["h2", "w"], "h3", {}), ("Add", ["h3", "bias"], "logits", {}),
    ]  # fmt: skip
    constants = {
        "mean": normal(*constant),
        "deviation": np.abs(normal(*constant)) + 1,
        "w": normal(8, 5),
        "bias": normal(5),
    }
    model = network(tmp_path / "n.onnx", nodes, constants, [8], 5)
    changed = fused(model)
    assert kinds(changed)["Sub"] == kinds(changed)["Div"] == 0
    assert kinds(changed)["Add"] <= 1
    check(tmp_path / "n.onnx", changed, [8])


def test_what_a_constant_minus_the_input_is_stays(tmp_path: Path) -> None:
    nodes: list[Node] = [("Sub", ["c", "x"], "h", {}), ("MatMul", ["h", "w"], "logits", {})]
    model = network(tmp_path / "n.onnx", nodes, {"c": normal(8), "w": normal(8, 5)}, [8], 5)
    with pytest.raises(NoEffect):
        fused(model)


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1]])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_take_factors_and_without_padding_summands(pads: list[int], groups: int, tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Add", ["x", "s"], "h1", {}), ("Mul", ["h1", "f"], "h2", {}),
        ("Conv", ["h2", "w", "b"], "h3", {"pads": pads, "group": groups}), ("GlobalAveragePool", ["h3"], "h4", {}),
        ("Flatten", ["h4"], "logits", {}),
    ]  # fmt: skip
    constants = {"s": normal(4, 1, 1), "f": normal(1, 4, 1, 1), "w": normal(8, 4 // groups, 3, 3), "b": normal(8)}
    model = network(tmp_path / "n.onnx", nodes, constants, [4, 6, 6], 8)
    changed = fused(model)
    assert kinds(changed)["Mul"] == 0
    assert kinds(changed)["Add"] == (1 if any(pads) else 0), "at the border there is no summand"
    check(tmp_path / "n.onnx", changed, [4, 6, 6])


def test_a_batch_norm_behind_a_product_and_its_bias(tmp_path: Path) -> None:
    """As Keras exports a Dense layer with a batch norm."""
    nodes: list[Node] = [
        ("MatMul", ["x", "w"], "h1", {}), ("Add", ["h1", "b"], "h2", {}),
        ("BatchNormalization", ["h2", "gain", "shift", "mean", "variance"], "h3", {}), ("Relu", ["h3"], "h4", {}),
        ("MatMul", ["h4", "v"], "logits", {}),
    ]  # fmt: skip
    constants = {"w": normal(8, 6), "b": normal(6), "gain": normal(6), "shift": normal(6), "mean": normal(6),
                 "variance": np.abs(normal(6)) + 1, "v": normal(6, 3)}  # fmt: skip
    model = network(tmp_path / "n.onnx", nodes, constants, [8], 3)
    changed = fused(model)
    assert kinds(changed) == {"MatMul": 2, "Add": 1, "Relu": 1}
    check(tmp_path / "n.onnx", changed, [8])


def test_a_dropout_leaves(tmp_path: Path) -> None:
    nodes: list[Node] = [("MatMul", ["x", "w"], "h", {}), ("Dropout", ["h"], "d", {}), ("Tanh", ["d"], "logits", {})]
    model = network(tmp_path / "n.onnx", nodes, {"w": normal(8, 6)}, [8], 6)
    changed = fused(model)
    assert kinds(changed) == {"MatMul": 1, "Tanh": 1}
    check(tmp_path / "n.onnx", changed, [8])


def case_e4(path: Path) -> Model:
    """Shape, Gather, Concat, Reshape with a free batch; a Tile to 64 MB; and two layers to fuse."""
    nodes: list[Node] = [
        ("MatMul", ["x", "a"], "h1", {}), ("MatMul", ["h1", "b"], "h2", {}),
        ("Shape", ["h2"], "s1", {}), ("Gather", ["s1", "zero"], "s2", {"axis": 0}),
        ("Concat", ["s2", "sizes"], "s3", {"axis": 0}), ("Reshape", ["h2", "s3"], "h3", {}),
        ("Tile", ["seed", "repeats"], "t1", {}), ("ReduceMean", ["t1"], "t2", {"axes": [0, 1], "keepdims": 0}),
        ("Add", ["h3", "t2"], "h4", {}), ("ReduceMean", ["h4"], "logits", {"axes": [1], "keepdims": 0}),
    ]  # fmt: skip
    constants = {"a": normal(16, 16), "b": normal(16, 12), "zero": np.array([0]), "sizes": np.array([4, 3]),
                 "seed": normal(4, 1024), "repeats": np.array([4096, 1])}  # fmt: skip
    return network(path, nodes, constants, [16], 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_axes_stay_free_and_nothing_grows(backend: str, tmp_path: Path) -> None:
    """CASES E4."""
    path = tmp_path / "n.onnx"
    model = case_e4(path)
    changed = fused(model)
    check(path, changed, [16])
    (tmp_path / "artifact").mkdir()
    artifact.write(changed, tmp_path / "artifact")
    runtime = plugins.load("backends", backend)()
    (tmp_path / "out").mkdir()
    runtime.export(changed, tmp_path / "out")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    run = runtime.open(tmp_path / "out", 1)
    for rows in (1, 3, 8):
        batch = {"x": normal(rows, 16)}
        expected = outputs(session, batch)
        np.testing.assert_allclose(run(batch), expected, atol=1e-5)
    for folder in ("artifact", "out"):
        assert sum(file.stat().st_size for file in (tmp_path / folder).rglob("*") if file.is_file()) < 100_000


def test_a_second_time_there_is_nothing_to_do_and_quantized_models_are_refused(tmp_path: Path) -> None:
    model = case_e4(tmp_path / "n.onnx")
    step = plugins.load("methods", "simplify.fuse")()
    changed = fused(model)
    [first, second] = step.notes(model, changed)
    assert first == "linear layers into the next: 1"
    assert second == f"{changed.parameters:,} of {model.parameters:,} weights are left"
    with pytest.raises(NoEffect):
        fused(changed)
    with pytest.raises(UsageError, match="fuse before quantizing"):
        fused(plugins.load("methods", "quantize.weights_int")().apply(model, SAMPLES))


def test_smoothed_models_and_such_that_round_their_inputs_are_refused(tmp_path: Path) -> None:
    model = case_e4(tmp_path / "n.onnx")
    smooth = dataclasses.replace(model, smoothing={"a": np.ones((16, 1), np.float32)})
    rounded = dataclasses.replace(model, activations={"a": ActivationQuant(mode="dynamic")})
    for one in (smooth, rounded):
        with pytest.raises(UsageError, match="quantized or smoothed; fuse before quantizing"):
            fused(one)


def test_a_graph_that_gives_something_else_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fusion that is one per cent wrong."""
    model = case_e4(tmp_path / "n.onnx")
    right = Fusion._matrix
    monkeypatch.setattr(Fusion, "_matrix", lambda fusion, node: right(fusion, node) * np.linspace(1, 1.1, 4).repeat(4)
                        if node.input[1] == "a" else right(fusion, node))  # fmt: skip
    with pytest.raises(NoEffect, match=r"the fused network differs by 0\.\d+, so all stays as it was"):
        fused(model)


def test_a_weight_that_two_layers_have_stays(tmp_path: Path) -> None:
    twice: list[Node] = [("MatMul", ["x", "a"], "h", {}), ("MatMul", ["h", "a"], "logits", {})]
    model = network(tmp_path / "n.onnx", twice, {"a": normal(8, 8)}, [8], 8)
    with pytest.raises(NoEffect, match="no layer stands beside"):
        fused(model)
    scaled: list[Node] = [
        ("MatMul", ["x", "w"], "h1", {}), ("Mul", ["h1", "f"], "h2", {}), ("Tanh", ["x"], "t", {}),
        ("MatMul", ["t", "w"], "h3", {}), ("Add", ["h2", "h3"], "logits", {}),
    ]  # fmt: skip
    model = network(tmp_path / "m.onnx", scaled, {"w": normal(8, 5), "f": normal(5)}, [8], 5)
    with pytest.raises(NoEffect, match="no layer stands beside"):
        fused(model)
    before: list[Node] = [
        ("Mul", ["x", "f"], "h1", {}), ("MatMul", ["h1", "w"], "h2", {}), ("Tanh", ["x"], "t", {}),
        ("MatMul", ["t", "w"], "h3", {}), ("Add", ["h2", "h3"], "logits", {}),
    ]  # fmt: skip
    model = network(tmp_path / "o.onnx", before, {"w": normal(8, 5), "f": normal(8)}, [8], 5)
    with pytest.raises(NoEffect, match="no layer stands beside"):
        fused(model)


def test_a_dropout_whose_mask_is_read_stays(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Dropout", ["h"], ["d", "mask"]),
            helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["d", "m"], ["logits"]),
        ],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 6])],
        [numpy_helper.from_array(normal(8, 6), "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "n.onnx")
    with pytest.raises(NoEffect, match="no layer stands beside"):
        fused(choose.model(tmp_path / "n.onnx"))


def test_summands_stay_before_a_convolution_that_pads_by_itself(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Add", ["x", "s"], "h1", {}), ("Conv", ["h1", "w"], "h2", {"auto_pad": "SAME_UPPER"}),
        ("GlobalAveragePool", ["h2"], "h3", {}), ("Flatten", ["h3"], "logits", {}),
    ]  # fmt: skip
    constants = {"s": normal(4, 1, 1), "w": normal(8, 4, 3, 3)}
    model = network(tmp_path / "n.onnx", nodes, constants, [4, 6, 6], 8)
    with pytest.raises(NoEffect, match="no layer stands beside a constant"):
        fused(model)


def test_a_family_with_nothing_to_fuse_says_so_by_name(tmp_path: Path) -> None:
    with pytest.raises(NoEffect, match=r"simplify\.fuse: a model of the family transformer"):
        fused(tiny_model(tmp_path / "tiny"))
