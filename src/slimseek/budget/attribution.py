"""What each step saved and cost: along one trial, and over all pairs of trials that differ in one thing only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import msgspec

from slimseek.budget.front import measured, quality
from slimseek.schema import Recipe, RecipeStep
from slimseek.trial import Trial

REST = "all else"
Kind = Literal["choice", "step", "order"]
Key = tuple[Kind, str, str, str]
Pair = tuple[Trial, Trial]


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What one step of a trial saved and cost.

    Attributes:
        step: name of its method; :data:`REST` for what no step did.
        bytes: bytes of weights saved; below 0 where it added some.
        macs: multiply-accumulates saved, of one text of 128 tokens.
        milliseconds: p95 latency saved; ``None`` where it is not known.
        quality: relative change of the metric by this step, against the original, in shares (-0.004 for a loss of
            0.4 % of the original's score); ``None`` where it was not measured before and after.
    """

    step: str
    bytes: int
    macs: int = 0
    milliseconds: float | None = None
    quality: float | None = None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean, least and greatest of some differences."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What one difference between plans makes, over all pairs of trials that differ in it alone.

    Attributes:
        kind: ``choice``: the pairs differ in one choice of the sampler; ``step``: one of them has a step more, in the
            same place; ``order``: both have the same steps, in another order.
        name: the choice, the step or its neighbour.
        before: what the first of each pair has.
        after: what the second has.
        pairs: numbers of the trials, (with ``before``, with ``after``).
        bytes: of the package, after minus before; ``None`` where a pair has no size.
        milliseconds: of the p95 latency, after minus before; ``None`` where a pair has none.
        quality: change of the metric with ``after`` minus that with ``before``, in shares of the original's score.
    """

    kind: Kind
    name: str
    before: str
    after: str
    pairs: tuple[tuple[int, int], ...]
    bytes: Spread | None
    milliseconds: Spread | None
    quality: Spread


# ---------------------------------------------------------------- along one trial


def attribution(trial: Trial, original: Trial, trials: Sequence[Trial] = ()) -> tuple[Saved, ...]:
    """What each step of a trial saved, in order, and a last row for the rest, so that the rows add up.

    Bytes and multiply-accumulates are those of the step's own record: weights as they are stored. The quality of a
    step is the change after it minus the change before it, both against the original; a step that was judged only
    after a later one leaves both without. Milliseconds are known between two states that were measured: the original,
    the trial itself, and any trial whose steps are the first ones of this. The last row has what no step can be given.

    Args:
        trial: one that was built.
        original: trial 0.
        trials: where the states between are looked for.

    Returns:
        A row a step, then :data:`REST`: tokenizer, graph, a student in the original's place, the runtime's own
        rounding, and the milliseconds and quality of steps for which they are not known.
    """
    latencies = _latencies(trial, original, trials)
    rows: list[Saved] = []
    before: float | None = 0.0
    for place, record in enumerate(trial.records):
        after = record.quality.relative if record.quality is not None else None
        rows.append(Saved(
            step=record.step, bytes=record.bytes_before - record.bytes_after,
            macs=record.macs_before - record.macs_after,
            milliseconds=_minus(latencies.get(place), latencies.get(place + 1)), quality=_minus(after, before),
        ))  # fmt: skip
        before = after
    return (*rows, _rest(rows, trial, original))


def _latencies(trial: Trial, original: Trial, trials: Sequence[Trial]) -> dict[int, float]:
    """p95 latency after so many steps of the recipe, where a trial has it; a student's start is not the original."""
    recipe, found = trial.plan.recipe, {}
    for other in (*trials, original, trial):
        steps, latency = other.plan.recipe.steps, other.figures.latency_p95
        alike = other.plan.recipe.student == recipe.student and recipe.steps[: len(steps)] == steps
        if latency is not None and alike:
            found[len(steps)] = latency
    return found


def _rest(rows: Sequence[Saved], trial: Trial, original: Trial) -> Saved:
    whole = _minus(original.figures.size, trial.figures.size)
    milliseconds = _minus(original.figures.latency_p95, trial.figures.latency_p95)
    lost = quality(trial) if measured(trial) else None
    return Saved(
        step=REST, bytes=0 if whole is None else int(whole) - sum(row.bytes for row in rows),
        milliseconds=_minus(milliseconds, sum(row.milliseconds or 0.0 for row in rows)),
        quality=_minus(lost, sum(row.quality or 0.0 for row in rows)),
    )  # fmt: skip


