"""Vectors of the same direction as others."""

from __future__ import annotations

from torch import Tensor, nn

from slimseek.losses._loss import Loss


class Cosine(Loss, frozen=True):
    """1 - cosine of each pair of rows [n, dim]."""

    def __call__(self, output: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        """[n], 0 to 2."""
        return 1 - nn.functional.cosine_similarity(output, target)
