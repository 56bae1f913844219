"""Which plans a search under a budget tries: first guesses by rules, then those of a sampler that learns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimseek import plugins
from slimseek.budget.plans import completed, index_size, key, plan, rescore_size
from slimseek.budget.space import Space
from slimseek.errors import UsageError
from slimseek.trial import COSTS, Budget, Figures, Plan, Reached, Trial

SizeOf = Callable[[Plan], int | None]
"""Predicted bytes of a plan's package, before anything is built; ``None`` where they cannot be told."""
ATTEMPTS, RANDOM_ATTEMPTS = 100, 1000
"""What one call of :meth:`Sampler.ask` looks at: proposals that were learned, then random ones."""
ENUMERATED = 4096
"""Combinations of values up to which all of them are looked at in the place of random ones."""
LARGE_TABLE = 0.2
"""Share of the bytes from which a token table is worth its own choices."""
LIKE_SIZES = 1.1
"""Ratio of sizes from which on plans stand for two levels of compression."""
USUAL_EFFORT = 1000
INDEXES = (
    ("f32", 0), ("f16", 0), ("int8", 0), ("int8", 1), ("int8", 2), ("int8", 3), ("binary", 0), ("binary", 2),
    ("binary", 3),
)  # fmt: skip
"""Precisions of the index with the place of the vectors' length among those that can be chosen, from mild to strong."""
STARTUP = 20
"""Trials before the sampler learns; until then neighbours of the best so far are tried. Under tight limits they found
82 % of the volume under the front in 15 trials, where random plans found 57 % (900 plans, 5 seeds). With ten, first
guesses alone would be all that the sampler learns from."""
ORDER: tuple[Reached, ...] = ("size", "part", "whole")


# ---------------------------------------------------------------- first guesses


def first_guesses(space: Space, budget: Budget, size_of: SizeOf) -> list[Plan]:
    """The strongest simple plans at every level of compression that this model can take, sixteen at most.

    Plans whose predicted size, or whose index, is too large are left out; where that is all of them, the smallest is
    given alone. The largest that fits comes first, which loses least; of those of like size one, then those that train,
    and then the others of like size, so that a short search has seen every level. Where nothing tells the size, all
    that train nothing go before those that do.

    Args:
        space: what can be chosen.
        budget: what is asked.
        size_of: predicts sizes.
    """
    plans: dict[bytes, Plan] = {}
    for choices in _candidates(space):
        found = plan(space, {**choices, **_index(space, budget, choices, size_of)})
        if found.choices:
            plans.setdefault(key(found), found)
    sizes = {name: size_of(found) for name, found in plans.items()}
    fits = [name for name, found in plans.items() if not _excess(space, budget, found, sizes[name])]
    if not fits:
        return [plans[name] for name in sorted(plans, key=lambda name: sizes[name] or math.inf)[:1]]
    trains = {name for name in fits if plans[name].choices.keys() & {"teach", "network"}}
    again = _like_another([name for name in fits if name not in trains], sizes)
    order = sorted(fits, key=lambda name: (name in again, name in trains, -(sizes[name] or 0)))
    return [plans[name] for name in order]


def _like_another(names: Sequence[bytes], sizes: Mapping[bytes, int | None]) -> set[bytes]:
    """Of plans in the order of their worth, those about as large as one before them; none of unknown size."""
    heads: list[int] = []
    found = set()
    for name in names:
        size = sizes[name]
        if size and any(max(size, head) < LIKE_SIZES * min(size, head) for head in heads):
            found.add(name)
        elif size:
            heads.append(size)
    return found


