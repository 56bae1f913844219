"""Queries nearer to their own passages than to others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from slimseek.errors import UsageError
from slimseek.losses._loss import Loss


class Contrastive(Loss, frozen=True):
    """InfoNCE (van den Oord et al., 2018) over the passages of a batch: those of other queries, and hard negatives.

    Attributes:
        temperature: scores are divided by it, above 0; vectors of length one want about 0.05, others 1.
    """

    temperature: float = 0.05

    def __post_init__(self) -> None:
        """A temperature above 0."""
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"contrastive: temperature is {self.temperature}; above 0 is allowed")

    def __call__(self, output: Tensor, target: Mapping[str, Tensor], progress: float = 1.0) -> Tensor:
        """[queries], 0 or more: -log(e^p / (e^p + the sum of e^n)), with p the inner product with the query's own
        passage and n those with the passages that are not relevant to it, all divided by the temperature.

        Args:
            output: vectors [queries + passages, dim], all queries first.
            target: ``positive``, integers [queries], the place of each query's own passage among the passages; and
                ``relevant``, bool [queries, passages], the passages that are relevant to a query and so are not
                counted as its negatives, its own or others.
            progress: not looked at.
        """
        positive, relevant = target["positive"].long(), target["relevant"].bool()
        count = len(positive)
        scores = output[:count] @ output[count:].T / self.temperature
        own = torch.zeros_like(relevant).scatter(1, positive[:, None], value=True)
        counted = scores.masked_fill(relevant & ~own, -torch.inf)
        return counted.logsumexp(1) - scores.gather(1, positive[:, None])[:, 0]
