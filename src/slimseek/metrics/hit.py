"""Whether anything relevant is among the first ``cutoff``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ir_measures

from slimseek.bases import Metric
from slimseek.collection import Qrels
from slimseek.metrics._trec import per_query


class Hit(Metric):
    """hit@k, also called success@k, by trec_eval's rules; the accuracy of a search that shows k results."""

    label = "hit"
    default_cutoff = 1

    def per_query(self, qrels: Qrels, ranking: Mapping[str, Sequence[str]], cutoff: int | None) -> dict[str, float]:
        """The value of each judged query, 0 or 1."""
        return per_query(ir_measures.Success @ (cutoff or self.default_cutoff), qrels, ranking)