def _candidates(space: Space) -> list[dict[str, Any]]:
    """Choices from mild to strong; of each, those that the space does not have are left out."""
    ways = space.values.get("activations", ("float",))
    static, by_row = ("static" if "static" in ways else "float"), ("dynamic" if "dynamic" in ways else ways[-1])
    # MiniLM on xquad_en keeps all in fp16, 100.2 % in int8, which is the fastest, 100.1 % in int8-dynamic and 99.5 %
    # in int4; at 4 bits fixed ranges of inputs are the faster ones in OpenVINO (docs/distillation.md). In the bytes of
    # int4, bits by layer halve the error (docs/methods/quantize.mixed.md).
    found: list[dict[str, Any]] = [
        *_heard(space, by_row),
        {"bits": 16},
        {"bits": 8, "activations": static},
        {"bits": 8, "activations": by_row},
        {"bits": 4, "activations": static},
        {"bits": 4, "activations": by_row},
        {"bits": 4, "activations": by_row, "allocation": "mixed"},
    ]
    if space.table_share >= LARGE_TABLE:
        # Where the token table is a large part of the bytes, tokens that nobody uses are the cheapest to lose: int4
        # goes from 13.0 to 8.2 MB for 0.4 points. What is left of it bears few bits: mixed allocation gives it 3.
        found += [
            {"bits": 8, "activations": static, "vocabulary": "used"},
            {"bits": 6, "table_bits": 3, "activations": by_row, "vocabulary": "used"},
            {"bits": 4, "activations": static, "vocabulary": "used"},
            {"bits": 4, "activations": by_row, "vocabulary": "used"},
        ]
    # Compensated rounding keeps 99.3 % at 3 bits.
    found.append({"bits": 3, "activations": by_row, "vocabulary": "used"})
    taught = _taught(space, static, by_row)
    if "network" in space.values:
        # Its vectors cost a look-up and a mean: nothing else is as fast.
        taught += [{"network": "table", "vocabulary": "used", "bits": bits} for bits in (8, 4)]
    return [{name: value for name, value in one.items() if value in space.values.get(name, ())}
            for one in (*found, *taught)]  # fmt: skip


def _heard(space: Space, by_row: str) -> list[dict[str, Any]]:
    """Choices for a recogniser, which of plans of like size go first.

    Whisper's token table bears 4 bits, and what a decoder says is worth 5 (docs/voice_search.md); with 4 bits
    everywhere and fixed ranges of inputs it makes 30 more errors in a hundred words.
    """
    found: list[dict[str, Any]] = []
    few = {"bits": 5, "table_bits": 4, "activations": by_row, "vocabulary": "used"}
    for window in space.values.get("window", ())[-1:]:
        found += [few, {**few, "window": window}, {"bits": 8, "activations": by_row, "window": window}]
    return found


def _taught(space: Space, static: str, by_row: str) -> list[dict[str, Any]]:
    """Choices that take blocks or channels out, which is what time goes by; none where nothing can be taught.

    Four of MiniLM's six blocks, taught, keep 98.9 %; three of half the feed-forward part 99.9 % of scifact, three times
    as fast. Of image networks half of the multiplications may go, which is a third of each layer's channels
    (docs/distillation.md, docs/pruning.md).
    """
    if "blocks" not in space.values:
        found: list[dict[str, Any]] = [{"width": width, "bits": 8, "activations": static} for width in (0.7, 0.5)]
    else:
        counts = space.values["blocks"]
        most, half = (min(counts, key=lambda count: abs(count - share * space.depth)) for share in (2 / 3, 1 / 2))
        found = [
            {"blocks": most, "bits": 8, "activations": static},
            {"blocks": most, "bits": 4, "activations": by_row, "vocabulary": "used"},
            {"blocks": half, "width": 0.5, "bits": 8, "activations": static, "vocabulary": "used"},
        ]
    efforts = [min(USUAL_EFFORT, space.effort(one.get("blocks", space.depth))) for one in found]
    return [{**one, "teach": effort} for one, effort in zip(found, efforts, strict=True) if effort]


def _index(space: Space, budget: Budget, choices: Mapping[str, Any], size_of: SizeOf) -> dict[str, Any]:
    """The mildest choices of the index that keep to the budget; the smallest where none does.

    int8 finds 99.4 % of what float32 finds, half of the elements keep 99.5 % of nDCG@10; signs find 69 %, and 95 %
    with finer vectors beside them on disk (docs/indexes.md, docs/methods/simplify.output_dim.md).
    """
    if "precision" not in space.values:
        return {}
    dims = space.values.get("dim", (space.dim,))
    size = size_of(plan(space, choices)) if budget.total is not None else None
    found: dict[str, Any] = {}
    for precision, place in INDEXES:
        found = {"precision": precision} | ({"dim": dims[min(place, len(dims) - 1)]} if len(dims) > 1 else {})
        if space.documents and not _excess(space, budget, plan(space, {**choices, **found}), size):
            break
    return found if space.documents else {"precision": "int8"}


def _excess(space: Space, budget: Budget, plan: Plan, size: int | None) -> dict[str, float]:
    """By how much of each limit a plan is predicted to exceed it; empty where it does not, or it cannot be told."""
    index, finer = index_size(space, plan.choices), rescore_size(space, plan.choices)
    asked = {"size": (size or 0, budget.size), "index_size": (index, budget.index_size),
             "total": ((size or 0) + index + finer, budget.total)}  # fmt: skip
    return {name: value / limit - 1 for name, (value, limit) in asked.items() if limit is not None and value > limit}


