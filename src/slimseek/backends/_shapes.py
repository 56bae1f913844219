"""Runtimes whose programs take one row: a batch goes through them row by row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from slimseek.errors import UsageError
from slimseek.schema import Array, Batch, Encode


def row_by_row(run: Callable[[Batch], Array], least: int = 0, longest: int = 0) -> Encode:
    """An ``Encode`` of any batch from what runs one row.

    Args:
        run: a batch of one row -> float32 [1, dim].
        least: tokens that a row has at least; a shorter one is filled up with 0, in its mask too.
        longest: tokens that a row has at most; 0 for rows that all have one shape.

    Returns:
        The ``Encode``; it raises UsageError for a longer row.
    """

    def encode(batch: Batch) -> Array:
        first = next(iter(batch.values()))
        length = first.shape[1] if longest else 0
        if length > longest:
            raise UsageError(f"a row has {length} tokens; the package takes at most {longest}")
        if length < least:
            batch = {name: np.pad(rows, [(0, 0), (0, least - length)]) for name, rows in batch.items()}
        rows = [run({name: array[row : row + 1] for name, array in batch.items()}) for row in range(len(first))]
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)

    return encode
