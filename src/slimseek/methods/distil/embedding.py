"""A model that earlier steps made smaller is trained to give the vectors of a teacher: no labels are needed."""

from __future__ import annotations

from typing import Literal

from slimseek import integers, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.methods._training import TrainingStep, distilled
from slimseek.schema import Model, QuantizedTensor, Samples


class EmbeddingDistillation(TrainingStep, frozen=True, kw_only=True):
    """Train the float model so that its vectors match the teacher's on documents and on train and dev queries.

    Each model reads a text with its own tokenizer, so the vocabulary may have been cut before; items of other networks
    are arrays. The state with the least loss on held-out items is kept.

    Attributes:
        teacher: ``original``: the model as it was before the recipe's first step.
        loss: ``cosine``: 1 - cosine; ``mse``: mean squared difference of the vectors' elements.

    How it trains is told by the attributes of :class:`slimseek.methods._training.TrainingStep`.
    """

    teacher: Literal["original"] = "original"
    loss: Literal["cosine", "mse"] = "cosine"

    def apply(self, model: Model, samples: Samples) -> Model:
        """Train all weights."""
        teacher = samples.original
        if teacher is None:
            raise UsageError(
                "distil.embedding: no original is given; run the step in a recipe, or with Samples.original"
            )
        if teacher is model:
            raise NoEffect("distil.embedding: the model is still the original, its own teacher; shrink it before")
        if any(isinstance(tensor, QuantizedTensor) for tensor in model.tensors.values()):
            raise UsageError("distil.embedding: the model is quantized; distil before quantizing")
        if model.activations or model.smoothing:
            raise UsageError("distil.embedding: the model is smoothed or rounds its inputs; distil before that")
        if model.spec.dim != teacher.spec.dim:
            raise UsageError(
                f"distil.embedding: the model's vectors have {model.spec.dim} elements, its teacher's "
                f"{teacher.spec.dim}; they must be alike"
            )
        integers.check_finite(model, "trained")
        integers.check_finite(teacher, "learned from")
        settings, items = self._training(), self._items(samples.texts)
        changed, fitted = distilled(
            model, teacher, items, settings, plugins.load("losses", self.loss)(), "distillation"
        )
        if fitted.after >= fitted.before:
            raise NoEffect(
                f"distil.embedding: {self.steps} steps at the learning rate {self.learning_rate:g} did not lower the "
                f"loss of {fitted.before:.4g} on held-out items"
            )
        return changed

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """What was trained, and by how much data."""
        changed = sum(after.tensors[name] is not tensor for name, tensor in before.tensors.items())
        return (
            f"{changed} of {len(before.tensors)} tensors trained for {self.steps} steps of {self.batch_size} texts on "
            f"the original model's vectors",
        )
