"""The integers of an artifact in a LiteRT file, and how they are read back.

Eight bits and fewer stand there as int8, int4 or int2 with one scale for each channel. Groups stand as rows of their
own, each a channel to LiteRT. What is asymmetric is moved by half of its range, so that it is signed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from slimseek.backends._litert.conversion import Conversion
from slimseek.backends._litert.file import Grid, Shape, read_tensors
from slimseek.backends._lowering import tensor_name
from slimseek.integers import dequantize, eight_bit_scale, is_integer, is_shared, matrix
from slimseek.schema import Array, QuantizedTensor, Tensor

METADATA = "slimseek.stored"
LARGEST_FLOAT16 = 65504.0


class Stored(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a tensor of the artifact stands in the file.

    Attributes:
        shape: the artifact's.
        order: of the artifact's axes in the file; empty where rows of groups stand there.
        axis: that of the artifact's channels.
        added: what was taken off its integers to make them signed.
        exact: whether the integers are the artifact's own; else the file has a form of its own.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    axis: int = 0
    added: int = 0
    exact: bool = True


def weight(c: Conversion, initializer: str) -> int:
    """The float32 value of a stored tensor in the shape that the graph has it in."""
    name = tensor_name(initializer)
    tensor = c.model.tensors[name]
    order = tuple(range(len(tensor.shape)))
    if is_transposed(c, initializer):
        order = order[::-1]
    return unsmoothed(c, name, values(c, name, order), order)


def is_transposed(c: Conversion, initializer: str) -> bool:
    """Whether a matrix stands transposed in the graph; a square one is told by its values."""
    name = tensor_name(initializer)
    shape, stands = c.model.tensors[name].shape, c.small.constants[initializer]
    if len(shape) != 2 or shape[0] != shape[1]:
        return bool(shape != stands.shape)
    own = dequantize(c.model.tensors[name])
    if name in c.model.smoothing:
        own = own / c.model.smoothing[name]
    return not np.array_equal(own, stands)


def unsmoothed(c: Conversion, name: str, index: int, order: tuple[int, ...]) -> int:
    """Divided by the tensor's smoothing, where it has one."""
    if name not in c.model.smoothing:
        return index
    factors = c.constant((1 / c.model.smoothing[name]).transpose(order).astype(np.float32))
    return c.write.operator("MUL", [index, factors], c.write.shapes[index])


def values(c: Conversion, name: str, order: tuple[int, ...]) -> int:
    """The float32 value of a stored tensor, smoothed as it is, its axes in this order; weights are dequantized once,
    when the graph is loaded.
    """
    tensor = c.model.tensors[name]
    shape = tuple(tensor.shape[axis] for axis in order)
    if not is_integer(tensor) and not is_shared(tensor):
        return _halves(c, name, tensor, order)
    assert isinstance(tensor, QuantizedTensor)
    if is_integer(tensor) and tensor.spec.granularity != "group":
        integers, added = signed(tensor)
        grid = channel_grid(tensor, added, order.index(tensor.spec.axis))
        stored = put(c, name, integers.transpose(order), tensor.spec.bits, grid, _stored(tensor, order, added))
        return c.write.operator("DEQUANTIZE", [stored], shape)
    rows = _shared_rows(c, name, tensor) if is_shared(tensor) else _group_rows(c, name, tensor)
    moved = (tensor.spec.axis, *(axis for axis in range(len(shape)) if axis != tensor.spec.axis))
    rows = c.reshaped(rows, tuple(tensor.shape[axis] for axis in moved))
    back = tuple(moved.index(axis) for axis in order)
    return rows if back == tuple(range(len(back))) else c.transposed(rows, back)


def rounding_weight(c: Conversion, name: str, order: tuple[int, ...], channel: int,
                    least: Array | float = 0.0, more: int = 0) -> tuple[int, Array]:  # fmt: skip
    """Symmetric integers for arithmetic on eight bits, and their scale [channels].

    The artifact's own where they are symmetric and have one scale for a channel; else the nearest on a grid of eight
    bits, at most half a step of that away.

    Args:
        c: the graph.
        name: of the tensor.
        order: of its axes in the file.
        channel: the axis of outputs in the file.
        least: the smallest scale [channels] that may be used.
        more: columns of zeros behind those of a matrix.
    """
    tensor = c.model.tensors[name]
    assert isinstance(tensor, QuantizedTensor)
    own = is_integer(tensor) and tensor.spec.symmetric and tensor.spec.granularity != "group"
    if own and order.index(tensor.spec.axis) == channel:
        scale = _channel_scale(tensor)
        few = tensor.spec.bits if is_linear_order(order) else 8  # kernels of convolutions have eight bits only
        if (scale >= least).all():
            grid = Grid(tuple(map(float, scale)), (0,) * len(scale), channel)
            return put(
                c, name, _wider(tensor.integers.transpose(order), more), few, grid, _stored(tensor, order, 0)
            ), scale
    scale = eight_bit_scale(tensor, least)
    beside = [-1 if axis == tensor.spec.axis else 1 for axis in range(len(tensor.shape))]
    integers = np.clip(np.rint(dequantize(tensor) / scale.reshape(beside)), -127, 127).astype(np.int8)
    grid = Grid(tuple(map(float, scale)), (0,) * len(scale), channel)
    how = Stored(shape=tensor.shape, order=order, axis=tensor.spec.axis, exact=False)
    return put(c, f"{name}#int8", _wider(integers.transpose(order), more), 8, grid, how), scale


