"""Queries with their passages to train on, and mined passages that are near and not relevant."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimseek import choose, data, evaluate, plugins
from slimseek.collection import Collection, Qrels
from slimseek.encoder import Encoder
from slimseek.errors import UsageError
from slimseek.inputs.reader import reader
from slimseek.progress import say
from slimseek.schema import Array, Model
from slimseek.training import examples as feeding
from slimseek.training.examples import Example, Examples, Lazy
from slimseek.training.settings import Settings, Task
from slimseek.training.targets import shortened
from slimseek.training.train import Training

MINED = 50


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pairs:
    """Train queries with their passages.

    Attributes:
        found: the texts.
        relevant: the passages of each query that are relevant: judged so, or of the same text as one of them.
        pairs: query and passage.
        negatives: hard ones of each query, the nearest first.
        training: how many in a batch, and the seed.
        count: hard negatives of a pair.
    """

    found: Collection
    relevant: Mapping[str, set[str]]
    pairs: Sequence[tuple[str, str]]
    negatives: Mapping[str, Sequence[str]]
    training: Training
    count: int

    def batch(self, number: int, plan: Sequence[list[int]]) -> tuple[list[str], list[str], list[str], list[list[str]]]:
        """Queries, the passage of each, all passages once, and the hard negatives of each query."""
        generator = random.Random(f"{self.training.seed} {number}")
        pairs = [self.pairs[place] for place in plan[number]]
        queries, own = [query for query, _ in pairs], [document for _, document in pairs]
        hard = [generator.sample(list(self.negatives[query]), min(self.count, len(self.negatives[query])))
                for query in queries]  # fmt: skip
        passages = list(dict.fromkeys([*own, *(document for some in hard for document in some)]))
        return queries, own, passages, hard


def searching(model: Model, found: Collection, qrels: Qrels, settings: Settings, name: str, threads: int) -> Task:
    """Batches of queries, their passages and hard negatives, in one pass through the network."""
    training = settings.training
    spec = shortened(model.spec, training.max_tokens)
    relevant = _relevant(found, qrels)
    pairs = [(query, document) for query, judged in qrels.items() for document, value in judged.items()
             if value > 0 and found.corpus[document]]  # fmt: skip
    encoder = choose.encoder(dataclasses.replace(model, spec=spec), "the model", threads)
    mined = hard_negatives(encoder, found, qrels, settings) if settings.hard_negatives else {}
    if name == "margin_mse":
        pairs = [(query, document) for query, document in pairs if mined.get(query)]
        if not pairs:
            raise UsageError(f"train: {found.name} has no document that is not relevant to a train query")
    known = _Pairs(found=found, relevant=relevant, pairs=pairs, training=training, count=settings.hard_negatives,
                   negatives={query: mined.get(query, ()) for query in qrels})  # fmt: skip
    read: Any = reader(spec, model.files)
    rows = dict(zip(qrels, feeding.rows(read, [found.queries[query] for query in qrels], read.query_prefix),
                    strict=True))  # fmt: skip
    needed = list(dict.fromkeys([*(own for _, own in pairs), *(one for some in mined.values() for one in some)]))
    documents = dict(zip(needed, feeding.rows(read, [found.corpus[one] for one in needed], read.document_prefix),
                         strict=True))  # fmt: skip
    plan = _plan([documents[document].width for _, document in pairs], training)
    margins = _margins(known, plan, settings, threads) if name == "margin_mse" else None

    def make(number: int) -> Example:
        queries, own, passages, hard = known.batch(number, plan)
        batch = read.batch([*(rows[query].read() for query in queries), *(documents[one].read() for one in passages)])
        places = {document: place for place, document in enumerate(passages)}
        if margins is not None:
            return batch, margins(queries, own, places, hard)
        return batch, {
            "positive": np.array([places[document] for document in own]),
            "relevant": np.array([[document in relevant[query] for document in passages] for query in queries]),
        }

    temperature = {"temperature": settings.temperature if model.spec.normalised else 1.0}
    loss = plugins.load("losses", name)(**(temperature if name == "contrastive" else {}))
    return Task(model=model, name=name, loss=loss, examples=Examples(train=Lazy(len(plan), make), held_out=()),
                items=len(pairs), shares={})  # fmt: skip


def _plan(widths: Sequence[feeding.Width], training: Training) -> list[list[int]]:
    """The pairs of each batch: those of like width together, unless that would bring a pair together with itself."""
    if len(widths) < feeding.BATCHES_SORTED_AT_ONCE * training.batch_size:
        widths = [(0,)] * len(widths)
    return feeding.planned(range(len(widths)), widths, training.batch_size, training.batches,
                           random.Random(training.seed))  # fmt: skip


def _relevant(found: Collection, qrels: Qrels) -> dict[str, set[str]]:
    """The documents that count as relevant to each query: those judged so, and others of the same text."""
    same: dict[str, list[str]] = {}
    for document, text in found.corpus.items():
        same.setdefault(text, []).append(document)
    return {
        query: {twin for document, value in judged.items() if value > 0 for twin in same[found.corpus[document]]}
        for query, judged in qrels.items()
    }


def hard_negatives(encoder: Encoder, found: Collection, qrels: Qrels, settings: Settings) -> dict[str, list[str]]:
    """What a model finds for train queries and is not relevant: at most 50 documents each, the nearest first.

    Args:
        encoder: the model as it is.
        found: the documents; empty ones, and those of the same text as a relevant one, are left out.
        qrels: the train queries, each with a relevant document.
        settings: how many documents are searched, and the seed.
    """
    say("hard negatives: what the model finds for the train queries, and is not relevant")
    searched = data.search_set(found, qrels, "train", max_documents=settings.max_documents, seed=settings.training.seed)
    documents = encoder.documents(list(searched.corpus.values()))
    queries = encoder.queries(list(searched.queries.values()))
    relevant = _relevant(found, qrels)
    most = max(len(some) for some in relevant.values())
    ranking = evaluate.rank(queries, documents, searched, MINED + most)
    return {
        query: [document for document in row if document not in relevant[query] and found.corpus[document]][:MINED]
        for query, row in ranking.items()
    }


def _margins(known: _Pairs, plan: Sequence[list[int]], settings: Settings, threads: int) -> Any:
    """What gives the target of a batch: a teacher's margins, computed once for all texts that are trained on."""
    teacher = choose.model(settings.teacher)
    cut = shortened(teacher.spec, settings.training.max_tokens)
    encoder = choose.encoder(dataclasses.replace(teacher, spec=cut), "the teacher", threads)
    batches = [known.batch(number, plan) for number in range(len(plan))]
    queries = list(dict.fromkeys(query for some, _, _, _ in batches for query in some))
    passages = list(dict.fromkeys(one for _, _, some, _ in batches for one in some))
    asked = dict(zip(queries, encoder.queries([known.found.queries[query] for query in queries]), strict=True))
    read = dict(zip(passages, encoder.documents([known.found.corpus[one] for one in passages]), strict=True))

    def target(queries: Sequence[str], own: Sequence[str], places: Mapping[str, int],
               hard: Sequence[Sequence[str]]) -> dict[str, Array]:  # fmt: skip
        triples = [(row, own[row], other) for row, some in enumerate(hard) for other in some]
        count = len(queries)
        return {
            "query": np.array([row for row, _, _ in triples], np.int64),
            "positive": np.array([count + places[one] for _, one, _ in triples], np.int64),
            "negative": np.array([count + places[other] for _, _, other in triples], np.int64),
            "margin": np.array([asked[queries[row]] @ (read[one] - read[other]) for row, one, other in triples],
                               np.float32),
        }  # fmt: skip

    return target