def _minus(one: float | None, two: float | None) -> float | None:
    return None if one is None or two is None else one - two


# ---------------------------------------------------------------- over pairs


def effects(trials: Sequence[Trial]) -> tuple[Effect, ...]:
    """Marginal gains: what each choice, each step in its place and each order makes, all else being equal.

    Only pairs of trials measured to the end that differ in that alone are counted; few pairs say little, and the
    spread is that over pairs, not an interval.

    - ``choice``: two trials with the same choices but for one. ``before`` is the value that gives the larger package
      on average.
    - ``step``: a trial that lacks one step of another, all others being the same, in the same order. They are told
      apart by place: first, or behind which method. So the effect of order shows: the same step in another place.
    - ``order``: two trials with the same steps in another order; ``before`` is the order of the larger package.

    Returns:
        Sorted by kind, name, before and after.
    """
    known = [trial for trial in trials if measured(trial)]
    found: defaultdict[Key, list[Pair]] = defaultdict(list)
    for one, two in combinations(known, 2):
        for key, pair in _differences(one, two):
            found[key].append(pair)
    merged = _one_way(found)
    return tuple(_effect(key, pairs) for key, pairs in sorted(merged.items(), key=lambda item: item[0]))


def _differences(one: Trial, two: Trial) -> Iterator[tuple[Key, Pair]]:
    """What two trials differ in, if it is one thing; the same difference may be a choice and a step."""
    a, b = one.plan.choices, two.plan.choices
    if a and a.keys() == b.keys():
        apart = [name for name in a if a[name] != b[name]]
        if len(apart) == 1:
            yield ("choice", apart[0], _words(a[apart[0]]), _words(b[apart[0]])), (one, two)
    if one.plan.precision != two.plan.precision or not _same_start(one.plan.recipe, two.plan.recipe):
        return
    first, second = sorted((one, two), key=lambda trial: len(trial.plan.recipe.steps))
    fewer, more = first.plan.recipe.steps, second.plan.recipe.steps
    if len(fewer) + 1 == len(more):
        for place, step in enumerate(more):
            if more[:place] + more[place + 1 :] == fewer:
                where = f"behind {more[place - 1].method}" if place else "first"
                yield ("step", _step(step), "without", where), (first, second)
                return
    elif fewer != more and sorted(map(_step, fewer)) == sorted(map(_step, more)):
        yield ("order", "order", _order(fewer), _order(more)), (first, second)


def _same_start(one: Recipe, two: Recipe) -> bool:
    return one.student == two.student


def _one_way(
    found: dict[Key, list[Pair]],
) -> dict[Key, list[Pair]]:
    """Pairs of a difference in both directions as one, from the larger package to the smaller."""
    merged: dict[Key, list[Pair]] = {}
    for (kind, name, before, after), pairs in found.items():
        if {(kind, name, before, after), (kind, name, after, before)} & merged.keys():
            continue
        back = found.get((kind, name, after, before), [])
        both = pairs + [(two, one) for one, two in back]
        grown = sum((two.figures.size or 0) - (one.figures.size or 0) for one, two in both)
        turned = kind != "step" and (grown, before) > (0, after)
        key = (kind, name, after, before) if turned else (kind, name, before, after)
        merged[key] = [(two, one) for one, two in both] if turned else both
    return merged


def _effect(key: Key, pairs: Sequence[Pair]) -> Effect:
    sizes = [_minus(two.figures.size, one.figures.size) for one, two in pairs]
    latencies = [_minus(two.figures.latency_p95, one.figures.latency_p95) for one, two in pairs]
    change = _spread([quality(two) - quality(one) for one, two in pairs])
    assert change is not None, "only pairs whose quality was measured are counted"
    return Effect(
        kind=key[0], name=key[1], before=key[2], after=key[3],
        pairs=tuple((one.number, two.number) for one, two in pairs), bytes=_spread(sizes),
        milliseconds=_spread(latencies), quality=change,
    )  # fmt: skip


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return Spread(mean=sum(known) / len(known), low=min(known), high=max(known))


def _step(step: RecipeStep) -> str:
    parameters = ", ".join(f"{name} {_words(value)}" for name, value in sorted(step.parameters.items()))
    return f"{step.method} ({parameters})" if parameters else step.method


def _order(steps: Sequence[RecipeStep]) -> str:
    return ", ".join(step.method for step in steps)


def _words(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
