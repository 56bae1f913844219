"""The mode that keeps an index: only queries are encoded by the compressed model, and search the original's vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from slimseek import evaluate
from slimseek.artifact import KeptIndex
from slimseek.collection import SearchSet
from slimseek.encoder import Encoder
from slimseek.errors import UsageError
from slimseek.evaluate import Quality
from slimseek.fingerprint import fingerprint
from slimseek.schema import Array, Gates, Model, ModelSpec, Precision, Recipe

METRIC = "recall@10"
"""In this mode: the share of the original's first ten results that are found again; no judgement is needed."""
DEPTH = 10
RANDOM_PROBE = "random:0"
"""What networks are told apart by that take no text."""
SAME_VECTOR = 0.999
SAME_ORIGINAL = 0.99999
"""Runtimes differ from each other by less, and a compressed model from its original by more."""
PROBE_TEXT = "The quick brown fox jumps over the lazy dog: 0123456789."
"""The text by whose vector it is told who made an index."""
NARROWS = "simplify.output_dim"


def original(
    encoder: Encoder, search_set: SearchSet, metrics: Sequence[str], *, known: Mapping[str, Array] | None = None
) -> Quality:
    """What the original finds, and what it is compared with: by ``recall@10`` it finds all of its own results.

    Args:
        encoder: the original.
        search_set: queries and documents.
        metrics: such as ``recall@10``.
        known: see :func:`slimseek.evaluate.quality`.
    """
    others = [name for name in metrics if name != METRIC]
    found = evaluate.quality(encoder, search_set, others, known=known)
    return _with_metric(found, search_set, found, metrics, "f32")


def quality(
    encoder: Encoder, search_set: SearchSet, original: Quality, metrics: Sequence[str], precision: Precision = "f32"
) -> Quality:
    """What a compressed query encoder finds among the vectors that the original gave.

    Args:
        encoder: encodes the queries.
        search_set: queries and documents.
        original: what the original found there, with its vectors of the documents.
        metrics: such as ``recall@10``, against the original; all others go by the set's judgements.
        precision: how the index keeps the original's vectors.

    Raises:
        UsageError: the encoder's vectors have another width, or it is a classifier.
    """
    others = [name for name in metrics if name != METRIC]
    found = evaluate.quality(encoder, search_set, others, precision=precision, documents=original.documents)
    return _with_metric(found, search_set, original, metrics, precision)


def judged(search_set: SearchSet, original: Quality, metric: str) -> SearchSet:
    """The set with the judgements that a metric goes by in this mode."""
    return evaluate.neighbours(search_set, original, DEPTH) if metric == METRIC else search_set


def probe_of(spec: ModelSpec) -> str:
    """The item by whose vector it is told who made an index."""
    return PROBE_TEXT if spec.preprocess is not None else RANDOM_PROBE


def check_probe(path: Path, encoder: Encoder, probe: Array) -> None:
    """Refuse a model of the same name whose weights are others, such as one that was compressed anew.

    Of a model that searches an original's index that original must have made it, whatever it was called then.

    Args:
        path: of the index, for the message.
        encoder: is to search it.
        probe: float32 [dim], the vector that the index holds of the encoder's probe.

    Raises:
        UsageError: it was made by another model.
    """
    kept = encoder.index_of
    vector = encoder.documents([probe_of(encoder.spec)])[0] if kept is None else np.array(kept.probe, np.float32)
    cosine = float(vector @ probe / np.linalg.norm(vector) / np.linalg.norm(probe))
    if kept is not None and not cosine >= SAME_ORIGINAL:
        raise UsageError(
            f"{path} was not made by {kept.model}, whose index {encoder.name} searches: cosine {cosine:.5f} for the "
            f"same text, where {SAME_ORIGINAL} is wanted; give an index that {kept.model} made"
        )
    if kept is None and not cosine >= SAME_VECTOR:
        raise UsageError(
            f"{path} holds other vectors than {encoder.name} gives now: cosine {cosine:.4f} for the same text, where "
            f"{SAME_VECTOR} is wanted; index again"
        )


def index_of(encoder: Encoder, model: Model) -> KeptIndex:
    """What tells an index of the original: the model with its encoder."""
    probe = encoder.documents([PROBE_TEXT])[0]
    return KeptIndex(model=encoder.name, fingerprint=fingerprint(model), probe=tuple(probe.tolist()))


def gates(given: Gates, named: str) -> Gates:
    """The gates of this mode: ``recall@10``, unless the user named a metric, or the recipe has one of its own."""
    if named or given.metric != Gates().metric:
        return given
    return Gates(metric=METRIC, max_loss=given.max_loss)


def check(original: Model, student: Model, recipe: Recipe, labelled: bool) -> None:
    """Refuse, before any work, what could not search an index of the original.

    Raises:
        UsageError: a classifier or a model that reads no text, a labelled collection, a step that narrows the vectors,
            a student of another width, or one that no step teaches the original's vectors.
    """
    if labelled or original.spec.output == "class_logits" or original.spec.modality != "text":
        raise UsageError("an index is kept for a search of texts; leave out --keep-index")
    if any(step.method == NARROWS for step in recipe.steps):
        raise UsageError(f"{NARROWS}: the index that is kept holds vectors of {original.spec.dim} dimensions; leave "
                         "the step out, or --keep-index")  # fmt: skip
    check_space(f"the student {recipe.student}", student.spec, original.spec)
    if recipe.student and not any(step.method.startswith("distil.") for step in recipe.steps):
        raise UsageError(f"the student {recipe.student} has vectors of its own, which no index of the original holds; "
                         "add a step distil.embedding, or leave out --keep-index")  # fmt: skip


def check_space(subject: str, spec: ModelSpec, original: ModelSpec) -> None:
    """Refuse vectors of another width, or of another length where the original's have length one.

    Raises:
        UsageError: with what the subject gives and what the index holds.
    """
    if spec.dim != original.dim:
        raise UsageError(f"{subject}: vectors of {spec.dim} dimensions cannot search the index that is kept, which "
                         f"holds {original.dim}; leave it out, or --keep-index")  # fmt: skip
    if spec.normalised != original.normalised:
        lengths = {True: "vectors of length one", False: "vectors of any length"}
        raise UsageError(f"{subject}: {lengths[spec.normalised]} cannot stand for the original's "
                         f"{lengths[original.normalised]} in the index that is kept; leave it out")  # fmt: skip


def _with_metric(
    found: Quality, search_set: SearchSet, original: Quality, metrics: Sequence[str], precision: Precision
) -> Quality:
    """What was found, measured by ``recall@10`` against the original too where that is among the metrics."""
    if METRIC not in metrics:
        return found
    again = evaluate.ranked(
        found.documents, found.queries, judged(search_set, original, METRIC), [METRIC], precision
    )  # fmt: skip
    measured = tuple(again.get(name) if name == METRIC else found.get(name) for name in metrics)
    return dataclasses.replace(found, measurements=measured)
