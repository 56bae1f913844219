"""A model that earlier steps made smaller is trained to give the vectors of a teacher: no labels are needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from slimseek import choose, plugins
from slimseek.errors import UsageError
from slimseek.methods.distil._rotation import rotation, towards, turned
from slimseek.methods.distil._step import DistillationStep
from slimseek.schema import Array, Model, Samples
from slimseek.training.targets import examples, vectors_of
from slimseek.training.train import fit, trained

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

    Whom it learns from, and on what, is told by :class:`slimseek.methods.distil._step.DistillationStep`.
    """

    loss: Literal["cosine", "mse", "similarity"] = "cosine"
    projection: Literal["none", "pca", "learned"] = "none"

    def apply(self, model: Model, samples: Samples) -> Model:
        """Train all weights."""
        teacher = self._learns_from(model, samples)
        self._check_widths(model, teacher)
        network = choose.family(model).trainable(model)
        settings = self._training()
        vectors = vectors_of(teacher, settings.max_tokens, self.cache)

        def target(items: Sequence[str]) -> Array:
            found = vectors(items)
            if self.projection != "pca":
                return found
            cut = turned(found, rotation(found, model.spec.dim), model.spec.normalised)
            return cut @ towards(cut[:TURNED_BY], vectors_of(model, settings.max_tokens, self.cache)(items[:TURNED_BY]))

        found = examples(model, self._learned_on(model, samples), target, settings)
        learner = network
        if self.projection == "learned":
            learner = plugins.require("slimseek.methods.distil._projected").projected(network, found)
        fitted = fit(learner, found, plugins.load("losses", self.loss)(), settings, label="distillation")
        self._check_fitted(fitted)
        return dataclasses.replace(model, tensors=trained(model, network))

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
