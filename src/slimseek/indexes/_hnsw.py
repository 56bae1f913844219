"""What the graphs of neighbours (HNSW) have in common, whatever library walks them."""

from __future__ import annotations

from slimseek.errors import UsageError
from slimseek.indexes._growing import Growing
from slimseek.schema import Precision


class Graph(Growing):
    """A graph with its three settings; see Malkov and Yashunin, arXiv 1603.09320.

    Documents are compared with each other by their codes, so that with ``int8`` all dimensions share one step.

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

    def _least_found(self) -> int:
        return self._expansion_search
