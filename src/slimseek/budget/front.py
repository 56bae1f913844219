"""What a search found: the front, the trials that keep a budget, and what to say of one that is not kept.

Pure functions over trials. Smaller is better in every cost; a cost that was not measured counts as the worst.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slimseek import bootstrap
from slimseek.measurement import Change
from slimseek.trial import Budget, Trial

SMALLEST_LOSS = 0.001
"""What a limit of loss below this counts as when an excess is put in relation to it: none may be divided by 0."""
LARGEST_LOSS = 0.999
"""A limit of loss has to be below 100 %; with one decimal, that is 99.9 %."""

_FLAGS = {
    "size": "--max-size", "latency_p95": "--max-latency", "memory": "--max-memory", "index_size": "--max-index",
    "total": "--max-total", "loss": "--max-loss",
}  # fmt: skip
_NAMES = {
    "size": "size", "latency_p95": "latency p95", "memory": "memory", "index_size": "index",
    "total": "package and index",
}  # fmt: skip


# ---------------------------------------------------------------- the front


def measured(trial: Trial) -> bool:
    """Whether a trial was measured to the end, so that it can be on the front and be chosen.

    The original needs no change of its metric: it is what the others are compared with.
    """
    if trial.number == 0:
        return True
    return trial.reached == "whole" and not trial.ended and trial.change is not None and math.isfinite(quality(trial))


def quality(trial: Trial) -> float:
    """The relative change of the metric, negative for a loss; 0 for the original, NaN where none was measured."""
    if trial.change is not None:
        return trial.change.relative
    return 0.0 if trial.number == 0 else math.nan


def objectives(trial: Trial) -> tuple[float, float, float, float]:
    """Bytes, milliseconds (95 of 100 queries), bytes of the index, and the loss of quality: each the less the better.

    What was not measured is infinite.
    """
    figures = trial.figures
    costs = (figures.size, figures.latency_p95, figures.index_size, -quality(trial))
    size, latency, index, loss = (math.inf if cost is None or math.isnan(cost) else float(cost) for cost in costs)
    return size, latency, index, loss


def front(trials: Sequence[Trial]) -> tuple[int, ...]:
    """The Pareto front: numbers of the trials measured to the end that no other of them beats.

    One beats another when it is no worse in size, p95 latency, index size and quality, and better in one of them. Two
    with the same figures do not beat each other. An index size that all share decides nothing.

    Returns:
        Numbers, the smallest size first; equal sizes by number.
    """
    points = [(trial.number, objectives(trial)) for trial in trials if measured(trial)]
    kept = [(point[0], number) for number, point in points if not any(_beats(other, point) for _, other in points)]
    return tuple(number for _, number in sorted(kept))


def hypervolume(points: Iterable[Sequence[float]], reference: Sequence[float]) -> float:
    """The volume that points dominate below a reference, every coordinate the less the better.

    By slices along the last coordinate: between two neighbouring values of it, all points up to the lower one dominate
    their hypervolume in the other coordinates (While et al., "A faster algorithm for calculating hypervolume", 2006).
    Exact; meant for two and three coordinates and some hundred points.

    Args:
        points: each as long as the reference; those not below it in every coordinate add nothing.
        reference: the worst value of each coordinate that counts.

    Returns:
        The volume, in the product of the units; 0 for no point.
    """
    below = [tuple(point) for point in points if all(p < r for p, r in zip(point, reference, strict=True))]
    return _volume(sorted(below, key=lambda point: point[-1]), tuple(reference))


def _volume(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    """Of points sorted by their last coordinate."""
    if not points:
        return 0.0
    if len(reference) == 1:
        return reference[0] - points[0][0]
    ends = [*(point[-1] for point in points[1:]), reference[-1]]
    total = 0.0
    for count, (point, end) in enumerate(zip(points, ends, strict=True), 1):
        if end > point[-1]:
            base = sorted((other[:-1] for other in points[:count]), key=lambda other: other[-1])
            total += _volume(base, reference[:-1]) * (end - point[-1])
    return total


def _beats(one: Sequence[float], two: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, two, strict=True)) and tuple(one) != tuple(two)


# ---------------------------------------------------------------- limits


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How a trial stands to one limit of a budget.

    Attributes:
        name: ``size``, ``latency_p95``, ``memory``, ``index_size``, ``total`` or ``loss``.
        said: what was found and what is allowed, in words.
        excess: by how much the limit is passed, relative to it; 0 or below where it is kept, infinite where nothing
            was measured. Of a loss, the one that is proven counts, not the one measured.
        flag: the option of the command line, with the smallest round value that would do; ``""`` where none would.
        queries: development queries that would prove a loss which is inside as measured; ``None`` for all else.
    """

    name: str
    said: str
    excess: float
    flag: str = ""
    queries: int | None = None

    @property
    def kept(self) -> bool:
        """Whether the trial keeps it."""
        return self.excess <= 0


