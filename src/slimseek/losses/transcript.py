"""The next token of a transcript before all others, behind each of those before it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from slimseek.losses._loss import Loss


class TranscriptLoss(Loss, frozen=True):
    """-log of the probability that softmax gives the tokens of a transcript, their mean."""

    def __call__(self, output: Tensor, target: Any, progress: float = 1.0) -> Tensor:
        """[n], 0 or more, of logits [n, places, tokens] and a target of ``tokens``, integers [n, places], -1 where none
        counts. A transcript without any counts 0.
        """
        tokens = target["tokens"].long()
        losses = nn.functional.cross_entropy(output.transpose(1, 2), tokens, ignore_index=-1, reduction="none")
        return losses.sum(1) / (tokens >= 0).sum(1).clamp(min=1)
