"""A graph of neighbours (HNSW) by faiss: a small part of the documents is scored, for large collections."""

from __future__ import annotations

from typing import Any

import faiss

from slimseek.indexes._faiss import CODES, Faiss
from slimseek.indexes._hnsw import Graph


class FaissHNSW(Graph, Faiss):
    """Approximate: what the graph finds is scored again as in ``exact``, so that scores and ties agree with it.

    With one thread the graph is the same each time.
    """

    def _empty(self, width: int) -> Any:
        index: Any
        neighbours, product = self._connectivity, faiss.METRIC_INNER_PRODUCT
        if self.precision == "binary":
            index = faiss.IndexBinaryHNSW(8 * width, neighbours)
        elif self.precision == "f32":
            index = faiss.IndexHNSWFlat(width, neighbours, product)
        else:
            index = faiss.IndexHNSWSQ(width, CODES[self.precision], neighbours, product)
            index.is_trained = True  # these codes have nothing to learn
        index.hnsw.efConstruction = self._expansion_add
        index.hnsw.efSearch = self._expansion_search
        return index

    def _read(self, path: Any, flags: int = 0) -> Any:
        index = super()._read(path, flags)
        index.hnsw.efConstruction = self._expansion_add
        index.hnsw.efSearch = self._expansion_search
        return index

    def _graph_bytes(self) -> int:
        graph = self._index.hnsw
        integers = graph.neighbors.size() + graph.levels.size() + graph.cum_nneighbor_per_level.size()
        return int(4 * integers + 8 * (graph.offsets.size() + graph.assign_probas.size()))
