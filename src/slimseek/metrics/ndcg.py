"""Normalised discounted cumulative gain: the sum of relevance / log2(rank + 1), divided by the best possible one
(Järvelin and Kekäläinen, 2002).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ir_measures

from slimseek.bases import Metric
from slimseek.collection import Qrels
from slimseek.metrics._trec import per_query


class Ndcg(Metric):
    """nDCG@k by trec_eval's rules."""

    label = "nDCG"
    default_cutoff = 10

    def per_query(self, qrels: Qrels, ranking: Mapping[str, Sequence[str]], cutoff: int | None) -> dict[str, float]:
        """The value of each judged query, 0 to 1."""
        return per_query(ir_measures.nDCG @ (cutoff or self.default_cutoff), qrels, ranking)
