"""What the indexes share: vectors at a precision, and the ranking of candidates.

All functions are pure. Ranges are float32 [2, dim]: the middle and the step of each dimension, for which
value = middle + step * code with codes -127 to 127; ``None`` where vectors are kept as floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

import numpy as np

from slimseek.errors import ArtifactError, UsageError
from slimseek.schema import Array, Hits, Precision

TOP_CODE = 127
ROWS_IN_BLOCK = 8192
DTYPES = {"f32": np.float32, "f16": np.float16, "int8": np.int8}


def checked_precision(precision: Precision) -> Precision:
    """The precision as it is, or UsageError."""
    if precision not in DTYPES:
        raise UsageError(f"unknown vector precision {precision!r}; known: {', '.join(get_args(Precision))}")
    return precision


def checked(vectors: Array, dim: int | None = None) -> Array:
    """The vectors as contiguous float32 [n, dim].

    Args:
        vectors: float array [n, dim].
        dim: the width wanted; ``None`` for any.

    Raises:
        UsageError: another shape, or a value that is NaN or infinite.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.shape[1] != (dim or vectors.shape[1]):
        raise UsageError(f"vectors have shape {list(vectors.shape)}; the index wants [n, {dim or 'dim'}]")
    if not np.isfinite(vectors).all():
        raise UsageError("the vectors hold NaN or infinite values and cannot be searched")
    return vectors


def ranges_of(vectors: Array, *, shared_step: bool) -> Array:
    """Ranges float32 [2, dim] that just hold float32 [n, dim] vectors.

    Args:
        vectors: what is to be stored.
        shared_step: one step for all dimensions, so that the inner product of codes is that of the vectors but for a
            factor; else each dimension has its own, which loses less.
    """
    low, high = vectors.min(0), vectors.max(0)
    step = (high - low) / (2 * TOP_CODE)
    return np.stack([(low + high) / 2, np.full_like(step, step.max()) if shared_step else step])


def to_codes(vectors: Array, ranges: Array) -> Array:
    """Float32 [n, dim] to int8 [n, dim]; a value outside the range gets the outermost code."""
    middle, step = ranges
    return np.clip(np.rint((vectors - middle) / np.where(step > 0, step, 1)), -TOP_CODE, TOP_CODE).astype(np.int8)


def stored(vectors: Array, precision: Precision, ranges: Array | None) -> Array:
    """Float32 [n, dim] vectors as they are kept: float32, float16, or int8 codes.

    Raises:
        UsageError: a value is too large for float16.
    """
    if ranges is not None:
        return to_codes(vectors, ranges)
    largest = np.abs(vectors).max()
    if precision == "f16" and largest > np.finfo(np.float16).max:
        raise UsageError(f"a vector holds {largest:g}, above the 65504 that f16 can keep; use f32 or int8")
    return vectors.astype(DTYPES[precision])


def restored(rows: Array, ranges: Array | None) -> Array:
    """Kept rows [n, dim] as the float64 values that they stand for."""
    values = rows.astype(np.float64)
    return values if ranges is None else values * ranges[1] + ranges[0]


def rank(queries: Array, candidates: Iterable[Array], vectors_of: Callable[[Array], Array], k: int) -> Hits:
    """The ``k`` best among the candidates of each query.

    Scores are summed in float64 row by row and then rounded, so that equal documents get equal scores whatever block
    or batch they were found in, which a matrix product does not promise.

    Args:
        queries: float32 [q, dim].
        candidates: for each query the ids int64 [m] to choose from.
        vectors_of: ids [m] to float64 [m, dim].
        k: hits wanted for each query.
    """
    hits = Hits(ids=np.full((len(queries), k), -1, np.int64), scores=np.full((len(queries), k), -np.inf, np.float32))
    for row, (query, ids) in enumerate(zip(queries, candidates, strict=True)):
        scores = np.empty(len(ids), np.float32)
        for start in range(0, len(ids), ROWS_IN_BLOCK):
            block = slice(start, start + ROWS_IN_BLOCK)
            scores[block] = (vectors_of(ids[block]) * query.astype(np.float64)).sum(1)
        best = np.lexsort((ids, -scores))[:k]
        hits.ids[row, : len(best)] = ids[best]
        hits.scores[row, : len(best)] = scores[best]
    return hits


def load_array(path: Path, dtype: type, *, mapped: bool = False) -> Array:
    """A two-dimensional array that ``np.save`` wrote; ``mapped`` leaves it on disk until it is read.

    Raises:
        ArtifactError: it is missing, cut, or of another type.
    """
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    if array.ndim != 2 or array.dtype != dtype or not array.size:
        raise ArtifactError(f"{path} holds {array.dtype} {list(array.shape)} instead of {np.dtype(dtype)} [n, dim]")
    return array
