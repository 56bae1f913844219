"""Who asks a package the development queries: of an encoder what it finds, of a recogniser what it hears."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from slimseek import choose, data, evaluate, kept, spoken
from slimseek.budget.store import Terms
from slimseek.collection import Collection, Qrels, SearchSet
from slimseek.encoder import Encoder
from slimseek.evaluate import Quality
from slimseek.recognise import Recogniser
from slimseek.schema import Model, Precision
from slimseek.spoken import Heard
from slimseek.trial import Reached

Package = Encoder | Recogniser
Amounts = Mapping[Reached, tuple[int, int]]
ASKED: Amounts = {"part": (100, 300), "whole": (400, 1200)}
"""Development queries, and documents that they search, at most. More documents cost time, fewer hide losses: a table of
token vectors keeps 87 % of MiniLM's nDCG@10 on all 5,183 documents of scifact, and 93 % on 600 at random."""
HEARD: Amounts = {"part": (50, 300), "whole": (200, 1200)}
"""The same of recordings, each of which takes as long as dozens of texts."""


class Examiner(Protocol):
    """Opens packages and asks them."""

    @property
    def sets(self) -> Mapping[Reached, SearchSet]:
        """The development queries: ``part`` of them, and the ``whole``; the documents of the part are of the whole."""

    @property
    def items(self) -> int:
        """How many are encoded or heard for the whole."""

    @property
    def timed(self) -> int:
        """Of how many queries the time is taken."""

    @property
    def tested(self) -> tuple[int, int]:
        """How many the proof at the end encodes or hears, with the original and with the model that is chosen."""

    def open(self, place: Path) -> Any:
        """The package in this folder."""

    def original(self, package: Any, reached: Reached, known: Mapping[str, Any] | None = None) -> Quality:
        """What the original gives; ``known``: what it gave for some items before."""

    def quality(
        self, package: Any, reached: Reached, precision: Precision, known: Mapping[str, Any] | None = None
    ) -> Quality:
        """What another gives, its index at this precision."""

    def given(self, reached: Reached, found: Quality) -> Mapping[str, Any]:
        """What was given for each item, by text or path."""

    def ask(self, package: Any, query: str) -> None:
        """One query, from text or path to what is given."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """Of encoders and classifiers.

    Attributes:
        sets: see :class:`Examiner`.
        metric: that decides.
        threads: of the runtime.
        tested: see :class:`Examiner`.
        keep_index: whether queries search the vectors that the original gave.
        originals: these, where they were asked for.
    """

    sets: Mapping[Reached, SearchSet]
    metric: str
    threads: int
    tested: tuple[int, int]
    keep_index: bool = False
    originals: dict[Reached, Quality] = field(default_factory=dict)
    timed: ClassVar[int] = 40

    @property
    def items(self) -> int:
        """Documents and queries of the whole."""
        return len(self.sets["whole"].items) + len(self.sets["whole"].queries)

    def open(self, place: Path) -> Encoder:
        """An encoder."""
        return choose.choose(place, self.threads)

    def original(self, package: Encoder, reached: Reached, known: Mapping[str, Any] | None = None) -> Quality:
        """What it finds, and with an index that is kept what others are compared with."""
        if not self.keep_index:
            return evaluate.quality(package, self.sets[reached], [self.metric], known=known)
        self.originals[reached] = kept.original(package, self.sets[reached], [self.metric], known=known)
        return self.originals[reached]

    def quality(
        self, package: Encoder, reached: Reached, precision: Precision, known: Mapping[str, Any] | None = None
    ) -> Quality:
        """What it finds among its own vectors, or among those of the original."""
        asked = self.sets[reached]
        if self.keep_index:
            return kept.quality(package, asked, self.originals[reached], [self.metric], precision)
        return evaluate.quality(package, asked, [self.metric], precision=precision, known=known)

    def given(self, reached: Reached, found: Quality) -> Mapping[str, Any]:
        """Vectors of documents; of classes there are none."""
        asked = self.sets[reached]
        return {} if asked.labelled else dict(zip(asked.corpus.values(), found.documents, strict=True))

    def ask(self, package: Encoder, query: str) -> None:
        """A query's vector."""
        package.queries([query])


@dataclass(frozen=True, kw_only=True, eq=False)
class Hearing:
    """Of recognisers.

    Attributes:
        sets: see :class:`Examiner`; all queries are recordings with a transcript.
        metric: that decides: an error rate, or what is found by what is heard.
        threads: of the runtime.
        tested: see :class:`Examiner`.
        searches: the search of texts by what is heard, where the metric is of one.
    """

    sets: Mapping[Reached, SearchSet]
    metric: str
    threads: int
    tested: tuple[int, int]
    searches: Mapping[Reached, spoken.Search | None]
    timed: ClassVar[int] = spoken.TIMED_RECORDINGS

    @property
    def items(self) -> int:
        """Recordings of the whole."""
        return len(self.sets["whole"].queries)

    def open(self, place: Path) -> Recogniser:
        """A recogniser."""
        return choose.recogniser(place, self.threads)

    def original(self, package: Recogniser, reached: Reached, known: Mapping[str, Any] | None = None) -> Heard:
        """What it hears."""
        return self.quality(package, reached, "f32", known)

    def quality(
        self, package: Recogniser, reached: Reached, precision: Precision, known: Mapping[str, Any] | None = None
    ) -> Heard:
        """What it hears; there is no index."""
        return spoken.quality(package, self.sets[reached], [self.metric], self.searches[reached], known)

    def given(self, reached: Reached, found: Quality) -> Mapping[str, Any]:
        """Transcripts."""
        assert isinstance(found, Heard)
        return {item: found.transcripts[query] for query, item in self.sets[reached].queries.items()}

    def ask(self, package: Recogniser, query: str) -> None:
        """A recording's transcript."""
        package.transcripts([query])


def examiner(original: Model, collection: Collection, splits: data.Splits, terms: Terms) -> Examiner:
    """The one for a model.

    Args:
        original: the model.
        collection: whose queries are asked.
        splits: those that choose, and those of the proof, which are counted only.
        terms: how they are judged.
    """
    if original.spec.output != "transcript":
        queries = len(splits.test)
        both = len(collection.items) + queries
        tested = both, queries if terms.keep_index else both
        return Finding(sets=_sets(collection, splits.dev, ASKED, terms.seed), metric=terms.metric,
                       threads=terms.threads, tested=tested, keep_index=terms.keep_index)  # fmt: skip
    dev, test = (spoken.with_transcript(qrels, collection.queries, collection.said)
                 for qrels in (splits.dev, splits.test))  # fmt: skip
    sets = _sets(collection, dev, HEARD, terms.seed)
    finds = spoken.error_rate(terms.metric) is None
    searches = {name: spoken.search(one, terms.search_with, terms.threads) if finds else None
                for name, one in sets.items()}  # fmt: skip
    return Hearing(
        sets=sets, metric=terms.metric, threads=terms.threads, tested=(len(test), len(test)), searches=searches
    )


def _sets(collection: Collection, dev: Qrels, asked: Amounts, seed: int) -> dict[Reached, SearchSet]:
    """Some of the development queries, and of these a part that searches a part of the same documents."""
    (few, least), (many, most) = asked["part"], asked["whole"]
    whole = data.search_set(collection, dev, "dev", max_queries=many, max_documents=most, seed=seed)
    inside = dataclasses.replace(collection, corpus=whole.corpus, queries=whole.queries)
    part = data.search_set(inside, whole.qrels, "dev", max_queries=few, max_documents=least, seed=seed)
    return {"part": part, "whole": whole}
