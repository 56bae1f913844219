"""Stage 4: what the search user feels (quality, with intervals) and what the operator pays (bytes, time, memory)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from slimseek import bootstrap, costs, plugins, timing
from slimseek.bases import ErrorRate, Index, Metric
from slimseek.collection import Collection, SearchSet
from slimseek.encoder import Encoder
from slimseek.errors import UsageError
from slimseek.indexes import _vectors
from slimseek.measurement import Change, GateResult, GateStatus, Measurement, QueryExample, Report
from slimseek.progress import track
from slimseek.schema import Array, Gates, Precision

METRICS = ("ndcg@10", "recall@100", "mrr@10", "map")
ACCURACY = "accuracy"
ALIKE = ("hit@1", "hit@5", "map_r")
"""Of items alike: what the literature on image search calls recall@1 and recall@5, and MAP@R."""
DEPTH = 100
LEAST_COSINE = 0.999


@dataclass(frozen=True, kw_only=True, eq=False)
class Quality:
    """One encoder on one search set.

    Attributes:
        measurements: a value for each metric, with interval and per-query values.
        ranking: query id to document ids, best first, ``DEPTH`` deep.
        documents: the document vectors, float32 [documents, dim].
        queries: the query vectors, float32 [queries, dim].
    """

    measurements: tuple[Measurement, ...]
    ranking: dict[str, list[str]]
    documents: Array
    queries: Array

    def get(self, metric: str) -> Measurement:
        """The measurement of a metric."""
        return next(measurement for measurement in self.measurements if measurement.name == metric)


def metric(name: str) -> tuple[Metric, int | None]:
    """A metric and its cutoff from a name such as ``ndcg@10`` or ``map``.

    Raises:
        UsageError: no such metric, or a cutoff that is not a whole number from 1 to 1000.
    """
    plugin, at, cutoff = name.partition("@")
    if at and not (cutoff.isdecimal() and 1 <= int(cutoff) <= 1000):
        raise UsageError(f"metric {name!r}: the number after @ must be from 1 to 1000")
    kind = plugins.load("metrics", plugin)
    if issubclass(kind, ErrorRate):
        raise UsageError(f"metric {name!r} is of transcripts, which only a recogniser of speech gives")
    return kind(), int(cutoff) if cutoff else None


def quality(
    encoder: Encoder, search_set: SearchSet, metrics: Sequence[str] = METRICS, *, precision: Precision = "f32",
    documents: Array | None = None, known: Mapping[str, Array] | None = None,
) -> Quality:  # fmt: skip
    """Encode everything, search exactly, score every query. A classifier ranks its classes by their logits.

    Args:
        encoder: what gives the vectors.
        search_set: queries and documents.
        metrics: such as ``ndcg@10``.
        precision: how the vectors of documents are kept; those of queries stay float32.
        documents: float32 [documents, dim], the vectors that another model gave and that an index holds, so that only
            queries are encoded; ``None`` to encode the documents too.
        known: vectors that this encoder gave for some of the documents before, by their text or path.

    Raises:
        UsageError: an unknown metric, a classifier whose classes are not those of the set or that is asked for
            vectors at a precision or for queries alone, or vectors of documents that do not fit the encoder's.
    """
    for name in metrics:
        metric(name)
    if encoder.spec.output == "class_logits":
        _check_searches(encoder, precision, documents)
        return _classified(encoder, search_set, metrics)
    if documents is None:
        documents = _documents(encoder, search_set, known or {})
    elif documents.shape != (len(search_set.corpus), encoder.spec.dim):
        raise UsageError(f"{encoder.name}: the documents' vectors are {list(documents.shape)}; "
                         f"{[len(search_set.corpus), encoder.spec.dim]} are needed")  # fmt: skip
    return ranked(documents, encoder.queries(list(search_set.queries.values())), search_set, metrics, precision)


def ranked(
    documents: Array, queries: Array, search_set: SearchSet, metrics: Sequence[str] = METRICS,
    precision: Precision = "f32",
) -> Quality:  # fmt: skip
    """The quality of vectors that are there already: one encoding is judged at each precision.

    A precision that loses so much that finer vectors rank its candidates (``binary``) finds more in a longer list,
    so that there each metric is measured on a search as deep as its own cutoff, which is what a user would ask for.

    Args:
        documents: float32 [documents, dim], in the order of the set's corpus.
        queries: float32 [queries, dim], in the order of its queries.
        search_set: whose texts they stand for, and the judgements.
        metrics: such as ``ndcg@10``.
        precision: how the vectors of documents are kept.
    """
    asked = {name: metric(name) for name in metrics}
    depths = {name: plugin.depth(search_set.qrels, cutoff) or DEPTH for name, (plugin, cutoff) in asked.items()}
    deepest = max([DEPTH, *depths.values()])
    alone = set(depths.values()) if precision in _vectors.RESCORED_WITH else set()
    rankings = {depth: rank(queries, documents, search_set, depth, precision) for depth in {deepest, *alone}}
    measurements = tuple(
        measure(name, search_set, rankings.get(depth, rankings[deepest])) for name, depth in depths.items()
    )
    return Quality(measurements=measurements, ranking=rankings[deepest], documents=documents, queries=queries)


def neighbours(search_set: SearchSet, found: Quality, depth: int = 10) -> SearchSet:
    """The same queries and documents, judged by what a model found: its first ``depth`` documents are relevant.

    ``recall@10`` on this set is then the share of that model's results that another finds again. No judgement of the
    given set is used, and none is needed.

    Args:
        search_set: queries and documents.
        found: what the model found there.
        depth: how many results count, from 1 to ``DEPTH``.
    """
    judged = {query: dict.fromkeys(found.ranking[query][:depth], 1) for query in search_set.queries}
    return dataclasses.replace(search_set, name=f"{search_set.name}, first {depth} of the original", qrels=judged)


def _documents(encoder: Encoder, search_set: SearchSet, known: Mapping[str, Array]) -> Array:
    items = list(search_set.corpus.values())
    missing = [item for item in items if item not in known]
    with track(f"encode {len(missing):,} documents, {encoder.name}", len(missing)) as advance:
        new = encoder.documents(missing, advance)
    if len(missing) == len(items):
        return new
    found = {**known, **dict(zip(missing, new, strict=True))}
    return np.stack([found[item] for item in items])


def _check_searches(encoder: Encoder, precision: Precision, documents: Array | None) -> None:
    """Refuse a classifier what only a search has."""
    if precision != "f32":
        raise UsageError(f"{encoder.name} is a classifier: it keeps no vectors, at {precision} or otherwise")
    if documents is not None:
        raise UsageError(f"{encoder.name} is a classifier: it searches no index, of its own or of another model")


def _classified(encoder: Encoder, search_set: SearchSet, metrics: Sequence[str]) -> Quality:
    """What a classifier finds: a ranking is of all its classes, and both kinds of vectors are the logits."""
    classes = encoder.spec.classes or ()
    if not search_set.labelled:
        raise UsageError(f"{encoder.name} is a classifier, and {search_set.name} has no labels to name")
    unknown = [name for name in search_set.corpus if name not in classes]
    if unknown:
        raise UsageError(f"{encoder.name} does not know the class {unknown[0]!r} of {search_set.name}; it knows "
                         f"{len(classes)}, such as {classes[0]!r}")  # fmt: skip
    with track(f"classify {len(search_set.queries):,} items, {encoder.name}", len(search_set.queries)) as advance:
        logits = encoder.vectors(list(search_set.queries.values()), encoder.input.query_prefix, advance)
    order = np.argsort(-logits, axis=1, kind="stable")
    ranking = {query: [classes[place] for place in row] for query, row in zip(search_set.queries, order, strict=True)}
    measurements = tuple(measure(name, search_set, ranking) for name in metrics)
    return Quality(measurements=measurements, ranking=ranking, documents=logits, queries=logits)


def default_metrics(search_set: SearchSet) -> tuple[str, ...]:
    """What to measure where nothing is asked for."""
    if not search_set.labelled:
        return ALIKE if search_set.by_label else METRICS
    return (ACCURACY, f"{ACCURACY}@5") if len(search_set.corpus) > 10 else (ACCURACY,)


def decisive(collection: Collection) -> str:
    """The metric whose loss counts where none is named: nDCG@10; accuracy for classes, MAP@R for items alike."""
    return ACCURACY if collection.labelled else ALIKE[-1] if collection.by_label else Gates().metric


def rank(
    queries: Array, documents: Array, search_set: SearchSet, depth: int = DEPTH, precision: Precision = "f32"
) -> dict[str, list[str]]:
    """Query id to the ``depth`` best document ids by exact inner products; ties by the documents' order.

    With a precision the documents are kept at it, and ranked by finer vectors where ``search`` would do so. Where
    labels judge, a document of the query's own id is no result.
    """
    index: Index = plugins.load("indexes", "exact")(precision=precision)
    index.build(documents)
    finer, wanted = _vectors.RESCORED_WITH.get(precision), depth
    depth = min(depth + search_set.by_label, len(documents))
    if finer is None:
        hits = index.query(queries, depth)
    else:
        hits = _vectors.rescored(index, _vectors.rows_of(documents, finer), queries, depth)
    ids = list(search_set.corpus)
    ranking = {
        query: [ids[hit] for hit in row if hit >= 0] for query, row in zip(search_set.queries, hits.ids, strict=True)
    }
    if not search_set.by_label:
        return ranking
    return {query: [name for name in row if name != query][:wanted] for query, row in ranking.items()}


def measure(name: str, search_set: SearchSet, ranking: Mapping[str, Sequence[str]]) -> Measurement:
    """One metric over the queries of the set, with a 95 % bootstrap interval of its mean."""
    plugin, cutoff = metric(name)
    scores = plugin.per_query(search_set.qrels, ranking, cutoff)
    values = [scores[query] for query in search_set.queries if query in scores]
    if not values:
        raise UsageError(f"{search_set.name}: no query has a relevant document")
    return measured(name, values, plugin.higher_is_better)


def measured(name: str, values: Sequence[float], higher_is_better: bool = True) -> Measurement:
    """The mean of one value for each query, one or more of them, with its 95 % bootstrap interval."""
    scores = np.array(values)
    return Measurement(
        name=name,
        value=float(scores.mean()),
        higher_is_better=higher_is_better,
        n=scores.size,
        interval=bootstrap.mean_interval(scores),
        per_query=tuple(scores.tolist()),
    )


def compare(before: Measurement, after: Measurement, max_loss: float | None = None) -> Change:
    """The paired relative change of a metric: (after - before) / before, resampling queries (10,000 times).

    Of an error rate it is the difference before - after, in points: from 1 to 2 errors in a hundred words is one point
    more, which a relative change would call twice as bad. The lower bound is more careful than the interval: see
    :mod:`slimseek.bootstrap`.

    Args:
        before: of the original; ``after`` is of the same queries in the same order.
        after: of the compressed model.
        max_loss: the loss that one wants to exclude, to say how many queries that takes.
    """
    assert before.per_query is not None
    assert after.per_query is not None
    assert len(before.per_query) == len(after.per_query), "both sides must have scored the same queries"
    first, second = np.array(before.per_query), np.array(after.per_query)
    points = not before.higher_is_better
    low, lower, high = (bootstrap.point_bounds if points else bootstrap.change_bounds)(first, second).tolist()
    needed = bootstrap.queries_needed_in_points if points else bootstrap.queries_needed
    relative = before.value - after.value if points else float(bootstrap.relative_change(first, second))
    return Change(
        metric=before.name, before=before.value, after=after.value, relative=relative, interval=(low, high),
        lower_bound=lower, n=len(first), points=points or msgspec.UNSET,
        n_needed=None if max_loss is None else needed(first, second, lower, max_loss),
    )  # fmt: skip


def quality_gate(change: Change, max_loss: float) -> GateResult:
    """Passed when the one-sided 95 % bound of the change lies above -max_loss; undecided when only the mean does.

    So few queries that they could all miss a share of ``max_loss`` that lost everything decide nothing either. Of an
    error rate ``max_loss`` is in points: 0.01 is one more error in a hundred words.
    """
    if change.points is True:
        asked = f"{change.metric} at most {100 * max_loss:.1f} points higher"
        shown = [f"{0 - 100 * loss:+.2f}" for loss in (change.relative, change.lower_bound)]
        measured = f"{shown[0]} points, one-sided 95 % bound {shown[1]}, n = {change.n}"
    else:
        asked = f"loss of {change.metric} at most {max_loss:.1%}"
        measured = f"{change.relative:+.2%}, one-sided 95 % bound {change.lower_bound:+.2%}, n = {change.n}"
    status: GateStatus
    if change.lower_bound >= -max_loss and change.n >= bootstrap.fewest_queries(max_loss):
        status, more = "passed", ""
    elif change.relative >= -max_loss:
        status = "undecided"
        more = f"; proving it would take about {change.n_needed:,} queries" if change.n_needed else ""
    else:
        status, more = "failed", ""
    return GateResult(
        gate="quality", status=status, detail=f"{asked}: {measured}{more}", value=change.relative, limit=-max_loss
    )


def invariance(encoder: Encoder, texts: Sequence[str]) -> GateResult:
    """Whether a text's vector is the same alone and among others: least cosine, and the ten nearest of the texts."""
    together = encoder.documents(texts)
    alone = np.concatenate([encoder.documents([text]) for text in texts])
    least = float(cosines(alone, together).min())
    same = neighbours_shared(alone, together)
    return GateResult(
        gate="invariance",
        status="passed" if least >= LEAST_COSINE else "failed",
        detail=f"{len(texts)} items alone and in one batch: least cosine {least:.6f}, top-10 overlap {same:.3f}",
        value=least,
        limit=LEAST_COSINE,
    )


