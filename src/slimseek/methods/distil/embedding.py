"""A model that earlier steps made smaller is trained to give the vectors of a teacher: no labels are needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from slimseek import choose, plugins
from slimseek.errors import UsageError
from slimseek.methods.distil._rotation import rotation, towards, turned
from slimseek.methods.distil._step import DistillationStep
from slimseek.schema import Array, Model, Samples
from slimseek.training.examples import Examples
from slimseek.training.targets import examples, taught, vectors_of
from slimseek.training.train import Loss, Training, fit, trained

if TYPE_CHECKING:
    from torch import nn

TURNED_BY = 4096
"""Items by whose vectors the teacher's space is turned towards the student's."""


class EmbeddingDistillation(DistillationStep, frozen=True, kw_only=True):
    """Train the float model so that its vectors match the teacher's on documents and on train and dev queries.

    Each model reads a text with its own tokenizer, so the vocabulary may have been cut before, and the teacher may be
    of another kind; items of other networks are arrays. The state with the least loss on held-out items is kept.

    Attributes:
        loss: ``cosine``: 1 - cosine; ``mse``: mean squared difference of the vectors' elements; ``similarity``: mean
            squared difference of the inner products in a batch, for which the widths may differ.
        projection: of a teacher whose space is another. ``none``: refuse one of another width; ``pca``: its vectors are
            cut to the student's width, inner products kept as far as they can be, and turned towards the student's
            own; ``learned``: a linear map behind the student is trained with it and thrown away, so that the student's
            own inner products are bound to nothing.
        views: side in pixels of random views of pictures, blended by two, of each of which the teacher is asked as
            well; 0 for the pictures as they are. For long trainings on few pictures.

    Whom it learns from, and on what, is told by :class:`slimseek.methods.distil._step.DistillationStep`.
    """

    loss: Literal["cosine", "mse", "similarity"] = "cosine"
    projection: Literal["none", "pca", "learned"] = "none"
    views: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views and self.projection == "learned":
            raise UsageError(f"distil.embedding: views is {self.views}, and projection is learned; none or pca is "
                             f"allowed")  # fmt: skip

    def apply(self, model: Model, samples: Samples) -> Model:
        """Train all weights."""
        teacher = self._learns_from(model, samples)
        self._check_widths(model, teacher)
        network = choose.family(model).trainable(model)
        settings, items = self._training(), self._learned_on(model, samples)
        learner, found, loss = self._lessons(network, model, teacher, items, settings)
        self._check_fitted(fit(learner, found, loss, settings, label="distillation"))
        return dataclasses.replace(model, tensors=trained(model, network))

    def _lessons(
        self, network: nn.Module, model: Model, teacher: Model, items: Sequence[str], settings: Training
    ) -> tuple[nn.Module, Examples, Loss]:
        """What is trained, by which batches, and the loss."""
        loss, vectors = plugins.load("losses", self.loss)(), vectors_of(teacher, settings.max_tokens, self.cache)
        if self.projection == "none":
            return taught(network, model, teacher, items, settings, loss, cache=self.cache)
        if self.views:
            columns = self._columns(model, vectors(items), items, settings)
            return taught(network, model, teacher, items, settings, loss, columns=columns)

        def target(chosen: Sequence[str]) -> Array:
            known = vectors(chosen)
            if self.projection == "learned":
                return known
            return turned(known, self._columns(model, known, chosen, settings), model.spec.normalised)

        found = examples(model, items, target, settings)
        if self.projection == "pca":
            return network, found, loss
        return plugins.require("slimseek.methods.distil._projected").projected(network, found), found, loss

    def _columns(self, model: Model, known: Array, items: Sequence[str], settings: Training) -> Array:
        """What brings the teacher's vectors of some items to the model's width and near to its own vectors."""
        columns = rotation(known, model.spec.dim)
        cut = turned(known[:TURNED_BY], columns, model.spec.normalised)
        own = vectors_of(model, settings.max_tokens, self.cache)(items[:TURNED_BY])
        return np.asarray(columns @ towards(cut, own), np.float32)

    def _training(self) -> Training:
        return msgspec.structs.replace(super()._training(), views=self.views)

    def _check_widths(self, model: Model, teacher: Model) -> None:
        student, taught = model.spec.dim, teacher.spec.dim
        if student == taught and self.projection == "learned":
            raise UsageError(
                f"distil.embedding: projection is learned, and both models' vectors have {student} elements; none or "
                f"pca is allowed"
            )
        if student != taught and self.projection == "none" and self.loss != "similarity":
            raise UsageError(
                f"distil.embedding: the model's vectors have {student} elements, its teacher's {taught}; projection "
                f"pca or learned, or the loss similarity, is allowed"
            )

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """What was trained, by how much data, and on whose vectors."""
        changed = sum(after.tensors[name] is not tensor for name, tensor in before.tensors.items())
        projected = "" if self.projection == "none" else f", projection {self.projection}"
        return (
            f"{changed} of {len(before.tensors)} tensors trained for {self.steps} steps of {self.batch_size} texts on "
            f"vectors of {self._whose}, loss {self.loss}{projected}",
        )
