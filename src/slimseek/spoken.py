"""Stage 4 for recognisers: what is heard, and what a search of texts finds by it, against the query as it was typed."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slimseek import choose, costs, evaluate, plugins, timing
from slimseek.bases import ErrorRate
from slimseek.collection import Collection, Qrels, SearchSet
from slimseek.data import Splits
from slimseek.encoder import Encoder
from slimseek.errors import UsageError
from slimseek.evaluate import Quality
from slimseek.inputs.sound import blocks
from slimseek.measurement import GateResult, Measurement, QueryExample
from slimseek.metrics._said import normalised
from slimseek.progress import track
from slimseek.recognise import Recogniser
from slimseek.schema import Samples

RATES = ("word_error_rate", "character_error_rate")
SEARCH = ("ndcg@10", "recall@10", "hit@1")
SEARCH_WITH = "minilm"
TIMED_RECORDINGS = 8
HEARD = 5
NOTHING = "nothing"
MOST_DIFFERENT = 0.01
"""Of the words of recordings alone and in a batch: sums of floats depend on it, and a word may hang on one."""
WITHOUT_BLANKS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""What the names of letters begin with that are written without blanks between words."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard(Quality):
    """A recogniser on one search set.

    Attributes:
        transcripts: query id to what was heard.
        ranking: query id to document ids, best first; empty where nothing is searched. Nothing is found by a
            transcript without a word.
    """

    transcripts: Mapping[str, str]


# ---------------------------------------------------------------- what is asked for


def error_rate(name: str) -> ErrorRate | None:
    """The measure of transcripts of that name; ``None`` for the name of a measure of rankings.

    Raises:
        UsageError: no such metric, or an error rate with a cutoff.
    """
    base, at, _ = name.partition("@")
    kind = plugins.load("metrics", base)
    if not issubclass(kind, ErrorRate):
        return None
    if at:
        raise UsageError(f"metric {name!r}: an error rate has no cutoff; {base} is allowed")
    found: ErrorRate = kind()
    return found


def asked(search_set: SearchSet) -> SearchSet:
    """The queries that are recordings with a transcript.

    Raises:
        UsageError: none is.
    """
    chosen = with_transcript(search_set.qrels, search_set.queries, search_set.said)
    if not chosen:
        raise UsageError(f"{search_set.name}: no query is a recording with a transcript; a line of queries.jsonl has "
                         "audio and text")  # fmt: skip
    return dataclasses.replace(search_set, queries={query: search_set.queries[query] for query in chosen}, qrels=chosen)


def with_transcript(qrels: Qrels, queries: Mapping[str, str], said: Mapping[str, str]) -> Qrels:
    """The judgements of queries that are recordings of which it is known what is said in them."""
    return {query: judged for query, judged in qrels.items() if said.get(queries[query])}


def searches(search_set: SearchSet) -> bool:
    """Whether there are texts to find by what is heard: not where the items have labels, or are files themselves."""
    return not search_set.labelled and not any(item in search_set.said for item in search_set.corpus.values())


def metrics_of(search_set: SearchSet) -> tuple[str, ...]:
    """What to measure where nothing is asked for, the decisive one first: nDCG@10 where there is something to search,
    else words, or characters where the transcripts are written without blanks.
    """
    rates = rates_of(search_set)
    return (*SEARCH, *rates) if searches(search_set) else rates


def rates_of(search_set: SearchSet) -> tuple[str, ...]:
    """The error rates, the one first that fits the way the transcripts are written."""
    return RATES[::-1] if _without_blanks(search_set) else RATES


def check_rate(name: str) -> None:
    """Refuse what is no error rate.

    Raises:
        UsageError: it is a metric of a search, or unknown.
    """
    if error_rate(name) is None:
        raise UsageError(f"metric {name!r} is of a search; {' and '.join(RATES)} are allowed here")


def check_metrics(names: Sequence[str], search_set: SearchSet) -> None:
    """Refuse, before any work, metrics that do not fit.

    Raises:
        UsageError: an unknown one, or one of a search where there is nothing to find.
    """
    for name in names:
        if error_rate(name) is None:
            evaluate.metric(name)
            if not searches(search_set):
                raise UsageError(f"metric {name!r} is of a search, and {search_set.name} holds no texts to find; "
                                 f"{' and '.join(RATES)} are allowed")  # fmt: skip


def _without_blanks(search_set: SearchSet) -> bool:
    letters = [letter for item in search_set.queries.values() for letter in search_set.said[item] if letter.isalpha()]
    return 2 * sum(unicodedata.name(letter, "").startswith(WITHOUT_BLANKS) for letter in letters) > len(letters)


# ---------------------------------------------------------------- quality


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """The search of texts that recognisers are judged by: the same for all of them.

    Attributes:
        encoder: of queries and documents.
        documents: float32 [documents, dim], its vectors in the order of the set's corpus.
    """

    encoder: Encoder
    documents: np.ndarray


def search(search_set: SearchSet, search_with: str = "", threads: int = 0) -> Search | None:
    """Encode the documents once; ``None`` where there is nothing to search.

    Args:
        search_set: the documents.
        search_with: the MODEL of texts; ``""`` for the built-in one.
        threads: of its runtime; 0 for all cores.
    """
    if not searches(search_set):
        if search_with:
            raise UsageError(f"--search-with {search_with}: {search_set.name} holds no texts to find")
        return None
    encoder = choose.choose(search_with or SEARCH_WITH, threads or None)
    if encoder.spec.modality != "text" or encoder.spec.output != "embedding":
        raise UsageError(f"--search-with {encoder.name}: it gives no vectors of texts")
    documents = list(search_set.corpus.values())
    with track(f"encode {len(documents):,} documents, {encoder.name}", len(documents)) as advance:
        return Search(encoder=encoder, documents=encoder.documents(documents, advance))


def quality(
    recogniser: Recogniser, search_set: SearchSet, metrics: Sequence[str], found: Search | None = None,
    known: Mapping[str, str] | None = None,
) -> Heard:  # fmt: skip
    """Transcribe every spoken query, search by what was heard, score both.

    Args:
        recogniser: what transcribes.
        search_set: as :func:`asked` gives it.
        metrics: such as ``word_error_rate`` or ``ndcg@10``.
        found: the search; needed for metrics of one.
        known: what this recogniser heard in some of the recordings before, by path.

    Raises:
        UsageError: a recording that cannot be read.
    """
    known = known or {}
    items = [item for item in search_set.queries.values() if item not in known]
    with track(f"transcribe {len(items):,} recordings, {recogniser.name}", len(items)) as advance:
        heard = dict(zip(items, recogniser.transcripts(items, advance), strict=True))
    texts = {query: known[item] if item in known else heard[item] for query, item in search_set.queries.items()}
    return scored(texts, search_set, metrics, found)


def typed(search_set: SearchSet, metrics: Sequence[str], found: Search) -> Heard:
    """The same for what was said, as if every word had been understood."""
    said = {query: search_set.said[item] for query, item in search_set.queries.items()}
    names = [name for name in metrics if error_rate(name) is None]
    return scored(said, search_set, names, found)


def scored(
    transcripts: Mapping[str, str], search_set: SearchSet, metrics: Sequence[str], found: Search | None
) -> Heard:  # fmt: skip
    """The quality of transcripts that are there already, by the query's id."""
    ranking: dict[str, list[str]] = {}
    queries = documents = np.zeros((0, 0), np.float32)
    if found is not None:
        documents, queries = found.documents, found.encoder.queries(list(transcripts.values()))
        ranking = evaluate.rank(queries, documents, search_set)
        ranking = {query: row if normalised(transcripts[query]) else [] for query, row in ranking.items()}
    measured = tuple(_measured(name, transcripts, search_set, ranking) for name in metrics)
    return Heard(measurements=measured, ranking=ranking, documents=documents, queries=queries,
                 transcripts=dict(transcripts))  # fmt: skip


