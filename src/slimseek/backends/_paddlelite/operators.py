"""Operators of ONNX as those of Paddle: arithmetic, shapes, reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from slimseek.backends._paddlelite.format import TYPES
from slimseek.backends._paddlelite.writer import Writer, refused
from slimseek.schema import Array

Rule = Callable[[Writer, Any], None]
UNARY: dict[str, tuple[str, dict[str, Any]]] = {
    "Relu": ("relu", {}), "Sigmoid": ("sigmoid", {}), "Tanh": ("tanh", {}), "Exp": ("exp", {}), "Log": ("log", {}),
    "Abs": ("abs", {}), "Sqrt": ("sqrt", {}), "Erf": ("erf", {}), "Floor": ("floor", {}), "Ceil": ("ceil", {}),
    "Reciprocal": ("reciprocal", {}), "Softsign": ("softsign", {}),
    "Softplus": ("softplus", {"beta": 1.0, "threshold": 20.0}),
    "HardSwish": ("hard_swish", {"threshold": 6.0, "scale": 6.0, "offset": 3.0}), "Mish": ("mish", {"threshold": 20.0}),
    "Not": ("logical_not", {}), "Neg": ("scale", {"scale": -1.0, "bias": 0.0, "bias_after_scale": True}),
}  # fmt: skip
BINARY = {"Add": "elementwise_add", "Sub": "elementwise_sub", "Mul": "elementwise_mul", "Div": "elementwise_div",
          "Max": "elementwise_max", "Min": "elementwise_min", "Pow": "elementwise_pow", "And": "logical_and",
          "Or": "logical_or", "Equal": "equal", "Less": "less_than", "Greater": "greater_than",
          "LessOrEqual": "less_equal", "GreaterOrEqual": "greater_equal"}  # fmt: skip
COMMUTES = ("Add", "Mul", "Max", "Min", "And", "Or", "Equal")
LARGEST = 2**31 - 1
COMPARES = ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")
REDUCTIONS = {"ReduceSum": "reduce_sum", "ReduceMean": "reduce_mean", "ReduceMax": "reduce_max",
              "ReduceMin": "reduce_min", "ReduceProd": "reduce_prod"}  # fmt: skip


def unary(writer: Writer, node: Any) -> None:
    """One value to one of its shape."""
    kind, attributes = UNARY[node.op_type]
    writer.node(kind, {"X": [writer.use(node.input[0])]}, node.output[0], **attributes)


def with_number(writer: Writer, node: Any) -> None:
    """Activations with parameters of their own, by ONNX's defaults."""
    given = writer.settings(node)
    kind, attributes = {
        "LeakyRelu": ("leaky_relu", {"alpha": float(given.get("alpha", 0.01))}),
        "Elu": ("elu", {"alpha": float(given.get("alpha", 1.0))}),
        "HardSigmoid": (
            "hard_sigmoid", {"slope": float(given.get("alpha", 0.2)), "offset": float(given.get("beta", 0.5))},
        ),
        "Gelu": ("gelu", {"approximate": given.get("approximate", "none") == "tanh"}),
    }[node.op_type]  # fmt: skip
    writer.node(kind, {"X": [writer.use(node.input[0])]}, node.output[0], **attributes)


def binary(writer: Writer, node: Any) -> None:
    """Two values that are broadcast; more than two (Max, Min) one after another."""
    names = list(node.input)
    if len(names) == 1:
        same(writer, node)
        return
    found = names[0]
    for number, name in enumerate(names[1:], 2):
        output = node.output[0] if number == len(names) else writer.fresh(node.output[0])
        _two(writer, node, found, name, output)
        found = output


def _two(writer: Writer, node: Any, one: str, other: str, output: str) -> None:
    rank = writer.rank(node.output[0])
    if writer.constant(one) is not None and node.op_type in COMMUTES:
        one, other = other, one
    number = writer.constant(other)
    scales = number is not None and number.size == 1 and node.op_type in ("Add", "Sub", "Mul", "Div")
    if number is not None and scales and writer.dtype(one) == "float32" and writer.rank(one) == rank:
        _by_number(writer, node, one, float(number.reshape(-1)[0]), output)
        return
    inputs = {"X": [_of_rank(writer, one, rank)], "Y": [_of_rank(writer, other, rank)]}
    more: dict[str, Any] = {"axis": -1, "force_cpu": False} if node.op_type in COMPARES else {"axis": -1}
    writer.write(
        BINARY[node.op_type], inputs, output, writer.shape(node.output[0]), writer.dtype(node.output[0]), **more
    )


def _by_number(writer: Writer, node: Any, name: str, number: float, output: str) -> None:
    factor, summand = {"Add": (1.0, number), "Sub": (1.0, -number), "Mul": (number, 0.0)}.get(node.op_type, (1.0, 0.0))
    if node.op_type == "Div":
        factor = float(np.float32(1) / np.float32(number))
    writer.write("scale", {"X": [writer.use(name)]}, output, writer.shape(node.output[0]), scale=factor, bias=summand,
                 bias_after_scale=True)  # fmt: skip


