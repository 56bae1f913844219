"""Mean over relevant documents of the precision at their rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ir_measures

from slimseek.bases import Metric
from slimseek.collection import Qrels
from slimseek.metrics._trec import per_query


class AveragePrecision(Metric):
    """Average precision by trec_eval's rules; its mean over the queries is MAP."""

    label = "MAP"
    default_cutoff = None

    def per_query(self, qrels: Qrels, ranking: Mapping[str, Sequence[str]], cutoff: int | None) -> dict[str, float]:
        """The value of each judged query, 0 to 1; ``None`` for the cutoff takes the whole ranking (100 deep)."""
        return per_query(ir_measures.AP @ cutoff if cutoff else ir_measures.AP, qrels, ranking)
