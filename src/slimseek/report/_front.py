"""The plot of a search: quality against a cost, every trial a point that a script can find."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from slimseek.measurement import Measurement
from slimseek.report import _format, _trials
from slimseek.report._drawing import _BOLD_LETTER, _LETTER, COMPRESSED, LINE, LOSS, SOFT, Mark, _Drawing, _letters
from slimseek.report._labels import LABELS
from slimseek.report._scatter import Box, Place, _across, _free, _Spot, _tick, _ticks
from slimseek.report._words import later, phrase, say
from slimseek.trial import Found

HEIGHT, LEFT, TOP = 230.0, 46.0, 30.0
UNITS = {"size": "B", "latency_p95": "ms", "index_size": "B", "memory": "B"}
TITLES = {
    "size": later("Quality against size"), "latency_p95": later("Quality against latency p95"),
    "index_size": later("Quality against index"), "memory": later("Quality against peak memory"),
}  # fmt: skip
SHOWN_LOSS = 0.1
"""A loss above this, and above five times the one allowed, stands at the lower edge: else it would squeeze the rest."""
ANCHORS = {"left": "start", "center": "middle", "right": "end"}
ORDER = ("ended", "beaten", "front", "original", "chosen")


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A trial's point, in units of the picture.

    Attributes:
        row: whose it is.
        x: where it stands; ``y`` downwards.
        ends: the ends of its interval, upper and lower; empty where there is none to draw.
        below: whether it lies below the picture and stands at its edge.
        said: name and figures.
        label: a short name to write beside it; ``""`` where there is no room or it needs none.
        place: where the label stands: x, y of its middle, and the SVG's ``text-anchor``.
    """

    row: _trials.Row
    x: float
    y: float
    ends: tuple[float, ...]
    below: bool
    said: str
    label: str = ""
    place: tuple[float, float, str] = (0.0, 0.0, "start")


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Quality against one cost.

    Attributes:
        cost: its name, such as ``size``.
        title: for the caption.
        svg: axes, limits, the front's line and names: an SVG without its closing tag, for the points go before that.
        dots: the points; what lies on top comes last.
    """

    cost: str
    title: str
    svg: str
    dots: tuple[Dot, ...]


def plots(found: Found, rows: Sequence[_trials.Row]) -> tuple[Plot, ...]:
    """A plot for each cost that at least two trials with a quality differ in."""
    drawn = (_plot(found, rows, cost) for cost in _trials.costs(found))
    return tuple(plot for plot in drawn if plot is not None)


def _plot(found: Found, rows: Sequence[_trials.Row], cost: str) -> Plot | None:
    shown = [row for row in rows if _kept(row) is not None and _trials.value(row.trial, cost) > 0]
    values = [_trials.value(row.trial, cost) for row in shown]
    if len(set(values)) < 2:
        return None
    drawing = _Drawing(height=HEIGHT, left=LEFT, right=12, top=TOP, bottom=44)
    name = cost if cost in LABELS else "peak_memory"
    x = _across(drawing, [Measurement(name=name, value=value, unit=UNITS[cost]) for value in values])
    y = _down(drawing, found, shown)
    dots = tuple(_dot(row, cost, x, y) for row in sorted(shown, key=lambda row: ORDER.index(row.role)))
    _limits(drawing, found, cost, x, y)
    _stairs(drawing, dots)
    places = _names(drawing, dots)
    title = phrase(TITLES[cost])
    described = say("; ").join(dot.said for dot in dots if dot.row.role in ("original", "chosen", "front"))
    svg = drawing.svg(f"front-{cost}", title, described).removesuffix("</svg>")
    moved = tuple(_moved(dot, places.get(dot.row.trial.number)) for dot in dots)
    # The points are named things of their own, so the picture as a whole may not pass for one image.
    return Plot(cost=cost, title=title, svg=svg.replace('role="img"', 'role="group"', 1), dots=moved)


def _kept(row: _trials.Row) -> float | None:
    """The relative change of a trial's metric; ``None`` where there is none to draw."""
    change = row.trial.change
    if row.trial.number == 0:
        return 0.0
    return change.relative if change is not None and math.isfinite(change.relative) else None


def _ends(row: _trials.Row) -> tuple[float, ...]:
    change = row.trial.change
    if change is None or row.trial.number == 0 or not all(map(math.isfinite, change.interval)):
        return ()
    return (change.interval[1], change.interval[0])


def _down(drawing: _Drawing, found: Found, rows: Sequence[_trials.Row]) -> Callable[[float], float]:
    """Draw the lines of the quality kept; what is lost beyond the scale stands at its lower edge."""
    points = _trials.in_points(found)
    deepest = -max(SHOWN_LOSS, 5 * (found.budget.max_loss or 0.0))
    inside = [row for row in rows if (_kept(row) or 0.0) >= deepest]
    ends = [end for row in inside for end in (*_ends(row), _kept(row) or 0.0)]
    low, high = max(min([*ends, -0.01]), deepest), max([*ends, 0.005])
    room = (high - low) * 0.06
    low, high = low - room, high + room

    def y(change: float) -> float:
        return drawing.height * (high - max(change, low)) / (high - low)

    for tick in _ticks(low, high):
        drawing.line(0, y(tick), drawing.width, y(tick), colour=LINE if tick else SOFT)
        said = f"{-round(100 * tick, 6):+g}" if points else f"{_tick(round(100 * (1 + tick), 6))} %"
        drawing.text(-7, y(tick), "0" if points and not tick else said, align="right", colour=SOFT)
    label = later("{metric}, points more  ↑ fewer is better") if points else later("{metric} kept  ↑ higher is better")
    drawing.text(-42, -18, phrase(label).format(metric=_format.metric_label(found.budget.metric)))
    return y


