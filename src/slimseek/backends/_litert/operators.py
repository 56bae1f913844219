"""Operators on single values and on shapes in LiteRT, a small function each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper

from slimseek.backends._litert.conversion import LAST, Conversion, Node
from slimseek.backends._litert.linear import operand
from slimseek.errors import UsageError

Rule = Callable[[Conversion, Node], None]
UNARY = {"Relu": "RELU", "Sigmoid": "LOGISTIC", "Tanh": "TANH", "Sqrt": "SQRT", "Exp": "EXP", "Log": "LOG",
         "Neg": "NEG", "Abs": "ABS", "Floor": "FLOOR", "Ceil": "CEIL", "Sin": "SIN", "Cos": "COS", "Sign": "SIGN",
         "HardSwish": "HARD_SWISH", "Round": "ROUND", "Not": "LOGICAL_NOT"}  # fmt: skip
BINARY = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Max": "MAXIMUM", "Min": "MINIMUM", "Sum": "ADD",
          "And": "LOGICAL_AND", "Or": "LOGICAL_OR", "Equal": "EQUAL", "Greater": "GREATER", "Less": "LESS",
          "GreaterOrEqual": "GREATER_EQUAL", "LessOrEqual": "LESS_EQUAL", "Pow": "POW"}  # fmt: skip
TRUTHS = ("EQUAL", "GREATER", "LESS", "GREATER_EQUAL", "LESS_EQUAL", "LOGICAL_AND", "LOGICAL_OR")
REDUCTIONS = {"ReduceSum": "SUM", "ReduceMean": "MEAN", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN",
              "ReduceProd": "REDUCE_PROD"}  # fmt: skip


def refused(node: Node, why: str) -> UsageError:
    """What is raised for a form of an operator that LiteRT does not have."""
    return UsageError(f"LiteRT takes no {node.kind} {why} ({node.outputs[0]}); deploy for onnxruntime instead")


def in_pictures(c: Conversion, node: Node) -> bool:
    """Whether a node on single values can run with the channels last: something stands so, and nothing has to turn."""
    computed = [name for name in node.inputs if name and not c.is_constant(name)]
    rest = [name for name in node.inputs if name and c.is_constant(name)]
    if not computed or any(len(c.dims(name)) != 4 for name in computed):
        return False
    alike = all(c.known(name) is not None and len(c.dims(name)) <= 4 for name in rest)
    return alike and all(c.is_picture(name) for name in computed)


def unary(kind: str, node: Node, c: Conversion, settings: tuple[str, dict[str, Any]] | None = None) -> None:
    """An operator on each value, in whichever order it stands."""
    picture = in_pictures(c, node)
    x = c.picture(node.inputs[0]) if picture else operand(c, node.inputs[0])
    found = c.write.operator(kind, [x], c.write.shapes[x], c.kind(x), settings=settings)
    c.give(node.outputs[0], found, picture=picture)


def binary(kind: str, node: Node, c: Conversion) -> None:
    """An operator on two values, or several one after the other, with broadcasting."""
    picture = in_pictures(c, node)
    inputs = [c.beside(name) if picture else operand(c, name) for name in node.inputs]
    shape = c.dims(node.outputs[0])
    shape = tuple(shape[axis] for axis in LAST) if picture else shape
    found = inputs[0]
    for other in inputs[1:]:
        found = c.write.operator(kind, [found, other], shape, "bool" if kind in TRUTHS else c.kind(found))
    c.give(node.outputs[0], found, picture=picture)


def gelu(c: Conversion, node: Node) -> None:
    """Exact, or by the hyperbolic tangent where the node says so."""
    approximate = node.settings.get("approximate", b"none") == b"tanh"
    unary("GELU", node, c, ("GeluOptions", {"approximate": approximate}))


def leaky_relu(c: Conversion, node: Node) -> None:
    """LEAKY_RELU with the node's slope."""
    unary("LEAKY_RELU", node, c, ("LeakyReluOptions", {"alpha": node.settings.get("alpha", 0.01)}))


