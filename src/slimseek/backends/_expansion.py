"""Stored integers as float values, by standard operators.

Runtimes keep DequantizeLinear, and would compute it again with every query; ONNX Runtime may even round the inputs of
the product behind it. Beside rounded activations OpenVINO keeps a Cast and a Mul as well, and its recurrent layers
refuse what is no constant. Past float16, which holds eight bits exactly, every runtime folds them all when it loads
the graph. Of a table, only the rows that are looked up become floats.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from slimseek.backends._editor import Editor, narrow, scale_constant
from slimseek.backends._sparse import numbered, pays
from slimseek.integers import matrix
from slimseek.schema import Array, QuantizedTensor


def expanded(editor: Editor, name: str, tensor: QuantizedTensor, transposed: bool = False) -> str:
    """Name of the float32 value in the tensor's shape, or ``transposed``; a constant once the graph is loaded."""
    blocks = _blocks(tensor)
    values = _steps(editor, name, tensor, blocks)
    scale = scale_constant(editor, f"{name}.block_scale", _beside(blocks, tensor.scale))
    values = editor.node("Mul", [values, scale])
    values = editor.node("Reshape", [values, numbers(editor, len(blocks), blocks.shape[1] * blocks.shape[2])])
    whole, values = values, _cut(editor, values, tensor, blocks, axis=1)
    axis, shape = tensor.spec.axis, tensor.shape
    if len(shape) > 2 or values != whole:
        values = editor.node("Reshape", [values, numbers(editor, shape[axis], *shape[:axis], *shape[axis + 1 :])])
    order = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
    return editor.node("Transpose", [values], perm=order[::-1] if transposed else order)


def _steps(editor: Editor, name: str, tensor: QuantizedTensor, blocks: Array) -> str:
    """Name of the float32 blocks less their zero points, [channels, groups, group size]."""

    def wide(label: str, integers: Array) -> str:
        stored = packed(editor, f"{name}.{label}", integers, tensor.spec.bits, tensor.spec.symmetric)
        if in_planes(tensor.spec.bits, integers):
            return stored
        return editor.node("Cast", [editor.node("Cast", [stored], to=TensorProto.FLOAT16)], to=TensorProto.FLOAT)

    label = of_channels("blocks", tensor)
    if tensor.zero_point is None:
        return wide(label, blocks)
    zero_point = _beside(blocks, tensor.zero_point)
    used = (blocks != zero_point).reshape(-1)
    thin = pays(used, tensor.spec.bits)
    values = wide(label, blocks.reshape(-1)[used] if thin else blocks)
    if not thin:
        return editor.node("Sub", [values, wide("block_zero_point", zero_point)])
    places = editor.node("Reshape", [numbered(editor, f"{name}.spread", used), numbers(editor, *blocks.shape)])
    steps = editor.node("Sub", [_looked_up(editor, values, places), wide("block_zero_point", zero_point)])
    return editor.node("Where", [editor.node("Cast", [places], to=TensorProto.BOOL), steps, _zero(editor)])


def sparsely_stored(tensor: QuantizedTensor) -> bool:
    """Whether so many stand for zero that only the others are stored."""
    blocks = _blocks(tensor)
    zero: Array | int = 0 if tensor.zero_point is None else _beside(blocks, tensor.zero_point)
    return pays((blocks != zero).reshape(-1), tensor.spec.bits)


def whole_blocks(tensor: QuantizedTensor) -> bool:
    """Whether they are rows of whole blocks of four bits, and not so sparse that only some are stored."""
    spec = tensor.spec
    if spec.bits != 4 or spec.granularity != "group" or spec.axis != 0 or len(tensor.shape) != 2:
        return False
    return tensor.shape[1] % (spec.group_size or 1) == 0 and not sparsely_stored(tensor)


def gather_rows(editor: Editor, name: str, tensor: QuantizedTensor, indices: str, output: str) -> bool:
    """Look up rows of a table [rows, width] whose channels are its rows; in memory it stays at eight bits at most."""
    if tensor.spec.axis != 0:
        return False
    blocks = _blocks(tensor)
    whole = blocks.shape[1] == 1

    def rows(label: str, array: Array, bits: int = 8) -> str:
        """Those of the indices, with one number for each block or in the shape of the blocks; or the one for all."""
        stored = packed(editor, f"{name}.{label}", array.reshape(len(array), -1) if whole else array, bits,
                         tensor.spec.symmetric)  # fmt: skip
        if bits < 8:  # not every runtime looks up four bits
            stored = editor.node("Cast", [stored], to=TensorProto.INT8)
        return stored if len(array) == 1 < len(blocks) else editor.node("Gather", [stored, indices])

    values = editor.node("Cast", [rows("table", blocks, tensor.spec.bits)], to=TensorProto.FLOAT)
    if tensor.zero_point is not None:
        zero_point = rows("table_zero_point", _beside(blocks, tensor.zero_point), tensor.spec.bits)
        values = editor.node("Sub", [values, editor.node("Cast", [zero_point], to=TensorProto.FLOAT)])
    scale = rows("table_scale", _beside(blocks, tensor.scale).astype(np.float32))
    if whole:
        editor.node("Mul", [values, scale], output)
        return True
    values = editor.node("Mul", [values, scale])
    width = blocks.shape[1] * blocks.shape[2]
    shape = editor.node("Concat", [editor.node("Shape", [indices]), numbers(editor, width)], axis=0)
    values = editor.node("Reshape", [values, shape])
    editor.node("Identity", [_cut(editor, values, tensor, blocks, axis=-1)], output)
    return True


