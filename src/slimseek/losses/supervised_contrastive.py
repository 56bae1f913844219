"""Items of a class nearer to each other than to all others."""

from __future__ import annotations

import torch
from torch import Tensor

from slimseek.errors import UsageError
from slimseek.losses._loss import Loss


class SupervisedContrastive(Loss, frozen=True):
    """Supervised contrastive loss (Khosla et al., 2020, with the mean outside of the logarithm).

    Attributes:
        temperature: inner products are divided by it, above 0; vectors of length one want about 0.1, others 1.
    """

    temperature: float = 0.1

    def __post_init__(self) -> None:
        """A temperature above 0."""
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"supervised_contrastive: temperature is {self.temperature}; above 0 is allowed")

    def __call__(self, output: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        """[n], 0 or more: the mean over the batch's other items p of the same class of -log(e^s(p) / the sum of e^s
        over all other items), with s the inner product divided by the temperature; 0 for an item alone in its class.

        Args:
            output: vectors [n, dim].
            target: the number of each item's class, integers [n].
            progress: not looked at.
        """
        itself = torch.eye(len(output), dtype=torch.bool, device=output.device)
        scores = (output @ output.T / self.temperature).masked_fill(itself, -torch.inf)
        same = (target[:, None] == target[None]) & ~itself
        missed = (scores.logsumexp(1, keepdim=True) - scores).masked_fill(~same, 0)
        return missed.sum(1) / same.sum(1).clamp(min=1)