def _wider(integers: Array, more: int) -> Array:
    return np.pad(integers, ((0, 0), (0, more))) if more else integers


def is_linear_order(order: tuple[int, ...]) -> bool:
    """Whether the tensor is a matrix."""
    return len(order) == 2


def put(c: Conversion, label: str, integers: Array, bits: int, grid: Grid | None, how: Stored) -> int:
    """Integers as a constant of the narrowest type, noted for reading."""
    # Only DEQUANTIZE and products take two bits; what is looked up has four at least.
    kind = "int2" if bits <= 2 and grid is not None else "int4" if bits <= 4 else "int8"
    key = f"{label}@{'_'.join(map(str, how.order)) or 'rows'}"
    c.stored[key] = msgspec.to_builtins(how)
    return c.write.constant(np.ascontiguousarray(integers), kind="" if kind == "int8" else kind, name=key, grid=grid)


def signed(tensor: QuantizedTensor) -> tuple[Array, int]:
    """The integers as int8, and what was taken off them."""
    if tensor.integers.dtype == np.int8:
        return tensor.integers, 0
    added = 2 ** (tensor.spec.bits - 1)
    return (tensor.integers.astype(np.int16) - added).astype(np.int8), added


def channel_grid(tensor: QuantizedTensor, added: int, axis: int) -> Grid:
    """One scale and zero point for each channel, also where the artifact has one for all: LiteRT's XNNPACK does not
    read the zero point of a whole tensor.
    """
    scale = _channel_scale(tensor)
    zero_point = np.zeros(len(scale), np.int64)
    if tensor.zero_point is not None:
        zero_point = np.broadcast_to(tensor.zero_point.reshape(-1).astype(np.int64) - added, scale.shape)
    return Grid(tuple(map(float, scale)), tuple(map(int, zero_point)), axis)


def _channel_scale(tensor: QuantizedTensor) -> Array:
    """[channels]; 1 in place of 0, which belongs to channels of zeros and which LiteRT refuses."""
    scale = np.broadcast_to(tensor.scale.reshape(-1), (tensor.shape[tensor.spec.axis],)).astype(np.float32)
    return np.where(scale > 0, scale, np.float32(1))


def _stored(tensor: QuantizedTensor, order: tuple[int, ...], added: int) -> Stored:
    return Stored(shape=tensor.shape, order=order, axis=tensor.spec.axis, added=added)


def _halves(c: Conversion, name: str, tensor: Tensor, order: tuple[int, ...]) -> int:
    """Floats of 16 bits and fewer as float16, which LiteRT widens when it loads the graph."""
    wide = dequantize(tensor).transpose(order)
    how = Stored(shape=tensor.shape, order=order, exact=False)
    if np.abs(wide).max(initial=0) > LARGEST_FLOAT16:
        return c.write.constant(wide)
    key = f"{name}@{'_'.join(map(str, order))}"
    if isinstance(tensor, QuantizedTensor):
        c.stored[key] = msgspec.to_builtins(how)
    half = c.write.constant(np.ascontiguousarray(wide.astype(np.float16)), name=key)
    return c.write.operator("DEQUANTIZE", [half], wide.shape)


def blocks_of(tensor: QuantizedTensor) -> tuple[Array, int]:
    """Signed integers [channels, groups, size], the last group filled with its zero; and what was taken off them."""
    integers, added = signed(tensor)
    rows = matrix(dataclasses.replace(tensor, integers=integers))
    width = rows.shape[1]
    size = min(tensor.spec.group_size or width, width)
    return np.pad(rows, ((0, 0), (0, -width % size))).reshape(len(rows), -1, size), added


