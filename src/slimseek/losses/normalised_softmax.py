"""Items of a class near to its centre, and so to each other."""

from __future__ import annotations

from torch import Tensor, nn

from slimseek.errors import UsageError
from slimseek.losses._loss import Loss


class NormalisedSoftmax(Loss, frozen=True):
    """Cross entropy of the cosines with a centre for each class (Wang et al., NormFace, 2017; Zhai and Wu, 2019).

    Attributes:
        scale: of the cosines before the softmax, above 0.
        smoothing: share of the probability that is spread over all classes, 0 to below 1.
    """

    scale: float = 20.0
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        """Numbers within their ranges."""
        if not 0 < self.scale < float("inf"):
            raise UsageError(f"normalised_softmax: scale is {self.scale}; above 0 is allowed")
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"normalised_softmax: smoothing is {self.smoothing}; 0 to below 1 is allowed")

    def __call__(self, output: Tensor, target: Tensor, progress: float = 1.0) -> Tensor:
        """[n], above 0.

        Args:
            output: vectors and behind them the centres, [n + classes, dim], of any length.
            target: the number of each item's class, integers [n].
            progress: not looked at.
        """
        unit, count = nn.functional.normalize(output, dim=1), len(target)
        return nn.functional.cross_entropy(
            self.scale * unit[:count] @ unit[count:].T, target.long(), reduction="none", label_smoothing=self.smoothing
        )