def _measured(
    name: str, transcripts: Mapping[str, str], search_set: SearchSet, ranking: Mapping[str, Sequence[str]]
) -> Measurement:
    rate = error_rate(name)
    if rate is None:
        return evaluate.measure(name, search_set, ranking)
    said = {query: search_set.said[item] for query, item in search_set.queries.items()}
    values = rate.per_query(said, transcripts)
    return evaluate.measured(name, [values[query] for query in search_set.queries], rate.higher_is_better)


def invariance(recogniser: Recogniser, items: Sequence[str]) -> GateResult:
    """Whether recordings are heard alike alone and in one batch: word errors of the one against the other."""
    rate = error_rate(RATES[0])
    assert rate is not None
    together = {item: _heard(text) for item, text in zip(items, recogniser.transcripts(items), strict=True)}
    alone = {item: _heard(recogniser.transcripts([item])[0]) for item in items}
    value = float(np.mean(list(rate.per_query(together, alone).values())))
    return GateResult(
        gate="invariance", status="passed" if value <= MOST_DIFFERENT else "failed", value=value, limit=MOST_DIFFERENT,
        detail=f"{len(items)} recordings alone and in one batch: {value:.1%} of the words differ",
    )  # fmt: skip


def _heard(text: str) -> str:
    """A transcript with a word in any case: an error rate needs one."""
    return text if normalised(text) else NOTHING


# ---------------------------------------------------------------- examples


