"""What the vectors would lose with a unit, to first order."""

from __future__ import annotations

import numpy as np

from slimseek.importance._evidence import Evidence, Importance
from slimseek.importance._gradients import gradients
from slimseek.schema import Array


class Taylor(Importance):
    """sqrt(E[(sum g w)^2]): how far the vectors move when all weights w of a unit become zero, by the gradients g of
    the vectors along random directions (after Molchanov et al., Importance Estimation for Neural Network Pruning,
    2019, with the vectors themselves in place of a loss, so that no labels are needed). Takes a few backward passes.
    """

    def scores(self, evidence: Evidence) -> Array:
        """float64 [units]."""
        moved = [evidence.by_unit({name: gradient * evidence.tensors[name] for name, gradient in found.items()}) ** 2
                 for found in gradients(evidence)]  # fmt: skip
        return np.sqrt(np.mean(moved, 0))
