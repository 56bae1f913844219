"""ONNX graphs in PyTorch against ONNX Runtime, operator by operator and network by network; training on top."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from slimseek import choose, plugins
from slimseek.errors import UsageError
from slimseek.evaluate import cosines
from slimseek.inputs.samples import TEXTS
from slimseek.losses.mse import MeanSquaredError
from slimseek.models._torch.graph import OPERATORS, GraphNetwork
from slimseek.schema import Array, Model, QuantizedTensor, Samples
from slimseek.training import targets, train
from small import packaged, tiny_bert

TINY = Path(__file__).parents[2] / "shared" / "data" / "tinymodels"
FILES = sorted(TINY.glob("*.onnx"))
KEPT = Path(__file__).parent / "data" / "onnx_in"
RANDOM = np.random.default_rng(0)


def f(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(np.float32)


def i(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def number(value: float) -> Array:
    return np.array(value, np.float32)


ANY = f(2, 3, 4)
POSITIVE = np.abs(f(2, 3, 4)) + np.float32(0.3)
PICTURE, WAVE, VOLUME = f(2, 4, 9, 7), f(2, 4, 11), f(1, 2, 5, 6, 7)
TRUTH, LIES = ANY > 0, ANY > 0.5
SERIES = f(5, 2, 3)
Case = tuple[str, tuple[Array | None, ...], dict[str, Any], int]


def case(kind: str, *inputs: Array | None, opset: int = 21, **attributes: Any) -> Case:
    return kind, inputs, attributes, opset


UNARY = ("Abs", "Atan", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
         "Identity", "IsInf", "IsNaN", "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
         "Softplus", "Softsign", "Tanh", "ThresholdedRelu", "Shape", "Size", "NonZero", "Dropout")  # fmt: skip
REDUCED = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
           "ReduceProd", "ReduceSum", "ReduceSumSquare")  # fmt: skip

ARITHMETIC = [
    *(case(kind, ANY, opset=22) for kind in UNARY),
    *(case(kind, POSITIVE) for kind in ("Log", "Reciprocal", "Sqrt")),
    *(case(kind, ANY, f(3, 1)) for kind in ("Add", "Div", "Max", "Min", "Mul", "Sub", "PRelu")),
    *(case(kind, ANY, f(3, 1), f(4)) for kind in ("Max", "Mean", "Sum", "Min")),
    *(
        case(kind, ANY, np.where(RANDOM.random((2, 3, 4)) < 0.5, ANY, 0).astype(np.float32))
        for kind in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    *(case(kind, TRUTH, LIES) for kind in ("And", "Or", "Xor")),
    case("Not", TRUTH),
    case("Where", TRUTH, ANY, f(4)),
    case("Div", i(7, -7, 8), i(2, 2, -3)),
    case("Mod", i(7, -7, 8), i(3, 3, -3)),
    case("Mod", ANY, POSITIVE, fmod=1),
    case("Pow", ANY, number(2)),
    case("Pow", POSITIVE, f(4)),
    case("Elu", ANY, alpha=0.3),
    case("Celu", ANY, alpha=0.3),
    case("LeakyRelu", ANY, alpha=0.3),
    case("HardSigmoid", ANY, alpha=0.1, beta=0.7),
    case("Selu", ANY, alpha=1.1, gamma=0.9),
    case("Gelu", ANY, approximate="tanh"),
    case("Swish", ANY, alpha=1.5, opset=24),
    case("Clip", ANY, number(-0.3), number(0.4)),
    case("Clip", ANY, None, number(0.4)),
    case("Clip", ANY, min=-0.2, max=0.6, opset=9),
    *(case("CumSum", ANY, np.array(1), exclusive=one, reverse=two) for one in (0, 1) for two in (0, 1)),
    *(case(kind, ANY, axis=axis) for kind in ("Softmax", "LogSoftmax") for axis in (-1, 1)),
    *(case(kind, ANY, opset=11) for kind in ("Softmax", "LogSoftmax")),
    *(case(kind, POSITIVE, i(0, -1), keepdims=0) for kind in REDUCED if kind != "ReduceSum"),
    *(case(kind, POSITIVE, axes=[1], opset=12) for kind in REDUCED),
    case("ReduceSum", ANY, i(2), opset=13, keepdims=1),
    case("ReduceMean", ANY),
    case("ReduceSum", ANY, i(), noop_with_empty_axes=1),
    case("ArgMax", ANY, axis=1),
    case("ArgMin", ANY, axis=-1, keepdims=0),
    case("ArgMax", i(3, 1, 3, 2), axis=0, select_last_index=1),
    case("TopK", ANY, i(2), axis=1),
    case("MatMul", ANY, f(4, 5)),
    case("MatMul", f(2, 1, 3, 4), f(5, 4, 2)),
    case("Gemm", f(3, 4), f(4, 5), f(5)),
    case("Gemm", f(4, 3), f(5, 4), f(3, 1), transA=1, transB=1, alpha=0.5, beta=2.0),
    case("Einsum", f(2, 3, 4), f(2, 5, 4), equation="bij,bkj->bik"),
]

LAYOUT = [
    case("Cast", ANY * 3, to=TensorProto.INT32),
    case("Cast", i(0, 2, 0), to=TensorProto.BOOL),
    case("Cast", ANY, to=TensorProto.FLOAT16, opset=13),
    case("CastLike", ANY, i(1)),
    case("Concat", ANY, f(2, 2, 4), axis=1),
    case("Concat", ANY, f(2, 3, 1), axis=-1),
    case("Constant", value_floats=[1.0, 2.5]),
    case("Constant", value_int=3),
    case("Constant", value=numpy_helper.from_array(f(2, 2))),
    case("ConstantOfShape", i(2, 3)),
    case("ConstantOfShape", i(2), value=numpy_helper.from_array(i(7))),
    case("DepthToSpace", f(2, 8, 3, 2), blocksize=2),
    case("DepthToSpace", f(2, 8, 3, 2), blocksize=2, mode="CRD"),
    case("SpaceToDepth", f(2, 2, 6, 4), blocksize=2),
    case("Expand", f(3, 1), i(2, 1, 4)),
    case("Flatten", ANY, axis=2),
    case("Flatten", ANY, axis=-1),
    case("Flatten", ANY, axis=0),
    case("Gather", f(7, 3), np.array([[1, -1], [0, 6]])),
    case("Gather", ANY, np.array(1), axis=-1),
    case("GatherElements", ANY, RANDOM.integers(-3, 3, (2, 2, 4)), axis=1),
    case("GatherND", ANY, np.array([[0, 1], [1, -1]])),
    case("OneHot", i(1, 0, -1), np.array(3), f(2), axis=0),
    case("Pad", ANY, i(0, 1, 2, 1, 0, 1), number(0.5)),
    case("Pad", ANY, i(1, 2), None, i(-1)),
    case("Pad", ANY, i(0, -1, 0, 0, 0, -2)),
    *(case("Pad", ANY, i(0, 1, 2, 0, 2, 3), mode=mode) for mode in ("reflect", "edge", "wrap")),
    case("Pad", ANY, pads=[0, 0, 1, 0, 0, 2], value=1.5, opset=10),
    case("Range", np.array(2), np.array(11), np.array(3)),
    case("Reshape", ANY, i(0, -1)),
    case("Reshape", f(0, 3), i(3, 0), allowzero=1),
    case("ScatterElements", ANY, RANDOM.integers(0, 3, (1, 1, 4)), f(1, 1, 4), axis=1),
    case("ScatterND", ANY, np.array([[0, 1], [1, -1]]), f(2, 4)),
    case("ScatterND", ANY, np.array([[0, 1], [0, 1]]), f(2, 4), reduction="add"),
    case("Shape", ANY, start=1),
    case("Shape", ANY, start=-3, end=-1),
    case("Slice", f(6, 7), i(1, 5), i(100, -100), i(0, 1), i(2, -2)),
    case("Slice", f(6, 7), i(-3), i(2**62), i(-1)),
    case("Slice", f(6, 7), i(4), i(2)),
    case("Slice", f(6, 7), starts=[1], ends=[-1], axes=[1], opset=9),
    case("Split", f(2, 7), i(3, 4), axis=1),
    case("Split", f(2, 7), axis=1, num_outputs=2, opset=18),
    case("Split", f(4, 7), axis=0, split=[1, 3], opset=11),
    case("Squeeze", f(1, 3, 1)),
    case("Squeeze", f(1, 3, 1), i(-1)),
    case("Squeeze", f(1, 3, 1), axes=[0], opset=11),
    case("Tile", ANY, i(1, 2, 3)),
    case("Transpose", ANY),
    case("Transpose", ANY, perm=[2, 0, 1]),
    case("Trilu", f(4, 5)),
    case("Trilu", f(4, 5), np.array(-1), upper=0),
    case("Unsqueeze", ANY, i(0, -1)),
    case("Unsqueeze", ANY, axes=[1, 3], opset=11),
]

WINDOWS = [
    case("Conv", WAVE, f(6, 4, 3), f(6), strides=[2], pads=[1, 1]),
    case("Conv", PICTURE, f(6, 4, 3, 3), kernel_shape=[3, 3]),
    case("Conv", PICTURE, f(8, 2, 3, 2), f(8), group=2, pads=[0, 1, 2, 0], dilations=[2, 1]),
    case("Conv", PICTURE, f(4, 1, 3, 3), group=4, strides=[2, 2], pads=[1, 1, 1, 1]),
    case("Conv", VOLUME, f(3, 2, 2, 3, 3), f(3), pads=[0, 1, 1, 1, 1, 1]),
    *(case("Conv", PICTURE, f(4, 4, 4, 3), auto_pad=pad, strides=[2, 3])
      for pad in ("VALID", "SAME_UPPER", "SAME_LOWER")),
    case("ConvTranspose", WAVE, f(4, 3, 3), f(3), strides=[2]),
    case("ConvTranspose", PICTURE, f(4, 3, 3, 3), f(6), group=2, strides=[2, 3], pads=[1, 0, 0, 2],
         output_padding=[1, 0], dilations=[2, 1]),
    case("ConvTranspose", PICTURE, f(4, 3, 3, 3), strides=[2, 2], output_shape=[18, 15]),
    *(case("ConvTranspose", PICTURE, f(4, 3, 3, 4), f(3), strides=[2, 3], auto_pad=pad, output_padding=[0, 0])
      for pad in ("SAME_UPPER", "SAME_LOWER")),
    case("ConvTranspose", VOLUME, f(2, 3, 2, 2, 2), pads=[0, 1, 0, 1, 0, 0]),
    *(case(kind, one, kernel_shape=[3] * (one.ndim - 2), strides=[2] * (one.ndim - 2), pads=[1] * (2 * one.ndim - 4))
      for kind in ("MaxPool", "AveragePool") for one in (WAVE, PICTURE, VOLUME)),
    *(case(kind, PICTURE, kernel_shape=[3, 2], strides=[2, 3], auto_pad=pad)
      for kind in ("MaxPool", "AveragePool") for pad in ("VALID", "SAME_UPPER", "SAME_LOWER")),
    *(case(kind, PICTURE, kernel_shape=[2, 3], strides=[2, 3], pads=[0, 1, 1, 0], ceil_mode=1)
      for kind in ("MaxPool", "AveragePool")),
    *(case("MaxPool", f(1, 1, size), kernel_shape=[2], strides=[3], pads=[1, 1], ceil_mode=1) for size in (4, 5, 6)),
    case("MaxPool", PICTURE, kernel_shape=[2, 2], dilations=[3, 2]),
    case("AveragePool", PICTURE, kernel_shape=[3, 3], pads=[1, 0, 2, 1], count_include_pad=1),
    case("AveragePool", PICTURE, kernel_shape=[2, 4], strides=[2, 2], ceil_mode=1, count_include_pad=1,
         pads=[1, 1, 0, 1]),
    *(case(kind, one) for kind in ("GlobalAveragePool", "GlobalMaxPool") for one in (WAVE, PICTURE, VOLUME)),
    *(case("BatchNormalization", PICTURE, f(4), f(4), f(4), np.abs(f(4)) + 0.5, epsilon=0.01, opset=opset)
      for opset in (9, 15)),
    case("LayerNormalization", ANY, f(4), f(4), opset=17),
    case("LayerNormalization", ANY, f(3, 4), axis=1, epsilon=0.1),
    case("LayerNormalization", ANY, f(4), f(1, 4), axis=1),
    case("RMSNormalization", ANY, f(4), opset=23),
    case("InstanceNormalization", PICTURE, f(4), f(4)),
    case("InstanceNormalization", f(2, 4, 1, 2), f(4), f(4)),
    case("GroupNormalization", PICTURE, f(4), f(4), num_groups=2),
    case("GroupNormalization", PICTURE, f(2), f(2), num_groups=2, opset=18),
    case("LpNormalization", ANY, axis=1),
    case("LpNormalization", ANY, p=1),
    case("LRN", PICTURE, size=3, alpha=0.2),
    *(case("Resize", PICTURE, None, np.array([1, 1, *by], np.float32), mode=mode, coordinate_transformation_mode=places)
      for by in ((2, 2), (0.6, 1.3)) for mode in ("nearest", "linear", "cubic")
      for places in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")),
    *(case("Resize", PICTURE, None, None, i(2, 4, 5, 13), nearest_mode=mode)
      for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")),
    case("Resize", PICTURE, None, None, i(2, 4, 20, 3), mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5),
    case("Resize", PICTURE, None, None, i(13, 5), mode="linear", axes=[2, 3]),
    case("Resize", PICTURE, np.array([1, 1, 2, 3], np.float32), mode="nearest", opset=10),
    case("Upsample", PICTURE, np.array([1, 1, 2, 3], np.float32), mode="linear", opset=9),
]  # fmt: skip

RECURRENT = [
    *(case(kind, SERIES, f(count, gates * 4, 3), f(count, gates * 4, 4), f(count, gates * 8), hidden_size=4,
           direction=direction)
      for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
      for direction, count in (("forward", 1), ("reverse", 1), ("bidirectional", 2))),
    case("GRU", SERIES, f(1, 12, 3), f(1, 12, 4), f(1, 24), hidden_size=4, linear_before_reset=1),
    case("GRU", SERIES, f(1, 12, 3), f(1, 12, 4), hidden_size=4),
    *(case("GRU", SERIES, f(2, 12, 3), f(2, 12, 4), f(2, 24), np.array([5, 3], np.int32), f(2, 2, 4), hidden_size=4,
           direction="bidirectional", linear_before_reset=before) for before in (0, 1)),
    case("LSTM", SERIES, f(2, 16, 3), f(2, 16, 4), f(2, 32), np.array([2, 5], np.int32), f(2, 2, 4), f(2, 2, 4),
         f(2, 12), hidden_size=4, direction="bidirectional"),
    case("LSTM", SERIES, f(1, 16, 3), f(1, 16, 4), None, None, None, None, None, hidden_size=4, clip=0.5,
         activations=["Sigmoid", "Relu", "Softsign"]),
    case("LSTM", SERIES, f(1, 16, 3), f(1, 16, 4), hidden_size=4, input_forget=1),
    case("RNN", SERIES, f(1, 4, 3), f(1, 4, 4), hidden_size=4, activations=["Relu"]),
]  # fmt: skip
CASES = [*ARITHMETIC, *LAYOUT, *WINDOWS, *RECURRENT]
OUTPUTS = {"Split": 2, "TopK": 2, "LSTM": 3, "GRU": 2, "RNN": 2}


def named(one: Case) -> str:
    kind, inputs, attributes, opset = one
    shapes = ",".join("none" if array is None else "x".join(map(str, array.shape)) for array in inputs)
    return f"{kind}-{shapes}-{opset}-{','.join(f'{name}={value}' for name, value in attributes.items())}"[:120]


def graph_of(one: Case, output: int = 0) -> tuple[onnx.ModelProto, dict[str, Array], dict[str, Array]]:
    """A graph of one node without its weights; the weights; what it takes: the first input."""
    kind, inputs, attributes, opset = one
    names = ["" if array is None else f"a.{place}" for place, array in enumerate(inputs)]
    outputs = [f"y{place}" for place in range(OUTPUTS.get(kind, 1))]
    node = helper.make_node(kind, names, outputs, name="node", **attributes)
    arrays = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    given = {name: arrays.pop(name) for name in names[:1]}
    weights = {name: array for name, array in arrays.items()
               if array.dtype == np.float32 and array.size > 1 and kind not in ("Resize", "Upsample")}  # fmt: skip
    graph = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
         for name, array in given.items()],
        [onnx.ValueInfoProto(name=outputs[output])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name not in weights],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return model, weights, given


def by_onnxruntime(model: onnx.ModelProto, weights: dict[str, Array], given: dict[str, Array]) -> Array:
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])
    [found] = session.run(None, given)
    return found


def tensors(arrays: dict[str, Array]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


# ---------------------------------------------------------------- operators


@pytest.mark.parametrize("one", CASES, ids=named)
def test_an_operator_gives_what_onnxruntime_gives(one: Case) -> None:
    for output in range(OUTPUTS.get(one[0], 1)):
        model, weights, given = graph_of(one, output)
        expected = by_onnxruntime(model, weights, given)
        found = GraphNetwork(model, weights)(**tensors(given)).detach().numpy()
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        tolerance = 1e-2 if expected.dtype == np.float16 else 1e-5
        assert np.allclose(found, expected, atol=tolerance, rtol=1e-5), np.abs(found - expected).max()


def test_every_operator_is_in_the_table_of_tests() -> None:
    assert set(OPERATORS) == {kind for kind, *_ in CASES}


DIFFERENTIATED = ("BatchNormalization", "Conv", "ConvTranspose", "Einsum", "GRU", "Gather", "Gemm",
                  "GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization", "MatMul", "PRelu",
                  "RMSNormalization", "RNN", "Where")  # fmt: skip


@pytest.mark.parametrize("one", [one for one in CASES if one[0] in DIFFERENTIATED], ids=named)
def test_gradients_are_those_of_finite_differences(one: Case) -> None:
    """In double precision, in a random direction of every trained weight and of the input."""
    model, weights, given = graph_of(one)
    network, arguments = GraphNetwork(model, weights).double(), tensors(given)
    arguments = {name: value.double() if value.is_floating_point() else value for name, value in arguments.items()}
    generator = torch.Generator().manual_seed(0)
    changed = [parameter for parameter in network.parameters() if parameter.requires_grad]
    changed += [value.requires_grad_() for value in arguments.values() if value.is_floating_point()]
    share = torch.randn(network(**arguments).shape, generator=generator, dtype=torch.float64)
    ways = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in changed]
    gradients = torch.autograd.grad((network(**arguments) * share).sum(), changed)

    def moved(step: float) -> float:
        with torch.no_grad():
            for value, way in zip(changed, ways, strict=True):
                value.add_(step * way)
            result = float((network(**arguments) * share).sum())
            for value, way in zip(changed, ways, strict=True):
                value.sub_(step * way)
        return result

    expected = (moved(1e-6) - moved(-1e-6)) / 2e-6
    found = float(sum((gradient * way).sum() for gradient, way in zip(gradients, ways, strict=True)))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert abs(found) > 1e-3


def chain(*nodes: Any, opset: int = 17) -> onnx.ModelProto:
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(list(nodes), "chain", [taken], [onnx.ValueInfoProto(name=nodes[-1].output[0])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def test_weights_have_the_names_of_their_tensors_whatever_these_are() -> None:
    """Dots, slashes, names that a module has already, one name that begins like another, one like a place inside."""
    names = ["forward", "a", "a.b", "/layer.0/w:0", "training", "", "held.0.value"]
    names = [name or "double..dot." for name in names]
    nodes = [helper.make_node("Add", ["x" if not place else f"v{place}", name], [f"v{place + 1}"])
             for place, name in enumerate(names)]  # fmt: skip
    weights = {name: f(3) for name in names}
    network = GraphNetwork(chain(*nodes), weights)
    state = network.state_dict()
    assert list(state) == names
    assert all(np.array_equal(state[name].numpy(), weights[name]) for name in names)
    state = {name: value + place for place, (name, value) in enumerate(state.items())}
    network.load_state_dict(state)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())
    x = f(2, 3)
    assert np.allclose(network(x=torch.from_numpy(x)).detach().numpy(), x + sum(weights.values()) + 21, atol=1e-5)
    with pytest.raises(RuntimeError, match="Missing key"):
        network.load_state_dict({name: value for name, value in state.items() if name != "a.b"})
    inside = torch.nn.Sequential(network)
    assert list(inside.state_dict()) == [f"0.{name}" for name in names]


def test_statistics_of_batch_norms_and_integers_are_not_trained() -> None:
    weights = {"scale": f(3), "shift": f(3), "mean": f(3), "variance": np.abs(f(3)) + 1, "table": i(2, 0, 1)}
    nodes = [helper.make_node("BatchNormalization", ["x", "scale", "shift", "mean", "variance"], ["normed"]),
             helper.make_node("Gather", ["normed", "table"], ["y"], axis=1)]  # fmt: skip
    network = GraphNetwork(chain(*nodes), weights)
    assert list(network.state_dict()) == ["scale", "shift", "mean", "variance"]
    trained = [name for name, value in network.state_dict(keep_vars=True).items() if value.requires_grad]
    assert trained == ["scale", "shift"]


def test_what_is_not_known_is_refused_by_name() -> None:
    branch = helper.make_graph([], "branch", [], [onnx.ValueInfoProto(name="x")])
    for nodes, reason in (
        ([helper.make_node("Hardmax", ["x"], ["y"])], "this network has Hardmax, which"),
        ([helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch),
          helper.make_node("FusedMatMul", ["y", "y"], ["z"], domain="com.microsoft")],
         "this network has If, com.microsoft.FusedMatMul, which"),
        ([helper.make_node("Relu", ["x"], ["y"], name="first", shine=1)], "Relu first has the attribute shine"),
        ([helper.make_node("MaxPool", ["x"], ["y", "places"], name="pool", kernel_shape=[1]),
          helper.make_node("Cast", ["places"], ["z"], to=1)], "MaxPool pool gives more than one output"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=reason):
            GraphNetwork(chain(*nodes), {})
    for node, reason in (
        (helper.make_node("Resize", ["x", "", "w"], ["y"], antialias=1), "Resize: antialias is 1; in training 0"),
        (helper.make_node("MatMul", ["x", "w"], ["y"], name="product"), "MatMul product cannot be computed in PyTorch"),
    ):
        network = GraphNetwork(chain(node, opset=18), {"w": f(5, 5)})
        with pytest.raises(UsageError, match=reason):
            network(x=torch.zeros(2, 3))


# ---------------------------------------------------------------- networks


def array_model(path: Path) -> Model:
    if not path.is_file():
        pytest.skip("the shared data are not here")
    return choose.model(path)


def noise(count: int, start: int = 0) -> list[str]:
    return [f"random:{seed}" for seed in range(start, start + count)]


def apply(model: Model, method: str, items: Sequence[str], original: Model | None = None, **parameters: Any) -> Model:
    changed: Model = plugins.load("methods", method)(**parameters).apply(
        model, Samples(calibration=items, texts=items, original=original)
    )
    return changed


def damaged(model: Model, name: str, share: float = 1.0) -> Model:
    """Noise of the weight's own spread, or a share of it, on one weight."""
    weight = model.tensors[name]
    assert not isinstance(weight, QuantizedTensor)
    spoilt = weight + np.random.default_rng(1).normal(0, share * weight.std(), weight.shape)
    return dataclasses.replace(model, tensors={**model.tensors, name: spoilt.astype(weight.dtype)})