def limits(trial: Trial, budget: Budget) -> tuple[Limit, ...]:
    """How a trial stands to each limit that the budget has, in the budget's order.

    A loss is kept when the one-sided 95 % lower bound of the change is at least -max_loss.
    """
    figures = trial.figures
    costs = [
        ("size", figures.size, budget.size), ("latency_p95", figures.latency_p95, budget.latency_p95),
        ("memory", figures.memory, budget.memory), ("index_size", figures.index_size, budget.index_size),
        ("total", figures.total, budget.total),
    ]  # fmt: skip
    found = [_cost(name, value, most) for name, value, most in costs if most is not None]
    if budget.max_loss is not None:
        found.append(_loss(trial, budget.max_loss))
    return tuple(found)


def missed(trial: Trial, budget: Budget) -> tuple[Limit, ...]:
    """The limits that a trial does not keep; empty where it keeps the budget."""
    return tuple(limit for limit in limits(trial, budget) if not limit.kept)


def nearest(trials: Sequence[Trial], budget: Budget) -> Trial:
    """The trial that misses the budget least: the largest of its relative excesses is the smallest of all.

    Ties go to the better quality, then to the smaller size. Only trials measured to the end are asked; the original,
    number 0, is always among them.
    """

    def order(trial: Trial) -> tuple[float, float, float, int]:
        excess = max([0.0, *(limit.excess for limit in limits(trial, budget))])
        return (excess, -quality(trial), objectives(trial)[0], trial.number)

    return min(filter(measured, trials), key=order)


def unmet(trial: Trial, budget: Budget) -> str:
    """What a trial does not keep, and the smallest change of the budget that it would keep; ``""`` where it keeps all.

    Such as ``size 9.64 MB of at most 8 MB: --max-size 9.7MB would do``.
    """
    over = missed(trial, budget)
    if not over:
        return ""
    said = ", ".join(limit.said for limit in over)
    if not all(limit.flag for limit in over):
        return f"{said}: no other value of these limits would do"
    flags = [limit.flag for limit in over]
    queries = next((limit.queries for limit in over if limit.queries), None)
    more = f" (or about {queries:,} development queries in place of {flags[-1].split()[0]})" if queries else ""
    return f"{said}: {' and '.join(flags)}{more} would do"


def choose(trials: Sequence[Trial], budget: Budget) -> tuple[int, bool]:
    """The trial to write, and whether it keeps the budget.

    Of those that keep every limit: where a cost is limited, the one with the best quality, then the smallest; where
    only the loss is limited, the smallest, then the one with the best quality. Where none keeps them all,
    :func:`nearest`.

    Returns:
        Its number, and whether every limit is kept.
    """
    good = [trial for trial in trials if measured(trial) and not missed(trial, budget)]
    if not good:
        return nearest(trials, budget).number, False
    costs = (budget.size, budget.latency_p95, budget.memory, budget.index_size, budget.total)
    limited = any(cost is not None for cost in costs)

    def order(trial: Trial) -> tuple[float, float, float, int]:
        size, latency, _, loss = objectives(trial)
        first, second = (loss, size) if limited else (size, loss)
        return (first, second, latency, trial.number)

    return min(good, key=order).number, True


