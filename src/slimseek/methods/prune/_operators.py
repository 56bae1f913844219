"""What each operator does to the tracks of its inputs; one without a rule holds all that goes into it."""

from __future__ import annotations

from collections.abc import Sequence

from slimseek.methods.prune import _movements, _products
from slimseek.methods.prune._calls import Call, Rule
from slimseek.methods.prune._tracks import (
    Bonds,
    Value,
    fixed,
    matched,
    meet,
    reshaped,
    tidied,
    units_along,
)


def elementwise(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Place by place, broadcast."""
    return [matched(bonds, values, call.shapes[0], call.reason)]


def first_alone(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """The first input as it is, the others do not matter."""
    return [values[0] for _ in call.shapes]


def batch_norm(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Each channel by its own numbers."""
    return [_by_channel(bonds, call, values[0], values[1:])]


def _by_channel(bonds: Bonds, call: Call, value: Value, vectors: Sequence[Value]) -> Value:
    columns = [reshaped(vector, (*vector.shape, *(1,) * (len(value.shape) - 2))) for vector in vectors]
    return matched(bonds, [value, *columns], value.shape, call.reason)


def instance_norm(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Each channel is brought to mean 0 and variance 1, over all other axes but the batch."""
    held = fixed(bonds, values[0], range(2, len(values[0].shape)), f"normalised over by {call.kind} {call.name}")
    return [_by_channel(bonds, call, held, values[1:])]


def group_norm(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Channels of a group are normalised together, so they go together; others would change what is left."""
    reason = f"normalised over by {call.kind} {call.name}"
    held = fixed(bonds, values[0], [axis for axis in range(len(values[0].shape)) if axis != 1], reason)
    groups = call.settings["num_groups"]
    units = units_along(held, 1)
    of_groups = _products.tied(bonds, units, groups, within=True)
    for vector in values[1:]:
        meet(bonds, units_along(vector, 0), of_groups if vector.shape[0] == groups else units, reason)
    return [Value(held.shape, tidied(bonds, held.tracks))]


def normalised(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Softmax, LayerNormalization and others that look at all places along an axis, or from it on."""
    rank = len(values[0].shape)
    usual, onwards = NORMALISING[call.kind]
    if call.opset < 13 and call.kind in ("Softmax", "LogSoftmax", "Hardmax"):
        usual, onwards = 1, True
    axis = call.settings.get("axis", usual) % rank
    if call.kind == "CumSum":
        axis = int(call.integers[1]) % rank
    held = fixed(bonds, values[0], range(axis, rank) if onwards else [axis],
                 f"normalised over by {call.kind} {call.name}")  # fmt: skip
    vectors = () if call.kind == "CumSum" else values[1:]
    result = matched(bonds, [held, *vectors], values[0].shape, f"normalised over by {call.kind} {call.name}")
    return [result, *(Value(shape) for shape in call.shapes[1:])]


def reduced(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """A sum over an axis of channels has fewer terms, all else over it (mean, maximum) holds them."""
    value, rank = values[0], len(values[0].shape)
    named = call.argument(1, "axes") if call.kind not in ("ArgMax", "ArgMin") else [call.settings.get("axis", 0)]
    if not named and call.settings.get("noop_with_empty_axes", 0):
        return [value]
    over = [axis % rank for axis in named or range(rank)]
    if call.kind in ("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"):
        value = _products.summed(bonds, value, over)
    else:
        value = fixed(bonds, value, over, f"reduced over by {call.kind} {call.name}")
    thin = Value(tuple(1 if axis in over else size for axis, size in enumerate(value.shape)), value.tracks)
    return [reshaped(thin, call.shapes[0])]


def by_picture(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Pooling and resizing: each channel for itself."""
    held = fixed(bonds, values[0], range(2, len(values[0].shape)), f"places of {call.kind} {call.name}")
    return [Value(shape, held.tracks) for shape in call.shapes]


def without_tracks(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """What is told of a value, not what is in it."""
    return [Value(shape) for shape in call.shapes]


ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd",
    "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div",
    "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish",
    "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish",
    "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink",
    "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh",
    "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip
NORMALISING = {
    "Softmax": (-1, False), "LogSoftmax": (-1, False), "Hardmax": (-1, False), "LpNormalization": (-1, False),
    "LayerNormalization": (-1, True), "RMSNormalization": (-1, True), "SimplifiedLayerNormalization": (-1, True),
    "LRN": (1, False), "CumSum": (0, False),
}  # fmt: skip
"""The usual axis, and whether all behind it are meant too."""
REDUCING = (
    "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
PICTURES = (
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool", "Resize",
    "Upsample",
)  # fmt: skip
RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(NORMALISING, normalised),
    **dict.fromkeys(REDUCING, reduced),
    **dict.fromkeys(PICTURES, by_picture),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _movements.reshape),
    **dict.fromkeys(("Shape", "Size"), without_tracks),
    **dict.fromkeys(("Conv", "ConvTranspose"), _products.convolution),
    "BatchNormalization": batch_norm, "Concat": _movements.concat, "DepthToSpace": _movements.depth_to_space,
    "Dropout": first_alone, "Einsum": _products.einsum, "Expand": _movements.expand, "Gather": _movements.gather,
    "Gemm": _products.gemm, "GroupNormalization": group_norm, "InstanceNormalization": instance_norm,
    "MatMul": _products.matmul, "Pad": _movements.pad, "Slice": _movements.cut,
    "SpaceToDepth": _movements.space_to_depth, "Split": _movements.split, "Tile": _movements.tile,
    "Transpose": _movements.transpose,
}  # fmt: skip
