"""The loop: plans from rules, then from the sampler; each is tried, kept and told to the sampler until time is over.

It goes in rounds of as many plans as there are workers. A round is planned from the trials before it alone, so that
what is tried hangs on the seed and on how many plans are asked for at once, and neither on which worker is the fastest
nor on a kill.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from slimseek.budget.bench import Bench
from slimseek.budget.front import choose
from slimseek.budget.store import Store
from slimseek.errors import UsageError
from slimseek.measurement import Change
from slimseek.progress import countdown, say, shown_on
from slimseek.trial import Budget, Plan, Trial, numbered
from slimseek.value import Value


class Effort(Value, frozen=True):
    """How long a search may go on.

    Attributes:
        seconds: of this run, with the proof at its end.
        trials: most of all runs together, the original not counted; 0 for as many as time allows.
    """

    seconds: float = 600.0
    trials: int = 0

    def __post_init__(self) -> None:
        if self.trials < 0:
            raise UsageError(f"--trials is {self.trials}; 1 or more is allowed, or 0 for as many as time allows")


class Proposer(Protocol):
    """Who says what to try next."""

    def propose(self, trials: Sequence[Trial], count: int) -> list[Plan]:
        """At most so many plans, all different, that none of the trials tried; none where there is nothing more to try.

        The answer hangs on nothing but the trials, the count, and the seed.
        """


@dataclass(frozen=True, kw_only=True)
class Round:
    """Plans that are tried together, none of them knowing what comes of the others.

    Attributes:
        plans: by the number that the trial will have.
        history: all trials before the first of these numbers.
        budget: what is asked.
        goes_on: whether there is time to begin with one more.
    """

    plans: Mapping[int, Plan]
    history: Sequence[Trial]
    budget: Budget
    goes_on: Callable[[], bool]

    def promising(self, trial: Trial) -> str:
        """``""`` where a trial that was measured on a part shall be measured on the whole, else why not."""
        return hopeless(trial, self.history, self.budget)


class Workers(Protocol):
    """Who tries plans."""

    @property
    def count(self) -> int:
        """How many plans are asked for at once."""

    def attempt(self, asked: Round) -> Iterator[Trial]:
        """Each trial as it ends, in any order; plans are left out from where ``goes_on`` says no."""


@dataclass(frozen=True)
class Alone:
    """This process tries one plan after the other.

    Attributes:
        bench: measures.
        count: how many plans are asked for at once: 1, or as many as a cluster would, to find what that would find.
    """

    bench: Bench
    count: int = 1

    def attempt(self, asked: Round) -> Iterator[Trial]:
        """Each trial as it ends, by number."""
        for place, (number, plan) in enumerate(sorted(asked.plans.items())):
            if place and not asked.goes_on():
                return
            with shown_on(None):
                trial = self.bench.attempt(number, plan, asked.promising, asked.budget)
            yield trial


def run(
    bench: Bench, budget: Budget, store: Store, effort: Effort, proposer: Proposer, workers: Workers | None = None
) -> list[Trial]:
    """Try plans until the time or the trials are used up; those of earlier runs count and are not tried again.

    Args:
        bench: measures the original, and all where there are no other workers.
        budget: what is asked.
        store: where each trial is kept as it ends.
        effort: how long.
        proposer: what to try next.
        workers: who tries; by default this process, one plan at a time.

    Returns:
        All trials of the folder, by number; the first is the original.
    """
    start, workers = time.perf_counter(), workers or Alone(bench)
    trials = {trial.number: trial for trial in store.trials()}
    if not trials:
        trials[0] = bench.original()
        store.add(trials[0])
    elif len(trials) > 1:
        say(f"{len(trials) - 1} trials of earlier runs are there")

    def left() -> float:
        proof = bench.seconds_of_proof(_share(_ordered(trials), budget))
        return effort.seconds - (time.perf_counter() - start) - proof

    def goes_on() -> bool:
        return left() > _typical(_ordered(trials))

    first = 1
    with countdown("search", effort.seconds) as show:
        while wanted := _wanted(effort, trials):
            numbers, first = range(first, first + workers.count), first + workers.count
            if trials.keys() >= set(numbers):
                continue
            history = [trial for trial in _ordered(trials) if trial.number < numbers.start]
            # One is tried in any case: an original that takes all the time to measure says nothing.
            plans = proposer.propose(history, workers.count) if goes_on() or len(trials) == 1 else []
            if not plans:
                break
            missing = _missing(dict(zip(numbers, plans, strict=False)), trials)
            asked = Round(plans=dict(missing[:wanted]), history=history, budget=budget, goes_on=goes_on)
            show(_now(asked), time.perf_counter() - start)
            for trial in workers.attempt(asked):
                store.add(trial)
                trials[trial.number] = trial
                say(line(trial))
            if not trials.keys() >= asked.plans.keys():  # no time for the rest
                break
    return _ordered(trials)


def hopeless(trial: Trial, trials: Sequence[Trial], budget: Budget) -> str:
    """Why a trial that was measured on a part of the queries need not be measured on all; ``""`` where it may win.

    It cannot win where its loss is over the limit beyond doubt, or where another that costs no more is better than the
    upper end of its 95 % interval.
    """
    assert trial.change is not None
    best = trial.change.interval[1]
    if budget.max_loss is not None and best < -budget.max_loss:
        return f"it loses at least {-best:.1%} on a part of the queries"
    for other in trials:
        if other.reached == "whole" and other.change is not None and other.change.relative > best and all(
            getattr(other.figures, name) <= getattr(trial.figures, name)
            for name in ("size", "latency_p50", "index_size")
        ):  # fmt: skip
            return f"trial {other.number} costs no more and is better"
    return ""


def line(trial: Trial) -> str:
    """A trial in a line for the person who waits."""
    figures, change = trial.figures, trial.change
    if figures.size is None or change is None:
        return f"trial {trial.number}: {trial.plan.name}: {trial.ended}"
    time_of = f", {figures.latency_p50:.2f} ms" if figures.latency_p50 is not None else ""
    return (
        f"trial {trial.number}: {trial.plan.name}: {figures.size / 1e6:.1f} MB{time_of}, {_quality(change)}, "
        f"{trial.seconds:.0f} s" + (f" ({trial.ended})" if trial.ended else "")
    )


def _quality(change: Change) -> str:
    """What is left of the metric, or of an error rate the points that it rose by."""
    if change.points is True:
        return f"{change.metric} {0 - 100 * change.relative:+.1f} points"
    return f"{1 + change.relative:.1%} of {change.metric}"


def _ordered(trials: Mapping[int, Trial]) -> list[Trial]:
    return [trial for _, trial in sorted(trials.items())]


def _missing(plans: Mapping[int, Plan], trials: Mapping[int, Trial]) -> list[tuple[int, Plan]]:
    """Plans of a round that were not tried, also not by another number: under other limits, others are proposed."""
    tried = [(trial.plan.recipe, trial.plan.precision) for trial in trials.values()]
    return [
        (number, plan) for number, plan in plans.items()
        if number not in trials and (plan.recipe, plan.precision) not in tried
    ]  # fmt: skip


def _wanted(effort: Effort, trials: Mapping[int, Trial]) -> int:
    """How many trials may still be made."""
    return max(0, effort.trials - (len(trials) - 1)) if effort.trials else sys.maxsize


def _typical(trials: Sequence[Trial]) -> float:
    """Seconds that a trial is likely to take: the median of the last ones."""
    seconds = [trial.seconds for trial in trials[1:] if trial.figures.size][-7:]
    return float(np.median(seconds)) if seconds else 0.0


def _share(trials: Sequence[Trial], budget: Budget) -> float:
    """Of the original's time, what the model takes that would be chosen now; 1 where that is not known."""
    chosen = numbered(trials, choose(trials, budget)[0]).figures.latency_p50
    original = trials[0].figures.latency_p50
    return min(1.0, chosen / original) if chosen and original else 1.0


def _now(asked: Round) -> str:
    """What is best so far, and what is tried now."""
    number, met = choose(asked.history, asked.budget)
    best = numbered(asked.history, number)
    assert best.figures.size is not None
    assert best.change is not None
    return (
        f"{len(asked.history) - 1} trials, {'best' if met else 'nearest'} {best.figures.size / 1e6:.1f} MB "
        f"{_quality(best.change)}; now "
        f"{', '.join(plan.name for plan in asked.plans.values())}"
    )
