"""What a collection gives to train on: pairs of query and passage with mined negatives, or items with their classes."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimseek import choose, data, evaluate, plugins
from slimseek import examples as feeding
from slimseek.collection import Collection, Qrels
from slimseek.data import Splits
from slimseek.encoder import Encoder
from slimseek.errors import UsageError
from slimseek.examples import Example, Examples, Lazy
from slimseek.inputs.reader import reader
from slimseek.inputs.vocabulary import FILE as VOCABULARY
from slimseek.inputs.vocabulary import Vocabulary
from slimseek.metrics._said import normalised
from slimseek.progress import say
from slimseek.schema import Array, Model
from slimseek.train import Loss, Training, _cut
from slimseek.value import Value

LOSSES = ("contrastive", "cross_entropy", "ctc", "margin_mse", "normalised_softmax")
OF_LABELS = ("cross_entropy", "normalised_softmax")
MINED = 50
HEAD_SHARE = 10.0
"""How much faster than the rest centres of classes learn, and a new head in text encoders; parameters of ONNX graphs
bear other names than their tensors, and all learn alike.
"""
CENTRES = "centres"


class Settings(Value, frozen=True):
    """How to fine-tune.

    Attributes:
        loss: ``contrastive`` or ``margin_mse`` for a collection to search; for a labelled one ``cross_entropy``, which
            makes a classifier, or ``normalised_softmax``, which makes vectors by which items of a class find each
            other; ``ctc`` for a recogniser that gives a token for each frame; empty for the first that fits, of
            pictures the latter.
        teacher: the MODEL whose margins ``margin_mse`` learns.
        hard_negatives: passages for each query that the model takes for relevant and that are not judged so.
        temperature: of ``contrastive``; 1 is taken for models whose vectors are not of length one.
        metric: what the best state is kept by; empty for nDCG@10, or accuracy.
        max_documents: of the collection, from which hard negatives are taken, all judged ones among them.
        views: side in pixels of random views of labelled pictures (crops, mirrored ones, in other light) that stand in
            their place; 0 for the pictures as they are. Views smaller than what the network takes cost less, and bring
            things to the size that they have in whole pictures (Touvron et al., 2019).
        training: steps, rate, seed.
    """

    loss: str = ""
    teacher: str = ""
    hard_negatives: int = 1
    temperature: float = 0.05
    metric: str = ""
    max_documents: int = 20_000
    views: int = 0
    training: Training = Training(learning_rate=5e-5)

    def __post_init__(self) -> None:
        """A known loss, with what it needs."""
        if self.loss not in ("", *LOSSES):
            raise UsageError(f"train: loss is {self.loss!r}; {', '.join(LOSSES)} are allowed")
        if (self.loss == "margin_mse") != bool(self.teacher):
            raise UsageError("train: the loss margin_mse needs a teacher, and no other loss takes one")
        if self.hard_negatives < 0 or self.max_documents < 1:
            raise UsageError(f"train: hard_negatives is {self.hard_negatives} and max_documents {self.max_documents}; "
                             f"0 or more and 1 or more are allowed")  # fmt: skip
        if self.views < 0:
            raise UsageError(f"train: views is {self.views}; a side in pixels, or 0, is allowed")
        if self.loss == "margin_mse" and not self.hard_negatives:
            raise UsageError("train: the loss margin_mse needs hard_negatives of 1 or more")
        if self.hard_negatives == 0 and self.training.batch_size == 1:
            raise UsageError("train: a batch of one query without hard negatives has nothing to tell apart")


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What to train, and on what.

    Attributes:
        model: the given one, with a head where it becomes a classifier.
        name: of the loss.
        loss: what to lower.
        examples: the batches.
        items: pairs or labelled items that they are taken from.
        shares: of the learning rate, by the ends of parameters' names.
        centres: of classes, to be trained beside the model and thrown away; 0 for none.
    """

    model: Model
    name: str
    loss: Loss
    examples: Examples
    items: int
    shares: Mapping[str, float]
    centres: int = 0


def check(model: Model, found: Collection, splits: Splits, settings: Settings) -> str:
    """The loss to lower.

    Raises:
        UsageError: as :func:`fitting`, or there is nothing to train on.
    """
    name, train = fitting(model, found, settings), trainable(found, splits)
    if name == "ctc" and not any(found.said.get(found.queries[query]) for query in train):
        raise UsageError(f"train: {found.name} has no train recording with a transcript")
    return name


def fitting(model: Model, found: Collection, settings: Settings) -> str:
    """The loss to lower.

    Raises:
        UsageError: it does not fit the collection or the model.
    """
    if model.spec.output == "transcript":
        return _of_transcripts(model, settings)
    name = settings.loss or _usual(model, found)
    if name == "ctc":
        raise UsageError("train: loss is ctc, and the model gives no scores of tokens (vocab.json beside it)")
    if (name in OF_LABELS) != found.labelled:
        has = "labels" if found.labelled else "judged queries"
        others = ", ".join(OF_LABELS) if found.labelled else "contrastive, margin_mse"
        raise UsageError(f"train: loss is {name}, and {found.name} has {has}; {others} is allowed")
    if model.spec.output == "class_logits" and not found.labelled:
        raise UsageError(f"train: the model is a classifier, and {found.name} has no labels")
    if model.spec.output == "class_logits" and name == "normalised_softmax":
        raise UsageError("train: the model is a classifier, and the loss normalised_softmax is for vectors; "
                         "cross_entropy is allowed")  # fmt: skip
    if settings.views and not (model.spec.picture and found.labelled):
        raise UsageError(f"train: views is {settings.views}, and this model or collection has other items than "
                         f"labelled pictures; 0 is allowed")  # fmt: skip
    return name


