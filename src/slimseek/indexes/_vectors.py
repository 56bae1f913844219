"""What the indexes share: vectors at a precision, and the ranking of candidates.

All functions are pure. Ranges are float32 [2, dim]: the middle and the step of each dimension, for which
value = middle + step * code; ``None`` where vectors are kept as floats. Codes of ``int8`` go from -127 to 127; those of
``binary`` are -1 and 1, and eight of them take a byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

from slimseek import reading
from slimseek.bases import Index
from slimseek.collection import Blocks, Hits
from slimseek.errors import ArtifactError, UsageError
from slimseek.schema import Array, Precision

TOP_CODE = 127
ROWS_IN_BLOCK = 8192
SHORTLIST = 4
ROWS_TO_RANK = 128
DTYPES = {"f32": np.float32, "f16": np.float16, "int8": np.int8, "binary": np.uint8}
WITH_RANGES = ("int8", "binary")
RESCORED_WITH: dict[Precision, Precision] = {"binary": "int8"}
"""The precisions whose hits are ranked by finer vectors unless one asks for none, and how those are kept."""
OVERSAMPLE = 4
VECTORS = "vectors.npy"
RANGES = "ranges.npy"


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Vectors as they are kept.

    Attributes:
        kept: float32, float16 or int8 [n, dim], or packed signs uint8 [n, ceil(dim / 8)].
        ranges: float32 [2, dim], or ``None``.
    """

    kept: Array
    ranges: Array | None

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.kept.shape[1] if self.ranges is None else self.ranges.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors and ranges."""
        return int(self.kept.nbytes) + (0 if self.ranges is None else int(self.ranges.nbytes))

    def take(self, ids: Array) -> Array:
        """Float64 [m, dim], the values that the rows of int64 [m] stand for."""
        return restored(self.kept[ids], self.ranges)

    def with_more(self, vectors: Array, precision: Precision) -> Rows:
        """These rows, and below them float32 [m, dim] vectors kept by the same ranges."""
        more = stored(checked(vectors, self.dim), precision, self.ranges)
        return Rows(kept=np.concatenate([self.kept, more]), ranges=self.ranges)

    def without(self, ids: Array) -> Rows:
        """All rows but those of int64 [m] ids, which :func:`checked_ids` has passed."""
        return Rows(kept=np.delete(self.kept, ids, axis=0), ranges=self.ranges)

    def save(self, folder: Path) -> None:
        """Write ``vectors.npy`` and, where there are ranges, ``ranges.npy``."""
        np.save(folder / VECTORS, self.kept, allow_pickle=False)
        if self.ranges is not None:
            np.save(folder / RANGES, self.ranges, allow_pickle=False)


def rows_of(vectors: Array, precision: Precision, *, shared_step: bool = False) -> Rows:
    """Float32 [n, dim] vectors, n at least 1, as they are kept at a precision; see :func:`ranges_of_blocks`.

    Raises:
        UsageError: no vectors, another shape, or a value that cannot be kept.
    """
    vectors = checked(vectors)
    if not len(vectors):
        raise UsageError("there are no vectors to index")
    ranges = ranges_of(vectors, precision, shared_step=shared_step)
    return Rows(kept=stored(vectors, precision, ranges), ranges=ranges)


def bytes_of(documents: int, dim: int, precision: Precision) -> int:
    """Bytes of an exact index of so many vectors, before there is one: those in memory while it is searched.

    Args:
        documents: how many vectors.
        dim: their width.
        precision: how they are kept.

    Raises:
        UsageError: an unknown precision.
    """
    bits = 1 if checked_precision(precision) == "binary" else 8 * np.dtype(DTYPES[precision]).itemsize
    ranges = 2 * dim * np.dtype(np.float32).itemsize if precision in WITH_RANGES else 0
    return documents * -(-dim * bits // 8) + ranges


def rescore_bytes_of(documents: int, dim: int, precision: Precision) -> int:
    """Bytes on disk alone of the finer vectors that rank its hits by default; 0 for a precision that needs none."""
    finer = RESCORED_WITH.get(checked_precision(precision))
    return 0 if finer is None else bytes_of(documents, dim, finer)


def write_rows(folder: Path, blocks: Blocks, precision: Precision, *, shared_step: bool = False) -> None:
    """Write what ``rows_of(...).save(folder)`` would of the same vectors, a block in memory at a time."""
    ranges = ranges_of_blocks(blocks, precision, shared_step=shared_step)
    width = -(-blocks.dim // 8) if precision == "binary" else blocks.dim
    with (folder / VECTORS).open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(DTYPES[precision])), "fortran_order": False,
                  "shape": (blocks.count, width)}  # fmt: skip
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks.each():
            file.write(stored(block, precision, ranges).tobytes())
    if ranges is not None:
        np.save(folder / RANGES, ranges, allow_pickle=False)


def load_rows(folder: Path, precision: Precision) -> Rows:
    """What :meth:`Rows.save` wrote, the vectors mapped from disk until they are read.

    Raises:
        ArtifactError: a file is missing, cut, or of another precision.
    """
    kept = load_array(folder / VECTORS, DTYPES[precision], mapped=True)
    ranges = load_ranges(folder, precision)
    width = None if ranges is None else -(-ranges.shape[1] // 8) if precision == "binary" else ranges.shape[1]
    if width is not None and kept.shape[1] != width:
        raise ArtifactError(f"{folder / VECTORS} is {kept.shape[1]} wide where {RANGES} wants {width}; index again")
    return Rows(kept=kept, ranges=ranges)


def load_ranges(folder: Path, precision: Precision) -> Array | None:
    """The ranges that lie beside vectors of that precision, or ``None`` where it has none."""
    return load_array(folder / RANGES, np.float32) if precision in WITH_RANGES else None


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


def checked_ids(ids: Array, count: int) -> Array:
    """The ids int64 [m] as they are, or UsageError: one is not below ``count``, or none of the vectors is left."""
    ids = np.unique(np.asarray(ids, np.int64))
    if len(ids) and not 0 <= ids[0] <= ids[-1] < count:
        raise UsageError(f"ids from {ids[0]} to {ids[-1]} are to be removed; the index has 0 to {count - 1}")
    if len(ids) == count:
        raise UsageError("nothing would be left of the index; delete its folder instead")
    return ids


def outside(vectors: Array, ranges: Array | None) -> float:
    """The share of the values of float32 [n, dim] vectors that lie more than half a step outside the int8 ranges."""
    if ranges is None or not vectors.size:
        return 0.0
    middle, step = ranges
    return float((np.abs(vectors - middle) > (TOP_CODE + 0.5) * step).mean())


def ranges_of(vectors: Array, precision: Precision, *, shared_step: bool = False) -> Array | None:
    """Ranges float32 [2, dim] for float32 [n, dim] vectors: see :func:`ranges_of_blocks`."""
    blocks = Blocks(count=len(vectors), dim=vectors.shape[1], each=lambda: in_blocks(vectors))
    return ranges_of_blocks(blocks, precision, shared_step=shared_step)


def ranges_of_blocks(blocks: Blocks, precision: Precision, *, shared_step: bool = False) -> Array | None:
    """Ranges float32 [2, dim] for vectors, or ``None`` for floats.

    ``int8``: they just hold the vectors. ``binary``: the middle is the mean, and step = mean d^2 / mean |d| of the
    distances d from it. For normally distributed vectors that makes the inner product with a query right on average
    (Bussgang's theorem), where the step of least squared error, mean |d|, would give two thirds of it.

    Args:
        blocks: what is to be stored.
        precision: how.
        shared_step: one int8 step for all dimensions, so that the inner product of codes is that of the vectors but
            for a factor; else each dimension has its own, which loses less.
    """
    if precision == "int8":
        low, high = np.full((2, blocks.dim), [[np.inf], [-np.inf]], np.float32)
        for block in blocks.each():
            low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
        step = (high - low) / (2 * TOP_CODE)
        return np.stack([(low + high) / 2, np.full_like(step, step.max()) if shared_step else step])
    if precision == "binary":
        total, squares, sizes = np.zeros((3, blocks.dim))
        for block in blocks.each():
            total += block.sum(0, dtype=np.float64)
        middle = (total / blocks.count).astype(np.float32)
        for block in blocks.each():
            distances = np.abs(block.astype(np.float64) - middle)
            squares += (distances**2).sum(0)
            sizes += distances.sum(0)
        return np.stack([middle, (squares / np.where(sizes > 0, sizes, 1)).astype(np.float32)])
    return None


def in_blocks(rows: Array) -> Iterator[Array]:
    """Rows [n, width] in parts of at most 8,192, views of them."""
    for start in range(0, len(rows), ROWS_IN_BLOCK):
        yield rows[start : start + ROWS_IN_BLOCK]


def equal_blocks(blocks: Iterable[Array]) -> Iterator[Array]:
    """The same rows in parts of 8,192, as :func:`in_blocks` has them, however they came."""
    held: list[Array] = []
    for block in blocks:
        for part in in_blocks(block):
            held.append(part)
            if sum(map(len, held)) >= ROWS_IN_BLOCK:
                rows = np.concatenate(held)
                yield rows[:ROWS_IN_BLOCK]
                held = [rows[ROWS_IN_BLOCK:]]
    rest = np.concatenate(held) if held else np.zeros((0, 0), np.float32)
    if len(rest):
        yield rest


def to_codes(vectors: Array, ranges: Array) -> Array:
    """Float32 [n, dim] to int8 [n, dim]; a value outside the range gets the outermost code."""
    middle, step = ranges
    return np.clip(np.rint((vectors - middle) / np.where(step > 0, step, 1)), -TOP_CODE, TOP_CODE).astype(np.int8)


def to_signs(vectors: Array, ranges: Array) -> Array:
    """Float32 [n, dim] to uint8 [n, ceil(dim / 8)]: a bit is 1 above the middle; the last byte is filled with 0."""
    return np.packbits(vectors > ranges[0], axis=1)


def stored(vectors: Array, precision: Precision, ranges: Array | None) -> Array:
    """Float32 [n, dim] vectors as they are kept: float32, float16, int8 codes, or packed signs.

    Raises:
        UsageError: a value is too large for float16.
    """
    if ranges is not None:
        return to_signs(vectors, ranges) if precision == "binary" else to_codes(vectors, ranges)
    largest = np.abs(vectors).max()
    if precision == "f16" and largest > np.finfo(np.float16).max:
        raise UsageError(f"a vector holds {largest:g}, above the 65504 that f16 can keep; use f32 or int8")
    return vectors.astype(DTYPES[precision])


def restored(rows: Array, ranges: Array | None) -> Array:
    """Kept rows [n, dim], or packed signs, as the float64 values [n, dim] that they stand for."""
    if ranges is None:
        return rows.astype(np.float64)
    packed = rows.dtype == DTYPES["binary"]
    codes = np.unpackbits(rows, axis=1, count=ranges.shape[1]) * 2.0 - 1 if packed else rows.astype(np.float64)
    return codes * ranges[1] + ranges[0]


def hamming(signs: Array, query: Array) -> Array:
    """How many bits differ, int32 [n], between packed signs uint8 [n, bytes] and one query's uint8 [bytes]."""
    # The widest integers that a row holds whole: eight bytes are then counted at once.
    word = next(f"u{size}" for size in (8, 4, 2, 1) if signs.shape[1] % size == 0)
    differing: Array = np.bitwise_count(signs.view(word) ^ query.view(word)).sum(1, dtype=np.int32)
    return differing


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


def rescored(index: Index, finer: Rows, queries: Array, k: int, oversample: int = OVERSAMPLE) -> Hits:
    """The ``k`` best of what an index finds, ranked by finer vectors of the same documents.

    Args:
        index: finds ``oversample`` times as many candidates.
        finer: the vectors that rank them and give the scores.
        queries: float32 [q, dim].
        k: hits wanted for each query.
        oversample: candidates for each hit, 1 or more.
    """
    candidates = index.query(queries, min(k * oversample, len(finer.kept))).ids
    return rank(queries, (ids[ids >= 0] for ids in candidates), finer.take, k)


def load_array(path: Path, dtype: type, *, mapped: bool = False) -> Array:
    """A two-dimensional array that ``np.save`` wrote; ``mapped`` leaves it on disk until it is read.

    Raises:
        ArtifactError: it is missing, cut, or of another type.
    """
    try:
        array = reading.array(path, mapped=mapped)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    if array.ndim != 2 or array.dtype != dtype or not array.size:
        raise ArtifactError(f"{path} holds {array.dtype} {list(array.shape)} instead of {np.dtype(dtype)} [n, dim]")
    return array
