"""A graph of neighbours (HNSW) by usearch: a small part of the documents is scored, for large collections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import usearch.index

from slimseek.errors import ArtifactError
from slimseek.indexes import _vectors
from slimseek.indexes._hnsw import Graph
from slimseek.schema import Array

GRAPH = "graph.usearch"
KINDS = {"f32": "f32", "f16": "f16", "int8": "i8", "binary": "b1"}


class USearch(Graph):
    """Approximate: what the graph finds is scored again as in ``exact``, so that scores and ties agree with it.

    Codes of ``int8`` are made here: usearch's own rounding would scale every vector to length one. With ``binary`` the
    graph goes by Hamming distance, for vectors of one length (see ``exact``).
    """

    _viewed: Path | None = None

    def save(self, folder: Path) -> None:
        """Write ``graph.usearch`` and, for int8 and binary, ``ranges.npy``."""
        self._graph.save(str(folder / GRAPH))
        if self._ranges is not None:
            np.save(folder / _vectors.RANGES, self._ranges, allow_pickle=False)

    def load(self, folder: Path) -> None:
        """Map the graph from disk; a file that is cut or of another precision raises ArtifactError."""
        self._viewed = folder / GRAPH
        self._graph = self._restored(self._viewed, view=True)
        self._ranges = _vectors.load_ranges(folder, self.precision)
        self._dim = int(self._graph.ndim if self._ranges is None else self._ranges.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the graph, its vectors, and ranges."""
        return int(self._graph.serialized_length) + (0 if self._ranges is None else int(self._ranges.nbytes))

    def __len__(self) -> int:
        return len(self._graph)

    def _restored(self, path: Path, *, view: bool) -> usearch.index.Index:
        try:
            graph = usearch.index.Index.restore(str(path), view=view)
        except (OSError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from error
        if graph is None or graph.dtype.name.lower() != KINDS[self.precision]:
            raise ArtifactError(f"{path} is not a graph of {self.precision} vectors")
        graph.expansion_search = self._expansion_search
        graph.expansion_add = self._expansion_add
        return graph

    def _make(self, width: int) -> None:
        binary = self.precision == "binary"
        self._viewed = None
        self._graph = usearch.index.Index(
            ndim=width * (8 if binary else 1),
            metric="hamming" if binary else "ip",
            dtype=KINDS[self.precision],
            connectivity=self._connectivity,
            expansion_add=self._expansion_add,
            expansion_search=self._expansion_search,
        )

    def _append(self, rows: Array, threads: int) -> None:
        """With one thread the graph is the same each time; with more the order of insertion may vary."""
        if self._viewed is not None:  # what is mapped from disk cannot grow
            self._graph, self._viewed = self._restored(self._viewed, view=False), None
        begin = len(self._graph)
        self._graph.add(np.arange(begin, begin + len(rows), dtype=np.uint64), rows, threads=threads)

    def _kept(self, ids: Array) -> Array:
        return np.vstack(self._graph.get(ids.astype(np.uint64)))

    def _found(self, query: Array, count: int) -> Array:
        found: Array = self._graph.search(self._walkable(query), count, threads=1).keys.astype(np.int64)
        return found

    def _walkable(self, query: Array) -> Array:
        """A query [dim] in the type of the graph; its own scale does not change the order of documents."""
        if self._ranges is None:
            return query
        if self.precision == "binary":
            return _vectors.to_signs(query[None], self._ranges)[0]
        largest = np.abs(query).max() or 1
        return np.rint(query / largest * _vectors.TOP_CODE).astype(np.int8)
