"""What is searched and what is found: collections with their judgements, blocks of vectors, results.

The types alone; ``data`` reads and checks collections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from slimseek.schema import Array
from slimseek.value import Value


class Finding(Value, frozen=True):
    """Something counted in a collection: ``what`` in words, how many, a few examples."""

    what: str
    count: int
    examples: tuple[str, ...] = ()


Qrels = dict[str, dict[str, int]]
"""Query id to document id to relevance; 0 is judged and not relevant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Collection:
    """A collection to search: items by id, and the judgements of each split.

    Attributes:
        name: for reports.
        path: where it was read from.
        corpus: document id to text (title and text joined by a blank), or to the path of a picture, recording or array.
        queries: query id to the same.
        qrels: split (``train``, ``dev``, ``test``) to judgements.
        findings: what the reader counted and any fault it met.
        labelled: whether the task is to name the class of an item: the queries are the items, the corpus holds the
            names of the classes, and the one relevant of them is the item's.
        said: text that belongs to an item which is a file, by the item: the caption of a picture, the transcript of a
            recording; ``""`` where there is none.
        by_label: whether relevant documents are those of a query's label: then one that is a query too is never its own
            result, by its id.
    """

    name: str
    path: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, Qrels]
    findings: tuple[Finding, ...] = ()
    labelled: bool = False
    said: Mapping[str, str] = field(default_factory=dict)
    by_label: bool = False

    @property
    def label(self) -> dict[str, str]:
        """The class of each item of a labelled collection, by its id."""
        return {name: next(iter(row)) for judged in self.qrels.values() for name, row in judged.items()}

    @property
    def items(self) -> dict[str, str]:
        """What there is to read, by id: the documents, or the items that have a class."""
        return self.queries if self.labelled else self.corpus


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchSet:
    """What one evaluation searches: the queries of one split that have a judgement, and the documents.

    Attributes:
        name: collection and split.
        queries: query id to text.
        corpus: document id to text.
        qrels: judgements of exactly these queries.
        labelled: whether the corpus holds the names of classes (see :class:`Collection`).
        said: text that belongs to an item which is a file, by the item (see :class:`Collection`).
        by_label: whether relevant documents are those of a query's label (see :class:`Collection`).
    """

    name: str
    queries: dict[str, str]
    corpus: dict[str, str]
    qrels: Qrels
    labelled: bool = False
    said: Mapping[str, str] = field(default_factory=dict)
    by_label: bool = False

    @property
    def items(self) -> dict[str, str]:
        """What there is to read, by id: the documents, or the items that have a class."""
        return self.queries if self.labelled else self.corpus


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """Vectors that come block by block, as often as they are asked for: never are all of them in memory.

    Attributes:
        count: how many vectors there are, at least 1.
        dim: their width.
        each: gives the blocks in order, finite float32 [m, dim].
    """

    count: int
    dim: int
    each: Callable[[], Iterable[Array]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits:
    """Search results: best first, ties by id; -1 fills up where there are fewer documents than ``k``.

    Attributes:
        ids: int64 [queries, k], positions in the index.
        scores: float32 [queries, k].
    """

    ids: Array
    scores: Array
