"""Lengths of weights."""

from __future__ import annotations

import numpy as np

from slimseek.importance._evidence import Evidence, Importance
from slimseek.schema import Array


class Length(Importance):
    """sqrt(sum w^2) over all weights that a unit is made by and read by. The usual first choice without data."""

    def scores(self, evidence: Evidence) -> Array:
        """float64 [units]."""
        return np.sqrt(evidence.by_unit({name: np.square(tensor) for name, tensor in evidence.tensors.items()}))
