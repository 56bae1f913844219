"""The graph that TensorRT takes: signed symmetric rounding around zero, each mark for one reader, biases in float.

TensorRT has no zero points and no quantized biases, reads constants of eight and four bits through DequantizeLinear
alone, and wants a pair of QuantizeLinear and DequantizeLinear for every node that reads a rounded value. Networks are
strongly typed: the types in the graph are what computes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from slimseek.backends._editor import Editor, narrow, scale_constant
from slimseek.backends._expansion import numbers
from slimseek.backends._lowering import Linear, dequantized, lower, stored_value
from slimseek.integers import eight_bit_scale, is_eight_bit, is_integer, is_shared, matrix
from slimseek.schema import ActivationQuant, Array, Model, QuantizedTensor, Tensor

ZERO_POINT = ".rounding_zero_point"
"""How the common lowering ends the names of zero points of marks around convolutions."""


def lowered(graph: onnx.ModelProto, model: Model) -> onnx.ModelProto:
    """The model's integers in its float graph, as TensorRT takes them; inputs rounded row by row are left float."""
    activations = {name: symmetric(how) for name, how in model.activations.items() if how.mode == "static"}
    model = dataclasses.replace(model, activations=activations)
    result = lower(graph, model, _linear, _table, convolution=_convolution, values=value)
    _sign_marks_(result.graph)
    _dedicate_(result.graph)
    return result


def symmetric(how: ActivationQuant) -> ActivationQuant:
    """The signed symmetric range that covers a static range, at int8 -128 to 127 around 0 (128 as it is written here).

    low = (0 - zero point) * scale, high = (255 - zero point) * scale; the step is max(-low / 128, high / 127). A range
    that is symmetric already keeps its step; one of positive numbers alone gets twice its step.
    """
    low, high = -how.zero_point * how.scale, (255 - how.zero_point) * how.scale
    return ActivationQuant(mode="static", scale=max(-low / 128, high / 127), zero_point=128)


def centred(tensor: QuantizedTensor) -> tuple[QuantizedTensor, Array | None]:
    """Symmetric integers of the same bits, and int8 zero points of the scale's shape, whose steps must be taken off.

    (u - z) s = (u - m) s - (z - m) s for the middle m = 2^(bits - 1). Symmetric tensors stay as they are, without a
    second part. A scale of 0, which TensorRT refuses, becomes 1: its integers stand for 0.0.
    """
    scale = np.where(tensor.scale > 0, tensor.scale, 1).astype(tensor.scale.dtype)
    if tensor.zero_point is None:
        return dataclasses.replace(tensor, scale=scale), None
    integers, zero_point = (_around_zero(array, tensor.spec.bits) for array in (tensor.integers, tensor.zero_point))
    spec = msgspec.structs.replace(tensor.spec, symmetric=True)
    return dataclasses.replace(tensor, spec=spec, integers=integers, scale=scale, zero_point=None), zero_point


def value(editor: Editor, name: str, tensor: Tensor, transposed: bool) -> str:
    """Name of the float32 value of a stored tensor: through DequantizeLinear for integers and eight-bit floats of e4m3;
    those of e5m2, which TensorRT lacks, are stored as float16, which holds them exactly.
    """
    if isinstance(tensor, QuantizedTensor) and tensor.spec.float8 == "e5m2":
        wide = dataclasses.replace(tensor, integers=tensor.integers.astype(np.float16))
        return stored_value(editor, name, wide, transposed)
    if isinstance(tensor, QuantizedTensor) and tensor.spec.float8:
        return _eight_bit_floats(editor, name, tensor, transposed)
    if is_integer(tensor):
        return _integers(editor, name, tensor, transposed)
    if is_shared(tensor):
        return _looked_up(editor, name, tensor, transposed)
    return stored_value(editor, name, tensor, transposed)


