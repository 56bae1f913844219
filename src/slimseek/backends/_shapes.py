"""Runtimes whose graphs have one shape each: any batch, row by row, in the smallest of the shapes that holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from slimseek.errors import UsageError
from slimseek.schema import Array, Batch, Encode, ModelSpec

WIDTHS = (16, 32, 64, 128, 256, 512)
"""Tokens that a package has a graph for, up to the model's longest text."""


def widths(spec: ModelSpec) -> tuple[int, ...]:
    """The lengths in tokens that a package of this model has graphs for; none for one whose items all have one shape.

    The last one is the longest text that the model takes.
    """
    if spec.preprocess is None:
        return ()
    longest = spec.preprocess.max_length
    return (*(width for width in WIDTHS if width < longest), longest)


def row_by_row(run: Callable[[int, Batch], Array], lengths: Sequence[int]) -> Encode:
    """An ``Encode`` of any batch and length from graphs of one row.

    Args:
        run: (tokens, a batch of one row filled up to so many) -> float32 [1, dim]; tokens is 0 where ``lengths`` is
            empty.
        lengths: as :func:`widths` gives them, ascending. What fills a row up is 0, in its mask too.

    Returns:
        The ``Encode``; it raises UsageError for a row longer than the last length.
    """

    def encode(batch: Batch) -> Array:
        length = next(iter(batch.values())).shape[1] if lengths else 0
        width = next((width for width in lengths if width >= length), None) if lengths else 0
        if width is None:
            raise UsageError(f"a row has {length} tokens; the package takes at most {lengths[-1]}")
        if width > length:
            batch = {name: np.pad(rows, [(0, 0), (0, width - length)]) for name, rows in batch.items()}
        count = len(next(iter(batch.values())))
        rows = [run(width, {name: rows[row : row + 1] for name, rows in batch.items()}) for row in range(count)]
        return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)

    return encode
