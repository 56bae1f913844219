"""The loop of a search: rounds, what a kill costs, and what each plan may know."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from slimseek.budget import loop
from slimseek.budget.loop import Alone, Effort, Round, hopeless
from slimseek.budget.store import Store
from slimseek.measurement import Change
from slimseek.schema import Recipe
from slimseek.trial import Budget, Figures, Plan, Trial, numbered

BUDGET = Budget(max_loss=0.05)
HOURS = 10_000.0


def _trial(number: int, plan: Plan, relative: float = -0.01, *, latency: float = 2.0) -> Trial:
    change = Change(metric="ndcg@10", before=0.8, after=0.8 * (1 + relative), relative=relative, n=100,
                    interval=(relative - 0.01, relative + 0.01), lower_bound=relative - 0.01)  # fmt: skip
    figures = Figures(size=1000 + number, latency_p50=latency, latency_p95=latency, index_size=10)
    return Trial(number=number, plan=plan, reached="whole", figures=figures, change=change, seconds=1.0)


def _plan(name: str) -> Plan:
    return Plan(recipe=Recipe(steps=(), name=name), name=name)


@dataclasses.dataclass
class Bench:
    """Measures nothing; says what it was asked, and is killed where that is wanted."""

    killed_at: int = -1
    seconds: float = 1.0
    asked: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    proof: float = 0.0

    def seconds_of_proof(self, share: float) -> float:
        return (1 + share) * self.proof

    def original(self) -> Trial:
        return _trial(0, Plan(recipe=Recipe(steps=()), name="original"), 0.0)

    def attempt(self, number: int, plan: Plan, promising: Callable[[Trial], str], budget: Budget) -> Trial:
        if len(self.asked) == self.killed_at:
            raise KeyboardInterrupt
        self.asked.append((number, plan.name))
        return msgspec.structs.replace(_trial(number, plan, -0.01 - (number * 7 % 5) / 100), seconds=self.seconds)


class Telling:
    """Plans whose names say all that they were planned from: the history's numbers and losses, and the place."""

    def __init__(self, most: int = 1_000) -> None:
        self.most = most
        self.seen: list[list[int]] = []

    def propose(self, trials: Sequence[Trial], count: int) -> list[Plan]:
        self.seen.append([trial.number for trial in trials])
        known = hash(tuple((trial.number, trial.change and trial.change.relative) for trial in trials)) % 10_000
        there = max(0, min(count, self.most - (len(trials) - 1)))
        return [_plan(f"{len(trials)} {known} {place}") for place in range(there)]


class Backwards:
    """Workers of which the last is the fastest."""

    def __init__(self, bench: Bench, count: int) -> None:
        self.bench, self.count = bench, count

    def attempt(self, asked: Round) -> Iterator[Trial]:
        for number in sorted(asked.plans, reverse=True):
            yield self.bench.attempt(number, asked.plans[number], asked.promising, asked.budget)


def _names(trials: Sequence[Trial]) -> dict[int, str]:
    return {trial.number: trial.plan.name for trial in trials}


def _run(folder: Path, trials: int, count: int, bench: Bench | None = None, most: int = 1_000) -> list[Trial]:
    bench = bench or Bench()
    return loop.run(bench, BUDGET, Store(folder), Effort(seconds=HOURS, trials=trials), Telling(most),
                    Alone(bench, count))  # fmt: skip


def test_one_at_a_time_each_plan_knows_all_before(tmp_path: Path):
    proposer, bench = Telling(), Bench()
    found = loop.run(bench, BUDGET, Store(tmp_path), Effort(seconds=HOURS, trials=4), proposer)
    assert proposer.seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert [trial.number for trial in found] == [0, 1, 2, 3, 4]
    assert [number for number, _ in bench.asked] == [1, 2, 3, 4]
    assert Store(tmp_path).trials() == found


def test_a_round_is_planned_from_the_trials_before_it_alone(tmp_path: Path):
    proposer, bench = Telling(), Bench()
    found = loop.run(bench, BUDGET, Store(tmp_path), Effort(seconds=HOURS, trials=7), proposer, Alone(bench, 3))
    assert proposer.seen == [[0], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]]
    assert [trial.number for trial in found] == list(range(8))


def test_which_worker_is_the_fastest_changes_nothing(tmp_path: Path):
    bench = Bench()
    found = loop.run(bench, BUDGET, Store(tmp_path / "two"), Effort(seconds=HOURS, trials=9), Telling(),
                     Backwards(bench, 3))  # fmt: skip
    assert [number for number, _ in bench.asked] == [3, 2, 1, 6, 5, 4, 9, 8, 7]
    assert found == _run(tmp_path / "one", 9, 3)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_kill_anywhere_costs_one_trial_and_changes_none(tmp_path: Path, count: int, backwards: bool):
    whole = _run(tmp_path / "whole", 7, count)
    for killed_at in range(7):
        folder, bench = tmp_path / str(killed_at), Bench(killed_at=killed_at)
        workers = Backwards(bench, count) if backwards else Alone(bench, count)
        with pytest.raises(KeyboardInterrupt):
            loop.run(bench, BUDGET, Store(folder), Effort(seconds=HOURS, trials=7), Telling(), workers)
        again = Bench()
        assert _run(folder, 7, count, again) == whole
        assert sorted(bench.asked + again.asked) == sorted(_names(whole[1:]).items())


