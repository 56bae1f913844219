"""Which units are heads of attention."""

from __future__ import annotations

from slimseek.methods.prune._structure import Structure
from slimseek.methods.prune._units import UnitGroup


def is_heads(whole: Structure, group: UnitGroup) -> bool:
    """Whether the units take several places of every linear layer that they lie in, and lie in no convolution."""
    kinds = {layer.weight: layer.kind for layer in whole.model.layers}
    of_layers = {place: kinds[place[0]] for place in group.places if place[0] in kinds}
    linear = [group.places[place] for place, kind in of_layers.items() if kind == "linear"]
    return bool(linear) and min(linear) > 1 and "convolution" not in of_layers.values()