def erf(c: Conversion, node: Node) -> None:
    """The error function of x by way of GELU: it is 2 gelu(z) / z - 1 for z = sqrt(2) x, nudged away from zero."""
    x = operand(c, node.inputs[0])
    shape = c.write.shapes[x]

    def number(value: float) -> int:
        return c.constant(np.array(value, np.float32))

    z = c.write.operator("MUL", [x, number(math.sqrt(2))], shape)
    z = c.write.operator("ADD", [z, number(1e-20)], shape)
    part = c.write.operator("GELU", [z], shape, settings=("GeluOptions", {"approximate": False}))
    part = c.write.operator("MUL", [c.write.operator("DIV", [part, z], shape), number(2.0)], shape)
    c.give(node.outputs[0], c.write.operator("SUB", [part, number(1.0)], shape))


def clip(c: Conversion, node: Node) -> None:
    """Between two constants: RELU and RELU6 where these are."""
    low, high = limits(c, node)
    if low == 0 and high in (6, None):
        unary("RELU6" if high == 6 else "RELU", node, c)
        return
    picture = in_pictures(c, node)
    x = c.picture(node.inputs[0]) if picture else operand(c, node.inputs[0])
    for kind, limit in (("MAXIMUM", low), ("MINIMUM", high)):
        if limit is not None:
            bound = c.constant(np.array(limit, c.kind(x)))
            x = c.write.operator(kind, [x, bound], c.write.shapes[x], c.kind(x))
    c.give(node.outputs[0], x, picture=picture)


def limits(c: Conversion, node: Node) -> tuple[float | None, float | None]:
    """The least and the greatest value of a Clip; ``None`` for none."""
    found = []
    for position, label in ((1, "min"), (2, "max")):
        name = node.inputs[position] if len(node.inputs) > position else ""
        if name:
            known = c.known(name)
            if known is None:
                raise refused(node, "between computed limits")
            limit: Any = known.reshape(-1)[0].item()
        else:
            limit = node.settings.get(label)
        found.append(None if limit is None or abs(limit) > 1e38 else limit)
    return found[0], found[1]


def softmax(c: Conversion, node: Node) -> None:
    """Over one axis; another than the last is brought there and back."""
    x = operand(c, node.inputs[0])
    rank = len(c.dims(node.inputs[0]))
    axis = node.settings.get("axis", -1) % rank
    order = (*(other for other in range(rank) if other != axis), axis)
    last = axis == rank - 1
    x = x if last else c.transposed(x, order)
    found = c.write.operator("SOFTMAX", [x], c.write.shapes[x], settings=("SoftmaxOptions", {"beta": 1.0}))
    c.give(node.outputs[0], found if last else c.transposed(found, tuple(map(int, np.argsort(order)))))


def reduction(kind: str, node: Node, c: Conversion) -> None:
    """Over constant axes."""
    x = operand(c, node.inputs[0])
    c.give(node.outputs[0], _reduced(c, node, kind, x))


def norm(c: Conversion, node: Node) -> None:
    """ReduceL2: the square root of the sum of squares; ReduceSumSquare without the root."""
    x = operand(c, node.inputs[0])
    squares = c.write.operator("MUL", [x, x], c.write.shapes[x])
    found = _reduced(c, node, "SUM", squares)
    if node.kind == "ReduceL2":
        found = c.write.operator("SQRT", [found], c.write.shapes[found])
    c.give(node.outputs[0], found)


def _reduced(c: Conversion, node: Node, kind: str, x: int) -> int:
    axes = constants(c, node, 1, "axes")
    rank = len(c.dims(node.inputs[0]))
    chosen = [axis % rank for axis in axes] if axes else list(range(rank))
    settings = ("ReducerOptions", {"keepDims": bool(node.settings.get("keepdims", 1))})
    return c.write.operator(kind, [x, c.numbers(*chosen)], c.dims(node.outputs[0]), c.kind(x), settings=settings)


def constants(c: Conversion, node: Node, position: int, label: str) -> list[int] | None:
    """Whole numbers of a node, out of an input or, in older operator sets, an attribute; ``None`` for none."""
    if len(node.inputs) > position and node.inputs[position]:
        known = c.known(node.inputs[position])
        if known is None:
            raise refused(node, f"with computed {label}")
        return [int(value) for value in known.reshape(-1)]
    found = node.settings.get(label)
    return None if found is None else list(found) if isinstance(found, (list, tuple)) else [found]


