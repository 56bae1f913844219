"""Every document scored for every query: the reference, and fast enough for most collections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from slimseek.errors import UsageError
from slimseek.indexes import _vectors
from slimseek.schema import Array, Hits, Index, Precision

VECTORS = "vectors.npy"
RANGES = "ranges.npy"
SCORES_IN_BLOCK = 2**24


class Exact(Index):
    """Exact and deterministic: a matrix product finds the candidates, their scores in float64 rank them.

    A hit never depends on the other queries of a batch. With ``int8`` the ranges of each dimension are taken from the
    documents and kept with them; products are summed in float32, so that no integer overflows.
    """

    def __init__(self, *, precision: Precision = "f32") -> None:
        """An empty index; an unknown precision raises UsageError."""
        self.precision = _vectors.checked_precision(precision)

    def build(self, vectors: Array, threads: int = 1) -> None:
        """Take float32 [n, dim] vectors, n at least 1; numpy's own threads do the work.

        Raises:
            UsageError: no vectors, another shape, or a value that cannot be kept.
        """
        vectors = _vectors.checked(vectors)
        if not len(vectors):
            raise UsageError("there are no vectors to index")
        ranges = _vectors.ranges_of(vectors, shared_step=False) if self.precision == "int8" else None
        self._adopt(_vectors.stored(vectors, self.precision, ranges), ranges)

    def query(self, vectors: Array, k: int) -> Hits:
        """The ``k`` best for each of float32 [q, dim] vectors; id -1 and score -inf fill up where n < k."""
        queries = _vectors.checked(vectors, self._stored.shape[1])
        return _vectors.rank(queries, self._candidates(queries, k), self._vectors_of, k)

    def save(self, folder: Path) -> None:
        """Write ``vectors.npy`` and, for int8, ``ranges.npy``."""
        np.save(folder / VECTORS, self._stored, allow_pickle=False)
        if self._ranges is not None:
            np.save(folder / RANGES, self._ranges, allow_pickle=False)

    def load(self, folder: Path) -> None:
        """Map the vectors from disk; a file that is cut or of another precision raises ArtifactError."""
        vectors = _vectors.load_array(folder / VECTORS, _vectors.DTYPES[self.precision], mapped=True)
        ranges = _vectors.load_array(folder / RANGES, np.float32) if self.precision == "int8" else None
        self._adopt(vectors, ranges)

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors and ranges."""
        return int(self._stored.nbytes) + (0 if self._ranges is None else int(self._ranges.nbytes))

    def _adopt(self, rows: Array, ranges: Array | None) -> None:
        self._stored, self._ranges = rows, ranges
        self._longest = max(float(np.linalg.norm(block, axis=1).max()) for block in self._blocks())

    def _vectors_of(self, ids: Array) -> Array:
        return _vectors.restored(self._stored[ids], self._ranges)

    def _blocks(self) -> Iterator[Array]:
        for start in range(0, len(self._stored), _vectors.ROWS_IN_BLOCK):
            yield self._stored[start : start + _vectors.ROWS_IN_BLOCK].astype(np.float32, copy=False)

    def _candidates(self, queries: Array, k: int) -> Iterator[Array]:
        """For each query the ids whose float32 score may be among the ``k`` best, rounding considered."""
        count, dim = self._stored.shape
        rows = max(1, SCORES_IN_BLOCK // count)
        middle, step = (np.zeros(dim), np.ones(dim, np.float32)) if self._ranges is None else self._ranges
        for start in range(0, len(queries), rows):
            block = queries[start : start + rows]
            # The middle adds the same to every score of a query, so that it is left to the ranking.
            scaled = block * step
            scores = np.concatenate([scaled @ part.T for part in self._blocks()], axis=1)
            error = (dim + 4) * np.linalg.norm(scaled, axis=1) * self._longest
            error += np.linalg.norm(block, axis=1) * np.linalg.norm(middle)
            margins = 2 * np.finfo(np.float32).eps * error
            for row, margin in zip(scores, margins, strict=True):
                worst = np.partition(row, count - k)[count - k] - margin if k < count else -np.inf
                yield np.flatnonzero(row >= worst)