def distance(model: Model, original: Model, items: Sequence[str]) -> float:
    return float((1 - cosines(*(choose.encoder(one, "m", 1).documents(items) for one in (model, original)))).mean())


@pytest.mark.parametrize("file", [*FILES, *(file for file in sorted(KEPT.glob("*.onnx")) if "gru" not in file.name)],
                         ids=lambda file: file.stem)  # fmt: skip
def test_a_network_gives_what_onnxruntime_gives(file: Path) -> None:
    model = choose.model(file)
    network = choose.family(model).trainable(model)
    encoder = choose.encoder(model, "m", 1)
    for count in (1, 5):
        batch = encoder.input(noise(count, start=50))
        with torch.no_grad():
            assert np.allclose(network(**tensors(batch)).numpy(), encoder.encode(batch), atol=1e-5)
    state = network.state_dict()
    assert state.keys() == model.tensors.keys()
    for name, tensor in model.tensors.items():
        assert np.array_equal(state[name].numpy(), tensor), name


def test_branches_and_loops_are_refused_by_name_and_the_model_stays() -> None:
    model = choose.model(KEPT / "keras_gru.onnx")
    before = {name: np.array(tensor) for name, tensor in model.tensors.items()}
    for method, settings in (("distil.embedding", {"original": damaged(model, next(iter(before)))}),
                             ("quantize.aware_training", {})):  # fmt: skip
        with pytest.raises(UsageError, match="this network has Loop, which cannot be trained here"):
            apply(model, method, noise(8), **settings)
    assert all(np.array_equal(model.tensors[name], array) for name, array in before.items())


