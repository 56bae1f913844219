"""Share of the relevant documents among the first ``cutoff``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ir_measures

from slimseek.bases import Metric
from slimseek.collection import Qrels
from slimseek.metrics._trec import per_query


class Recall(Metric):
    """recall@k by trec_eval's rules."""

    label = "recall"
    default_cutoff = 100

    def per_query(self, qrels: Qrels, ranking: Mapping[str, Sequence[str]], cutoff: int | None) -> dict[str, float]:
        """The value of each judged query, 0 to 1."""
        return per_query(ir_measures.R @ (cutoff or self.default_cutoff), qrels, ranking)
