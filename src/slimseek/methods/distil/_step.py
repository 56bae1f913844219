"""What all distillations have in common: who teaches, and on which items."""

from __future__ import annotations

from slimseek import choose, integers
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs import unlabelled
from slimseek.methods._training import TrainingStep
from slimseek.schema import Model, QuantizedTensor, Samples
from slimseek.training.train import Fitted

ORIGINAL = "original"


class DistillationStep(TrainingStep, frozen=True, kw_only=True):
    """Base of the steps in which a model learns from another.

    Attributes:
        teacher: ``original``: the model as it was before the recipe's first step; or any MODEL, by name or path.
        texts: a file or folder of further texts to learn from: ``.txt`` with one a line, ``.jsonl`` with ``text``.
        queries: where there are no queries, the first sentence of each text and its first eight words stand for them.

    How it trains is told by the attributes of :class:`slimseek.methods._training.TrainingStep`.
    """

    teacher: str = ORIGINAL
    texts: str = ""
    queries: bool = True

    @property
    def _method(self) -> str:
        return type(self).__module__.removeprefix("slimseek.methods.")

    @property
    def _whose(self) -> str:
        """The teacher in words."""
        return "the original model" if self.teacher == ORIGINAL else self.teacher

    def _learns_from(self, model: Model, samples: Samples) -> Model:
        """The teacher of a model that shall be trained. Refuses one that is no float model, or teaches itself."""
        teacher = self._teacher(samples)
        if teacher is None:
            raise UsageError(
                f"{self._method}: no original is given; run the step in a recipe, or with Samples.original"
            )
        if teacher is model:
            raise NoEffect(f"{self._method}: the model is still the original, its own teacher; shrink it before")
        if any(isinstance(tensor, QuantizedTensor) for tensor in model.tensors.values()):
            raise UsageError(f"{self._method}: the model is quantized; distil before quantizing")
        if model.activations or model.smoothing:
            raise UsageError(f"{self._method}: the model is smoothed or rounds its inputs; distil before that")
        integers.check_finite(model, "trained")
        integers.check_finite(teacher, "learned from")
        return teacher

    def _teacher(self, samples: Samples) -> Model | None:
        return samples.original if self.teacher == ORIGINAL else choose.model(self.teacher)

    def _learned_on(self, model: Model, samples: Samples) -> list[str]:
        """Items: the collection's, further texts, and what stands for queries where there are none."""
        items = [*samples.texts, *(unlabelled.read(self.texts) if self.texts else [])]
        made = self.queries and not samples.queries and model.spec.preprocess is not None
        return [*self._items(items), *(unlabelled.openings(items) if made else [])]

    def _check_fitted(self, fitted: Fitted) -> None:
        """Refuse a training that did not help."""
        if not fitted.after < fitted.before:
            raise NoEffect(
                f"{self._method}: {self.steps} steps at the learning rate {self.learning_rate:g} did not lower the "
                f"loss of {fitted.before:.4g} on held-out items"
            )