def test_a_network_that_computes_otherwise_than_the_runtime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "Relu", lambda x: x)
    model = choose.model(KEPT / "paddle_convolutions.onnx")
    with pytest.raises(UsageError, match="other vectors in PyTorch than in ONNX Runtime"):
        choose.family(model).trainable(model)


def test_a_damaged_resnet_learns_from_the_original_and_the_package_computes_what_it_learned(tmp_path: Path) -> None:
    original = array_model(TINY / "resnet8_cifar10.onnx")
    student = damaged(original, "conv2d_3.weight")
    model = apply(student, "distil.embedding", noise(160), original, steps=20, learning_rate=2e-3)
    unseen = noise(40, start=1000)
    assert distance(model, original, unseen) < 0.5 * distance(student, original, unseen)
    moved = [name for name, tensor in model.tensors.items() if not np.array_equal(tensor, student.tensors[name])]
    assert set(moved) == set(student.tensors), "all of them, each under its name"
    assert all(model.tensors[name].shape == tensor.shape for name, tensor in student.tensors.items())
    network = choose.family(model).trainable(model)
    package = packaged(model, "onnxruntime", tmp_path)
    with torch.no_grad():
        expected = network(**tensors(package.input(unseen))).numpy()
    assert np.allclose(package.documents(unseen), expected, atol=1e-5)
    written = {tensor.name: numpy_helper.to_array(tensor)
               for tensor in choose.family(model).to_onnx(model).graph.initializer}  # fmt: skip
    for layer in model.layers:
        assert np.array_equal(written[layer.weight], model.tensors[layer.weight]), layer.weight