def examples(
    search_set: SearchSet, before: Heard, after: Heard, metric: str, count: int = HEARD
) -> tuple[QueryExample, ...]:
    """The recordings whose score changed most, with what each side heard and whether it is what was said."""
    first, second = before.get(metric).per_query, after.get(metric).per_query
    assert first is not None
    assert second is not None
    queries = list(search_set.queries)
    changes = np.abs(np.array(second) - np.array(first))
    differ = np.array([before.transcripts[query] != after.transcripts[query] for query in queries])
    order = np.lexsort((~differ, -changes))
    chosen = [int(place) for place in order[:count] if changes[place] > 0 or differ[place]]

    def side(heard: Heard, query: str, said: str) -> tuple[tuple[str, bool], ...]:
        text = heard.transcripts[query]
        return ((text or "(nothing)", normalised(text) == normalised(said)),)

    found = []
    for place in chosen:
        query = queries[place]
        said = search_set.said[search_set.queries[query]]
        found.append(QueryExample(query=said, before=side(before, query, said), after=side(after, query, said),
                                  score_before=first[place], score_after=second[place]))  # fmt: skip
    return tuple(found)


# ---------------------------------------------------------------- cost


def seconds(item: str) -> float:
    """Length of a recording."""
    return sum(len(block) for block in blocks(item, 16_000)) / 16_000


def cost(
    recognisers: Mapping[str, tuple[Recogniser, str]], items: Sequence[str], *, rounds: int = 3
) -> dict[str, tuple[Measurement, ...]]:
    """Bytes, times and memory of several recognisers, measured in turns in one run.

    The real-time factor is the seconds that transcribing takes for each second of sound, one recording after the
    other, the file read and its features computed too; below 1 is faster than speech. Latency is of a whole recording,
    that of the first token of its first window. Cold start and memory are of a fresh process.

    Args:
        recognisers: by name, each with the MODEL that it opens from (``""`` if it has none).
        items: recordings, of which the first eight are timed.
        rounds: turns of each.
    """
    some = list(items)[:TIMED_RECORDINGS]
    lengths = np.array([seconds(item) for item in some])
    heard = _clock({name: lambda item, r=one: r.transcripts([item]) for name, (one, _) in recognisers.items()},  # type: ignore[misc]
                   some, rounds)  # fmt: skip
    begun = _clock({name: one.begin for name, (one, _) in recognisers.items()}, some, rounds)
    found = {}
    for name, (one, source) in recognisers.items():
        each = np.median(heard[name].reshape(rounds, len(some)), axis=0)
        factor = Measurement(name="real_time_factor", value=float(each.sum() / lengths.sum()), unit="s/s",
                             higher_is_better=False, n=len(some))  # fmt: skip
        first = Measurement(name="latency_first_token", value=float(np.median(begun[name])) * 1000, unit="ms",
                            higher_is_better=False, n=len(begun[name]))  # fmt: skip
        found[name] = (*costs.shipped(one), *costs.latencies(heard[name]), first, factor,
                       *costs.fresh(source, one.threads))  # fmt: skip
    return found


def _clock(asked: Mapping[str, Callable[[str], object]], items: Sequence[str], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each item in each round, in turns; by name float64 [rounds * items]."""
    return timing.interleaved(
        {name: lambda number, ask=ask: ask(items[number % len(items)]) for name, ask in asked.items()},  # type: ignore[misc]
        rounds=rounds, calls=len(items), warm_up=1,
    )  # fmt: skip


# ---------------------------------------------------------------- compression


def samples(collection: Collection, splits: Splits, count: int = 64) -> Samples:
    """Recordings that steps may look at, none of which the test has too: to calibrate by, train and dev queries; to
    train on those of train alone, where there are some, so that dev judges a training by what it has not heard.

    Args:
        collection: with recordings.
        splits: for the test queries to leave out.
        count: recordings to calibrate by, evenly over all.

    Raises:
        UsageError: nothing is left.
    """
    items = apart(collection, splits)
    if not items:
        raise UsageError(f"{collection.path} has no recordings to calibrate by but those of the test; it needs "
                         "recordings of a train or dev split")  # fmt: skip
    train = {collection.queries[query] for query in collection.qrels.get("train", {}).keys() - splits.dev.keys()}
    heard = [item for item in items if item in train] or items
    return Samples(calibration=items[:: max(1, -(-len(items) // count))], texts=heard, queries=heard)


def apart(collection: Collection, splits: Splits) -> list[str]:
    """Recordings with a transcript that the test has not."""
    hidden = {collection.queries[query] for query in splits.test}
    return list(dict.fromkeys(
        item for query, item in collection.queries.items()
        if query not in splits.test and item in collection.said and item not in hidden
    ))  # fmt: skip