def product_rows(editor: Editor, name: str, tensor: QuantizedTensor, indices: str, output: str) -> bool:
    """Look up rows of a table that a product reads whole, too: the constants are those of :func:`expanded`."""
    if tensor.spec.axis != 0:
        return False
    blocks = _blocks(tensor)
    if tensor.zero_point is not None and sparsely_stored(tensor):
        return False

    def rows(label: str, array: Array) -> str:
        stored = packed(editor, f"{name}.{label}", array, tensor.spec.bits, tensor.spec.symmetric)
        if tensor.spec.bits < 8:  # not every runtime looks up four bits
            stored = editor.node("Cast", [stored], to=TensorProto.INT8)
        stored = stored if len(array) == 1 < len(blocks) else editor.node("Gather", [stored, indices])
        return editor.node("Cast", [stored], to=TensorProto.FLOAT)

    values = rows(of_channels("blocks", tensor), blocks)
    if tensor.zero_point is not None:
        values = editor.node("Sub", [values, rows("block_zero_point", _beside(blocks, tensor.zero_point))])
    scales = _beside(blocks, tensor.scale)
    scale = scale_constant(editor, f"{name}.block_scale", scales)
    scale = scale if len(scales) == 1 < len(blocks) else editor.node("Gather", [scale, indices])
    values = editor.node("Mul", [values, scale])
    shape = editor.node("Concat", [editor.node("Shape", [indices]), numbers(editor, -1)], axis=0)
    values = editor.node("Reshape", [values, shape])
    editor.node("Identity", [_cut(editor, values, tensor, blocks, axis=-1)], output)
    return True


def in_planes(bits: int, integers: Array) -> bool:
    """Whether integers are stored as planes of one bit: ONNX has no types of 3, 5, 6 or 7 bits, and runtimes lack that
    of 2.
    """
    return bits not in (4, 8) and integers.size > 0


def packed(editor: Editor, name: str, integers: Array, bits: int, signed: bool) -> str:
    """Integers of one to eight bits, stored at that width; whole numbers of some type once the graph is loaded, of
    float32 where they are stored in planes.

    A table turns each byte of a plane into eight numbers, which have the worth of that plane. Where most are zero, only
    the others are stored. ONNX Runtime holds what every node gives until the whole graph is folded, so that nodes are
    few: they are what a package takes to be opened.
    """
    if not in_planes(bits, integers):
        return narrow(editor, name, integers, bits, signed)
    flat = np.ascontiguousarray(integers).reshape(-1).view(np.uint8)
    used = flat != 0
    thin = pays(used, bits)
    held = flat[used] if thin else flat
    planes = np.packbits((held >> np.arange(bits, dtype=np.uint8)[:, None]) & 1, axis=1, bitorder="little")
    bits_of_bytes = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    worth = 2 ** np.arange(bits)
    worth[-1] *= -1 if signed else 1  # two's complement
    worths = (worth[:, None, None] * bits_of_bytes).reshape(-1, 8).astype(np.int8)
    table = editor.node("Cast", [editor.constant(f"slim_bits_{bits}_{signed}", worths)], to=TensorProto.FLOAT)
    rows = editor.constant(f"slim_rows_{bits}", 256 * np.arange(bits, dtype=np.int32)[:, None])
    places = editor.node("Cast", [editor.constant(name, planes)], to=TensorProto.INT32)
    values = editor.node("Gather", [table, editor.node("Add", [places, rows])])
    values = editor.node("ReduceSum", [values, numbers(editor, 0)], keepdims=0)
    if held.size % 8 or thin:
        values = editor.node("Reshape", [values, numbers(editor, -1)])
        values = editor.node("Slice", [values, *(numbers(editor, number) for number in (0, held.size, 0))])
    if thin:
        values = _looked_up(editor, values, numbered(editor, f"{name}.spread", used))
    return editor.node("Reshape", [values, numbers(editor, *integers.shape)])


def _blocks(tensor: QuantizedTensor) -> Array:
    """The integers [channels, groups, group size]: one group where there are none, the last one filled with zeros."""
    rows = matrix(tensor)
    size = min(tensor.spec.group_size or rows.shape[1], rows.shape[1])
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % size))).reshape(len(rows), -1, size)


def _beside(blocks: Array, values: Array) -> Array:
    """One number for each block, [channels, groups, 1], or one for all, [1, 1, 1]."""
    return values.reshape(len(blocks) if values.size > 1 or len(blocks) == 1 else 1, -1, 1)


def _cut(editor: Editor, values: str, tensor: QuantizedTensor, blocks: Array, axis: int) -> str:
    """Without what filled the last group."""
    width = tensor.integers.size // len(blocks)
    if width == blocks.shape[1] * blocks.shape[2]:
        return values
    return editor.node("Slice", [values, *(numbers(editor, number) for number in (0, width, axis))])


def _looked_up(editor: Editor, values: str, places: str) -> str:
    """Float values [k] in their places, which count from 1; 0.0 in places 0."""
    return editor.node("Gather", [editor.node("Concat", [_zero(editor), values], axis=0), places])


def _zero(editor: Editor) -> str:
    return editor.constant("slim_zero", np.zeros(1, np.float32))


def of_channels(label: str, tensor: QuantizedTensor) -> str:
    """The label of a constant [channels, ...], with the tensor's axis of channels where that is not the first."""
    return f"{label}.{tensor.spec.axis}" if tensor.spec.axis else label


def numbers(editor: Editor, *values: int) -> str:
    """An int64 constant [n], such as a shape, the same for all who ask for these values."""
    return editor.constant("slim_" + "_".join(map(str, values)), np.array(values, np.int64))
