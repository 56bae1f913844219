"""One call into ir-measures, which follows trec_eval's rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ir_measures

from slimseek.collection import Qrels


def per_query(measure: Any, qrels: Qrels, ranking: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The measure of every query that has a judgement; a query without results scores 0.

    The ranking's own order counts: scores fall with the rank, so the library has no tie to break.
    """
    judged = {query: documents for query, documents in qrels.items() if any(value > 0 for value in documents.values())}
    run = {query: {document: float(-rank) for rank, document in enumerate(ranking.get(query, ()))} for query in judged}
    values = {result.query_id: float(result.value) for result in ir_measures.iter_calc([measure], judged, run)}
    return {query: values.get(query, 0.0) for query in judged}