def _dot(row: _trials.Row, cost: str, x: Callable[[float], float], y: Callable[[float], float]) -> Dot:
    change = _kept(row)
    assert change is not None, "only trials with a quality are drawn"
    height = y(change)
    below = height >= HEIGHT - 1e-6
    figures = _trials.COSTS[cost][1](_trials.value(row.trial, cost))
    between = say(" ({interval})", interval=row.kept.detail) if row.kept.detail else ""
    return Dot(
        row=row, x=round(x(_trials.value(row.trial, cost)), 1), y=round(height - 5 * below, 1), below=below,
        ends=() if below else tuple(round(y(end), 1) for end in _ends(row)),
        said=say("{number} {name}: {figures}, {kept}{between}; {said}", number=row.trial.number, name=row.name,
                 figures=figures, kept=_said(row), between=between, said=row.said),
    )  # fmt: skip


def _said(row: _trials.Row) -> str:
    """The quality in words."""
    change = row.trial.change
    points = change is not None and change.points is True
    return row.kept.text if points else say("{share} kept", share=row.kept.text)


def _moved(dot: Dot, label: Place | None) -> Dot:
    """From the plot's own corner to the picture's, with a name beside it where there is room."""
    ends = tuple(round(end + TOP, 1) for end in dot.ends)
    moved = replace(dot, x=round(dot.x + LEFT, 1), y=round(dot.y + TOP, 1), ends=ends)
    if label is None:
        return moved
    x, y, align, _ = label
    place = (round(x + LEFT, 1), round(y + TOP, 1), ANCHORS[align])
    return replace(moved, label=_label(dot), place=place)


def _limits(
    drawing: _Drawing, found: Found, cost: str, x: Callable[[float], float], y: Callable[[float], float]
) -> None:
    """What the budget allows, as dashed lines."""
    most = getattr(found.budget, cost)
    if most is not None and 0 < x(most) < drawing.width:
        drawing.line(x(most), 0, x(most), drawing.height, colour=LOSS, dash=True)
        at, align = (x(most) + 4, "left") if x(most) < drawing.width - 90 else (x(most) - 4, "right")
        drawing.text(
            at, drawing.height - 9, say("at most {most}", most=_trials.COSTS[cost][1](most)), align=align, colour=LOSS
        )
    loss = found.budget.max_loss
    if loss is not None and y(-loss) < drawing.height:
        drawing.line(0, y(-loss), drawing.width, y(-loss), colour=LOSS, dash=True)
        drawing.text(
            drawing.width,
            y(-loss) + 9,
            _format.lost(loss, points=_trials.in_points(found)),
            align="right",
            colour=LOSS,
        )


def _stairs(drawing: _Drawing, dots: Sequence[Dot]) -> None:
    """The front of this cost and quality alone: from the cheapest point, up wherever a dearer one is better."""
    at: tuple[float, float] | None = None
    for dot in sorted((dot for dot in dots if dot.row.role != "ended"), key=lambda dot: (dot.x, dot.y)):
        if at is not None and dot.y >= at[1]:
            continue
        if at is not None:
            drawing.line(*at, dot.x, at[1], colour=COMPRESSED)
            drawing.line(dot.x, at[1], dot.x, dot.y, colour=COMPRESSED)
        at = (dot.x, dot.y)


def _names(drawing: _Drawing, dots: Sequence[Dot]) -> dict[int, Place]:
    """Where there is room for a name: of the original and the chosen one first, then of those on the front."""
    taken: list[Box] = [(dot.x - 6, dot.y - 6, dot.x + 6, dot.y + 6) for dot in dots]
    taken += map(_box, drawing.texts)
    places = {}
    for dot in reversed(dots):
        text = _label(dot)
        spot = _Spot(x=dot.x, y=dot.y, ends=dot.ends)
        place = _free(drawing, spot, _letters(text) * _BOLD_LETTER, taken) if text else None
        if place is not None:
            places[dot.row.trial.number] = place
            taken.append(place[3])
    return places


def _label(dot: Dot) -> str:
    number = str(dot.row.trial.number)
    chosen = say("{number} chosen", number=number)
    return {"front": number, "chosen": chosen, "original": say("original")}.get(dot.row.role, "")


def _box(mark: Mark) -> Box:
    """Where a text is written."""
    width = _letters(mark["text"]) * _LETTER
    left = mark["x"] - width * {"left": 0.0, "center": 0.5, "right": 1.0}[mark["align"]]
    return (left, mark["y"] - 7, left + width, mark["y"] + 7)
