"""Convolutions and pools in LiteRT, channels last; on integers from end to end where the artifact has ranges."""

from __future__ import annotations

from typing import Any

import numpy as np

from slimseek.backends._litert.conversion import LAST, Conversion, Node
from slimseek.backends._litert.file import Grid, Shape
from slimseek.backends._litert.linear import operand, stored_tensor
from slimseek.backends._litert.operators import Rule, binary, constants, limits, reduction, refused
from slimseek.backends._litert.weights import rounding_weight, unsmoothed, values
from slimseek.backends._lowering import LARGEST_BIAS, tensor_name
from slimseek.schema import ActivationQuant, Array, QuantizedTensor

KERNEL, DEPTHWISE = (0, 2, 3, 1), (1, 2, 3, 0)
"""Orders of a kernel's axes: [outputs, height, width, inputs], and [1, height, width, outputs] of one by one."""
NONE, RELU, RELU6 = 0, 1, 3
LOWEST = -3.4e38


def convolution(c: Conversion, node: Node) -> None:
    """CONV_2D or DEPTHWISE_CONV_2D; integers in and out where input and result have a range."""
    source, kernel = node.inputs[0], node.inputs[1]
    shape = c.dims(kernel)
    if len(shape) != 4 or not c.is_constant(kernel):
        raise refused(node, "but with two dimensions and a constant kernel")
    channels, groups = c.dims(source)[1], node.settings.get("group", 1)
    depthwise = groups == channels and groups > 1 and shape[0] % groups == 0
    ranges = _ranges(c, node, source)
    activation, end = _activation(c, node)
    if ranges is not None:
        _integer_convolution(c, node, depthwise, *ranges)
        return
    x, padding = _padded(c, node, c.picture(source), shape[2:])
    tensor = stored_tensor(c, kernel)
    order = DEPTHWISE if depthwise else KERNEL
    if tensor is None:
        w = c.write.constant(np.ascontiguousarray(c.small.constants[kernel].transpose(order)))
    else:
        name = tensor_name(kernel)
        w = unsmoothed(c, name, values(c, name, order), order)
    bias = operand(c, node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else _no_bias(c, shape[0])
    found = _write(c, node, [x, w, bias], depthwise, padding, activation, None)
    c.give(end, found, picture=True)
    c.done.add(end)


def _no_bias(c: Conversion, outputs: int) -> int:
    return c.write.constant(np.zeros(outputs, np.float32))


def _ranges(c: Conversion, node: Node, source: str) -> tuple[ActivationQuant, ActivationQuant, int, str] | None:
    """Ranges of the input and the result, the activation between, and the rounded result's name."""
    name = tensor_name(node.inputs[1])
    tensor, how = c.model.tensors.get(name), c.model.activations.get(name)
    if not isinstance(tensor, QuantizedTensor) or how is None or how.mode != "static" or c.integers(source) is None:
        return None
    if name in c.model.smoothing or tensor.spec.axis != 0:
        return None
    found = rounded_end(c, node)
    return None if found is None else (how, *found)


def rounded_end(c: Conversion, node: Node) -> tuple[ActivationQuant, int, str] | None:
    """The range of a node's result, the activation before it is rounded, and its name once rounded."""
    activation, end = _activation(c, node)
    readers = c.readers.get(end, [])
    if end in c.outputs or len(readers) != 1 or readers[0].kind != "QuantizeLinear":
        return None
    scale, zero_point = (c.small.constants[name] for name in readers[0].inputs[1:3])
    how = ActivationQuant(mode="static", scale=float(scale), zero_point=int(zero_point))
    return how, activation, readers[0].outputs[0]


def _activation(c: Conversion, node: Node) -> tuple[int, str]:
    """The activation that alone reads a node's result and can be one with it, and the result's name after it."""
    output = node.outputs[0]
    readers = c.readers.get(output, [])
    if output in c.outputs or len(readers) != 1:
        return NONE, output
    [reader] = readers
    if reader.kind == "Relu":
        return RELU, reader.outputs[0]
    if reader.kind == "Clip" and limits(c, reader) in ((0, 6), (0, None)):
        return (RELU6 if limits(c, reader)[1] == 6 else RELU), reader.outputs[0]
    return NONE, output


def _integer_convolution(c: Conversion, node: Node, depthwise: bool, how: ActivationQuant, after: ActivationQuant,
                         activation: int, rounded: str) -> None:  # fmt: skip
    """Int8 in, int8 out; the bias is an int32 in steps of input scale times weight scale."""
    name, outputs = tensor_name(node.inputs[1]), c.dims(node.inputs[1])[0]
    bias = np.zeros(outputs, np.float64)
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = c.small.constants[node.inputs[2]].astype(np.float64)
    order = DEPTHWISE if depthwise else KERNEL
    least = np.abs(bias) / (how.scale * LARGEST_BIAS)
    w, scale = rounding_weight(c, name, order, 3 if depthwise else 0, least)
    step = np.float32(how.scale) * scale.astype(np.float64)
    grid = Grid(tuple(map(float, step)), (0,) * outputs)
    b = c.write.constant(np.rint(bias / step).astype(np.int32), name=f"{name}#bias", grid=grid)
    x = c.integers(node.inputs[0])
    assert x is not None
    if not c.is_picture(node.inputs[0]):
        x = c.transposed(x, LAST)
    x, padding = _padded(c, node, x, c.dims(node.inputs[1])[2:])
    result = Grid((after.scale,), (after.zero_point - 128,))
    found = _write(c, node, [x, w, b], depthwise, padding, activation, result)
    c.give_integers(rounded, found, picture=True)
    c.done |= {rounded, _activation(c, node)[1]}


def _write(c: Conversion, node: Node, inputs: list[int], depthwise: bool, padding: int, activation: int,
           grid: Grid | None) -> int:  # fmt: skip
    strides, dilations = node.settings.get("strides", [1, 1]), node.settings.get("dilations", [1, 1])
    fields: dict[str, Any] = {
        "padding": padding, "strideH": strides[0], "strideW": strides[1], "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1], "fusedActivationFunction": activation,
    }  # fmt: skip
    if depthwise:
        fields["depthMultiplier"] = c.dims(node.inputs[1])[0] // c.dims(node.inputs[0])[1]
    shape = c.dims(node.outputs[0])
    return c.write.operator(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", inputs, tuple(shape[axis] for axis in LAST),
        "float32" if grid is None else "int8", grid=grid,
        settings=("DepthwiseConv2DOptions" if depthwise else "Conv2DOptions", fields),
    )  # fmt: skip


def _padded(c: Conversion, node: Node, x: int, window: Shape) -> tuple[int, int]:
    """The picture [n, height, width, channels], filled up with zeros where LiteRT's own padding is another, and that
    padding: 0 for SAME, 1 for VALID.
    """
    before, after = pads_of(c, node, window)
    sizes = c.write.shapes[x][1:3]
    if (before, after) == ((0, 0), (0, 0)):
        return x, 1
    if (before, after) == _same(node, sizes, window):
        return x, 0
    return _filled(c, x, before, after, 0.0), 1


def _filled(c: Conversion, x: int, before: tuple[int, int], after: tuple[int, int], value: float) -> int:
    """More rows and columns before and after; integers are filled with their zero."""
    if (before, after) == ((0, 0), (0, 0)):
        return x
    shape = c.write.shapes[x]
    pads = np.array([[0, 0], [before[0], after[0]], [before[1], after[1]], [0, 0]], np.int32)
    wide = (shape[0], shape[1] + before[0] + after[0], shape[2] + before[1] + after[1], shape[3])
    inputs = [x, c.write.constant(pads)]
    if value == 0:
        return c.write.operator("PAD", inputs, wide, c.kind(x), grid=c.write.grids[x])
    return c.write.operator("PADV2", [*inputs, c.constant(np.array(value, np.float32))], wide)


def pads_of(c: Conversion, node: Node, window: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
    """What is added before and after [height, width]."""
    automatic = node.settings.get("auto_pad", b"NOTSET")
    shape = c.dims(node.inputs[0])
    if automatic == b"SAME_UPPER":
        return _same(node, shape[2:], window)
    if automatic == b"SAME_LOWER" or -1 in shape[2:]:
        raise refused(node, "over a free axis, or filled up before")
    pads = [0, 0, 0, 0] if automatic == b"VALID" else node.settings.get("pads", [0, 0, 0, 0])
    return (pads[0], pads[1]), (pads[2], pads[3])


def _same(node: Node, sizes: Shape, window: Shape) -> tuple[tuple[int, int], tuple[int, int]]:
    """What LiteRT's SAME adds: as much as the result needs for ceil(size / stride), the odd one after."""
    strides, dilations = node.settings.get("strides", [1, 1]), node.settings.get("dilations", [1, 1])
    total = [
        max((-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        for size, stride, width, dilation in zip(sizes, strides, window, dilations, strict=True)
    ]
    return (total[0] // 2, total[1] // 2), (total[0] - total[0] // 2, total[1] - total[1] // 2)


def pool(c: Conversion, node: Node) -> None:
    """MAX_POOL_2D or AVERAGE_POOL_2D of two dimensions."""
    window = tuple(node.settings["kernel_shape"])
    most = node.kind == "MaxPool"
    if len(window) != 2 or any(size != 1 for size in node.settings.get("dilations", [1])) or len(node.outputs) > 1:
        raise refused(node, "but with two dimensions and dense windows")
    before, after = pads_of(c, node, window)
    shape = c.dims(node.outputs[0])
    if node.settings.get("ceil_mode", 0) and shape[2:] != _floor_sizes(c, node, window):
        raise refused(node, "of windows past the end")
    counted = bool(node.settings.get("count_include_pad", 0))
    x = c.picture(node.inputs[0])
    sizes = c.write.shapes[x][1:3]
    if not most and not counted and (before, after) not in (((0, 0), (0, 0)), _same(node, sizes, window)):
        raise refused(node, "that leaves its own padding out")
    if (before, after) == _same(node, sizes, window) and not counted:
        padding = 0
    else:
        x, padding = _filled(c, x, before, after, LOWEST if most else 0.0), 1
    strides = node.settings.get("strides", [1, 1])
    fields = {"padding": padding, "strideH": strides[0], "strideW": strides[1], "filterHeight": window[0],
              "filterWidth": window[1]}  # fmt: skip
    found = c.write.operator("MAX_POOL_2D" if most else "AVERAGE_POOL_2D", [x], tuple(shape[axis] for axis in LAST),
                             settings=("Pool2DOptions", fields))  # fmt: skip
    c.give(node.outputs[0], found, picture=True)


def _floor_sizes(c: Conversion, node: Node, window: Shape) -> Shape:
    before, after = pads_of(c, node, window)
    strides = node.settings.get("strides", [1, 1])
    sizes = c.dims(node.inputs[0])[2:]
    return tuple(
        (size + one + other - width) // stride + 1
        for size, one, other, width, stride in zip(sizes, before, after, window, strides, strict=True)
    )


def global_pool(c: Conversion, node: Node) -> None:
    """The mean, or the greatest value, of each channel."""
    x, shape = c.picture(node.inputs[0]), c.dims(node.inputs[0])
    kind = "MEAN" if node.kind == "GlobalAveragePool" else "REDUCE_MAX"
    found = c.write.operator(kind, [x, c.numbers(1, 2)], (shape[0], 1, 1, shape[1]),
                             settings=("ReducerOptions", {"keepDims": True}))  # fmt: skip
    c.give(node.outputs[0], found, picture=True)


def reduce_mean(c: Conversion, node: Node) -> bool:
    """A ReduceMean over height and width of a picture, as a pool; whether it was one."""
    axes = node.settings.get("axes")
    if len(node.inputs) > 1 and c.known(node.inputs[1]) is not None:
        axes = list(c.small.constants[node.inputs[1]].reshape(-1))
    if not c.is_picture(node.inputs[0]) or sorted(axis % 4 for axis in axes or ()) != [2, 3]:
        return False
    x, shape, keep = c.picture(node.inputs[0]), c.dims(node.inputs[0]), bool(node.settings.get("keepdims", 1))
    found = c.write.operator("MEAN", [x, c.numbers(1, 2)], (shape[0], 1, 1, shape[1]) if keep else shape[:2],
                             settings=("ReducerOptions", {"keepDims": keep}))  # fmt: skip
    c.give(node.outputs[0], found, picture=keep)
    return True


def quantize(c: Conversion, node: Node) -> None:
    """The mark of a rounded value: QUANTIZE, unless what computes the value gives integers."""
    scale, zero_point = (c.small.constants[name] for name in node.inputs[1:3])
    picture = c.is_picture(node.inputs[0])
    x = c.picture(node.inputs[0]) if picture else operand(c, node.inputs[0])
    found = c.quantized(x, float(scale), int(zero_point))
    c.give_integers(node.outputs[0], found, picture=picture)


def dequantize(c: Conversion, node: Node) -> None:
    """The second mark: floats again, but only for what asks for them."""
    index = c.integers(node.inputs[0])
    if index is None:
        raise refused(node, "of stored integers")
    c.give_integers(node.outputs[0], index, picture=c.is_picture(node.inputs[0]))


def addition(c: Conversion, node: Node) -> None:
    """ADD; on integers where both sides and the result are rounded pictures."""
    found = rounded_end(c, node)
    integers = [c.integers(name) for name in node.inputs]
    alike = all(c.dims(name) == c.dims(node.outputs[0]) and c.is_picture(name) for name in node.inputs)
    if found is None or None in integers or not alike:
        binary("ADD", node, c)
        return
    how, activation, rounded = found
    shape = c.dims(node.outputs[0])
    index = c.write.operator(
        "ADD",
        [index for index in integers if index is not None],
        tuple(shape[axis] for axis in LAST),
        "int8",
        grid=Grid((how.scale,), (how.zero_point - 128,)),
        settings=("AddOptions", {"fusedActivationFunction": activation}),
    )
    c.give_integers(rounded, index, picture=True)
    c.done |= {rounded, _activation(c, node)[1]}


def batch_norm(c: Conversion, node: Node) -> None:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, of constants, as one factor and one addition."""
    scale, bias, mean, variance = (_vector(c, name) for name in node.inputs[1:5])
    factor = scale / np.sqrt(variance + node.settings.get("epsilon", 1e-5))
    rank = len(c.dims(node.inputs[0]))
    picture = rank == 4
    x = c.picture(node.inputs[0]) if picture else operand(c, node.inputs[0])
    beside = [-1] if picture or rank == 2 else [-1] + [1] * (rank - 2)
    shape = c.write.shapes[x]
    found = c.write.operator("MUL", [x, c.constant(factor.astype(np.float32).reshape(beside))], shape)
    offset = (bias - mean * factor).astype(np.float32).reshape(beside)
    c.give(node.outputs[0], c.write.operator("ADD", [found, c.constant(offset)], shape), picture=picture)


def _vector(c: Conversion, name: str) -> Array:
    return c.small.constants[name].astype(np.float64)


def pad(c: Conversion, node: Node) -> None:
    """PADV2 with a constant."""
    if node.settings.get("mode", b"constant") != b"constant":
        raise refused(node, "but with a constant")
    pads = constants(c, node, 1, "pads") or []
    value = c.known(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.float32(0)
    x = operand(c, node.inputs[0])
    rank = len(c.dims(node.inputs[0]))
    if len(pads) != 2 * rank or value is None or (len(node.inputs) > 3 and node.inputs[3]):
        raise refused(node, "of some axes, or with a computed value")
    both = np.array([pads[:rank], pads[rank:]], np.int32).T
    inputs = [x, c.write.constant(np.ascontiguousarray(both)), c.constant(np.asarray(value).reshape(()))]
    c.give(node.outputs[0], c.write.operator("PADV2", inputs, c.dims(node.outputs[0]), c.kind(x)))


def _mean(c: Conversion, node: Node) -> None:
    if not reduce_mean(c, node):
        reduction("MEAN", node, c)


OPERATORS: dict[str, Rule] = {
    "Conv": convolution, "MaxPool": pool, "AveragePool": pool, "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool, "QuantizeLinear": quantize, "DequantizeLinear": dequantize, "Add": addition,
    "BatchNormalization": batch_norm, "Pad": pad, "ReduceMean": _mean, }  # fmt: skip
