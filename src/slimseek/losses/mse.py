"""Vectors that are equal to others."""

from __future__ import annotations

from torch import Tensor

from slimseek.losses._loss import Loss


class MeanSquaredError(Loss, frozen=True):
    """Mean squared difference of each pair of rows [n, ...]."""

    def __call__(self, output: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        """[n], 0 or more."""
        return (output - target).square().flatten(1).mean(1)