@pytest.mark.parametrize(("name", "weight"), [("keras_lstm", "R0__111"), ("paddle_words", "embedding_0.w_0")])
def test_networks_of_other_kinds_learn_too(name: str, weight: str) -> None:
    """Recurrent, and one whose items are integers."""
    original = choose.model(KEPT / f"{name}.onnx")
    student = damaged(original, weight)
    model = apply(student, "distil.embedding", noise(120), original, steps=60, learning_rate=5e-3)
    unseen = noise(40, start=1000)
    assert distance(model, original, unseen) < 0.7 * distance(student, original, unseen)


def test_items_of_an_array_network_are_files_as_well(tmp_path: Path) -> None:
    original = choose.model(KEPT / "paddle_convolutions.onnx")
    read = choose.encoder(original, "m", 1).input
    items = [str(tmp_path / f"{number}.npy") for number in range(40)]
    for seed, item in enumerate(items):
        np.save(item, read.rows([f"random:{seed}"])[0]["pixels"])
    student = damaged(original, "conv2d_0.w_0")
    settings: dict[str, Any] = {"steps": 30, "batch_size": 8, "learning_rate": 2e-3}
    from_files = apply(student, "distil.embedding", items, original, **settings)
    from_seeds = apply(student, "distil.embedding", noise(40), original, **settings)
    assert distance(from_files, original, items) < distance(student, original, items)
    for name, tensor in from_files.tensors.items():
        assert np.array_equal(tensor, from_seeds.tensors[name]), "the same arrays in the same order"


