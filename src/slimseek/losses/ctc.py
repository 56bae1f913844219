"""Transcripts without a place for each letter: connectionist temporal classification (Graves et al., ICML 2006)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from slimseek.losses._loss import Loss


class Ctc(Loss, frozen=True):
    """-log of the probability of the transcript, summed over all its alignments with the frames, a token of it.

    Attributes:
        blank: token of frames in which nothing new is said.
    """

    blank: int = 0

    def __call__(self, output: Tensor, target: Any, progress: float = 1.0) -> Tensor:
        """[n], 0 or more, of logits [n, frames, tokens] and a target of ``tokens``, integers [n, longest] filled up
        with anything, and ``lengths``, integers [n]. A transcript that does not fit into the frames counts 0.
        """
        frames = output.new_full((len(output),), output.shape[1]).long()
        logarithms = nn.functional.log_softmax(output, dim=-1).transpose(0, 1)
        lengths = target["lengths"].long()
        losses = nn.functional.ctc_loss(
            logarithms, target["tokens"].long(), frames, lengths, blank=self.blank, reduction="none", zero_infinity=True
        )  # fmt: skip
        return losses / lengths.clamp(min=1)
