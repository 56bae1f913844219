"""A graph of neighbours (HNSW) by faiss: a small part of the documents is scored, for large collections."""

from __future__ import annotations

from typing import Any

import faiss

from slimseek.errors import UsageError
from slimseek.indexes._faiss import CODES, Faiss
from slimseek.schema import Precision


class FaissHNSW(Faiss):
    """Approximate: what the graph finds is scored again as in ``exact``, so that scores and ties agree with it.

    With ``int8`` all dimensions share one step, because the graph compares documents with each other by their codes.
    With one thread the graph is the same each time. See Malkov and Yashunin, arXiv 1603.09320.

    Args:
        precision: how vectors are kept in the graph.
        connectivity: neighbours of a node; more is larger, slower and more accurate.
        expansion_add: candidates looked at when a node is added.
        expansion_search: candidates looked at by a query; more is slower and more accurate.
    """

    shared_step = True

    def __init__(
        self,
        *,
        precision: Precision = "f32",
        connectivity: int = 16,
        expansion_add: int = 128,
        expansion_search: int = 128,
    ) -> None:
        """An empty index; a setting out of range raises UsageError."""
        super().__init__(precision=precision)
        if min(connectivity, expansion_add, expansion_search) < 2:
            raise UsageError("connectivity, expansion_add and expansion_search must each be at least 2")
        self._connectivity = connectivity
        self._expansion_add = expansion_add
        self._expansion_search = expansion_search

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

    def _least_found(self) -> int:
        return self._expansion_search
