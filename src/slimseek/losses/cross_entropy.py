"""The right class before all others."""

from __future__ import annotations

from torch import Tensor, nn

from slimseek.losses._loss import Loss


class CrossEntropy(Loss, frozen=True):
    """-log of the probability that softmax gives the item's class."""

    def __call__(self, output: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        """[n], 0 or more, of logits [n, classes] and the numbers of the classes, integers [n]."""
        return nn.functional.cross_entropy(output, target.long(), reduction="none")