@pytest.mark.parametrize(
    ("file", "kind", "rate"),
    [(TINY / "resnet8_cifar10.onnx", "convolution", 1e-3), (KEPT / "keras_lstm.onnx", "recurrent", 3e-3)],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)  # fmt: skip
def test_weights_are_trained_on_their_grid(file: Path, kind: str, rate: float) -> None:
    original = array_model(file)
    spec: dict[str, Any] = {"bits": 2, "granularity": "channel", "symmetric": False, "layers": (kind,)}
    rounded = apply(original, "quantize.weights_int", noise(120), **spec)
    model = apply(original, "quantize.aware_training", noise(120), steps=60, learning_rate=rate, **spec)
    unseen = noise(40, start=1000)
    assert distance(model, original, unseen) < 0.8 * distance(rounded, original, unseen)
    chosen = [layer for layer in original.layers if layer.kind == kind]
    assert chosen
    for layer in chosen:
        tensor = model.tensors[layer.weight]
        assert isinstance(tensor, QuantizedTensor)
        assert (tensor.integers.shape, int(tensor.integers.max()) <= 3) == (original.tensors[layer.weight].shape, True)


def test_integers_of_an_earlier_step_stay(tmp_path: Path) -> None:
    original = choose.model(KEPT / "paddle_convolutions.onnx")
    earlier = apply(original, "quantize.weights_int", noise(8), bits=4, layers=("linear",))
    model = apply(earlier, "quantize.aware_training", noise(24), bits=3, steps=10, learning_rate=1e-3)
    kinds = {layer.kind: layer.weight for layer in model.layers}
    assert model.tensors[kinds["linear"]] is earlier.tensors[kinds["linear"]]
    assert isinstance(model.tensors[kinds["convolution"]], QuantizedTensor)
    package = packaged(model, "onnxruntime", tmp_path)
    assert cosines(package.documents(noise(8)), choose.encoder(model, "m", 1).documents(noise(8))).min() > 0.999


