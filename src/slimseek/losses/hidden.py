"""What layers inside a network give for each token, as another network's layers do."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from slimseek.losses._loss import Loss


class HiddenStates(Loss, frozen=True):
    """Mean squared difference of the states of an item's real tokens; those of padding count for nothing."""

    def __call__(self, output: Tensor, target: Mapping[str, Tensor], progress: float = 1.0) -> Tensor:
        """The loss of each item, [n], 0 or more.

        Args:
            output: float [n, tokens, width].
            target: ``states`` float [n, tokens, width], and ``mask`` [n, tokens], 0 where a token is padding.
            progress: not used.
        """
        mask = target["mask"].to(output.dtype)
        differences = (output - target["states"]).square().mean(-1)
        return (differences * mask).sum(1) / mask.sum(1).clamp(min=1)
