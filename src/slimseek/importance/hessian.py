"""What the vectors would lose with each weight of a unit, by the curvature."""

from __future__ import annotations

import numpy as np

from slimseek.importance._evidence import Evidence, Importance
from slimseek.importance._gradients import gradients
from slimseek.schema import Array


class HessianDiagonal(Importance):
    """sum h w^2 over the weights w of a unit, with h the diagonal of the Gauss-Newton Hessian of the vectors' squared
    error, E[g^2] over gradients g along random directions (LeCun et al., Optimal Brain Damage, 1990). Takes the same
    backward passes as ``taylor``, and sees each weight alone.
    """

    def scores(self, evidence: Evidence) -> Array:
        """float64 [units]."""
        moved = [
            evidence.by_unit({name: np.square(gradient * evidence.tensors[name]) for name, gradient in found.items()})
            for found in gradients(evidence)
        ]
        return np.mean(moved, 0)
