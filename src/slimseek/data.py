"""Stage 2: a collection is read, checked, split and sampled. Calibration never sees a test query."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from slimseek import lexical, plugins
from slimseek.collection import Collection, Finding, Qrels, SearchSet
from slimseek.errors import UsageError
from slimseek.fingerprint import hashed
from slimseek.inputs.reader import Input
from slimseek.inputs.text import TextInput
from slimseek.schema import ModelSpec, Samples
from slimseek.similar import MOST_DEV_QUERIES, suited
from slimseek.value import Value

TEXTS_COUNTED = 2000
COMPARED = 50_000
"""Documents, taken at random, among which those are looked for that look like the queries."""
UNKNOWN = -1
"""The label of an item whose class is not known."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """Queries to choose by and queries to report on; they never overlap.

    Attributes:
        dev: judgements of the development queries.
        test: judgements of the test queries.
        notice: what a user should know of how they came about, ``""`` if nothing.
    """

    dev: Qrels
    test: Qrels
    notice: str


class Description(Value, frozen=True):
    """What a collection holds.

    Attributes:
        judged_queries: split to number of queries with a judgement.
        judgements: split to number of judgements.
        truncated_documents: share of documents longer than the model takes; ``None`` without a model.
        truncated_queries: the same of queries.
        notice: how dev and test queries come about.
    """

    name: str
    documents: int
    queries: int
    judged_queries: dict[str, int]
    judgements: dict[str, int]
    truncated_documents: float | None
    truncated_queries: float | None
    notice: str
    findings: tuple[Finding, ...]


class LabelledDescription(Value, frozen=True):
    """What a labelled collection holds.

    Attributes:
        items: all of them; those of each split are in ``split_items``.
        split_items: split to number of items.
        smallest_class: name and number of items of the class that has fewest in the train split; in all, where there
            is none.
        largest_class: of the one that has most.
        truncated_items: share of items longer than the model takes; ``None`` without a model, and for arrays.
        notice: how development and test items come about.
    """

    name: str
    classes: int
    items: int
    split_items: dict[str, int]
    smallest_class: dict[str, int]
    largest_class: dict[str, int]
    truncated_items: float | None
    notice: str
    findings: tuple[Finding, ...]


def load(source: str) -> Collection:
    """Read a collection: a built-in name or a folder in a layout that a plug-in of ``datasets/`` knows.

    Raises:
        UsageError: there is none, or it is broken; the text names the file and the line.
    """
    for name in plugins.names("datasets"):
        reader = plugins.load("datasets", name)()
        if reader.recognises(source):
            collection: Collection = reader.read(source)
            return collection
    if not Path(source).exists():
        raise UsageError(f"there is no collection {source!r}: neither a folder nor the built-in news or news-full")
    raise UsageError(
        f"{source} is not a collection: it needs corpus.jsonl, queries.jsonl and qrels/test.tsv, or .tsv or .csv files "
        f"with the columns text and label, or audio and text, labels.csv with those of a path and a label, or a "
        f"subfolder of pictures for each class"
    )


def load_for(source: str, spec: ModelSpec) -> Collection:
    """Read a collection in the form that a model is judged by: see :func:`slimseek.similar.suited`."""
    return suited(load(source), spec)


def split(collection: Collection) -> Splits:
    """Development and test queries.

    Test is the collection's own. Development is its dev split, else up to 500 of its train queries, else a half of
    the test queries, chosen by a hash of their ids and taken out of the test.

    Raises:
        UsageError: fewer than two judged queries.
    """
    qrels = {name: judged for name, judged in collection.qrels.items() if judged}
    reported = next((name for name in ("test", "dev", "train") if name in qrels), "test")
    held = qrels.get(reported, {})
    if len(held) < 2:
        raise UsageError(f"{collection.name}: at least two judged queries are needed")
    notice = "" if reported == "test" else f"{collection.name} has no test split: {reported} takes its place"
    for name in ("dev", "train"):
        apart = {query: row for query, row in qrels.get(name, {}).items() if query not in held}
        if apart:
            return Splits(
                dev={query: apart[query] for query in sorted(apart, key=hashed)[:MOST_DEV_QUERIES]},
                test=held,
                notice=notice,
            )
    ids = sorted(held, key=hashed)
    half = len(ids) // 2
    return Splits(
        dev={query: held[query] for query in ids[:half]},
        test={query: held[query] for query in ids[half:]},
        notice=f"{collection.name} has only {reported} queries: {half} of {len(ids)} to choose by, the rest to report",
    )


def search_set(
    collection: Collection, qrels: Qrels, name: str, *, max_queries: int | None = None,
    max_documents: int | None = None, seed: int = 0,
) -> SearchSet:  # fmt: skip
    """The queries that have a relevant document, and what they search.

    Args:
        collection: where texts come from.
        qrels: judgements of the split.
        name: the split's name.
        max_queries: take a random part of the queries.
        max_documents: search the judged documents and those of the others that look most like the queries by their
            words, so many in all, filled up at random: among documents taken at random a weak model hardly errs. Where
            labels judge, a random part of all of them, with one at least for each query.
        seed: of the random choices.

    Raises:
        UsageError: no query has a relevant document.
    """
    generator = random.Random(seed)
    chosen = [query for query, judged in qrels.items() if any(value > 0 for value in judged.values())]
    if not chosen:
        raise UsageError(f"{collection.name}: no query of {name} has a relevant document")
    if max_queries is not None and len(chosen) > max_queries:
        chosen = sorted(generator.sample(chosen, max_queries), key=chosen.index)
    documents = list(collection.corpus)
    if max_documents is not None and len(documents) > max_documents:
        judged = set(_some_for_each(qrels, chosen, documents, max_documents, generator) if collection.by_label else
                     (document for query in chosen for document in qrels[query]))  # fmt: skip
        others = [document for document in documents if document not in judged]
        generator.shuffle(others)
        wanted = max(0, max_documents - len(judged))
        near = [] if collection.by_label else _nearest(collection, chosen, others[:COMPARED], wanted)
        kept = judged | set(list(dict.fromkeys((*near, *others)))[:wanted])
        documents = [document for document in documents if document in kept]
        if collection.by_label:
            qrels = _judging(qrels, chosen, kept)
    return SearchSet(
        name=f"{collection.name}, {name}",
        queries={query: collection.queries[query] for query in chosen},
        corpus={document: collection.corpus[document] for document in documents},
        qrels={query: qrels[query] for query in chosen},
        labelled=collection.labelled,
        said=collection.said,
        by_label=collection.by_label,
    )


def _nearest(collection: Collection, queries: Sequence[str], documents: Sequence[str], count: int) -> list[str]:
    """Documents with words of the queries, the nearest first; of files the captions and transcripts count."""
    asked, given = (
        [collection.said.get(item, item) for item in items]
        for items in ((collection.queries[name] for name in queries), (collection.corpus[name] for name in documents))
    )
    return [documents[place] for place in lexical.nearest(asked, given, count)]


def samples(
    collection: Collection, splits: Splits, *, count: int = 256, seed: int = 0, queries_first: bool = False
) -> Samples:
    """Texts that steps may look at: documents and queries, without test queries or texts that read like one.

    Of a labelled collection these are its train and dev items, each with its class; one that has two is given none.

    Args:
        collection: documents and queries.
        splits: for the test queries to leave out.
        count: texts to calibrate by, half of them queries where there are enough.
        seed: of the random choice.
        queries_first: calibrate by queries alone where there are enough, for a model that encodes nothing else:
            ranges and moments are then those of what it will meet. ``texts`` hold the documents all the same: they
            are most of what there is to learn the original's vectors from, and the words that queries will use.

    Raises:
        UsageError: nothing is left; the text names the collection's path.
    """
    generator = random.Random(seed)
    hidden = {collection.queries[query] for query in splits.test}
    corpus = {} if collection.labelled else collection.corpus  # names of classes are no texts of the kind
    documents = [text for text in corpus.values() if text and text not in hidden]
    seen = [
        query for query, text in collection.queries.items() if text and query not in splits.test and text not in hidden
    ]
    queries = [collection.queries[query] for query in seen]
    if not documents and not queries:
        raise UsageError(
            f"{collection.path} has no text to calibrate by: all are empty, or read like test queries; add documents"
        )
    most = count if queries_first or not documents else count // 2
    asked = generator.sample(queries, min(len(queries), most))
    read = generator.sample(documents, min(len(documents), count - len(asked)))
    found = Samples(calibration=[*read, *asked], texts=[*documents, *queries], queries=queries)
    if not collection.labelled:
        return found
    return replace(found, labels=_labels(collection, seen), classes=list(collection.corpus))


def describe(collection: Collection, read: Input | None = None) -> Description | LabelledDescription:
    """Counts, splits, findings, and with a model's tokenizer the share of texts it will cut (of at most 2,000 each)."""
    notice = split(collection).notice
    if collection.labelled:
        return _described(collection, read, notice)
    return Description(
        name=collection.name,
        documents=len(collection.corpus),
        queries=len(collection.queries),
        judged_queries={name: len(judged) for name, judged in collection.qrels.items()},
        judgements={name: sum(len(row) for row in judged.values()) for name, judged in collection.qrels.items()},
        truncated_documents=_truncated(collection.corpus, read),
        truncated_queries=_truncated(collection.queries, read),
        notice=notice,
        findings=collection.findings,
    )