def _integers(editor: Editor, name: str, tensor: QuantizedTensor, transposed: bool) -> str:
    if len(tensor.shape) != 2 and tensor.spec.granularity == "group":
        return _folded_axes(editor, name, tensor)
    moved, zero_point = centred(tensor)
    values = dequantized(editor, name, moved, transposed)
    if zero_point is None:
        return values
    suffix, spec = ".T" if transposed else "", tensor.spec
    if spec.granularity == "tensor":  # a DequantizeLinear over one number is refused
        one = (zero_point * moved.scale.astype(np.float32)).reshape(())
        return editor.node("Sub", [values, editor.constant(f"{name}.zero", one)])
    axis = 1 - spec.axis if transposed else spec.axis
    laid_out = zero_point.reshape(-1)
    if spec.granularity == "group":
        laid_out = zero_point if axis == 0 else zero_point.T
    steps = narrow(editor, f"{name}.zero_point{suffix}", laid_out, spec.bits, signed=True)
    steps = editor.node("DequantizeLinear", [steps, editor.constant("slim_one", np.array(1, np.float32))])
    scale = (moved.scale if axis == 0 else moved.scale.T) if spec.granularity == "group" else moved.scale
    taken = editor.node("Mul", [steps, scale_constant(editor, f"{name}.scale{suffix}", scale)])
    if spec.granularity == "group":
        assert spec.group_size is not None
        groups = np.arange(tensor.shape[1 - spec.axis], dtype=np.int64) // spec.group_size
        of_values = editor.constant(f"slim_groups_{len(groups)}_{spec.group_size}", groups)
        taken = editor.node("Gather", [taken, of_values], axis=1 - axis)
    else:
        beside = [-1 if place == axis else 1 for place in range(len(tensor.shape))]
        taken = editor.node("Reshape", [taken, numbers(editor, *beside)])
    return editor.node("Sub", [values, taken])


def _folded_axes(editor: Editor, name: str, tensor: QuantizedTensor) -> str:
    """Groups of a kernel run over all its axes but that of channels: written as a matrix, and shaped back."""
    shape, axis = tensor.shape, tensor.spec.axis
    flat = dataclasses.replace(
        tensor, spec=msgspec.structs.replace(tensor.spec, axis=0), integers=np.ascontiguousarray(matrix(tensor))
    )
    values = _integers(editor, name, flat, transposed=False)
    values = editor.node("Reshape", [values, numbers(editor, shape[axis], *shape[:axis], *shape[axis + 1 :])])
    order = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
    return editor.node("Transpose", [values], perm=order)


def _eight_bit_floats(editor: Editor, name: str, tensor: QuantizedTensor, transposed: bool) -> str:
    suffix, spec = ".T" if transposed else "", tensor.spec
    codes = editor.constant(f"{name}.float8{suffix}", tensor.integers.T if transposed else tensor.integers)
    scale = np.where(tensor.scale > 0, tensor.scale, 1).reshape(() if spec.granularity == "tensor" else -1)
    scales = scale_constant(editor, f"{name}.scale{suffix}", scale)
    return editor.node("DequantizeLinear", [codes, scales], axis=1 - spec.axis if transposed else spec.axis)


def _looked_up(editor: Editor, name: str, tensor: QuantizedTensor, transposed: bool) -> str:
    """Entries of code books. Their places are stored as signed integers around 0, which DequantizeLinear makes whole
    floats of: TensorRT has no other way to store them in eight bits or four.
    """
    assert tensor.codebook is not None
    axis = tensor.spec.axis if tensor.spec.granularity == "channel" else 0
    rows = np.moveaxis(tensor.integers, axis, 0)
    books, entries = tensor.codebook.shape
    bits = tensor.spec.bits
    stored = narrow(editor, f"{name}.integers", _around_zero(rows, bits), bits, signed=True)
    values = editor.node("DequantizeLinear", [stored, editor.constant("slim_one", np.array(1, np.float32))])
    first = 2 ** (bits - 1) + np.arange(books, dtype=np.float32).reshape(-1, *[1] * (rows.ndim - 1)) * entries
    values = editor.node("Add", [values, editor.constant(f"{name}.first_places", first)])
    codebook = scale_constant(editor, f"{name}.codebook", tensor.codebook.reshape(-1))
    values = editor.node("Gather", [codebook, editor.node("Cast", [values], to=TensorProto.INT32)])
    order = [*range(1, axis + 1), 0, *range(axis + 1, rows.ndim)]
    return editor.node("Transpose", [values], perm=order[::-1] if transposed else order)


