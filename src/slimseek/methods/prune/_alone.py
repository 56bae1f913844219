"""One layer of a model that can lose units while all others stay whole."""

from __future__ import annotations

from dataclasses import dataclass

from slimseek.methods.prune._forward import Pruned, pruned
from slimseek.methods.prune._selection import Limits
from slimseek.methods.prune._structure import Structure, parameters
from slimseek.methods.prune._units import UnitGroup
from slimseek.schema import Array, Samples


@dataclass(frozen=True, eq=False)
class SingleLayer:
    """A layer with what may leave it.

    Attributes:
        whole: the model with its units.
        group: the layer's units.
        order: the same, the least important first, int64 [n].
        limits: what must stay.
        samples: for items to run the result on.
    """

    whole: Structure
    group: UnitGroup
    order: Array
    limits: Limits
    samples: Samples

    @property
    def name(self) -> str:
        """The first of its tensors."""
        return self.group.name

    @property
    def width(self) -> int:
        """Its units: channels or heads."""
        return len(self.order)

    def parameters(self, count: int) -> int:
        """Weights that leave the model with ``count`` units."""
        return parameters(self.whole, ()) - parameters(self.whole, self.order[:count].tolist())

    def removable(self, share: float) -> int:
        """How many units may go when this share of them, 0 to 1, should."""
        return self.limits.removable(self.group, share)

    def without(self, count: int) -> Pruned:
        """The model without the layer's ``count`` least important units, checked as the step checks its result."""
        return pruned(self.whole, self.order[:count].tolist(), (self.group,), self.samples)
