"""Sums of absolute weights."""

from __future__ import annotations

import numpy as np

from slimseek.importance._evidence import Evidence, Importance
from slimseek.schema import Array


class AbsoluteSum(Importance):
    """sum |w| over all weights that a unit is made by and read by (Li et al., Pruning Filters for Efficient ConvNets,
    2017). Needs no data; does not see that a large weight meets a small input.
    """

    def scores(self, evidence: Evidence) -> Array:
        """float64 [units]."""
        return evidence.by_unit({name: np.abs(tensor) for name, tensor in evidence.tensors.items()})
