"""Weights by the size of what they read."""

from __future__ import annotations

import numpy as np

from slimseek.errors import UsageError
from slimseek.importance._evidence import Evidence, Importance
from slimseek.importance._inputs import mean_squares
from slimseek.schema import Array


class Activation(Importance):
    """sqrt(sum_ij E[x_j^2] w_ij^2) over the weights w_ij that read a unit's channels x_j: the size of what the unit
    adds to the next layer (as Wanda weighs single weights; Sun et al., A Simple and Effective Pruning Approach for
    Large Language Models, 2023). Takes one run over the calibration items.
    """

    def scores(self, evidence: Evidence) -> Array:
        """float64 [units]; a unit that no layer reads whose input is seen is as important as the mean."""
        layers = {layer.weight for layer in evidence.model.layers}
        squares = mean_squares(evidence.model, evidence.items, layers)
        added, seen = {}, []
        for place, layer in evidence.readers.items():
            tensor = evidence.tensors[layer.weight]
            if layer.weight in squares and len(squares[layer.weight]) == tensor.shape[place[1]]:
                shape = [-1 if axis == place[1] else 1 for axis in range(tensor.ndim)]
                added[layer.weight] = np.square(tensor) * squares[layer.weight].reshape(shape)
                seen.append(place)
        if not seen:
            raise UsageError(
                "importance activation: no layer that reads a unit has an input that can be seen; l2 needs none"
            )
        read = evidence.by_unit({place[0]: np.ones(evidence.tensors[place[0]].shape) for place in seen}, seen) > 0
        scores = np.sqrt(evidence.by_unit(added, seen))
        return np.where(read, scores, scores[read].mean())
