"""Linear layers, products, tables and layer norms in LiteRT."""

from __future__ import annotations

import numpy as np

from slimseek.backends._litert.conversion import Conversion, Node
from slimseek.backends._litert.file import Shape
from slimseek.backends._litert.weights import (
    Stored,
    blocks_of,
    codebook,
    cut,
    gathered,
    put,
    rounding_weight,
    shared_places,
    signed,
    values,
    weight,
)
from slimseek.backends._lowering import tensor_name
from slimseek.errors import UsageError
from slimseek.integers import is_integer, is_shared, matrix
from slimseek.schema import ActivationQuant, QuantizedTensor, Tensor

WHOLE = {"keepNumDims": True}


def stored_tensor(c: Conversion, initializer: str) -> Tensor | None:
    """The model's tensor behind an initializer, where its stored form is not float32."""
    tensor = c.model.tensors.get(tensor_name(initializer))
    if initializer not in c.small.constants or tensor is None:
        return None
    is_stored = isinstance(tensor, QuantizedTensor) or tensor.dtype.name in ("float16", "bfloat16")
    return tensor if is_stored else None


def operand(c: Conversion, name: str) -> int:
    """The float32 value of what a node reads, out of its stored form where it has one."""
    return c.value(name) if stored_tensor(c, name) is None else weight(c, name)


def product(c: Conversion, node: Node) -> None:
    """MatMul: a linear layer where the right side is a matrix that no input changes."""
    right = node.inputs[1]
    if not c.is_constant(right) or len(c.dims(right)) != 2 or len(c.dims(node.inputs[0])) < 2:
        _batch_product(c, node)
        return
    bias, output = "", node.outputs[0]
    if output not in c.outputs and len(c.readers.get(output, ())) == 1:
        [after] = c.readers[output]
        others = [name for name in after.inputs if name != output]
        if after.kind == "Add" and len(others) == 1 and c.known(others[0]) is not None and len(c.dims(others[0])) == 1:
            bias, output = others[0], after.outputs[0]
    _linear(c, node.inputs[0], right, bias, output, transposed=True)


def general_product(c: Conversion, node: Node) -> None:
    """Gemm with a constant right side and a bias that is a vector."""
    settings = node.settings
    plain = settings.get("alpha", 1.0) == 1.0 and settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    if not plain or not c.is_constant(node.inputs[1]) or (bias and len(c.dims(bias)) != 1):
        raise UsageError(f"LiteRT takes no Gemm as {node.outputs[0]} has it; deploy for onnxruntime instead")
    _linear(c, node.inputs[0], node.inputs[1], bias, node.outputs[0], transposed=not settings.get("transB", 0))


def _linear(c: Conversion, source: str, right: str, bias: str, output: str, *, transposed: bool) -> None:
    """FULLY_CONNECTED; ``transposed`` says that the weight stands as [in, out], where LiteRT wants [out, in].

    A layer that rounds its inputs has integer weights and float inputs, which the runtime rounds row by row.
    """
    name = tensor_name(right)
    tensor = stored_tensor(c, right)
    x = operand(c, source)
    axes = c.dims(right)
    matching = isinstance(tensor, QuantizedTensor) and len(tensor.shape) == 2
    if matching and isinstance(tensor, QuantizedTensor):
        order = (0, 1) if tensor.spec.axis == 0 else (1, 0)
        expected = (axes[1], axes[0]) if transposed else axes
        matching = tuple(tensor.shape[axis] for axis in order) == expected
    how = c.model.activations.get(name) if matching else None
    if matching and name in c.model.smoothing:
        factors = c.constant((1 / c.model.smoothing[name]).reshape(-1).astype(np.float32))
        x = c.write.operator("MUL", [x, factors], c.write.shapes[x])
    if how is not None:
        x, more = _ranged(c, x, how)
        w, _ = rounding_weight(c, name, order, 0, more=more)
    elif matching:
        w = values(c, name, order)
    elif tensor is None:
        array = c.small.constants[right]
        w = c.write.constant(np.ascontiguousarray(array.T if transposed else array))
    else:
        w = weight(c, right)
        w = c.transposed(w, (1, 0)) if transposed else w
    b = operand(c, bias) if bias else -1
    found = c.write.operator("FULLY_CONNECTED", [x, w, b], c.dims(output), settings=("FullyConnectedOptions", WHOLE))
    c.give(output, found)
    c.done.add(output)


def _ranged(c: Conversion, x: int, how: ActivationQuant) -> tuple[int, int]:
    """What makes the runtime round each row to the static range: the values clipped to it and, in two more columns, its
    ends; and the number of columns more, whose weights are zero.

    XNNPACK spreads 256 levels from the least to the greatest value of a row, 0 included: from these ends it gets the
    artifact's own scale and zero point.
    """
    if how.mode == "dynamic":
        return x, 0
    low, high = (np.float32(how.scale) * np.float32(level - how.zero_point) for level in (0, 255))
    shape = c.write.shapes[x]
    wide = (*shape[:-1], shape[-1] + 2)
    pads = np.zeros((len(shape), 2), np.int32)
    pads[-1, 1] = 2
    for kind, limit in (("MAXIMUM", low), ("MINIMUM", high)):
        x = c.write.operator(kind, [x, c.constant(np.array(limit, np.float32))], shape)
    x = c.write.operator("PAD", [x, c.write.constant(pads)], wide)
    ends = np.zeros(wide[-1], np.float32)
    ends[-2:] = low, high
    return c.write.operator("ADD", [x, c.write.constant(ends)], wide), 2


