"""A table of token vectors takes a network's place: a text costs a look-up and a mean."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Literal

import numpy as np

from slimseek import choose, hollow, integers, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs.text import TOKENIZER
from slimseek.methods.distil._rotation import ridge, rotation, turned
from slimseek.methods.distil._step import DistillationStep
from slimseek.methods.distil._tokens import shares, token_vectors
from slimseek.models._text.files import largest_id, pad_id
from slimseek.models._text.static_files import TABLE, static_model
from slimseek.progress import say
from slimseek.schema import Array, Model, Samples
from slimseek.training.targets import HELD_OUT, examples, vectors_of
from slimseek.training.train import Training, fit, trained


class StaticDistillation(DistillationStep, frozen=True, kw_only=True):
    """Put a table of token vectors, with the model's own tokenizer, in the model's place.

    Every token goes through the teacher once (Tulkens and van Dongen, Model2Vec, 2024); frequent tokens weigh less
    (Arora et al., A Simple but Tough-to-Beat Baseline for Sentence Embeddings, 2017). The linear map that brings the
    means of such vectors nearest to the teacher's vectors of texts, turned and cut to ``dim``, makes the first table.
    It is trained then, as ``distil.embedding`` trains a network; the state with the least loss on held-out items is
    kept, the first one among them.

    Attributes:
        dim: width of the vectors; the teacher's where that is smaller.
        weight: a of the weight a / (a + p) of a token with the share p of the texts, above 0.
        loss: of the training: ``cosine`` to the teacher's vectors, or ``similarity``, of inner products in a batch.

    Whom it learns from, and on what, is told by :class:`slimseek.methods.distil._step.DistillationStep`.
    """

    dim: int = 256
    weight: float = 1e-3
    loss: Literal["cosine", "similarity"] = "cosine"
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim < 1:
            raise UsageError(f"distil.static: dim is {self.dim}; 1 or more is allowed")
        if not 0 < self.weight < float("inf"):
            raise UsageError(f"distil.static: weight is {self.weight}; above 0 is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Make the table and train it."""
        teacher = self._teacher_of(model, samples)
        for one, done in ((model, "replaced"), (teacher, "learned from")):
            integers.check_finite(one, done)
        settings = self._training()
        items = self._chosen(self._learned_on(model, samples), settings)
        found = vectors_of(teacher, settings.max_tokens, self.cache)(items)
        columns = rotation(found, min(self.dim, teacher.spec.dim))
        targets = dict(zip(items, turned(found, columns, normalised=True), strict=True))
        student = self._first(model.files[TOKENIZER], teacher, targets, columns)

        def target(chosen: Sequence[str]) -> Array:
            return np.stack([targets[item] for item in chosen])

        network = choose.family(student).trainable(student)
        fitted = fit(
            network, examples(student, items, target, settings), plugins.load("losses", self.loss)(), settings,
            label="table of token vectors",
        )  # fmt: skip
        say(f"table of token vectors: loss {fitted.before:.4f} as first made, {fitted.after:.4f} trained")
        return dataclasses.replace(student, tensors=trained(student, network))

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """The table, and what it came from."""
        rows, dim = after.tensors[TABLE].shape
        return (
            f"a table of {rows:,} tokens x {dim} in the place of {before.parameters:,} weights, trained for "
            f"{self.steps} steps of {self.batch_size} texts on vectors of {self._whose}",
        )

    def outline(self, model: Model, samples: Samples) -> Model:
        """A table with a row for each id of the tokenizer."""
        teacher, tokenizer = self._teacher_of(model, samples), model.files[TOKENIZER]
        shape = largest_id(tokenizer) + 1, min(self.dim, teacher.spec.dim)
        return static_model(hollow.array(shape, np.float32), tokenizer, {})

    def _teacher_of(self, model: Model, samples: Samples) -> Model:
        """Whom to learn from; refuses a model that is a table already, and those that take no texts."""
        if model.spec.family == "static":
            raise NoEffect("distil.static: the model is a table of token vectors already")
        teacher = self._teacher(samples) or model
        for one in (model, teacher):
            if one.spec.preprocess is None:
                raise UsageError(f"distil.static: a model of the family {one.spec.family} takes no texts")
        return teacher

    def _chosen(self, items: Sequence[str], settings: Training) -> list[str]:
        """Each item once, no more of them than the training can use."""
        found = [item for item in dict.fromkeys(items) if item]
        most = HELD_OUT + settings.steps * settings.batch_size
        return found if len(found) <= most else random.Random(settings.seed).sample(found, most)

    def _first(self, tokenizer: bytes, teacher: Model, targets: dict[str, Array], columns: Array) -> Model:
        """The table before any training.

        Means of weighted token vectors, at length one, are mapped to the targets; the map is the one that brings the
        teacher's vectors to their width, and what ridge regression adds to it.
        """
        items = list(targets)
        threads = plugins.require("torch").get_num_threads()
        wanted = np.stack(list(targets.values()))
        share = shares(tokenizer, items)
        weighted = token_vectors(teacher, tokenizer, threads) * (self.weight / (self.weight + share))[:, None]
        bags = choose.encoder(static_model(weighted, tokenizer, {}), "the first table", threads).documents(items)
        table = weighted @ (columns + ridge(bags, wanted - bags @ columns))
        # The row of padding is that of an empty text alone.
        empty = choose.encoder(teacher, "the teacher", threads).documents([""])
        table[pad_id({TOKENIZER: tokenizer})] = turned(empty, columns, normalised=True)[0]
        return static_model(table.astype(np.float32), tokenizer, {})