def _around_zero(integers: Array, bits: int) -> Array:
    """Unsigned integers as int8 around 0."""
    moved: Array = (integers.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)
    return moved


def _eight_bits(editor: Editor, name: str, tensor: QuantizedTensor, transposed: bool) -> str:
    """The value on a symmetric grid of eight bits, one step a channel, that integer arithmetic needs.

    Symmetric integers of eight bits are on such a grid. All others (groups, fewer bits, zero points) stand as they
    are in the package, and QuantizeLinear rounds them to eight bits when the engine is built, at most half a step of
    that grid away.
    """
    if is_eight_bit(tensor) and tensor.spec.symmetric:
        return _integers(editor, name, tensor, transposed)
    scale = eight_bit_scale(tensor)
    axis = 1 - tensor.spec.axis if transposed else tensor.spec.axis
    limits = [
        editor.constant(f"{name}.int8_scale", scale),
        editor.constant(f"slim_zero_points_{len(scale)}", np.zeros(len(scale), np.int8)),
    ]
    rounded = editor.node("QuantizeLinear", [_integers(editor, name, tensor, transposed), *limits], axis=axis)
    return editor.node("DequantizeLinear", [rounded, *limits], axis=axis)


def _linear(editor: Editor, layer: Linear) -> None:
    """A MatMul of dequantized values; the bias is added in float."""
    transposed = layer.weight.spec.axis == 0
    source = layer.input
    if layer.activation is None:
        weight = _integers(editor, layer.name, layer.weight, transposed)
    else:
        limits = [
            editor.constant(f"input_scale_{layer.activation.scale!r}", np.array(layer.activation.scale, np.float32)),
            editor.constant("slim_zero_point", np.array(0, np.int8)),
        ]
        source = editor.node("DequantizeLinear", [editor.node("QuantizeLinear", [source, *limits]), *limits])
        weight = _eight_bits(editor, layer.name, layer.weight, transposed)
    if layer.bias is None:
        editor.node("MatMul", [source, weight], layer.output)
    else:
        editor.node("Add", [editor.node("MatMul", [source, weight]), layer.bias], layer.output)


def _table(editor: Editor, name: str, table: QuantizedTensor, indices: str, output: str) -> bool:
    """Rows of the dequantized table: TensorRT looks up no integers of eight bits, but keeps the table packed."""
    editor.node("Gather", [_integers(editor, name, table, transposed=False), indices], output)
    return True


def _convolution(
    editor: Editor, node: Any, name: str, kernel: QuantizedTensor, how: ActivationQuant, unsigned: bool
) -> None:
    node.input[1] = _eight_bits(editor, name, kernel, transposed=False)
    editor.nodes.append(node)


def _sign_marks_(graph: onnx.GraphProto) -> None:
    """Uint8 around 128 is int8 around 0."""
    for constant in graph.initializer:
        if constant.name.endswith(ZERO_POINT) and constant.data_type == TensorProto.UINT8:
            assert numpy_helper.to_array(constant) == 128
            constant.CopyFrom(numpy_helper.from_array(np.int8(0), constant.name))


def _dedicate_(graph: onnx.GraphProto) -> None:
    """Give every reader of a rounded value a pair of its own."""
    rounding = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    readers: dict[str, list[tuple[Any, int]]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, position))
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "DequantizeLinear" or node.input[0] not in rounding:
            continue
        for number, (reader, position) in enumerate(readers.get(node.output[0], [])[1:], 2):
            first, second = onnx.NodeProto(), onnx.NodeProto()
            first.CopyFrom(rounding[node.input[0]])
            second.CopyFrom(node)
            for copy in (first, second):
                copy.name, copy.output[0] = f"{copy.name}#{number}", f"{copy.output[0]}#{number}"
            second.input[0] = first.output[0]
            reader.input[position] = second.output[0]
            nodes += [first, second]
    del graph.node[:]
    graph.node.extend(nodes)
