"""What a collection gives to train on: pairs of query and passage, or items with their classes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from slimseek import choose, plugins
from slimseek.collection import Collection, Qrels
from slimseek.data import Splits
from slimseek.errors import UsageError
from slimseek.inputs.reader import reader
from slimseek.inputs.vocabulary import FILE as VOCABULARY
from slimseek.inputs.vocabulary import Vocabulary
from slimseek.metrics._said import normalised
from slimseek.schema import Array, Model
from slimseek.training import examples as feeding
from slimseek.training import pairs, transcripts
from slimseek.training.examples import Example, Examples, Lazy
from slimseek.training.settings import Settings, Task
from slimseek.training.targets import shortened
from slimseek.training.train import Training

OF_LABELS = ("cross_entropy", "normalised_softmax")
HEAD_SHARE = 10.0
"""How much faster than the rest centres of classes learn, and a new head in text encoders; parameters of ONNX graphs
bear other names than their tensors, and all learn alike.
"""
CENTRES = "centres"


def check(model: Model, found: Collection, splits: Splits, settings: Settings) -> str:
    """The loss to lower.

    Raises:
        UsageError: as :func:`fitting`, or there is nothing to train on.
    """
    name, train = fitting(model, found, settings), trainable(found, splits)
    if model.spec.output == "transcript" and not any(found.said.get(found.queries[query]) for query in train):
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
    views = settings.training.views
    if views and not (model.spec.picture and found.labelled):
        raise UsageError(f"train: views is {views}, and this model or collection has other items than "
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
    if name == "transcript":
        return _dictated(model, found, qrels, settings)
    if found.labelled:
        return _classification(model, found, qrels, settings, name)
    return pairs.searching(model, found, qrels, settings, name, threads)


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
    name = "transcript" if model.spec.autoregressive else "ctc"
    if settings.loss not in ("", name):
        raise UsageError(f"train: loss is {settings.loss}, and the model gives transcripts; {name} is allowed")
    return name


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


def _dictated(model: Model, found: Collection, qrels: Qrels, settings: Settings) -> Task:
    """Recordings with the transcripts that a decoder should write of them, in the language that it is asked for."""
    assert model.spec.decoding
    language, said = model.spec.decoding.language, found.said
    items = [item for item in dict.fromkeys(found.queries[query] for query in qrels) if said.get(item)]

    def heard(chosen: Sequence[str]) -> list[transcripts.Heard]:
        return [transcripts.Heard(text=said[item], language=language) for item in chosen]

    some = transcripts.examples(model, items, heard, settings.training)
    return Task(model=model, name="transcript", loss=plugins.load("losses", "transcript")(), items=len(items),
                examples=Examples(train=some.train, held_out=()), shares={})  # fmt: skip


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
    read: Any = reader(shortened(headed.spec, training.max_tokens), headed.files)
    rows = feeding.rows(read, [found.queries[query] for query in qrels], read.query_prefix)
    plan = feeding.planned(range(len(rows)), [row.width for row in rows], training.batch_size, training.batches,
                           random.Random(training.seed))  # fmt: skip
    new = [CENTRES] if name == "normalised_softmax" else sorted(headed.tensors.keys() - model.tensors.keys())
    return Task(
        model=headed, name=name, loss=plugins.load("losses", name)(), items=len(rows),
        examples=_seen(read, rows, _numbers(found, qrels), plan, training), shares=dict.fromkeys(new, HEAD_SHARE),
        centres=len(found.corpus) if name == "normalised_softmax" else 0,
    )  # fmt: skip


def _numbers(found: Collection, qrels: Qrels) -> Array:
    """The number of each item's class, integers [items]."""
    numbers = {name: number for number, name in enumerate(found.corpus)}
    return np.array([numbers[next(name for name, value in judged.items() if value > 0)] for judged in qrels.values()])


def _seen(
    read: Any, rows: Sequence[feeding.Row], labels: Array, plan: Sequence[list[int]], training: Training
) -> Examples:
    """The batches of a plan as they are, or views of them."""

    def make(number: int) -> Example:
        chosen = [rows[place].read() for place in plan[number]]
        return feeding.viewed(read, chosen, training.views, (training.seed, number)), labels[plan[number]]

    return Examples(train=Lazy(len(plan), make, heavy=training.views > 0), held_out=())
