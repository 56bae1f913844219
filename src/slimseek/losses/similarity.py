"""Vectors that lie to each other as others do, whatever their width."""

from __future__ import annotations

from torch import Tensor

from slimseek.losses._loss import Loss


class Similarity(Loss, frozen=True):
    """Mean squared difference of the inner products in a batch: for row i, mean over j of (s_i . s_j - t_i . t_j)^2.

    What a search ranks by is matched, not the vectors, so that the widths may differ (Tung and Mori, Similarity-
    Preserving Knowledge Distillation, 2019, without its normalisation of rows). The loss of an item hangs on the others
    in its batch.
    """

    def __call__(self, output: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        """Rows [n, dim] and [n, any other dim] to [n], 0 or more."""
        return (output @ output.T - target @ target.T).square().mean(1)
