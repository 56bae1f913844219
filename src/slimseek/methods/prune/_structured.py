"""What steps that remove channels or heads have in common: how many, which, and in what order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import msgspec
import numpy as np

from slimseek import hollow, plugins
from slimseek.bases import Step
from slimseek.choose import encoder
from slimseek.errors import NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.importance._evidence import Evidence
from slimseek.inputs.batches import spread
from slimseek.inputs.samples import examples
from slimseek.methods._training import distilled
from slimseek.methods.prune._alone import SingleLayer
from slimseek.methods.prune._cost import COSTS, Cost
from slimseek.methods.prune._forward import pruned
from slimseek.methods.prune._selection import STRATEGIES, Limits, Ranking, least_level
from slimseek.methods.prune._structure import Structure, structure, without
from slimseek.methods.prune._units import UnitGroup
from slimseek.progress import track
from slimseek.schema import Array, Model, Samples
from slimseek.timing import default_threads
from slimseek.training.train import Training

COMPARED = 64
SHARES = (1.0, 0.5, 0.25)
NAMED = 8


class StructuredPruning(Step, frozen=True, kw_only=True):
    """Base of the steps that remove units.

    The outline leaves out as many units of each layer, whichever they are: with ``of: units`` and one share for every
    layer that is exact. Else it is an estimate; of ``latency`` and ``backward`` nothing is told without measuring, so
    that the model stays as it is.

    Attributes:
        amount: share to remove of what ``of`` names, 0 to below 1.
        of: ``units``: that share of the units that may go, what is left rounded up; ``parameters``, ``macs``: of the
            whole model's; ``latency``: of the time of one item in ONNX Runtime on this machine.
        strategy: ``per_layer``: the same share of each layer; ``importance``: the least important of all layers;
            ``backward``: as ``per_layer``, layer by layer from the last to the first, where a layer keeps more when
            the vectors would move too far.
        importance: a measure of the folder ``importance``, such as ``l2``.
        least: share of each layer's units that stay in any case, 0 to 1.
        max_loss: how far ``backward`` may move the vectors in a round: mean 1 - cosine on calibration items.
        rounds: steps to the amount, each of which removes the same share of what is left.
        recovery: how to train after each round, on the original's vectors of all texts; ``None`` for not at all.
        seed: of random choices.
        skip: layers with a tensor whose name contains one of these stay whole.
    """

    bounds: ClassVar[bool] = True

    amount: float = 0.5
    of: Literal["units", "parameters", "macs", "latency"] = "units"
    strategy: Literal["per_layer", "importance", "backward"] = "per_layer"
    importance: str = "l2"
    least: float = 0.1
    max_loss: float = 0.05
    rounds: int = 1
    recovery: Training | None = None
    seed: int = 0
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        name = self._name()
        if not 0 <= self.amount < 1:
            raise UsageError(f"{name}: amount is {self.amount}; 0 to below 1 is allowed")
        if not 0 <= self.least <= 1:
            raise UsageError(f"{name}: least is {self.least}; 0 to 1 is allowed")
        if not 0 < self.max_loss <= 2:
            raise UsageError(f"{name}: max_loss is {self.max_loss}; above 0 and up to 2 is allowed")
        if self.rounds < 1:
            raise UsageError(f"{name}: rounds is {self.rounds}; 1 or more is allowed")
        if self.importance not in plugins.names("importance"):
            known = ", ".join(plugins.names("importance"))
            raise UsageError(f"{name}: importance is {self.importance!r}; known: {known}")
        if not all(self.skip):
            raise UsageError(
                f"{name}: skip holds an empty name, which every layer's contains; parts of names are allowed"
            )

    @abstractmethod
    def _groups(self, whole: Structure) -> tuple[UnitGroup, ...]:
        """The groups that this step takes units of."""

    @property
    def _multiple(self) -> int:
        """What the widths that are left are multiples of."""
        return 1

    @property
    def asks_teacher(self) -> bool:
        """What is trained after each round learns from the original."""
        return self.recovery is not None

    def apply(self, model: Model, samples: Samples) -> Model:
        """In each round choose units, remove them, check the result at three shapes, and train it if asked to."""
        name = self._name()
        if not self.amount:
            raise NoEffect(f"{name}: amount is 0")
        changed, left = model, 1.0
        for number in range(1, self.rounds + 1):
            goal = (1 - self.amount) ** (number / self.rounds)
            found, share = self._round(changed, samples, goal / left)
            if found is not changed and self.recovery is not None:
                found = self._recovered(found, samples.original or model, samples, number)
            changed, left = found, left * share
        if changed is model:
            raise NoEffect(f"{name}: no unit can go with amount {self.amount:g} and the widths that must stay")
        return changed

    def outline(self, model: Model, samples: Samples) -> Model:
        """As many units leave, those that come first; nothing is run, so that no layer is rolled back."""
        if not self.amount:
            raise NoEffect(f"{self._name()}: amount is 0")
        if self.of == "latency" or self.strategy == "backward":
            return model
        changed, left = model, 1.0
        for number in range(1, self.rounds + 1):
            goal = (1 - self.amount) ** (number / self.rounds)
            whole, groups = self._opened(changed)
            cost, scores = COSTS[self.of](whole, groups), np.zeros(len(whole.found.parameters))
            chosen = self._chosen(STRATEGIES["per_layer"](groups, scores, self._limits), cost, goal / left)
            changed, left = without(whole, chosen), left * cost(chosen)
        if changed is model:
            raise NoEffect(f"{self._name()}: no unit can go with amount {self.amount:g} and the widths that must stay")
        return hollow.model(changed, model)

    def layers(self, model: Model, samples: Samples) -> tuple[SingleLayer, ...]:
        """The layers that this step would take units of, each to be shrunk while all others stay whole.

        Raises:
            UsageError: as for :meth:`apply`; NoEffect where there is no such layer.
        """
        whole, groups = self._opened(model)
        scores = self._scores(whole, groups, samples)
        return tuple(SingleLayer(whole, group, _ordered(group, scores), self._limits, samples) for group in groups)

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """Widths before and after, and what was left alone."""
        whole = structure(before)
        widths = {}
        for group in self._spared(self._groups(whole)):
            (name, axis), line = next(found for found in whole.places.items() if group.units[0] in found[1])
            times = int((line == group.units[0]).sum())
            left = after.tensors[name].shape[axis] if name in after.tensors else 0
            widths[name] = f"{name} {len(line) // times} -> {left // times}"
        lines = ["; ".join(widths.values())]
        if whole.found.skipped:
            lines.append(f"left alone, since it is not known how they could shrink: {', '.join(whole.found.skipped)}")
        return tuple(lines)

    def _opened(self, model: Model) -> tuple[Structure, tuple[UnitGroup, ...]]:
        """The model's units, and the groups that may lose some."""
        try:
            whole = structure(model)
        except UsageError as error:
            raise UsageError(f"{self._name()}: {error}") from None
        groups = self._groups(whole)
        if not groups:
            raise NoEffect(f"{self._name()}: {_nothing(whole)}")
        unknown = next((part for part in self.skip if not any(_contains(group, part) for group in groups)), None)
        if unknown is not None:
            names = ", ".join(group.name for group in groups[:NAMED]) + (", ..." if len(groups) > NAMED else "")
            raise UsageError(f"{self._name()}: skip is {unknown!r}, which no layer's name contains; there are {names}")
        left = self._spared(groups)
        if not left:
            raise NoEffect(f"{self._name()}: skip leaves none of {len(groups)} layers to take units of")
        return whole, left

    def _spared(self, groups: Sequence[UnitGroup]) -> tuple[UnitGroup, ...]:
        return tuple(group for group in groups if not any(_contains(group, part) for part in self.skip))

    def _name(self) -> str:
        return type(self).__module__.removeprefix("slimseek.methods.")

    def _round(self, model: Model, samples: Samples, most: float) -> tuple[Model, float]:
        """The model with at most a share of what it cost, and the share that it costs."""
        whole, groups = self._opened(model)
        cost = COSTS[self.of](whole, groups)
        scores = self._scores(whole, groups, samples)
        chosen = self._chosen(STRATEGIES[self.strategy](groups, scores, self._limits), cost, most)
        if self.strategy == "backward":
            chosen = self._backward(whole, groups, scores, chosen, samples)
        if not chosen:
            return model, 1.0
        result = pruned(whole, chosen, groups, samples)
        if not result.chosen:
            layer, reason = next(iter(result.refused.items()))
            raise UsageError(f"{self._name()}: nothing can leave this model; {layer}: {reason}")
        return result.model, cost(result.chosen)

    def _recovered(self, model: Model, teacher: Model, samples: Samples, number: int) -> Model:
        """Trained on the teacher's vectors; as it was where that lowers no loss."""
        assert self.recovery is not None
        settings = self.recovery
        if settings.checkpoint:
            settings = msgspec.structs.replace(settings, checkpoint=f"{settings.checkpoint}.{number}")
        label = f"recovery, round {number} of {self.rounds}"
        return distilled(model, teacher, samples.texts, settings, plugins.load("losses", "cosine")(), label)[0]

    def _scores(self, whole: Structure, groups: tuple[UnitGroup, ...], samples: Samples) -> Array:
        measure = plugins.load("importance", self.importance)()
        evidence = Evidence(
            model=whole.model, samples=samples, places=whole.places, count=len(whole.found.parameters),
            groups=tuple(group.units for group in groups), seed=self.seed,
        )  # fmt: skip
        return measure.scores(evidence)

    @property
    def _limits(self) -> Limits:
        return Limits(least=self.least, multiple_of=self._multiple)

    def _chosen(self, ranking: Ranking, cost: Cost, most: float) -> frozenset[int]:
        if self.of == "units":
            return ranking(1 - most)
        found = least_level(ranking, cost, most)
        if found is None:
            raise UsageError(
                f"{self._name()}: amount is {self.amount:g} of {self.of}, and at most {1 - cost(ranking(1.0)):.2f} can "
                f"be removed with least {self.least:g}; ask for less, or allow a smaller least"
            )
        return found

    def _backward(
        self, whole: Structure, groups: tuple[UnitGroup, ...], scores: Array, chosen: frozenset[int], samples: Samples
    ) -> frozenset[int]:
        """As many of the chosen units as the vectors allow, the last layer first; the allowance grows evenly."""
        items = spread(samples.calibration or examples(whole.model.spec), COMPARED)
        threads = default_threads()
        original = encoder(whole.model, "the original", threads).documents(items)
        kept: frozenset[int] = frozenset()
        with track(f"{self._name()}: layers", len(groups)) as advance:
            for number, group in enumerate(reversed(groups), 1):
                part = [unit for unit in _ordered(group, scores).tolist() if unit in chosen]
                for share in SHARES:
                    count = min(len(part), self._limits.removable(group, share * len(part) / len(group.units)))
                    tried = kept | frozenset(part[:count])
                    if tried == kept:
                        break
                    vectors = encoder(without(whole, tried), group.name, threads).documents(items)
                    if float((1 - cosines(original, vectors)).mean()) <= self.max_loss * number / len(groups):
                        kept = tried
                        break
                advance(1)
        return kept


def _ordered(group: UnitGroup, scores: Array) -> Array:
    """The units of a group, the least important first."""
    order: Array = group.units[np.argsort(scores[group.units], kind="stable")]
    return order


def _contains(group: UnitGroup, part: str) -> bool:
    return any(part in name for name, _ in group.places)


def _nothing(whole: Structure) -> str:
    """Why no unit of this kind can go."""
    reasons = sorted(set(whole.found.stays.values()))[:3]
    skipped = f"; not known how they could shrink: {', '.join(whole.found.skipped)}" if whole.found.skipped else ""
    return f"the model has nothing of this kind that may leave it ({'; '.join(reasons) or 'no weights'}){skipped}"
