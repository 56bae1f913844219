"""Whole channels leave a network, from every layer that they run through."""

from __future__ import annotations

from slimseek.errors import UsageError
from slimseek.methods.prune._heads import is_heads
from slimseek.methods.prune._structure import Structure
from slimseek.methods.prune._structured import StructuredPruning
from slimseek.methods.prune._units import UnitGroup


class ChannelPruning(StructuredPruning, frozen=True, kw_only=True):
    """Remove channels of convolutions and inner widths of linear layers, as the graph couples them: through sums,
    concatenations, splits, groups, norms. What is left is dense and smaller, and the vectors keep their width.

    Attributes:
        multiple_of: what is left of a layer's width is a multiple of it, since kernels take channels in blocks; layers
            that are too narrow stay whole.

    What to remove is told by the attributes of :class:`slimseek.methods.prune._structured.StructuredPruning`.
    """

    multiple_of: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multiple_of < 1:
            raise UsageError(f"prune.channels: multiple_of is {self.multiple_of}; 1 or more is allowed")

    @property
    def _multiple(self) -> int:
        return self.multiple_of

    def _groups(self, whole: Structure) -> tuple[UnitGroup, ...]:
        return tuple(group for group in whole.groups if not is_heads(whole, group))
