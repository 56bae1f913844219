"""Whole heads leave the attention of a transformer."""

from __future__ import annotations

from slimseek.methods.prune._heads import is_heads
from slimseek.methods.prune._structure import Structure
from slimseek.methods.prune._structured import StructuredPruning
from slimseek.methods.prune._units import UnitGroup


class HeadPruning(StructuredPruning, frozen=True, kw_only=True):
    """Remove heads with their queries, keys, values and what reads them; with grouped queries a key goes with all of
    its queries. Where the configuration has no room for a head's width, the model is rebuilt as a graph.

    What to remove is told by the attributes of :class:`slimseek.methods.prune._structured.StructuredPruning`.
    """

    def _groups(self, whole: Structure) -> tuple[UnitGroup, ...]:
        return tuple(group for group in whole.groups if is_heads(whole, group))