def _group_rows(c: Conversion, name: str, tensor: QuantizedTensor) -> int:
    """Float32 [channels, values] of a tensor in groups."""
    blocks, added = blocks_of(tensor)
    channels, groups, size = blocks.shape
    scale = np.where(tensor.scale > 0, tensor.scale, 1).astype(np.float32).reshape(-1)
    zero = np.zeros(scale.shape, np.int64)
    if tensor.zero_point is not None:
        zero = tensor.zero_point.astype(np.int64).reshape(-1) - added
    grid = Grid(tuple(map(float, scale)), tuple(map(int, zero)), 0)
    stored = put(c, name, blocks.reshape(-1, size), tensor.spec.bits, grid, _stored(tensor, (), added))
    values = c.write.operator("DEQUANTIZE", [stored], (channels * groups, size))
    values = c.reshaped(values, (channels, groups * size))
    return cut(c, values, (channels, matrix(tensor).shape[1]))


def cut(c: Conversion, index: int, shape: Shape) -> int:
    """The first of the last axis, up to this shape."""
    if c.write.shapes[index] == shape:
        return index
    start = c.numbers(*[0] * len(shape))
    return c.write.operator("SLICE", [index, start, c.numbers(*shape)], shape, c.kind(index))


def _shared_rows(c: Conversion, name: str, tensor: QuantizedTensor) -> int:
    """Float32 [channels, values], or the whole as one row, looked up in a code book with every query."""
    whole = tensor.spec.granularity == "tensor"
    rows = matrix(tensor)
    places = shared_places(c, name, tensor, rows)
    books = codebook(c, name, tensor)
    if not whole:
        first = np.arange(len(rows), dtype=np.int32)[:, None] * _entries(tensor)
        places = c.write.operator("ADD", [places, c.write.constant(first)], rows.shape, "int32")
    return gathered(c, books, places, rows.shape)


def shared_places(c: Conversion, name: str, tensor: QuantizedTensor, rows: Array, indices: int | None = None,
                  shape: Shape = ()) -> int:  # fmt: skip
    """Int32 places in a code book [channels, values]; those of some rows, in a given shape, where there are indices."""
    width = next(width for width in (4, 8) if width >= tensor.spec.bits)
    added = 2 ** (width - 1)
    how = Stored(shape=tensor.shape, order=(), axis=tensor.spec.axis, added=added)
    stored = put(c, name, (rows.astype(np.int16) - added).astype(np.int8), width, None, how)
    if indices is not None:
        stored = gathered(c, stored, indices, shape)
    places = c.cast(c.cast(stored, "float32"), "int32")  # four bits are cast to float32 alone
    return c.write.operator("ADD", [places, c.constant(np.array(added, np.int32))], c.write.shapes[places], "int32")


def gathered(c: Conversion, table: int, indices: int, shape: Shape) -> int:
    """Rows of a table; ``shape`` is that of the result."""
    return c.write.operator("GATHER", [table, indices], shape, c.kind(table), settings=("GatherOptions", {"axis": 0}))


def codebook(c: Conversion, name: str, tensor: QuantizedTensor) -> int:
    """The code books one behind the other, float32."""
    assert tensor.codebook is not None
    stored = np.ascontiguousarray(tensor.codebook.reshape(-1))
    index = c.write.constant(stored, name=f"{name}#codebook")
    return index if stored.dtype == np.float32 else c.write.operator("DEQUANTIZE", [index], stored.shape)


def _entries(tensor: QuantizedTensor) -> int:
    assert tensor.codebook is not None
    return int(tensor.codebook.shape[1])


def read(path: Path) -> dict[str, Array]:
    """What :meth:`slimseek.bases.Backend.stored` gives, out of the file."""
    tensors, metadata = read_tensors(path)
    known = msgspec.json.decode(metadata.get(METADATA, b"{}"), type=dict[str, Stored])
    found: dict[str, Array] = {}
    for key, how in known.items():
        name = key.rpartition("@")[0].removesuffix("#int8")
        array, grid = tensors[key]
        if how.exact:
            array = (array.astype(np.int16) + how.added).astype(np.uint8 if how.added else np.int8)
        elif grid is not None:
            beside = [-1 if axis == grid.axis else 1 for axis in range(array.ndim)]
            array = array * np.array(grid.scale, np.float32).reshape(beside)
        found[name] = _oriented(array.astype(np.float32) if not how.exact else array, how)
    return found


def _oriented(array: Array, how: Stored) -> Array:
    """In the artifact's shape."""
    if how.order:
        array = array[tuple(slice(how.shape[axis]) for axis in how.order)]  # without columns of zeros
        return array.transpose(np.argsort(how.order))
    moved = (how.shape[how.axis], *how.shape[: how.axis], *how.shape[how.axis + 1 :])
    rows = array.reshape(moved[0], -1)[:, : int(np.prod(moved[1:]))]
    return np.moveaxis(rows.reshape(moved), 0, how.axis)


def as_json(stored: dict[str, Any]) -> bytes:
    """The metadata of a file."""
    return msgspec.json.encode(stored)
