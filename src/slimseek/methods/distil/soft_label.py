"""A classifier learns how likely its teacher finds each class, which says more than the right one alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from slimseek import choose, plugins
from slimseek.errors import UsageError
from slimseek.methods.distil._logits import with_logits
from slimseek.methods.distil._step import DistillationStep
from slimseek.schema import Array, Model, ModelSpec, Samples
from slimseek.training.targets import examples, vectors_of
from slimseek.training.train import fit, trained

Schedule = float | tuple[float, float]
"""A number, or the first and the last of those that lie on a line over the training."""


class SoftLabelDistillation(DistillationStep, frozen=True, kw_only=True):
    """Train a classifier: alpha * cross-entropy + (1 - alpha) * T^2 * KL(teacher || student) at the temperature T.

    Labels are those of the samples, where they have some; items without one learn from the teacher alone. Classes that
    have names are matched by them, whatever their order. The state with the least loss on held-out items, at the last
    temperature and alpha, is kept.

    Attributes:
        temperature: above 0; or [start, end] of a line over the training.
        alpha: share of the labels, 0 to 1; or [start, end]. 0 needs no labels.

    Whom it learns from, and on what, is told by :class:`slimseek.methods.distil._step.DistillationStep`.
    """

    temperature: Schedule = 4.0
    alpha: Schedule = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for value in _ends(self.temperature):
            if not 0 < value < float("inf"):
                raise UsageError(f"distil.soft_label: temperature is {value:g}; above 0 is allowed")
        for value in _ends(self.alpha):
            if not 0 <= value <= 1:
                raise UsageError(f"distil.soft_label: alpha is {value:g}; 0 to 1 is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Train all weights."""
        teacher = self._learns_from(model, samples)
        student, taught = with_logits(model), with_logits(teacher)
        classes = student.spec.dim
        if classes != taught.spec.dim:
            raise UsageError(f"distil.soft_label: the model has {classes} classes, its teacher {taught.spec.dim}")
        labels, order = self._labels(samples, student.spec), _order(student.spec, taught.spec)
        settings = self._training()
        logits = vectors_of(taught, settings.max_tokens, self.cache)
        soften = plugins.load("losses", "soft_label")(temperature=_ends(self.temperature), alpha=_ends(self.alpha))

        def target(items: Sequence[str]) -> dict[str, Array]:
            label = np.array([labels.get(item, -1) for item in items], np.int64)
            return {"teacher": logits(items)[:, order], "label": label}

        network = choose.family(student).trainable(student)
        found = examples(model, self._learned_on(model, samples), target, settings)
        self._check_fitted(fit(network, found, soften, settings, label="distillation of classes"))
        return dataclasses.replace(model, tensors=trained(model, network))

    def _labels(self, samples: Samples, spec: ModelSpec) -> dict[str, int]:
        """The model's output that stands for the class of each item that has one; none where alpha is 0."""
        if len(samples.labels) not in (0, len(samples.texts)):
            raise UsageError(f"distil.soft_label: {len(samples.labels)} labels for {len(samples.texts)} items")
        known = {text: label for text, label in zip(samples.texts, samples.labels or (), strict=False) if label >= 0}
        classes, whose = len(samples.classes) or spec.dim, "samples'" if samples.classes else "model's"
        wrong = next((label for label in known.values() if label >= classes), None)
        if wrong is not None:
            raise UsageError(f"distil.soft_label: a label is {wrong}; 0 to {classes - 1} are the {whose} classes")
        if not any(_ends(self.alpha)):
            return {}
        if not known:
            raise UsageError("distil.soft_label: alpha is above 0, and the items have no labels; 0 needs none")
        outputs = _outputs(samples.classes, spec)
        unknown = next((label for label in known.values() if label not in outputs), None)
        if unknown is not None:
            raise UsageError(
                f"distil.soft_label: items are labelled {samples.classes[unknown]!r}, a class that the model does not "
                f"know by name; alpha 0 needs no labels"
            )
        return {text: outputs[label] for text, label in known.items()}

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """What was trained, by how much data, at which temperature."""
        changed = sum(after.tensors[name] is not tensor for name, tensor in before.tensors.items())
        temperature, alpha = (" to ".join(f"{value:g}" for value in dict.fromkeys(_ends(one)))
                              for one in (self.temperature, self.alpha))  # fmt: skip
        return (
            f"{changed} of {len(before.tensors)} tensors trained for {self.steps} steps of {self.batch_size} items on "
            f"class logits of {self._whose}, temperature {temperature}, alpha {alpha}",
        )


def _outputs(classes: Sequence[str], spec: ModelSpec) -> dict[int, int]:
    """Label to the model's output of the same name; each label is its output where labels have no names."""
    if not classes:
        return {number: number for number in range(spec.dim)}
    own = {name: number for number, name in enumerate(spec.classes or ())}
    return {label: own[name] for label, name in enumerate(classes) if name in own}


def _order(student: ModelSpec, teacher: ModelSpec) -> list[int]:
    """The teacher's output for each of the student's, by the classes' names where both have some.

    Raises:
        UsageError: the teacher knows other classes.
    """
    own, other = student.classes or (), teacher.classes or ()
    if not own or not other:
        return list(range(student.dim))
    unknown = next((name for name in own if name not in other), None)
    if unknown is not None:
        raise UsageError(f"distil.soft_label: the model has the class {unknown!r}, which its teacher does not know")
    return [other.index(name) for name in own]


def _ends(schedule: Schedule) -> tuple[float, float]:
    return schedule if isinstance(schedule, tuple) else (schedule, schedule)
