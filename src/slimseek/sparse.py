"""Arrays of many zeros: when to store a bit for each place and only the values that are not zero, and how."""

from __future__ import annotations

import numpy as np

from slimseek.errors import UsageError
from slimseek.schema import Array

LARGEST_SHARE = 0.9
"""Of the dense bytes that the sparse form may take; where it saves less, its trouble is not worth it."""
NAMED = 128
"""Bytes that a second tensor takes in the head of a file: its name, its type and where it lies."""
LEAST_PRUNED = 0.01
"""Share of zeros from which on they are there by design: of weights that were trained freely practically none is zero,
and one row of a table, for the padding, is less.
"""


def occupied(array: Array) -> Array:
    """Bool [n]: the places, in the array's own order, where any bit is set; -0.0 is a value of its own."""
    flat = np.ascontiguousarray(array).reshape(-1)
    places: Array = flat.view(f"u{flat.dtype.itemsize}") != 0
    return places


def stored_bytes(count: int, values: int, bits: int) -> int:
    """Bytes of the sparse form of ``count`` places, ``values`` of which hold one of ``bits`` bits."""
    return (count + 7) // 8 + (values * bits + 7) // 8


def pays(count: int, values: int, bits: int) -> bool:
    """Whether the sparse form is at least a tenth smaller than the dense one, the name of its mask included."""
    return stored_bytes(count, values, bits) + NAMED <= LARGEST_SHARE * ((count * bits + 7) // 8)


def mask(places: Array) -> Array:
    """Bool [n] as uint8 [ceil(n / 8)], one bit a place, least significant bit first."""
    return np.packbits(places, bitorder="little")


def places(stored: Array, count: int, values: int) -> Array:
    """The inverse of :func:`mask`, bool [count].

    Raises:
        UsageError: the mask is not one of ``count`` places, ``values`` of which hold a value.
    """
    if stored.dtype != np.uint8 or stored.shape != ((count + 7) // 8,):
        raise UsageError(f"a mask {stored.dtype} {list(stored.shape)} is not one bit for each of {count} places")
    bits = np.unpackbits(stored, bitorder="little")
    found = int(bits.sum())
    if found != values or bits[count:].any():
        raise UsageError(f"its mask has {found} places in use for {values} values")
    return bits[:count].astype(bool)


def is_pruned(array: Array) -> bool:
    """Whether the zeros of a weight were made on purpose, and are to stay zero when it is trained or rounded.

    True of two axes or more with at least one zero in a hundred values, but not of all zeros: a weight that begins at
    zero is there to be trained.
    """
    zeros = int(array.size - np.count_nonzero(array))
    return array.ndim > 1 and LEAST_PRUNED * array.size <= zeros < array.size
