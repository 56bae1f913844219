"""A student learns what its teacher's layers give for every token, and not the vector alone."""

from __future__ import annotations

import dataclasses
from typing import Any

from slimseek import choose, plugins
from slimseek.errors import UsageError
from slimseek.methods.distil._layers import layer_map, shared_tokens
from slimseek.methods.distil._step import DistillationStep
from slimseek.schema import Model, Samples
from slimseek.training.targets import examples, nothing
from slimseek.training.train import fit, trained


class HiddenDistillation(DistillationStep, frozen=True, kw_only=True):
    """Train a transformer so that its blocks' outputs, and its vector, match those of a teacher's blocks.

    Both must read a text as the same tokens; their ids may differ, as after ``simplify.vocabulary``. States of padding
    count for nothing. Where widths differ a linear map behind the student's states is trained with it and thrown away.
    The teacher runs in every step, without gradients: to keep its states would take its width in floats for each token
    and layer.

    Attributes:
        layers: the teacher's block for each of the student's that learns from one, numbered from 0, such as
            ``{0: 1, 1: 3}``; ``None`` for the blocks that the student kept of the teacher (``prune.layers``), else for
            blocks evenly spread, the last from the last.
        hidden: weight of the mean squared difference of states.
        attention: weight of the divergence of attention, for which the numbers of heads must agree.
        embedding: weight of 1 - cosine of the vectors.

    Whom it learns from, and on what, is told by :class:`slimseek.methods.distil._step.DistillationStep`.
    """

    layers: dict[int, int] | None = None
    hidden: float = 1.0
    attention: float = 0.0
    embedding: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = {"hidden": self.hidden, "attention": self.attention, "embedding": self.embedding}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise UsageError(f"distil.hidden: {name} is {weight}; 0 or more is allowed")
        if self.cache:
            raise UsageError(f"distil.hidden: cache is {self.cache!r}, and states are not kept; leave it out")
        if not any(weights.values()):
            raise UsageError("distil.hidden: hidden, attention and embedding are 0; one of them must be above 0")

    @property
    def asks_teacher(self) -> bool:
        """The teacher runs beside the student."""
        return False

    def apply(self, model: Model, samples: Samples) -> Model:
        """Train all weights."""
        for one in (model, *filter(None, [self._teacher(samples)])):
            if one.spec.family != "transformer":
                raise UsageError(
                    f"distil.hidden: layers are known of the family transformer; one model is of {one.spec.family}"
                )
        teacher = self._learns_from(model, samples)
        settings, items = self._training(), self._learned_on(model, samples)
        cut, ids = shared_tokens(model, teacher, items, settings.max_tokens)
        pairs = plugins.require("slimseek.methods.distil._pair")
        networks = [choose.family(one).trainable(one) for one in (model, teacher)]
        depths = pairs.depth(networks[0]), pairs.depth(networks[1])
        layers = layer_map(model, teacher, depths, self.layers)
        pair = pairs.Pair(*networks, layers, plugins.require("torch").from_numpy(ids), attention=self.attention > 0)

        def loss(output: Any, target: Any, progress: float) -> Any:
            return pairs.pair_loss(output, self.hidden, self.attention, self.embedding)

        found = examples(cut, items, nothing, settings)
        pair.fit_projections_(found)
        self._check_fitted(fit(pair, found, loss, settings, label="distillation of layers"))
        said = ", ".join(f"{place} <- {source}" for place, source in layers.items())
        return dataclasses.replace(model, tensors=trained(model, networks[0]), said=(said,))

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """What was trained, by how much data, and which block learned from which."""
        changed = sum(after.tensors[name] is not tensor for name, tensor in before.tensors.items())
        return (
            f"{changed} of {len(before.tensors)} tensors trained for {self.steps} steps of {self.batch_size} texts on "
            f"states of {self._whose}",
            f"blocks (student <- teacher): {', '.join(after.said)}",
        )