def _of_rank(writer: Writer, name: str, rank: int) -> str:
    """The value with axes of 1 before its own."""
    missing = rank - writer.rank(name)
    held = writer.constant(name)
    if held is not None and writer.use(name) in writer.parameters and missing:
        return writer.parameter(f"{name}.rank{rank}", held.reshape((1,) * missing + held.shape))
    if missing <= 0:
        return writer.use(name)
    shape = (1,) * missing + writer.shape(name)
    return writer.write("unsqueeze2", {"X": [writer.use(name)]}, writer.fresh(name), shape, writer.dtype(name),
                        extra=("XShape",), axes=list(range(missing)))  # fmt: skip


def same(writer: Writer, node: Any) -> None:
    """The value as it is."""
    writer.node("assign", {"X": [writer.use(node.input[0])]}, node.output[0])


def cast(writer: Writer, node: Any) -> None:
    """To another dtype."""
    target = helper.tensor_dtype_to_np_dtype(writer.settings(node)["to"]).name
    if target not in TYPES or writer.settings(node)["to"] == TensorProto.FLOAT16:
        raise refused(f"a Cast to {target}")
    writer.node("cast", {"X": [writer.use(node.input[0])]}, node.output[0],
                in_dtype=TYPES[writer.dtype(node.input[0])], out_dtype=TYPES[target])  # fmt: skip


def clip(writer: Writer, node: Any) -> None:
    """Between two numbers, either of which may be missing."""
    given = writer.settings(node)
    ends = [given.get("min"), given.get("max")]
    for place, name in enumerate(node.input[1:3]):
        if name:
            held = writer.constant(name)
            if held is None:
                raise refused("a Clip by computed numbers")
            ends[place] = float(held.reshape(-1)[0])
    low, high = (
        float(np.float32(end))
        for end in (-3.0e38 if ends[0] is None else ends[0], 3.0e38 if ends[1] is None else ends[1])
    )
    if low == 0 and high == 6:
        writer.node("relu6", {"X": [writer.use(node.input[0])]}, node.output[0], threshold=6.0)
        return
    writer.node("clip", {"X": [writer.use(node.input[0])]}, node.output[0], min=low, max=high)


def reshaped(writer: Writer, node: Any) -> None:
    """Any operator that changes the shape alone: what is fixed, and 0 for what the same axis of the input has."""
    name, output = node.input[0], node.output[0]

    given, wanted = writer.seen.shapes[name], writer.seen.shapes[output]
    sizes = []
    for axis, (one, other) in enumerate(zip(*wanted, strict=True)):
        if one == other:
            sizes.append(one)
        elif axis < len(given[0]) and (given[0][axis], given[1][axis]) == (one, other):
            sizes.append(0)
        else:
            sizes.append(-1)
    if sizes.count(-1) > 1:
        raise refused(f"{output}: more than one axis of a shape is computed")
    writer.node("reshape2", {"X": [writer.use(name)]}, output, extra=("XShape",), shape=sizes)


def transpose(writer: Writer, node: Any) -> None:
    """Axes in another order."""
    order = writer.settings(node).get("perm") or list(range(writer.rank(node.input[0])))[::-1]
    writer.node("transpose2", {"X": [writer.use(node.input[0])]}, node.output[0], extra=("XShape",), axis=list(order))


def softmax(writer: Writer, node: Any) -> None:
    """Along one axis."""
    writer.node(
        "softmax", {"X": [writer.use(node.input[0])]}, node.output[0], axis=int(writer.settings(node).get("axis", -1))
    )


def layer_norm(writer: Writer, node: Any) -> None:
    """Over the last axes."""
    given = writer.settings(node)
    inputs = {"X": [writer.use(node.input[0])], "Scale": [writer.use(node.input[1])]}
    if len(node.input) > 2 and node.input[2]:
        inputs["Bias"] = [writer.use(node.input[2])]
    writer.node("layer_norm", inputs, node.output[0], parameter="Y", extra=("Mean", "Variance"),
                begin_norm_axis=int(given.get("axis", -1)) % writer.rank(node.input[0]),
                epsilon=float(given.get("epsilon", 1e-5)))  # fmt: skip


