"""No measure at all: the control that every other has to beat."""

from __future__ import annotations

import numpy as np

from slimseek.importance._evidence import Evidence, Importance
from slimseek.schema import Array


class Control(Importance):
    """Random numbers, the same for the same seed."""

    def scores(self, evidence: Evidence) -> Array:
        """float64 [units], evenly from 0 to 1."""
        return np.random.default_rng(evidence.seed).random(evidence.count)
