"""What steps that train a model have in common: their parameters, which models they refuse, what they write back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from slimseek import choose
from slimseek.bases import Step
from slimseek.errors import UsageError
from slimseek.inputs.unlabelled import SENTENCE
from slimseek.schema import Model
from slimseek.training.targets import taught
from slimseek.training.train import Fitted, Loss, Training, fit, trained


class TrainingStep(Step, frozen=True, kw_only=True):
    """Base of the steps that train.

    Attributes:
        steps: batches to train on.
        batch_size: items in a batch: texts, or arrays.
        max_tokens: longer texts are cut for training.
        learning_rate: highest of AdamW's, after a warm-up over a tenth of the steps; it falls to zero in a cosine.
        checkpoint: a file that the training saves itself to at every check and goes on from; empty for none.
        seed: of the choice and the order of items.
        sentences: train on each sentence of the texts too: short texts as queries are, without any query at hand.
        cache: the folder that keeps the teacher's vectors; empty for one in the user's folder of caches.
    """

    trains: ClassVar[bool] = True

    steps: int = 300
    batch_size: int = 16
    max_tokens: int = 128
    learning_rate: float = 1e-4
    checkpoint: str = ""
    seed: int = 0
    sentences: bool = False
    cache: str = ""

    def __post_init__(self) -> None:
        """The limits of :class:`slimseek.training.train.Training`, named after the method."""
        try:
            self._training()
        except UsageError as error:
            raise UsageError(f"{type(self).__module__.removeprefix('slimseek.methods.')}: {error}") from None

    @property
    def asks_teacher(self) -> bool:
        """Most learn from a teacher's vectors."""
        return True

    def _training(self) -> Training:
        return Training(
            steps=self.steps, batch_size=self.batch_size, max_tokens=self.max_tokens, seed=self.seed,
            learning_rate=self.learning_rate, checkpoint=self.checkpoint,
        )  # fmt: skip

    def _items(self, texts: Sequence[str]) -> list[str]:
        """What to train on."""
        parts = [part for text in texts for part in SENTENCE.split(text)] if self.sentences else []
        return [*texts, *parts]


def distilled(
    model: Model, teacher: Model, items: Sequence[str], settings: Training, loss: Loss, label: str
) -> tuple[Model, Fitted]:
    """A float model trained to give a teacher's vectors, and what that did to the loss on held-out items.

    Args:
        model: float, neither smoothed nor rounded; a UsageError of its family says what cannot be trained.
        teacher: gives vectors of the same width.
        items: texts, or paths of arrays.
        settings: how to train.
        loss: of the model's vectors and the teacher's.
        label: for the progress bar.
    """
    network = choose.family(model).trainable(model)
    learner, found, of_learner = taught(network, model, teacher, items, settings, loss)
    fitted = fit(learner, found, of_learner, settings, label=label)
    return dataclasses.replace(model, tensors=trained(model, network)), fitted