def test_a_search_of_more_trials_goes_on_in_the_middle_of_a_round(tmp_path: Path):
    _run(tmp_path / "parts", 4, 3)
    bench = Bench()
    assert _run(tmp_path / "parts", 8, 3, bench) == _run(tmp_path / "whole", 8, 3)
    assert [number for number, _ in bench.asked] == [5, 6, 7, 8]


def test_a_search_of_other_workers_fills_the_gaps(tmp_path: Path):
    bench = Bench(killed_at=1)
    with pytest.raises(KeyboardInterrupt):
        loop.run(bench, BUDGET, Store(tmp_path), Effort(seconds=HOURS), Telling(), Backwards(bench, 3))
    assert [trial.number for trial in Store(tmp_path).trials()] == [0, 3]
    proposer, bench = Telling(), Bench()
    found = loop.run(bench, BUDGET, Store(tmp_path), Effort(seconds=HOURS, trials=5), proposer)
    assert proposer.seen == [[0], [0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4]]
    assert [trial.number for trial in found] == [0, 1, 2, 3, 4, 5]


def test_a_plan_of_an_interrupted_round_is_not_tried_by_another_number(tmp_path: Path):
    """Under another budget the same plans come in another order: b was tried as number 2 and is left out."""

    class Shifted:
        def __init__(self, names: str) -> None:
            self.names = names

        def propose(self, trials: Sequence[Trial], count: int) -> list[Plan]:
            known = {trial.plan.name for trial in trials}
            return [_plan(name) for name in self.names if name not in known][:count]

    class Second(Alone):
        def attempt(self, asked: Round) -> Iterator[Trial]:
            yield self.bench.attempt(2, asked.plans[2], asked.promising, asked.budget)

    first, bench = Bench(), Bench()
    loop.run(first, BUDGET, Store(tmp_path), Effort(seconds=HOURS), Shifted("abc"), Second(first, 3))
    found = loop.run(bench, BUDGET, Store(tmp_path), Effort(seconds=HOURS), Shifted("bca"), Alone(bench, 3))
    assert [(trial.number, trial.plan.name) for trial in found[1:]] == [(2, "b"), (3, "a"), (4, "c")]
    assert bench.asked == [(3, "a"), (4, "c")]


def test_it_ends_where_nothing_is_left_to_try(tmp_path: Path):
    """Four plans in rounds of three: the second round is of one."""
    assert len(_run(tmp_path, 0, 3, most=4)) == 5
    bench = Bench()
    assert len(_run(tmp_path, 0, 3, bench, most=4)) == 5
    assert bench.asked == []


def test_time_ends_a_round_between_two_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A clock of one second a look, and trials that say that they took 5 s: the first of a round is always tried."""
    ticks = itertools.count()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(ticks)))
    bench = Bench(seconds=5.0)
    found = loop.run(bench, BUDGET, Store(tmp_path), Effort(seconds=12.0), Telling(), Alone(bench, 100))
    assert 2 < len(found) < 12
    assert [trial.number for trial in found] == list(range(len(found)))


@pytest.mark.parametrize(("seconds", "tried"), [(3.9, 3), (4.1, 1)])
def test_time_is_left_for_the_proof_of_what_would_be_chosen_now(
    seconds: float, tried: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ten seconds, and 4 for each model of the proof; one that takes half of the original's time leaves 4 to try."""
    monkeypatch.setattr(loop.time, "perf_counter", lambda: 0.0)
    bench = Bench(seconds=seconds, proof=4.0)
    original = msgspec.structs.replace(bench.original(), figures=Figures(size=9000, latency_p50=4.0))
    monkeypatch.setattr(bench, "original", lambda: original)
    effort = Effort(seconds=10.0, trials=3)
    assert len(loop.run(bench, BUDGET, Store(tmp_path), effort, Telling(), Alone(bench))) - 1 == tried


def test_only_the_history_tells_what_is_hopeless():
    plan = Plan(recipe=Recipe(steps=()))
    better, worse = _trial(1, plan, -0.01, latency=1.0), _trial(5, plan, -0.04)
    asked = Round(plans={5: plan}, history=[], budget=BUDGET, goes_on=bool)
    assert asked.promising(worse) == ""
    assert dataclasses.replace(asked, history=[better]).promising(worse) == "trial 1 costs no more and is better"
    assert "it loses at least 9.0%" in hopeless(_trial(5, plan, -0.10), [], BUDGET)


def test_a_trial_is_found_by_its_number_where_one_is_missing():
    plan = Plan(recipe=Recipe(steps=()))
    assert numbered([_trial(number, plan) for number in (0, 2, 3)], 3).number == 3
