"""Which units go: the same share of every layer, or the least important of all, until a target is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from slimseek.methods.prune._units import UnitGroup
from slimseek.schema import Array

HALVINGS = 20


@dataclass(frozen=True)
class Limits:
    """What must stay.

    Attributes:
        least: share of every layer's units, 0 to 1; one unit stays in any case.
        multiple_of: what is left of a layer's width is a multiple of it.
    """

    least: float
    multiple_of: int

    def removable(self, group: UnitGroup, share: float) -> int:
        """How many units of the group may go when this share of them should."""
        count = len(group.units)
        step = self.multiple_of // math.gcd(self.multiple_of, max(group.places.values()))
        least = max(1, math.ceil(self.least * count))
        kept = max(least, count - math.floor(share * count + 1e-9))
        return count - min(count, -(-kept // step) * step)


Ranking = Callable[[float], frozenset[int]]
"""From 0, nothing, to 1, all that may go: the units to remove, ever more."""


def per_layer(groups: Sequence[UnitGroup], scores: Array, limits: Limits) -> Ranking:
    """The same share of every layer, so that each loses in proportion to its parameters."""
    ordered = [group.units[np.argsort(scores[group.units], kind="stable")] for group in groups]

    def chosen(level: float) -> frozenset[int]:
        return frozenset(unit for group, order in zip(groups, ordered, strict=True)
                         for unit in order[: limits.removable(group, level)].tolist())  # fmt: skip

    return chosen


def importance(groups: Sequence[UnitGroup], scores: Array, limits: Limits) -> Ranking:
    """The least important units of the whole model; scores are divided by their mean in each group before."""
    normalised = scores.astype(np.float64).copy()
    for group in groups:
        mean = normalised[group.units].mean()
        normalised[group.units] = normalised[group.units] / mean if mean else 0.0
    every = np.concatenate([group.units for group in groups])
    ranked = every[np.argsort(normalised[every], kind="stable")]
    ordered = [group.units[np.argsort(normalised[group.units], kind="stable")] for group in groups]

    def chosen(level: float) -> frozenset[int]:
        low = ranked[: round(level * len(ranked))]
        counts = [int(np.isin(group.units, low).sum()) for group in groups]
        return frozenset(unit for group, order, count in zip(groups, ordered, counts, strict=True)
                         for unit in order[: limits.removable(group, count / len(group.units))].tolist())  # fmt: skip

    return chosen


STRATEGIES: dict[str, Callable[[Sequence[UnitGroup], Array, Limits], Ranking]] = {
    "per_layer": per_layer,
    "importance": importance,
    "backward": per_layer,
}
"""Which ranking each strategy takes its units from; ``backward`` goes through the layers of ``per_layer``'s choice."""


def least_level(chosen: Ranking, cost: Callable[[frozenset[int]], float], most: float) -> frozenset[int] | None:
    """The fewest units whose removal brings the cost down to ``most``; ``None`` where not even all of them do.

    Args:
        chosen: the ranking.
        cost: of what is left without some units; it falls as more go.
        most: what it may be.
    """
    if cost(chosen(1.0)) > most:
        return None
    known: dict[frozenset[int], bool] = {}

    def met(level: float) -> bool:
        found = chosen(level)
        if found not in known:
            known[found] = cost(found) <= most
        return known[found]

    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if met(middle) else (middle, high)
    return chosen(high)
