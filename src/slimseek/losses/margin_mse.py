"""Two passages as far apart for a query as a teacher has them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from slimseek.losses._loss import Loss


class MarginMse(Loss, frozen=True):
    """Squared difference of the student's margin to the teacher's (Hofstätter et al., 2020). A margin is the score of
    a query with its passage, an inner product, less that with a passage which is not relevant.
    """

    def __call__(self, output: Tensor, target: Mapping[str, Tensor], progress: float = 1.0) -> Tensor:
        """[triples], 0 or more.

        Args:
            output: vectors [n, dim] of queries and passages.
            target: ``query``, ``positive`` and ``negative``, integers [triples], rows of the output; ``margin``, float
                [triples], the teacher's.
            progress: not looked at.
        """
        query = output[target["query"].long()]
        apart = output[target["positive"].long()] - output[target["negative"].long()]
        return ((query * apart).sum(1) - target["margin"]).square()
