"""A tensor as places in code books: which values, of which float type, and how few bits name a place."""

from __future__ import annotations

from typing import Literal

import numpy as np

from slimseek import integers, sparse
from slimseek.integers import MIN_NORMAL_FLOAT16
from slimseek.methods.simplify._clusters import cluster, nearest
from slimseek.schema import Array, QuantizedTensor, QuantSpec, Tensor

LARGEST_FLOAT16 = 6e4


def share(
    tensor: Tensor, weights: Array, bits: int, granularity: Literal["tensor", "channel"], axis: int
) -> QuantizedTensor:
    """The tensor with at most 2^bits different values, all or in each channel.

    One that has no more values keeps them exactly, at the bits that their number takes. Where it is pruned, 0 is the
    first entry, so that zeros stay zero and the artifact stores one bit for each.

    Args:
        tensor: finite float values.
        weights: what the squared error of each value counts, 0 or more, of the tensor's shape.
        bits: 1 to 8.
        granularity: what has a code book.
        axis: of the channels.
    """
    values = integers.dequantize(tensor)
    moved = np.moveaxis(values, axis, 0) if granularity == "channel" else values
    rows, counts = (_rows(array, granularity, axis) for array in (values, weights))
    pruned = sparse.is_pruned(values)
    books = _beside_zero(rows, counts, 2**bits) if pruned else cluster(rows, counts, 2**bits)
    if granularity == "channel":
        books = _narrow(books, rows)
    places = nearest(rows, books)
    if pruned:
        books, places = _zero_first(books, places)
    entries = int(places.max()) + 1
    spec = QuantSpec(bits=max(1, (entries - 1).bit_length()), granularity=granularity, axis=axis, entries=entries)
    whole = places.reshape(moved.shape)
    if granularity == "channel":
        whole = np.moveaxis(whole, 0, axis)
    return QuantizedTensor(
        spec=spec, integers=np.ascontiguousarray(whole), scale=np.ones((1, 1), np.float32),
        codebook=np.ascontiguousarray(books[:, :entries]),
    )  # fmt: skip


def _rows(array: Array, granularity: str, axis: int) -> Array:
    if granularity == "tensor":
        return array.reshape(1, -1)
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def _beside_zero(rows: Array, weights: Array, entries: int) -> Array:
    """Ascending code books of which one entry is 0; the others are chosen by the values that are not."""
    zero = rows == 0
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], 1)
    others = cluster(np.where(zero, largest, rows), np.where(zero, 0, weights).astype(np.float32), entries - 1)
    return np.sort(np.pad(others, ((0, 0), (1, 0))), axis=1)


def _zero_first(books: Array, places: Array) -> tuple[Array, Array]:
    """The same with the entry 0 before all others."""
    at = (books == 0).argmax(axis=1)[:, None]
    others = np.arange(books.shape[1] - 1)[None]
    rest = np.take_along_axis(books, others + (others >= at), 1)
    moved = np.where(places == at, 0, places + (places < at))
    return np.pad(rest, ((0, 0), (1, 0))), moved.astype(np.uint8)


def _narrow(books: Array, rows: Array) -> Array:
    """Code books as float16 where it can hold them: normal numbers, and every row that is kept exactly stays so."""
    with np.errstate(over="ignore"):
        half = books.astype(np.float16)
    exact = (np.take_along_axis(books, nearest(rows, books).astype(np.intp), 1) == rows).all(axis=1)
    size = np.abs(books[books != 0])
    normal = not size.size or (size.min() >= MIN_NORMAL_FLOAT16 and size.max() <= LARGEST_FLOAT16)
    return half if normal and (half == books)[exact].all() else books
