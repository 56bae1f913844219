"""What to train for, and on what: the settings of a fine-tuning, and the task that a collection gives by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from slimseek.errors import UsageError
from slimseek.schema import Model
from slimseek.training.examples import Examples
from slimseek.training.train import Loss, Training
from slimseek.value import Value

LOSSES = ("contrastive", "cross_entropy", "ctc", "margin_mse", "normalised_softmax", "transcript")


class Settings(Value, frozen=True):
    """How to fine-tune.

    Attributes:
        loss: ``contrastive`` or ``margin_mse`` for a collection to search; for a labelled one ``cross_entropy``, which
            makes a classifier, or ``normalised_softmax``, which makes vectors by which items of a class find each
            other; ``ctc`` for a recogniser that gives a token for each frame, ``transcript`` for one with a decoder;
            empty for the first that fits, of pictures the latter.
        teacher: the MODEL whose margins ``margin_mse`` learns.
        hard_negatives: passages for each query that the model takes for relevant and that are not judged so.
        temperature: of ``contrastive``; 1 is taken for models whose vectors are not of length one.
        metric: what the best state is kept by; empty for nDCG@10, or accuracy.
        max_documents: of the collection, from which hard negatives are taken, all judged ones among them.
        training: steps, rate, seed, views of pictures.
    """

    loss: str = ""
    teacher: str = ""
    hard_negatives: int = 1
    temperature: float = 0.05
    metric: str = ""
    max_documents: int = 20_000
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
