"""Quality against a cost: labelled points that do not hide each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slimseek.measurement import Comparison, Measurement
from slimseek.report import _format
from slimseek.report._drawing import (
    _BOLD_LETTER,
    _LETTER,
    _SHAPES,
    _SHIFTS,
    COMPRESSED,
    ORIGINAL,
    OTHER,
    SOFT,
    Figure,
    _cut,
    _Drawing,
    _letters,
)
from slimseek.report._words import later, phrase, say


@dataclass(frozen=True, kw_only=True)
class _Point:
    name: str
    shown: str
    role: str
    x: Measurement
    y: Measurement
    colour: str
    shape: str


def _points(comparison: Comparison, name: str, metric: str) -> list[_Point]:
    subjects = [
        (comparison.original, later("original"), ORIGINAL, "circle"),
        (comparison.compressed, later("compressed"), COMPRESSED, "diamond"),
        *(
            (other, later("alternative"), OTHER, _SHAPES[i % len(_SHAPES)])
            for i, other in enumerate(comparison.alternatives)
        ),
    ]
    points = []
    for report, role, colour, shape in subjects:
        x, y = report.get(name), report.get(metric)
        if x and y and math.isfinite(x.value) and x.value > 0 and math.isfinite(y.value):
            shown = phrase(role) if role != "alternative" else report.subject.rpartition("/")[2] or report.subject
            points.append(_Point(name=report.subject, shown=shown, role=role, x=x, y=y, colour=colour, shape=shape))
    return points


def _scatter(comparison: Comparison, name: str, title: str) -> Figure | None:
    """Every model as a named point with the 95 % interval of its score; drawn from two models on."""
    metric = _format.main_metric(comparison)
    points = _points(comparison, name, metric) if metric else []
    if len(points) < 2:
        return None
    drawing = _Drawing(height=220, left=46, right=10, top=34, bottom=44)
    x, y = _across(drawing, [point.x for point in points]), _down(drawing, [point.y for point in points])
    placed = [
        _Placed(point=point, x=x(point.x.value), y=y(point.y.value), ends=tuple(map(y, _bounds(point.y) or ())))
        for point in points
    ]
    for at in placed:
        colour = at.point.colour
        for end in at.ends:
            drawing.line(at.x, at.y, at.x, end, colour=colour)
            drawing.line(at.x - 3, end, at.x + 3, end, colour=colour)
        drawing.dot(at.x, at.y, colour=colour, shape=at.point.shape, name=_described(at.point))
    key = _label_points(drawing, placed)
    description = say("; ").join(map(_described, points))
    return Figure(title=title, svg=drawing.svg(f"quality-{name.partition('_')[0]}", title, description), key=key)


def _across(drawing: _Drawing, measurements: Sequence[Measurement]) -> Callable[[float], float]:
    """Draw the axis below: from zero, or logarithmic where the largest is over 15 times the smallest."""
    low, high = min(m.value for m in measurements), max(m.value for m in measurements)
    unit, scale = _axis_unit(measurements[0].unit, high)
    start, end = math.log(low / 1.5), math.log(high * 1.7)
    log = high / low > 15
    ticks = _log_ticks(start, end) if log else _ticks(0, high * 1.12)

    def x(value: float) -> float:
        return drawing.width * ((math.log(value) - start) / (end - start) if log else value / (high * 1.12))

    floor = drawing.height
    drawing.line(0, floor, drawing.width, floor, colour=SOFT)
    for tick in ticks:
        drawing.line(x(tick), floor, x(tick), floor + 4, colour=SOFT)
        drawing.text(x(tick), floor + 14, _tick(tick / scale), align="center", colour=SOFT)
    logarithmic = say(", logarithmic") if log else ""
    label = say("{label}, {unit}{scale}  ← less is better", label=_format.label(measurements[0].name), unit=unit,
                scale=logarithmic)  # fmt: skip
    drawing.text(drawing.width, floor + 34, label, align="right")
    return x


def _down(drawing: _Drawing, measurements: Sequence[Measurement]) -> Callable[[float], float]:
    """Draw the lines of the scores over the range of the scores and their intervals, with room above and below."""
    ends: list[float] = [end for m in measurements for end in (*(_bounds(m) or ()), m.value)]
    low, high = min(ends), max(ends)
    room = max((high - low) * 0.1, abs(high) * 0.01, 1e-6)
    low, high = low - room, high + room

    def y(value: float) -> float:
        return drawing.height * (high - value) / (high - low)

    for tick in _ticks(low, high):
        drawing.line(0, y(tick), drawing.width, y(tick))
        drawing.text(-7, y(tick), _tick(tick), align="right", colour=SOFT)
    better = say("↑ higher is better" if measurements[0].higher_is_better else "↓ lower is better")
    drawing.text(-42, -22, f"{_format.metric_label(measurements[0].name)}  {better}")
    return y


def _described(point: _Point) -> str:
    bounds = _bounds(point.y)
    between = say(" ({interval})", interval=_format.interval(*bounds, _format.score)) if bounds else ""
    return say("{name} ({role}): {cost}, {metric} {score}{between}", name=point.name, role=phrase(point.role),
               cost=_format.figure(point.x), metric=_format.metric_label(point.y.name), score=_format.figure(point.y),
               between=between)  # fmt: skip


def _bounds(measurement: Measurement) -> tuple[float, float] | None:
    interval = measurement.interval
    return interval if interval and all(map(math.isfinite, interval)) else None


def _axis_unit(unit: str, high: float) -> tuple[str, float]:
    if unit != "B":
        return unit, 1.0
    return next((name, scale) for name, scale in (("MB", 1e6), ("kB", 1e3), ("B", 1.0)) if high >= scale or scale == 1)


def _log_ticks(start: float, end: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two logarithms, or the powers alone where that is too many."""
    powers = range(math.floor(start / math.log(10)), math.ceil(end / math.log(10)) + 1)
    for steps in ((1, 2, 5), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        ticks = [tick for tick in ticks if start <= math.log(tick) <= end]
        if len(ticks) <= 8:
            break
    return ticks


def _ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers of the range: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


Box = tuple[float, float, float, float]
Place = tuple[float, float, str, Box]


@dataclass(frozen=True, kw_only=True)
class _Spot:
    """A place in the picture; ``ends`` are those of its whisker, or nothing."""

    x: float
    y: float
    ends: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class _Placed(_Spot):
    """A point in the picture."""

    point: _Point


def _label_points(drawing: _Drawing, placed: Sequence[_Placed]) -> tuple[tuple[str, str], ...]:
    """Write each name beside its point where nothing is in the way; where no place is free, a letter and a key."""
    taken: list[Box] = [(at.x - 7, at.y - 7, at.x + 7, at.y + 7) for at in placed]
    taken += [(at.x - 4, min(at.ends), at.x + 4, max(at.ends)) for at in placed if at.ends]
    key: list[tuple[str, str]] = []
    for at in placed:
        name, letter = _cut(at.point.shown, 30), "abcdefghijklmnopqrstuvwxyz"[len(key) % 26]
        bold = at.point.role != "alternative"
        free = _free(drawing, at, _letters(name) * (_BOLD_LETTER if bold else _LETTER), taken)
        text = name if free else letter
        x, y, align, box = free or _free(drawing, at, _LETTER, taken) or _places(at, _LETTER)[0]
        if text != at.point.shown:
            key.append((text, at.point.name))
        taken.append(box)
        drawing.text(x, y, text, align=align, colour=at.point.colour, bold=bold)
    return tuple(key)


def _free(drawing: _Drawing, at: _Spot, width: float, taken: Sequence[Box]) -> Place | None:
    for place in _places(at, width):
        if _inside(place[3], drawing) and not any(_overlap(place[3], box) for box in taken):
            return place
    return None


def _places(at: _Spot, width: float) -> list[Place]:
    """Right, left, higher and lower on both sides, and then above and below the whisker's ends."""
    ends = at.ends or (at.y,)
    beside = [(at.x + side * 10, at.y + up, side) for up in (0, -13, 13, -24, 24) for side in (1, -1)]
    beyond = [(at.x + shift, end, side) for end in (min(ends) - 11, max(ends) + 11) for shift, side in _SHIFTS]
    found = []
    for x, y, side in beside + beyond:
        left = x - width * (1 - side) / 2
        found.append((x, y, ("right", "center", "left")[side + 1], (left, y - 7, left + width, y + 7)))
    return found


def _inside(box: Box, drawing: _Drawing) -> bool:
    return box[0] >= 0 and box[2] <= drawing.width + drawing.right and box[1] >= -8 and box[3] <= drawing.height


def _overlap(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
