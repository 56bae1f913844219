"""Mean average precision at R, the number of relevant documents (Musgrave, Belongie and Lim, 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slimseek.bases import Metric
from slimseek.collection import Qrels


class MapR(Metric):
    """MAP@R: the sum of the precision at each relevant one of the first R ranks, divided by R, of a query with R
    relevant documents. Unlike hit@1 it tells whether all of them come first.

    With ``@k`` no more than k ranks count: R is k where more are relevant.
    """

    label = "MAP@R"
    default_cutoff = None

    def depth(self, qrels: Qrels, cutoff: int | None) -> int | None:
        """The largest R, at most the cutoff."""
        most = max((sum(value > 0 for value in row.values()) for row in qrels.values()), default=0)
        return min(most, cutoff) if cutoff else most

    def per_query(self, qrels: Qrels, ranking: Mapping[str, Sequence[str]], cutoff: int | None) -> dict[str, float]:
        """The value of each judged query, 0 to 1."""
        found = {}
        for query, row in qrels.items():
            relevant = sum(value > 0 for value in row.values())
            if relevant:
                ranks = min(relevant, cutoff) if cutoff else relevant
                found[query] = _value(row, ranking.get(query, ())[:ranks], ranks)
        return found


def _value(row: Mapping[str, int], ranked: Sequence[str], ranks: int) -> float:
    hits, total = 0, 0.0
    for rank, document in enumerate(ranked, 1):
        if row.get(document, 0) > 0:
            hits += 1
            total += hits / rank
    return total / ranks
