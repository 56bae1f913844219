"""What measures of importance look at, the base of them all, and sums over the places of a unit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from slimseek.inputs.samples import examples
from slimseek.integers import dense
from slimseek.schema import Array, Layer, Model, Samples

NONE = -1
Place = tuple[str, int]
"""A tensor and one of its axes."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """A float model, which units it has, and data to try them on.

    Attributes:
        model: the model.
        samples: data to look at; without calibration items random ones stand in.
        places: for axes of the model's tensors, the unit of every index, int64 [size]; -1 is none.
        count: how many units there are.
        groups: numbers of units that may stand for each other, int64 [n] each.
        seed: of random choices.
    """

    model: Model
    samples: Samples
    places: Mapping[Place, Array]
    count: int
    groups: tuple[Array, ...]
    seed: int = 0

    @cached_property
    def tensors(self) -> Mapping[str, Array]:
        """The float32 values of the model's tensors by name."""
        return dense(self.model)

    @cached_property
    def items(self) -> tuple[str, ...]:
        """Calibration items."""
        return tuple(self.samples.calibration) or examples(self.model.spec)

    @cached_property
    def readers(self) -> Mapping[Place, Layer]:
        """The layer that reads a place's indices as its inputs."""
        inputs = {(layer.weight, 1 - layer.axis): layer for layer in self.model.layers if layer.kind != "embedding"}
        return {place: inputs[place] for place in self.places if place in inputs}

    def by_unit(self, amounts: Mapping[str, Array], places: Iterable[Place] | None = None) -> Array:
        """Sums over everything that would leave with a unit.

        Args:
            amounts: an array for each tensor, of its shape; tensors that are not there count nothing.
            places: the only ones to sum over; ``None`` for all.

        Returns:
            float64 [units].
        """
        total = np.zeros(self.count)
        for name, axis in self.places if places is None else places:
            if name in amounts:
                others = tuple(other for other in range(amounts[name].ndim) if other != axis)
                line, sums = self.places[name, axis], amounts[name].sum(others, dtype=np.float64)
                np.add.at(total, line[line != NONE], sums[line != NONE])
        return total


class Importance(ABC):
    """A measure of how much would be lost with each unit; only its order within a group matters to pruning."""

    @abstractmethod
    def scores(self, evidence: Evidence) -> Array:
        """Importance of every unit, float64 [units], 0 or more.

        Raises:
            UsageError: it cannot be told of this model; the text says what can.
        """
