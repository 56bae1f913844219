"""Accuracy: the share of items whose first answer is right, which is precision at 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ir_measures

from slimseek.bases import Metric
from slimseek.collection import Qrels
from slimseek.metrics._trec import per_query


class Accuracy(Metric):
    """Whether the first of the ranking is relevant: for classifiers, whether the largest logit is of the item's class.

    With ``@k``, whether one of the first k is (top-k accuracy).
    """

    label = "accuracy"
    default_cutoff = 1

    def per_query(self, qrels: Qrels, ranking: Mapping[str, Sequence[str]], cutoff: int | None) -> dict[str, float]:
        """The value of each judged query, 0 or 1."""
        return per_query(ir_measures.Success @ (cutoff or self.default_cutoff), qrels, ranking)