# ---------------------------------------------------------------- the sampler


@dataclass(frozen=True)
class _Told:
    """What is known of a plan: its choices, or none where they are not of the space."""

    choices: dict[str, Any] | None
    figures: Figures | None
    loss: float | None
    reached: Reached


class Sampler:
    """Proposes plans that may better the front of quality, size and latency, within the budget.

    Before twenty trials, where the loss is limited, a neighbour of the best so far: one choice is another by one place.
    (Without such a limit what is small and useless is among the best, and random plans find more.) Then a
    tree-structured Parzen estimator of several objectives (Ozaki et al., 2022) in Optuna, where the first generation of
    NSGA-II alone takes fifty; it learns of all choices together, since they act on each other. Objectives are the loss,
    and the logarithms of size and latency; each limit of the budget is a constraint.

    What it proposes depends on the seed and on what it was told, in that order, alone. So a search that was killed
    goes on as if it had not been.

    Args:
        space: what can be chosen.
        budget: what is asked.
        seed: of the random choices.
        size_of: predicts sizes: what is too large is never proposed, at no cost.
        trials: those that ended before, in their order.
    """

    def __init__(
        self, space: Space, budget: Budget, seed: int = 0, size_of: SizeOf = lambda plan: None,
        trials: Sequence[Trial] = (),
    ) -> None:  # fmt: skip
        self._space, self._budget, self._seed, self._size_of = space, budget, seed, size_of
        self._told: dict[bytes, _Told] = {}
        self._waiting: dict[bytes, Plan] = {}
        for trial in sorted(trials, key=lambda trial: trial.number):
            loss = None if trial.change is None else -trial.change.relative
            self.tell(trial.plan, trial.figures, loss, trial.reached)

    def ask(self) -> Plan | None:
        """A plan that was not proposed or told before; ``None`` where none is found that could keep to the budget."""
        optuna = plugins.require("optuna")
        seeds = np.random.SeedSequence((self._seed, len(self._told), len(self._waiting))).generate_state(2).tolist()
        known = {*self._told, *self._waiting}
        if len(known) < STARTUP and self._budget.max_loss is not None:
            near = self._neighbour(np.random.default_rng(seeds[1]), known)
            if near is not None:
                return self._proposed(near)
        study, distributions = self._study(optuna, seeds[0]), _distributions(optuna, self._space)
        for _ in range(ATTEMPTS):
            trial = study.ask(distributions)
            found = plan(self._space, {name: self._space.values[name][place] for name, place in trial.params.items()})
            excess = self._excess(found)
            if not excess and key(found) not in known:
                return self._proposed(found)
            for limit, value in excess.items():
                trial.set_constraint(limit, _bounded(value))
            study.tell(trial, state=optuna.trial.TrialState.PRUNED if excess else optuna.trial.TrialState.FAIL)
        others = _at_random(self._space, np.random.default_rng(seeds[1]))
        left = (found for found in others if key(found) not in known and not self._excess(found))
        return next((self._proposed(found) for found in left), None)

    def wait(self, plan: Plan) -> None:
        """A plan that is being tried, though it was not asked for here: its like is not proposed."""
        self._waiting[key(plan)] = plan

    def tell(self, plan: Plan, figures: Figures | None, loss: float | None, reached: Reached) -> None:
        """What a trial has found; what it found on a part of the queries gives way to what it finds on all.

        Args:
            plan: proposed or not.
            figures: its costs; ``None`` where it failed. One without a latency counts as the slowest that was told.
            loss: relative loss of the metric, negative for a gain, as measured on a part of the queries or on all;
                ``None`` where it was not measured.
            reached: how far it got.
        """
        name = key(plan)
        self._waiting.pop(name, None)
        known = self._told.get(name)
        if known is None or ORDER.index(reached) >= ORDER.index(known.reached):
            self._told[name] = _Told(_choices(self._space, plan), figures, loss, reached)

    def _neighbour(self, random: np.random.Generator, known: set[bytes]) -> Plan | None:
        """A plan that differs from one of the best by one choice and one place; ``None`` where none is left."""
        best = self._best()
        random.shuffle(best)  # type: ignore[arg-type]
        for choices in best:
            moves = [
                choices | {name: values[place]}
                for name, values in self._space.values.items()
                for place in (values.index(choices[name]) - 1, values.index(choices[name]) + 1)
                if 0 <= place < len(values)
            ]
            random.shuffle(moves)  # type: ignore[arg-type]
            for found in (plan(self._space, move) for move in moves):
                if key(found) not in known and not self._excess(found):
                    return found
        return None

    def _best(self) -> list[dict[str, Any]]:
        """Choices of what nothing told beats among what keeps the budget; where nothing does, of the nearest three."""
        measured = [
            (max([0.0, *self._constraints(told).values()]), values,
             {name: told.choices[name] for name in self._space.values})
            for told in self._told.values()
            if told.choices is not None and (values := self._objectives(told, 1.0)) is not None
        ]  # fmt: skip
        inside = [one for one in measured if not one[0]] or sorted(measured, key=lambda one: one[0])[:3]
        return [
            choices for _, values, choices in inside
            if not any(other != values and all(a <= b for a, b in zip(other, values, strict=True))
                       for _, other, _ in inside)
        ]  # fmt: skip

    def _study(self, optuna: Any, seed: int) -> Any:
        """What was told, as Optuna takes it; plans that wait count as bad ones, so that their like is not proposed."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=STARTUP)
        study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
        distributions = _distributions(optuna, self._space)
        slowest = max((told.figures.latency_p95 or 0.0 for told in self._told.values() if told.figures), default=0.0)
        state = optuna.trial.TrialState

        def add(choices: Mapping[str, Any] | None, **result: Any) -> None:
            if choices is not None:
                places = {name: values.index(choices[name]) for name, values in self._space.values.items()}
                study.add_trial(optuna.trial.create_trial(params=places, distributions=distributions, **result))

        for told in self._told.values():
            values, constraints = self._objectives(told, slowest), self._constraints(told)
            add(told.choices, state=state.COMPLETE if values else state.PRUNED, values=values, constraints=constraints)
        for waiting in self._waiting.values():
            add(_choices(self._space, waiting), state=state.RUNNING)
        return study

    def _objectives(self, told: _Told, slowest: float) -> list[float] | None:
        """Loss, and logarithms of bytes and milliseconds, of which ratios count; ``None`` where they are not known."""
        if told.loss is None or told.figures is None or not told.figures.size:
            return None
        return [told.loss, math.log(told.figures.size), math.log((told.figures.latency_p95 or slowest) or 1.0)]

    def _constraints(self, told: _Told) -> dict[str, float]:
        """By how much each limit is exceeded, below 0 where it is kept; a trial that gave nothing exceeds all."""
        figures, budget = told.figures, self._budget
        if figures is None or (told.loss is None and told.reached != "size"):
            return {"failed": 1.0}
        costs = {name: (getattr(figures, name), getattr(budget, name)) for name in (*COSTS, "total")}
        found = {name: _bounded(value / limit - 1) for name, (value, limit) in costs.items() if value and limit}
        if told.loss is not None and budget.max_loss is not None:
            found["loss"] = _bounded((told.loss - budget.max_loss) / max(budget.max_loss, 0.01))
        return found

    def _excess(self, plan: Plan) -> dict[str, float]:
        return _excess(self._space, self._budget, plan, self._size_of(plan))

    def _proposed(self, plan: Plan) -> Plan:
        self.wait(plan)
        return plan


def _bounded(excess: float) -> float:
    """Twice a limit is as bad as anything, so that no limit outweighs the others."""
    return max(-1.0, min(1.0, excess))


def _choices(space: Space, plan: Plan) -> dict[str, Any] | None:
    try:
        return completed(space, plan.choices)
    except UsageError:
        return None


def _distributions(optuna: Any, space: Space) -> dict[str, Any]:
    """Places among a choice's values: they stand in order, which a sampler can use."""
    return {name: optuna.distributions.IntDistribution(0, len(values) - 1) for name, values in space.values.items()}


def _at_random(space: Space, random: np.random.Generator) -> Iterator[Plan]:
    """Plans in random order: all of them where they are few."""
    if space.count <= ENUMERATED:
        every = list(itertools.product(*space.values.values()))
        for number in random.permutation(len(every)):
            yield plan(space, dict(zip(space.values, every[number], strict=True)))
        return
    for _ in range(RANDOM_ATTEMPTS):
        yield plan(space, {name: values[random.integers(len(values))] for name, values in space.values.items()})