def reduction(writer: Writer, node: Any) -> None:
    """Sums, means, extremes and norms over some axes."""
    given, source = writer.settings(node), writer.use(node.input[0])
    axes = list(given.get("axes", ()))
    if len(node.input) > 1 and node.input[1]:
        axes = [int(axis) for axis in _known(writer, node.input[1], "axes of a reduction").reshape(-1)]
    rank = writer.rank(node.input[0])
    axes = [axis % rank for axis in axes] or list(range(rank))
    how: dict[str, Any] = {"dim": axes, "keep_dim": bool(given.get("keepdims", 1)), "reduce_all": len(axes) == rank}
    if node.op_type in REDUCTIONS:
        writer.node(REDUCTIONS[node.op_type], {"X": [source]}, node.output[0], **how)
        return
    shape = writer.shape(node.input[0])
    before = {"ReduceL2": "square", "ReduceSumSquare": "square", "ReduceL1": "abs"}[node.op_type]
    each = writer.write(before, {"X": [source]}, writer.fresh(node.output[0]), shape)
    if node.op_type != "ReduceL2":
        writer.node("reduce_sum", {"X": [each]}, node.output[0], **how)
        return
    total = writer.write("reduce_sum", {"X": [each]}, writer.fresh(node.output[0]), writer.shape(node.output[0]), **how)
    writer.node("sqrt", {"X": [total]}, node.output[0])


def cumulative_sum(writer: Writer, node: Any) -> None:
    """Along one axis."""
    given, axis = writer.settings(node), int(_known(writer, node.input[1], "the axis of a CumSum").reshape(-1)[0])
    writer.node("cumsum", {"X": [writer.use(node.input[0])]}, node.output[0], axis=axis, flatten=False,
                exclusive=bool(given.get("exclusive", 0)), reverse=bool(given.get("reverse", 0)))  # fmt: skip


def concat(writer: Writer, node: Any) -> None:
    """Values side by side."""
    axis = int(writer.settings(node)["axis"]) % writer.rank(node.output[0])
    if any(writer.constant(name) is not None for name in node.input):
        raise refused("a Concat with a constant")
    writer.node("concat", {"X": [writer.use(name) for name in node.input]}, node.output[0], axis=axis)


def slices(writer: Writer, node: Any) -> None:
    """A part of some axes."""
    rank = writer.rank(node.input[0])
    starts, ends = (_known(writer, name, "a Slice").reshape(-1) for name in node.input[1:3])
    given = _known(writer, node.input[3], "a Slice").reshape(-1) if len(node.input) > 3 else range(len(starts))
    if len(node.input) > 4 and node.input[4] and (_known(writer, node.input[4], "a Slice") != 1).any():
        raise refused("a Slice with steps")
    part(writer, node.input[0], node.output[0], [int(axis) % rank for axis in given], starts.tolist(), ends.tolist())


def part(writer: Writer, name: str, output: str, axes: list[int], starts: list[int], ends: list[int],
         dropped: Sequence[int] = ()) -> None:  # fmt: skip
    """Write what lies between starts and ends on some axes; ``dropped`` axes, of one place, leave the shape."""
    held = [[min(max(one, -LARGEST), LARGEST) for one in places] for places in (starts, ends)]
    writer.node("slice", {"Input": [writer.use(name)]}, output, axes=axes, starts=held[0], ends=held[1],
                decrease_axis=list(dropped), infer_flags=[])  # fmt: skip


def split(writer: Writer, node: Any) -> None:
    """Parts of one axis, each as a slice."""
    axis = int(writer.settings(node).get("axis", 0)) % writer.rank(node.input[0])
    start = 0
    for name in node.output:
        size = writer.shape(name)[axis]
        if size < 0:
            raise refused("a Split of an axis that changes")
        part(writer, node.input[0], name, [axis], [start], [start + size])
        start += size


def expand(writer: Writer, node: Any) -> None:
    """Left to the broadcast of what reads it: only sums, products and the like may."""
    readers = [other for other in writer.seen.nodes if node.output[0] in other.input]
    fits = all(other.op_type in BINARY for other in readers) and node.output[0] not in writer.outputs
    if not fits or writer.rank(node.input[0]) > writer.rank(node.output[0]):
        raise refused("an Expand that something else than arithmetic reads")
    source = _of_rank(writer, node.input[0], writer.rank(node.output[0]))
    writer.write(
        "assign", {"X": [source]}, node.output[0], (-1,) * writer.rank(node.output[0]), writer.dtype(node.output[0])
    )


def _known(writer: Writer, name: str, what: str) -> Array:
    held = writer.constant(name)
    if held is None:
        raise refused(f"{what} by computed numbers")
    return held


RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY, unary), **dict.fromkeys(("LeakyRelu", "Elu", "HardSigmoid", "Gelu"), with_number),
    **dict.fromkeys(BINARY, binary), **dict.fromkeys(("Identity", "Dropout"), same),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), reshaped),
    **dict.fromkeys((*REDUCTIONS, "ReduceL1", "ReduceL2", "ReduceSumSquare"), reduction),
    "Cast": cast, "Clip": clip, "Transpose": transpose, "Softmax": softmax, "LayerNormalization": layer_norm,
    "Concat": concat, "CumSum": cumulative_sum, "Slice": slices, "Split": split, "Expand": expand,
}  # fmt: skip