def task(model: Model, found: Collection, splits: Splits, settings: Settings, threads: int) -> Task:
    """What a collection gives a model to train on; no development or test query, nor a text that reads like one.

    Raises:
        UsageError: as :func:`check`.
    """
    name, qrels = check(model, found, splits, settings), trainable(found, splits)
    if name == "ctc":
        return _transcripts(model, found, qrels, settings)
    if found.labelled:
        return _classification(model, found, qrels, settings, name)
    return _search(model, found, qrels, settings, name, threads)


def _usual(model: Model, found: Collection) -> str:
    """The loss for those who ask for none."""
    if not found.labelled:
        return "contrastive"
    return "normalised_softmax" if model.spec.picture and model.spec.output == "embedding" else "cross_entropy"


def trainable(found: Collection, splits: Splits) -> Qrels:
    """The judgements of train queries with a relevant item, without those that dev or test queries read like.

    Raises:
        UsageError: none is left.
    """
    kept = splits.dev.keys() | splits.test.keys()
    hidden = {found.queries[query] for query in kept}
    train = {
        query: judged for query, judged in found.qrels.get("train", {}).items()
        if query not in kept and found.queries[query] and found.queries[query] not in hidden
        and any(value > 0 and found.corpus[document] for document, value in judged.items())
    }  # fmt: skip
    if not train:
        raise UsageError(f"{found.name} has no train queries but those that are judged by; it needs qrels/train.tsv")
    return train


# ---------------------------------------------------------------- transcripts


def _of_transcripts(model: Model, settings: Settings) -> str:
    if model.spec.autoregressive:
        raise UsageError("train: recognisers with a decoder are not trained; those with a token for each frame are")
    if settings.loss not in ("", "ctc"):
        raise UsageError(f"train: loss is {settings.loss}, and the model gives transcripts; ctc is allowed")
    return "ctc"


def _transcripts(model: Model, found: Collection, qrels: Qrels, settings: Settings) -> Task:
    """Recordings with the tokens of what is said in them."""
    training, vocabulary, read = settings.training, Vocabulary(model.files[VOCABULARY]), reader(model.spec, model.files)
    items = dict.fromkeys(found.queries[query] for query in qrels)
    said = {item: ids for item in items if (ids := vocabulary.ids(normalised(found.said.get(item, ""))))}
    if not said:
        raise UsageError(f"train: {VOCABULARY} has no token of the transcripts of {found.name}")
    some = feeding.transcribed(read, said, vocabulary.blank, training.batch_size, training.batches, training.seed)
    return Task(model=model, name="ctc", loss=plugins.load("losses", "ctc")(blank=vocabulary.blank), items=len(said),
                examples=Examples(train=some, held_out=()), shares={})  # fmt: skip


# ---------------------------------------------------------------- classes


def classifier(model: Model, classes: Sequence[str], seed: int) -> Model:
    """The model with a new head for these classes; itself where it has just these.

    Raises:
        UsageError: it is a classifier of other classes, or of a family that has no such form.
    """
    if not model.spec.classes:
        return choose.family(model).classifier(model, classes, seed)
    if tuple(classes) != model.spec.classes:
        raise UsageError(f"the model is a classifier of {len(model.spec.classes)} other classes, such as "
                         f"{model.spec.classes[0]!r}; give the model that it was made from")  # fmt: skip
    return model


def _classification(model: Model, found: Collection, qrels: Qrels, settings: Settings, name: str) -> Task:
    """Items with the number of their class: for a head that becomes part of the model, or for centres that do not."""
    training = settings.training
    headed = classifier(model, list(found.corpus), training.seed) if name == "cross_entropy" else model
    read: Any = reader(_cut(headed.spec, training.max_tokens), headed.files)
    rows = feeding.rows(read, [found.queries[query] for query in qrels], read.query_prefix)
    plan = feeding.planned(range(len(rows)), [row.width for row in rows], training.batch_size, training.batches,
                           random.Random(training.seed))  # fmt: skip
    new = [CENTRES] if name == "normalised_softmax" else sorted(headed.tensors.keys() - model.tensors.keys())
    return Task(
        model=headed, name=name, loss=plugins.load("losses", name)(), items=len(rows),
        examples=_seen(read, rows, _numbers(found, qrels), plan, settings), shares=dict.fromkeys(new, HEAD_SHARE),
        centres=len(found.corpus) if name == "normalised_softmax" else 0,
    )  # fmt: skip


def _numbers(found: Collection, qrels: Qrels) -> Array:
    """The number of each item's class, integers [items]."""
    numbers = {name: number for number, name in enumerate(found.corpus)}
    return np.array([numbers[next(name for name, value in judged.items() if value > 0)] for judged in qrels.values()])


def _seen(
    read: Any, rows: Sequence[feeding.Row], labels: Array, plan: Sequence[list[int]], settings: Settings
) -> Examples:
    """The batches of a plan as they are, or views of them that hang on the seed, the batch and the place in it."""

    def make(number: int) -> Example:
        chosen = [rows[place].read() for place in plan[number]]
        if not settings.views:
            return read.batch(chosen), labels[plan[number]]
        seeds = [np.random.default_rng([settings.training.seed, number, place]) for place in range(len(chosen))]
        return read.views(chosen, seeds, settings.views), labels[plan[number]]

    return Examples(train=Lazy(len(plan), make), held_out=())


# ---------------------------------------------------------------- queries and passages


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


def _search(model: Model, found: Collection, qrels: Qrels, settings: Settings, name: str, threads: int) -> Task:
    """Batches of queries, their passages and hard negatives, in one pass through the network."""
    training = settings.training
    spec = _cut(model.spec, training.max_tokens)
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
    cut = _cut(teacher.spec, settings.training.max_tokens)
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