def reshape(c: Conversion, node: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: what they give is known."""
    x, shape = operand(c, node.inputs[0]), c.dims(node.outputs[0])
    if node.kind == "Unsqueeze" and shape.count(-1) > 1:
        for axis in sorted(axis % len(shape) for axis in constants(c, node, 1, "axes") or []):
            before = c.write.shapes[x]
            inputs = [x, c.write.constant(np.array(axis, np.int32))]
            x = c.write.operator("EXPAND_DIMS", inputs, (*before[:axis], 1, *before[axis:]), c.kind(x))
    c.give(node.outputs[0], c.reshaped(x, shape))


def same(c: Conversion, node: Node) -> None:
    """Identity, and Dropout outside of training."""
    if c.is_picture(node.inputs[0]):
        c.give(node.outputs[0], c.picture(node.inputs[0]), picture=True)
    else:
        c.give(node.outputs[0], operand(c, node.inputs[0]))


def transpose(c: Conversion, node: Node) -> None:
    """TRANSPOSE."""
    rank = len(c.dims(node.inputs[0]))
    order = tuple(node.settings.get("perm") or range(rank)[::-1])
    c.give(node.outputs[0], c.transposed(operand(c, node.inputs[0]), order))


def cast(c: Conversion, node: Node) -> None:
    """CAST, unless LiteRT computes with the same type."""
    kind = helper.tensor_dtype_to_np_dtype(node.settings["to"]).name
    c.give(node.outputs[0], c.cast(operand(c, node.inputs[0]), "float32" if kind == "float16" else kind))


def where(c: Conversion, node: Node) -> None:
    """SELECT_V2, which broadcasts."""
    inputs = [operand(c, name) for name in node.inputs]
    c.give(node.outputs[0], c.write.operator("SELECT_V2", inputs, c.dims(node.outputs[0]), c.kind(inputs[1])))


def expand(c: Conversion, node: Node) -> None:
    """Left to what reads it, where that broadcasts to the same shape; else written out."""
    x, shape, output = operand(c, node.inputs[0]), c.dims(node.outputs[0]), node.outputs[0]
    readers = c.readers.get(output, [])
    broadcasts = output not in c.outputs and all(
        reader.kind in (*BINARY, "Where") and _reaches(c, reader, output, shape) for reader in readers
    )
    if broadcasts or c.write.shapes[x] == shape:
        c.give(output, x)
        return
    if -1 not in shape:
        c.give(output, c.write.operator("BROADCAST_TO", [x, c.numbers(*shape)], shape, c.kind(x)))
        return
    raise refused(node, "to a free shape")


def _reaches(c: Conversion, reader: Node, output: str, shape: tuple[int, ...]) -> bool:
    """Whether another input gives the reader's result the shape that it has."""
    others = [c.dims(name) for name in reader.inputs if name != output]
    given = c.dims(reader.outputs[0])
    return len(given) >= len(shape) and given in others


def concatenate(c: Conversion, node: Node) -> None:
    """CONCATENATION along one axis; of pictures with their channels last."""
    rank = len(c.dims(node.outputs[0]))
    axis, shape = node.settings["axis"] % rank, c.dims(node.outputs[0])
    picture = rank == 4 and all(c.is_picture(name) for name in node.inputs)
    inputs = [c.picture(name) if picture else operand(c, name) for name in node.inputs]
    if picture:
        axis, shape = LAST.index(axis), tuple(shape[other] for other in LAST)
    settings = ("ConcatenationOptions", {"axis": axis})
    found = c.write.operator("CONCATENATION", inputs, shape, c.kind(inputs[0]), settings=settings)
    c.give(node.outputs[0], found, picture=picture)


def slices(c: Conversion, node: Node) -> None:
    """STRIDED_SLICE between constant places; an end past the axis is its end at every size."""
    name, rank = node.inputs[0], len(c.dims(node.inputs[0]))
    starts, ends = constants(c, node, 1, "starts") or [], constants(c, node, 2, "ends") or []
    axes = constants(c, node, 3, "axes") or list(range(len(starts)))
    steps = constants(c, node, 4, "steps") or [1] * len(starts)
    begin, stop, stride = [0] * rank, [0] * rank, [1] * rank
    begins, stops = (1 << rank) - 1, (1 << rank) - 1
    smallest = c.small.shapes[name]
    for start, end, axis, step in zip(starts, ends, (axis % rank for axis in axes), steps, strict=True):
        if step < 1 or (-1 in (c.dims(name)[axis],) and (start < 0 or 0 <= end < smallest[axis])):
            raise refused(node, "backwards, or of a part of the free axis")
        begin[axis], stop[axis], stride[axis] = max(start, -smallest[axis]), end, step
        begins &= ~(1 << axis)
        if end < smallest[axis]:
            stops &= ~(1 << axis)
        else:
            stop[axis] = 0
    settings = ("StridedSliceOptions", {"beginMask": begins, "endMask": stops})
    x = operand(c, name)
    inputs = [x, c.numbers(*begin), c.numbers(*stop), c.numbers(*stride)]
    c.give(node.outputs[0], c.write.operator("STRIDED_SLICE", inputs, c.dims(node.outputs[0]), c.kind(x),
                                             settings=settings))  # fmt: skip


def split(c: Conversion, node: Node) -> None:
    """SPLIT_V into parts of constant size."""
    x, rank = operand(c, node.inputs[0]), len(c.dims(node.inputs[0]))
    axis = node.settings.get("axis", 0) % rank
    shapes = [c.dims(name) for name in node.outputs]
    outputs = [c.write.tensor(shape, c.kind(x)) for shape in shapes]
    sizes = c.numbers(*(shape[axis] for shape in shapes))
    settings = ("SplitVOptions", {"numSplits": len(outputs)})
    c.write.append("SPLIT_V", [x, sizes, c.write.constant(np.array(axis, np.int32))], outputs, settings)
    for name, index in zip(node.outputs, outputs, strict=True):
        c.give(name, index)


def cumulative_sum(c: Conversion, node: Node) -> None:
    """CUMSUM along a constant axis."""
    x = operand(c, node.inputs[0])
    [axis] = constants(c, node, 1, "axis") or [0]
    settings = ("CumsumOptions", {"exclusive": bool(node.settings.get("exclusive", 0)),
                                  "reverse": bool(node.settings.get("reverse", 0))})  # fmt: skip
    axis_index = c.write.constant(np.array(axis % len(c.write.shapes[x]), np.int32))
    c.give(
        node.outputs[0], c.write.operator("CUMSUM", [x, axis_index], c.write.shapes[x], c.kind(x), settings=settings)
    )


def gather_elements(c: Conversion, node: Node) -> None:
    """Along an axis beside which everything is of length one: a look-up in a row."""
    data, indices = node.inputs
    axis = node.settings.get("axis", 0) % len(c.dims(data))
    if any(size != 1 for other, size in enumerate(c.dims(data)) if other != axis):
        raise refused(node, "of several rows")
    row = c.reshaped(operand(c, data), (c.dims(data)[axis],))
    settings = ("GatherOptions", {"axis": 0})
    c.give(node.outputs[0], c.write.operator("GATHER", [row, c.value(indices)], c.dims(node.outputs[0]), c.kind(row),
                                             settings=settings))  # fmt: skip


def gather_nd(c: Conversion, node: Node) -> None:
    """GATHER_ND; LiteRT looks up no truths, so they go as numbers."""
    if node.settings.get("batch_dims", 0):
        raise refused(node, "in batches")
    x, indices = operand(c, node.inputs[0]), c.value(node.inputs[1])
    kind = c.kind(x)
    x = c.cast(x, "int32") if kind == "bool" else x
    found = c.write.operator("GATHER_ND", [x, indices], c.dims(node.outputs[0]), c.kind(x))
    c.give(node.outputs[0], c.cast(found, kind))


def _with(kind: str, rule: Callable[[str, Node, Conversion], None]) -> Rule:
    return lambda c, node: rule(kind, node, c)


OPERATORS: dict[str, Rule] = {
    **{name: _with(kind, unary) for name, kind in UNARY.items()},
    **{name: _with(kind, binary) for name, kind in BINARY.items()},
    **{name: _with(kind, reduction) for name, kind in REDUCTIONS.items()},
    "LeakyRelu": leaky_relu,
    "Gelu": gelu, "Erf": erf, "Clip": clip, "Softmax": softmax, "ReduceL2": norm, "ReduceSumSquare": norm,
    "Reshape": reshape, "Flatten": reshape, "Squeeze": reshape, "Unsqueeze": reshape, "Identity": same,
    "Dropout": same, "Transpose": transpose, "Cast": cast, "Where": where, "Expand": expand, "Concat": concatenate,
    "Slice": slices, "Split": split, "CumSum": cumulative_sum, "GatherElements": gather_elements,
    "GatherND": gather_nd,
}  # fmt: skip