def fingerprint(collection: Collection) -> str:
    """The sha256 of ids, texts and judgements, whatever their order: what a cached score of a collection hangs on."""
    digest = hashlib.sha256()
    parts = (collection.corpus, collection.queries, collection.qrels, *([collection.said] if collection.said else []))
    for part in parts:
        digest.update(msgspec.json.encode(part, order="deterministic") + b"\n")
    return digest.hexdigest()


def _some_for_each(
    qrels: Qrels, queries: Sequence[str], documents: Sequence[str], most: int, generator: random.Random
) -> list[str]:
    """So many documents at random, and a relevant one more for each query that would have none."""
    found = generator.sample(documents, most)
    kept = set(found)
    for query in queries:
        if kept.isdisjoint(qrels[query]):
            found.append(generator.choice(list(qrels[query])))
            kept.add(found[-1])
    return found


def _judging(qrels: Qrels, queries: Sequence[str], kept: set[str]) -> Qrels:
    """The judgements of these documents alone; rows that were one object stay one."""
    rows: dict[int, dict[str, int]] = {}
    for query in queries:
        row = qrels[query]
        if id(row) not in rows:
            rows[id(row)] = {document: value for document, value in row.items() if document in kept}
    return {query: rows[id(qrels[query])] for query in queries}


def _described(collection: Collection, read: Input | None, notice: str) -> LabelledDescription:
    labelled = [collection.qrels["train"]] if "train" in collection.qrels else collection.qrels.values()
    counts = dict.fromkeys(collection.corpus, 0)
    for judged in labelled:
        for row in judged.values():
            counts[_label(row)] += 1
    ordered = sorted(counts.items(), key=lambda pair: pair[1])
    return LabelledDescription(
        name=collection.name,
        classes=len(collection.corpus),
        items=len(collection.queries),
        split_items={name: len(judged) for name, judged in collection.qrels.items()},
        smallest_class=dict(ordered[:1]),
        largest_class=dict(ordered[-1:]),
        truncated_items=_truncated(collection.queries, read),
        notice=notice,
        findings=collection.findings,
    )


def _truncated(texts: Mapping[str, str], read: Input | None) -> float | None:
    """The share of texts that a model cuts, of the first 2,000; ``None`` where nothing reads texts."""
    some = list(texts.values())[:TEXTS_COUNTED]
    return read.truncated(some) / len(some) if isinstance(read, TextInput) else None


def _label(judged: Mapping[str, int]) -> str:
    """The name of an item's class."""
    return next(name for name, value in judged.items() if value > 0)


def _labels(collection: Collection, items: Sequence[str]) -> list[int]:
    """The number of each item's class, in the order of the collection's; of texts that have two, none."""
    numbers = {name: number for number, name in enumerate(collection.corpus)}
    classes = {item: numbers[_label(row)] for judged in collection.qrels.values() for item, row in judged.items()}
    texts = [collection.queries[item] for item in items]
    known: dict[str, set[int]] = {}
    for item, text in zip(items, texts, strict=True):
        known.setdefault(text, set()).add(classes[item])
    return [next(iter(known[text])) if len(known[text]) == 1 else UNKNOWN for text in texts]