def _batch_product(c: Conversion, node: Node) -> None:
    left, right = (operand(c, name) for name in node.inputs)
    output = node.outputs[0]
    if len(c.dims(node.inputs[0])) < 2 or len(c.dims(node.inputs[1])) < 2:
        raise UsageError(f"LiteRT takes no product of vectors ({output}); deploy for onnxruntime instead")
    settings = ("BatchMatMulOptions", {"adjX": False, "adjY": False})
    c.give(output, c.write.operator("BATCH_MATMUL", [left, right], c.dims(output), settings=settings))


def look_up(c: Conversion, node: Node) -> None:
    """Gather: rows of a stored table stay integers until they are looked up."""
    table, indices = node.inputs
    axis = node.settings.get("axis", 0) % len(c.dims(table))
    tensor = stored_tensor(c, table)
    name = tensor_name(table)
    shape = c.dims(node.outputs[0])
    rows = isinstance(tensor, QuantizedTensor) and tensor.spec.axis == 0 and tensor.shape == c.dims(table)
    if rows and axis == 0 and len(c.dims(table)) == 2 and name not in c.model.smoothing:
        assert isinstance(tensor, QuantizedTensor)
        if is_integer(tensor):
            c.give(node.outputs[0], _integer_rows(c, name, tensor, c.value(indices), shape))
            return
        if is_shared(tensor):
            c.give(node.outputs[0], _shared_table_rows(c, name, tensor, c.value(indices), shape))
            return
    known = c.known(indices)
    if known is not None:
        index = c.constant(np.where(known < 0, known + c.dims(table)[axis], known))
    else:
        index = c.value(indices)
    source = operand(c, table)
    found = c.write.operator(
        "GATHER", [source, index], shape, c.kind(source), settings=("GatherOptions", {"axis": axis})
    )
    c.give(node.outputs[0], found)


def _integer_rows(c: Conversion, name: str, tensor: QuantizedTensor, indices: int, shape: Shape) -> int:
    """Rows of integers, looked up, then multiplied by their scales."""
    spec, outer = tensor.spec, shape[:-1]
    if spec.granularity == "group":
        blocks, added = blocks_of(tensor)
    else:
        integers, added = signed(tensor)
        blocks = integers[:, None]
    rows, groups, size = blocks.shape
    wide = (*outer, groups, size) if groups > 1 else (*outer, size)
    how = Stored(shape=tensor.shape, order=(), axis=0, added=added)
    stored = put(c, name, blocks.reshape(rows, -1), spec.bits, None, how)
    found = c.cast(gathered(c, stored, indices, (*outer, groups * size)), "float32")
    found = c.reshaped(found, wide)

    def beside(array: np.ndarray, label: str) -> int:
        """Numbers [rows, groups] or [1, 1]; the former looked up."""
        if array.size == 1:
            return c.constant(array.reshape(()).astype(np.float32))
        table = c.write.constant(np.ascontiguousarray(array), name=f"{name}#{label}")
        part = gathered(c, table, indices, (*outer, groups))
        if c.kind(part) == "float16":
            part = c.write.operator("DEQUANTIZE", [part], c.write.shapes[part])
        part = c.cast(part, "float32")
        return part if groups == 1 else c.reshaped(part, (*outer, groups, 1))

    if tensor.zero_point is not None:
        zero_point = (tensor.zero_point.astype(np.int16) - added).astype(np.int8)
        found = c.write.operator("SUB", [found, beside(zero_point, "zero_point")], wide)
    found = c.write.operator("MUL", [found, beside(tensor.scale, "scale")], wide)
    return cut(c, c.reshaped(found, (*outer, groups * size)), shape)


def _shared_table_rows(c: Conversion, name: str, tensor: QuantizedTensor, indices: int, shape: Shape) -> int:
    """Rows of places, looked up, then what the code book has in these."""
    places = shared_places(c, name, tensor, matrix(tensor) if tensor.spec.granularity == "channel" else tensor.integers,
                           indices, shape)  # fmt: skip
    if tensor.spec.granularity == "channel":
        assert tensor.codebook is not None
        outer = shape[:-1]
        size = c.constant(np.array(tensor.codebook.shape[1], np.int32))
        first = c.write.operator("MUL", [indices, size], outer, "int32")
        places = c.write.operator("ADD", [places, c.reshaped(first, (*outer, 1))], shape, "int32")
    return gathered(c, codebook(c, name, tensor), places, shape)


def layer_norm(c: Conversion, node: Node) -> None:
    """LayerNormalization over the last axis: (x - mean) / sqrt(variance + epsilon) * weight + bias."""
    x, shape = operand(c, node.inputs[0]), c.dims(node.inputs[0])
    axis = node.settings.get("axis", -1)
    if axis not in (-1, len(shape) - 1):
        raise UsageError("LiteRT takes no LayerNormalization over several axes; deploy for onnxruntime instead")
    narrow = (*shape[:-1], 1)
    keep = ("ReducerOptions", {"keepDims": True})
    last = c.numbers(len(shape) - 1)
    mean = c.write.operator("MEAN", [x, last], narrow, settings=keep)
    centred = c.write.operator("SUB", [x, mean], shape)
    variance = c.write.operator(
        "MEAN", [c.write.operator("MUL", [centred, centred], shape), last], narrow, settings=keep
    )
    epsilon = c.constant(np.array(node.settings.get("epsilon", 1e-5), np.float32))
    factor = c.write.operator("RSQRT", [c.write.operator("ADD", [variance, epsilon], narrow)], narrow)
    found = c.write.operator("MUL", [centred, factor], shape)
    found = c.write.operator("MUL", [found, operand(c, node.inputs[1])], shape)
    if len(node.inputs) > 2 and node.inputs[2]:
        found = c.write.operator("ADD", [found, operand(c, node.inputs[2])], shape)
    c.give(node.outputs[0], found)


OPERATORS = {"MatMul": product, "Gemm": general_product, "Gather": look_up, "LayerNormalization": layer_norm}
