"""Every document scored for every query: the reference, and fast enough for most collections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from slimseek.bases import Index
from slimseek.collection import Blocks, Hits
from slimseek.indexes import _vectors
from slimseek.schema import Array, Precision

SCORES_IN_BLOCK = 2**24


class Exact(Index):
    """Exact and deterministic: a matrix product finds the candidates, their scores in float64 rank them.

    A hit never depends on the other queries of a batch. With ``int8`` the ranges of each dimension are taken from the
    documents and kept with them; products are summed in float32, so that no integer overflows. With ``binary`` the
    candidates are those whose signs differ least from the query's (Hamming distance), four times as many as are asked
    for, and the score of a candidate is the query's inner product with what its signs stand for. Signs keep a
    vector's direction and not its length: ``binary`` is for vectors of one length.
    """

    def __init__(self, *, precision: Precision = "f32") -> None:
        """An empty index; an unknown precision raises UsageError."""
        self.precision = _vectors.checked_precision(precision)

    def build(self, vectors: Array, threads: int = 1) -> None:
        """Take float32 [n, dim] vectors, n at least 1; numpy's own threads do the work.

        Raises:
            UsageError: no vectors, another shape, or a value that cannot be kept.
        """
        self._adopt(_vectors.rows_of(vectors, self.precision))

    def write(self, folder: Path, blocks: Blocks, threads: int = 1) -> None:
        """Write the files of blocks of vectors as they come; the index itself stays empty."""
        _vectors.write_rows(folder, blocks, self.precision)

    def add(self, vectors: Array, threads: int = 1) -> None:
        """Take float32 [n, dim] more; another shape or a value that cannot be kept raises UsageError."""
        self._adopt(self._rows.with_more(vectors, self.precision))

    def remove(self, ids: Array) -> None:
        """Give up the vectors of int64 [n] ids; one that is not there raises UsageError."""
        self._adopt(self._rows.without(_vectors.checked_ids(ids, len(self._rows.kept))))

    def query(self, vectors: Array, k: int) -> Hits:
        """The ``k`` best for each of float32 [q, dim] vectors; id -1 and score -inf fill up where n < k."""
        queries = _vectors.checked(vectors, self._rows.dim)
        find = self._nearest_signs if self.precision == "binary" else self._candidates
        return _vectors.rank(queries, find(queries, k), self._rows.take, k)

    def save(self, folder: Path) -> None:
        """Write ``vectors.npy`` and, for int8 and binary, ``ranges.npy``."""
        self._rows.save(folder)

    def load(self, folder: Path) -> None:
        """Map the vectors from disk; a file that is cut or of another precision raises ArtifactError."""
        self._adopt(_vectors.load_rows(folder, self.precision))

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors and ranges."""
        return self._rows.nbytes

    def _adopt(self, rows: _vectors.Rows) -> None:
        self._rows = rows
        if self.precision != "binary":
            norms = (np.linalg.norm(block.astype(np.float32, copy=False), axis=1).max() for block in self._blocks())
            self._longest = float(max(norms))

    def _blocks(self) -> Iterator[Array]:
        return _vectors.in_blocks(self._rows.kept)

    def _candidates(self, queries: Array, k: int) -> Iterator[Array]:
        """For each query the ids whose float32 score may be among the ``k`` best, rounding considered."""
        count, dim = self._rows.kept.shape
        rows = max(1, SCORES_IN_BLOCK // count)
        middle, step = (np.zeros(dim), np.ones(dim, np.float32)) if self._rows.ranges is None else self._rows.ranges
        for start in range(0, len(queries), rows):
            block = queries[start : start + rows]
            # The middle adds the same to every score of a query, so that it is left to the ranking.
            scaled = block * step
            scores = np.concatenate([scaled @ part.astype(np.float32, copy=False).T for part in self._blocks()], axis=1)
            error = (dim + 4) * np.linalg.norm(scaled, axis=1) * self._longest
            error += np.linalg.norm(block, axis=1) * np.linalg.norm(middle)
            margins = 2 * np.finfo(np.float32).eps * error
            for row, margin in zip(scores, margins, strict=True):
                worst = np.partition(row, count - k)[count - k] - margin if k < count else -np.inf
                yield np.flatnonzero(row >= worst)

    def _nearest_signs(self, queries: Array, k: int) -> Iterator[Array]:
        """For each query the ids of the least Hamming distances, all that are equally far included."""
        assert self._rows.ranges is not None
        last = min(k * _vectors.SHORTLIST, len(self._rows.kept)) - 1
        for signs in _vectors.to_signs(queries, self._rows.ranges):
            distances = np.concatenate([_vectors.hamming(block, signs) for block in self._blocks()])
            yield np.flatnonzero(distances <= np.partition(distances, last)[last])