def _cost(name: str, value: float | None, most: float) -> Limit:
    show, flag = (_milliseconds, _milliseconds_up) if name == "latency_p95" else (_megabytes, _bytes_up)
    if value is None or not math.isfinite(value):
        return Limit(name=name, said=f"{_NAMES[name]} not measured, of at most {show(most)}", excess=math.inf)
    if value > most and show(value) == show(most):
        show = "{:,} B".format if name != "latency_p95" else "{:.9g} ms".format
    said = f"{_NAMES[name]} {show(value)} of at most {show(most)}"
    return Limit(name=name, said=said, excess=(value - most) / most, flag=f"{_FLAGS[name]} {flag(value)}")


def _loss(trial: Trial, most: float) -> Limit:
    change = trial.change
    if trial.number == 0:
        return Limit(name="loss", said=f"loss none, for it is the original, of at most {_percent(most)}", excess=-1.0)
    if change is None or not math.isfinite(change.lower_bound) or change.n < 2:
        return Limit(name="loss", said=f"loss not measured, of at most {_percent(most)}", excess=math.inf)
    proven = max(-change.lower_bound, bootstrap.least_loss(change.n))
    lost, at_most, allowed = _percent(-change.relative), _percent_up(max(proven, 0.0) - 1e-9, 2), _percent(most)
    loss = f"loss {lost}" if change.relative < 0 else "no loss measured"
    if change.points is True:
        lost, at_most, allowed = (text.removesuffix(" %") for text in (lost, at_most, allowed))
        loss = f"{lost} points more errors" if change.relative < 0 else "no more errors measured"
    said = f"{loss}, proven to be at most {at_most} with n = {change.n:,}, of at most {allowed}"
    flag = f"{_FLAGS['loss']} {_percent_up(max(proven, 0.0), 1).replace(' ', '')}" if proven <= LARGEST_LOSS else ""
    return Limit(
        name="loss", said=said, excess=(proven - most) / max(most, SMALLEST_LOSS), flag=flag,
        queries=_queries(change, most) if proven > most else None,
    )  # fmt: skip


def _queries(change: Change, most: float) -> int | None:
    """Queries for the bound to reach -max_loss if mean and spread stayed: its distance shrinks by the root of n."""
    margin = change.relative + most
    if margin <= 0:
        return None
    needed = max(change.n * ((change.relative - change.lower_bound) / margin) ** 2, bootstrap.fewest_queries(most))
    if needed > 1e9:
        return None
    step: int = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return math.ceil(needed / step) * step


# ---------------------------------------------------------------- figures in words


def _megabytes(value: float) -> str:
    return f"{_short(value / 1e6, 2)} MB" if value >= 1e5 else f"{value:,.0f} B"


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 999 else f"{value:,.0f} ms"


def _percent(share: float) -> str:
    return f"{_short(share * 100, 2)} %"


def _bytes_up(value: float) -> str:
    """The next tenth of a megabyte, or of a kilobyte, as the command line reads it."""
    unit, letters = (1e6, "MB") if value >= 1e6 else (1e3, "kB")
    # One byte more: a size is read by cutting off what a float leaves behind the point.
    return f"{_short(math.ceil((value + 1) / unit * 10) / 10, 1)}{letters}"


def _milliseconds_up(value: float) -> str:
    return f"{_up(value, 1.0, 1 if value >= 1 else 3)}ms"


def _percent_up(share: float, digits: int) -> str:
    return f"{_up(share, 100.0, digits)} %"


def _up(value: float, scale: float, digits: int) -> str:
    """The next number, in the unit of the scale, that is no less than the value once it is read back."""
    steps = round(value * scale * 10**digits)
    while float(_short(steps / 10**digits, digits)) / scale < value:
        steps += 1
    return _short(steps / 10**digits, digits)


def _short(value: float, digits: int) -> str:
    """With so many decimals at most, without zeros at the end."""
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")
