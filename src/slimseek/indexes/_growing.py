"""An index by another library that takes rows block by block: what all of these have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from slimseek.bases import Index
from slimseek.collection import Blocks, Hits
from slimseek.errors import UsageError
from slimseek.indexes import _vectors
from slimseek.schema import Array, Precision


class Growing(Index):
    """Rows are added as they come; what the library finds is scored again as in ``exact``, so that scores and ties
    agree with it.

    Attributes:
        shared_step: whether all dimensions of int8 codes share one step, as a library needs that compares documents
            with each other by their codes.
    """

    shared_step: ClassVar[bool] = False

    def __init__(self, *, precision: Precision = "f32") -> None:
        """An empty index; an unknown precision raises UsageError."""
        self.precision = _vectors.checked_precision(precision)
        self._ranges: Array | None = None
        self._dim = 0

    def build(self, vectors: Array, threads: int = 1) -> None:
        """Take float32 [n, dim] vectors, n at least 1.

        Raises:
            UsageError: no vectors, another shape, or a value that cannot be kept.
        """
        vectors = _vectors.checked(vectors)
        if not len(vectors):
            raise UsageError("there are no vectors to index")
        rows = _vectors.rows_of(vectors, self.precision, shared_step=self.shared_step)
        self._adopt(rows, threads)

    def write(self, folder: Path, blocks: Blocks, threads: int = 1) -> None:
        """Add blocks of vectors as they come, then save: what a library keeps in memory is the index alone."""
        ranges = _vectors.ranges_of_blocks(blocks, self.precision, shared_step=self.shared_step)
        self._start(blocks.dim, ranges)
        for block in _vectors.equal_blocks(blocks.each()):  # the graph of some libraries hangs on how rows came
            self._append(_vectors.stored(block, self.precision, ranges), threads)
        self.save(folder)

    def add(self, vectors: Array, threads: int = 1) -> None:
        """Take float32 [n, dim] more; another shape or a value that cannot be kept raises UsageError."""
        self._append(_vectors.stored(_vectors.checked(vectors, self._dim), self.precision, self._ranges), threads)

    def remove(self, ids: Array) -> None:
        """Give up vectors by making the index anew of the rows that are left; an unknown id raises UsageError."""
        count = len(self)
        ids = _vectors.checked_ids(ids, count)
        rows = _vectors.Rows(kept=self._kept(np.arange(count)), ranges=self._ranges)
        self._adopt(rows.without(ids))

    def query(self, vectors: Array, k: int) -> Hits:
        """The ``k`` best found for each of float32 [q, dim] vectors; id -1 and score -inf fill up."""
        queries = _vectors.checked(vectors, self._dim)
        return _vectors.rank(queries, self._candidates(queries, k), self._vectors_of, k)

    @abstractmethod
    def __len__(self) -> int:
        """How many vectors there are."""

    def _adopt(self, rows: _vectors.Rows, threads: int = 1) -> None:
        self._start(rows.dim, rows.ranges)
        for block in _vectors.in_blocks(rows.kept):
            self._append(block, threads)

    def _start(self, dim: int, ranges: Array | None) -> None:
        """An index without rows."""
        self._dim, self._ranges = dim, ranges
        self._make(-(-dim // 8) if self.precision == "binary" else dim)

    @abstractmethod
    def _make(self, width: int) -> None:
        """The library's own index, empty, for kept rows [n, width]."""

    @abstractmethod
    def _append(self, rows: Array, threads: int) -> None:
        """Add kept rows [n, width]."""

    @abstractmethod
    def _kept(self, ids: Array) -> Array:
        """The kept rows [m, width] of int64 [m] ids."""

    @abstractmethod
    def _found(self, query: Array, count: int) -> Array:
        """The ids int64 [at most count] that the library finds for a query float32 [dim]."""

    def _vectors_of(self, ids: Array) -> Array:
        return _vectors.restored(self._kept(ids), self._ranges)

    def _candidates(self, queries: Array, k: int) -> Iterator[Array]:
        """For each query the ids that are scored: more than are asked for, so that ties are seen."""
        wanted = k * _vectors.SHORTLIST if self.precision == "binary" else k
        count = min(len(self), max(wanted, self._least_found()))
        for query in queries:
            found = self._found(query, count)
            yield found[found >= 0]  # a library may fill up with -1

    def _least_found(self) -> int:
        """Candidates that cost nothing more: a graph looks at as many anyway."""
        return _vectors.ROWS_TO_RANK