def cosines(first: Array, second: Array) -> Array:
    """Cosine of each pair of rows, float64 [n]."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    result: Array = (first * second).sum(1) / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))
    return result


def neighbours_shared(first: Array, second: Array, depth: int = 10) -> float:
    """Mean share of each item's ``depth`` nearest items (itself included) that two sets of vectors agree on, 0 to 1."""
    count = min(depth, len(first))
    nearest = [np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")[:, :count] for vectors in (first, second)]
    return float(np.mean([len(set(a) & set(b)) / count for a, b in zip(*nearest, strict=True)]))


def overlap(first: Mapping[str, Sequence[str]], second: Mapping[str, Sequence[str]], depth: int = 10) -> float:
    """Mean share of the first ``depth`` documents that two rankings have in common, 0 to 1."""
    shares = [
        len(set(first[query][:depth]) & set(second[query][:depth])) / max(1, min(depth, len(first[query])))
        for query in first
    ]
    return float(np.mean(shares))


def cost(
    subjects: Mapping[str, tuple[Encoder, str]], queries: Sequence[str], documents: Sequence[str], *, rounds: int = 5
) -> dict[str, tuple[Measurement, ...]]:
    """Time, memory and bytes of several encoders, measured in turns in one run.

    Latency is of one query from text to vector, tokenizer included. Throughput is of documents in batches. Cold start
    and memory are of a fresh process, where the subject has a path to open.

    Args:
        subjects: name to encoder and the MODEL it opens from (``""`` if it has none).
        queries: texts for the single queries, used in turn.
        documents: texts for the batches.
        rounds: turns of each subject.
    """
    calls = 40
    with track("time single queries and batches", 2) as advance:
        single = timing.interleaved(
            {name: lambda number, e=encoder: e.queries([queries[number % len(queries)]])  # type: ignore[misc]
             for name, (encoder, _) in subjects.items()}, rounds=rounds, calls=calls, warm_up=3,
        )  # fmt: skip
        advance(1)
        batch = timing.interleaved(
            {name: lambda number, e=encoder: e.documents(documents)  # type: ignore[misc]
             for name, (encoder, _) in subjects.items()}, rounds=3, calls=1, warm_up=1,
        )  # fmt: skip
        advance(1)
    return {
        name: (
            *costs.shipped(encoder),
            *costs.latencies(single[name]),
            Measurement(name="throughput", value=len(documents) / float(np.median(batch[name])), unit="items/s", n=3),
            *costs.fresh(source, encoder.threads),
        )
        for name, (encoder, source) in subjects.items()
    }


def report(subject: str, threads: int, *groups: Sequence[Measurement]) -> Report:
    """Figures of one subject with the machine."""
    measurements = tuple(measurement for group in groups for measurement in group)
    return Report(subject=subject, environment=timing.environment(threads), measurements=measurements)


def examples(
    search_set: SearchSet, before: Quality, after: Quality, metric: str, count: int = 5
) -> tuple[QueryExample, ...]:
    """The queries whose score changed most, with the first three results of each side."""
    first, second = before.get(metric).per_query, after.get(metric).per_query
    assert first is not None
    assert second is not None
    changes = np.abs(np.array(second) - np.array(first))
    chosen = [int(position) for position in np.argsort(-changes, kind="stable")[:count] if changes[position] > 0]
    ids = list(search_set.queries)

    def top(ranking: Mapping[str, Sequence[str]], query: str) -> tuple[tuple[str, bool], ...]:
        judged = search_set.qrels[query]
        return tuple(
            (search_set.corpus[document][:120], judged.get(document, 0) > 0) for document in ranking[query][:3]
        )

    return tuple(
        QueryExample(
            query=search_set.queries[ids[position]],
            before=top(before.ranking, ids[position]),
            after=top(after.ranking, ids[position]),
            score_before=first[position],
            score_after=second[position],
        )
        for position in chosen
    )