# ---------------------------------------------------------------- texts


@pytest.fixture(scope="module")
def text_graph(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny BERT as an ONNX file with its tokenizer beside it."""
    bert, folder = (tmp_path_factory.mktemp("bert") / name for name in ("torch", "onnx"))
    tiny_bert(bert)
    shutil.copytree(bert, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model = choose.model(bert)
    onnx.save(choose.family(model).to_onnx(model), folder / "model.onnx")
    return choose.model(folder)


def test_a_text_encoder_as_a_graph_gives_its_vectors_at_every_length(text_graph: Model) -> None:
    assert text_graph.spec.family == "onnx_graph"
    network, encoder = choose.family(text_graph).trainable(text_graph), choose.encoder(text_graph, "m", 1)
    for texts in (TEXTS[:1], TEXTS[3:12], TEXTS[-2:]):
        batch = encoder.input(texts)
        with torch.no_grad():
            assert np.allclose(network(**tensors(batch)).numpy(), encoder.encode(batch), atol=1e-5)


def test_a_text_encoder_as_a_graph_learns_from_the_original(text_graph: Model, tmp_path: Path) -> None:
    layer = next(layer for layer in text_graph.layers if layer.kind == "embedding")
    student = damaged(text_graph, layer.weight)
    model = apply(student, "distil.embedding", TEXTS, text_graph, steps=60, batch_size=8, learning_rate=2e-3)
    assert distance(model, text_graph, TEXTS) < 0.5 * distance(student, text_graph, TEXTS)
    package = packaged(model, "onnxruntime", tmp_path)
    assert np.allclose(package.documents(TEXTS), choose.encoder(model, "m", 1).documents(TEXTS), atol=1e-5)
    spec: dict[str, Any] = {"bits": 2, "group_size": 16, "symmetric": False}
    rounded = apply(text_graph, "quantize.weights_int", TEXTS, granularity="group", **spec)
    trained = apply(text_graph, "quantize.aware_training", TEXTS, steps=60, batch_size=8, learning_rate=2e-3, **spec)
    assert distance(trained, text_graph, TEXTS) < 0.7 * distance(rounded, text_graph, TEXTS)
    for one in trained.layers:
        assert isinstance(trained.tensors[one.weight], QuantizedTensor)


def test_the_torch_family_and_its_graph_train_to_the_same(tmp_path: Path, text_graph: Model) -> None:
    """The independent reference: the same steps on transformers' own network, whose gradients are PyTorch's."""
    tiny_bert(tmp_path / "bert")
    own = choose.model(tmp_path / "bert")
    settings = train.Training(steps=10, batch_size=4, learning_rate=1e-3)
    states, fitted = [], []
    for model in (own, text_graph):
        network = choose.family(model).trainable(model)
        found = targets.examples(model, TEXTS, lambda items: np.eye(len(items), 32, dtype=np.float32), settings)
        fitted.append(
            train.fit(network, dataclasses.replace(found, held_out=found.train), MeanSquaredError(), settings)
        )
        states.append(network.state_dict())
    assert fitted[0].after < 0.99 * fitted[0].before
    assert fitted[1].before == pytest.approx(fitted[0].before, rel=1e-5)
    assert fitted[1].after == pytest.approx(fitted[0].after, rel=1e-4)
    same = states[0].keys() & states[1].keys()
    assert len(same) > 10
    for name in same:
        expected, result = states[0][name], states[1][name]
        # The exported graph multiplies by transposed weights.
        ways = (expected, expected.T) if expected.ndim == 2 else (expected,)
        assert any(way.shape == result.shape and torch.allclose(way, result, atol=2e-4) for way in ways), name
