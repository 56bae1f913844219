"""The loop: plans from rules, then from the sampler; each is tried, kept and told to the sampler until time is over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from slimseek.budget.bench import Bench
from slimseek.budget.front import choose
from slimseek.budget.store import Store
from slimseek.errors import UsageError
from slimseek.progress import countdown, say, shown_on
from slimseek.schema import Value
from slimseek.trial import Budget, Plan, Trial


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

    def next(self, trials: Sequence[Trial], seconds: float) -> Plan | None:
        """A plan that none of the trials tried and that so many seconds are likely to do for; ``None`` for no more."""


def run(bench: Bench, budget: Budget, store: Store, effort: Effort, proposer: Proposer) -> list[Trial]:
    """Try plans until the time or the trials are used up; those of earlier runs count and are not tried again.

    Args:
        bench: measures.
        budget: what is asked.
        store: where each trial is kept as it ends.
        effort: how long.
        proposer: what to try next.

    Returns:
        All trials of the folder, by number; the first is the original.
    """
    start, trials = time.perf_counter(), store.trials()
    if not trials:
        trials = [bench.original()]
        store.add(trials[0])
    elif len(trials) > 1:
        say(f"{len(trials) - 1} trials of earlier runs are there")
    proof, spent = bench.seconds_of_proof, 0.0
    with countdown("search", effort.seconds) as show:
        while not effort.trials or len(trials) <= effort.trials:
            spent = time.perf_counter() - start
            left = effort.seconds - spent - proof
            plan = proposer.next(trials, left) if left > _typical(trials) else None
            if plan is None:
                break
            show(f"{_best(trials, budget)}; now {plan.name}", spent)
            with shown_on(None):
                trial = bench.attempt(len(trials), plan, lambda trial: hopeless(trial, trials, budget), budget)
            store.add(trial)
            trials.append(trial)
            say(line(trial))
    return trials


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
        f"trial {trial.number}: {trial.plan.name}: {figures.size / 1e6:.1f} MB{time_of}, {1 + change.relative:.1%} of "
        f"{change.metric}, {trial.seconds:.0f} s" + (f" ({trial.ended})" if trial.ended else "")
    )


def _typical(trials: Sequence[Trial]) -> float:
    """Seconds that a trial is likely to take: the median of the last ones."""
    seconds = [trial.seconds for trial in trials[1:] if trial.figures.size][-7:]
    return float(np.median(seconds)) if seconds else 0.0


def _best(trials: Sequence[Trial], budget: Budget) -> str:
    number, met = choose(trials, budget)
    figures, change = trials[number].figures, trials[number].change
    assert figures.size is not None
    assert change is not None
    return (
        f"{len(trials) - 1} trials, {'best' if met else 'nearest'} {figures.size / 1e6:.1f} MB "
        f"{1 + change.relative:.1%} of {change.metric}"
    )
