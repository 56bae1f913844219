"""A recogniser measured on a collection: what it hears, and what is found by that, against queries that are typed."""

from __future__ import annotations

from collections.abc import Sequence

from slimseek import choose, data, evaluate
from slimseek.collection import Collection, SearchSet
from slimseek.measurement import Change, Measurement, Report
from slimseek.metrics._said import normalised
from slimseek.spoken import (
    HEARD,
    RATES,
    Heard,
    asked,
    check_metrics,
    cost,
    error_rate,
    metrics_of,
    quality,
    search,
    typed,
)
from slimseek.value import Value


class Transcript(Value, frozen=True):
    """A recording that was heard otherwise than it was said.

    Attributes:
        id: of the query.
        said: what it holds.
        heard: what the recogniser made of it.
        errors: errors in words for each word that was said; of one without a word, the words that were heard.
    """

    id: str
    said: str
    heard: str
    errors: float


class Hearing(Value, frozen=True):
    """A recogniser on one collection.

    Attributes:
        collection: name of the collection and split.
        subject: its figures, error rates and those of the search by what it hears.
        search_with: the MODEL that encodes texts; ``""`` where nothing is searched.
        typed: what the search finds for the same queries, typed.
        spoken: change of each figure of the search, spoken against typed.
        baseline: figures of the other recogniser.
        changes: paired, against the baseline.
        worst: the recordings with the most errors.
    """

    collection: str
    subject: Report
    search_with: str = ""
    typed: tuple[Measurement, ...] = ()
    spoken: tuple[Change, ...] = ()
    baseline: Report | None = None
    changes: tuple[Change, ...] = ()
    worst: tuple[Transcript, ...] = ()


def evaluation(
    source: str, collection: Collection, *, baseline: str = "", split: str = "test",
    metrics: Sequence[str] | None = None, search_with: str = "", threads: int = 0,
) -> Hearing:  # fmt: skip
    """Measure a recogniser on the recordings of a split; with a baseline, paired differences.

    Args:
        source: the MODEL.
        collection: with recordings and their transcripts.
        baseline: another recogniser, ``""`` for none.
        split: whose recordings.
        metrics: by default those of :func:`metrics_of`.
        search_with: the MODEL of texts that searches, ``""`` for the built-in one.
        threads: of the runtimes; 0 for all cores.
    """
    queries = asked(data.search_set(collection, collection.qrels[split], split))
    names = tuple(metrics or metrics_of(queries))
    check_metrics(names, queries)
    chosen = [choose.recogniser(path, threads or None) for path in (source, baseline) if path]
    found = search(queries, search_with, threads) if set(names) - set(RATES) or search_with else None
    heard = [quality(one, queries, names, found) for one in chosen]
    named = zip(chosen, (path for path in (source, baseline) if path), strict=True)
    times = cost({str(number): pair for number, pair in enumerate(named)}, list(queries.queries.values()))
    reports = [evaluate.report(f"{one.name} ({one.runtime})", one.threads, times[str(number)],
                               heard[number].measurements) for number, one in enumerate(chosen)]  # fmt: skip
    plain = typed(queries, names, found) if found is not None else None
    return Hearing(
        collection=queries.name, subject=reports[0], search_with=found.encoder.name if found is not None else "",
        typed=plain.measurements if plain is not None else (),
        spoken=tuple(evaluate.compare(one, heard[0].get(one.name)) for one in plain.measurements) if plain else (),
        baseline=reports[1] if baseline else None,
        changes=tuple(evaluate.compare(heard[1].get(name), heard[0].get(name)) for name in names) if baseline else (),
        worst=worst(heard[0], queries),
    )  # fmt: skip


def worst(heard: Heard, search_set: SearchSet, count: int = HEARD) -> tuple[Transcript, ...]:
    """The recordings with the most errors for their length."""
    rate = error_rate(RATES[0])
    assert rate is not None
    found = []
    for query, text in heard.transcripts.items():
        said = search_set.said[search_set.queries[query]]
        words = len(normalised(said).split())
        share = rate.per_query({query: said}, {query: text})[query] if words else float(len(normalised(text).split()))
        found.append(Transcript(id=query, said=said, heard=text, errors=share))
    found.sort(key=lambda one: -one.errors)
    return tuple(one for one in found[:count] if one.errors > 0)
