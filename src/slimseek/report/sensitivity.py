"""The page and the table of what each layer can lose: one panel a layer, the figures, and what to do with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import json

from slimseek.folder import write_atomically
from slimseek.measurement import Change
from slimseek.report import _format
from slimseek.report._page import template
from slimseek.report._words import later, phrase, say, speaking
from slimseek.sensitivity import LayerSensitivity, Point, Sensitivity

PAGE = "sensitivity.html"
UNITS = {"prune.channels": later("channels"), "prune.heads": later("heads")}
LEFT, RIGHT, TOP, BOTTOM = 6.0, 178.0, 16.0, 104.0
"""The plot of a panel, in a picture of 184 x 122 units."""
STEPS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25)
NAMED = 4
DARKEST = 34.0
"""Per cent of colour behind the figure that lost most."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A measured share in a panel: where it and the ends of its interval lie, and what is written beside it."""

    x: float
    y: float
    low: float
    high: float
    said: str
    below: bool


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A layer's chart: the share of quality that is left, against the share of units that is gone.

    Attributes:
        layer: whose it is.
        label: its name, without what all names begin with.
        dots: what was measured, in units of the picture.
        line: the same as points of a line that starts at the whole model.
        ticks: height and words of the lines behind it; the first is the whole model's quality.
        said: the same in words.
    """

    layer: LayerSensitivity
    label: str
    dots: tuple[Dot, ...]
    line: str
    ticks: tuple[tuple[float, str], ...]
    said: str


def verdict(found: Sensitivity) -> str:
    """What to do with the figures, in one sentence."""
    metric, units = _format.metric_label(found.settings.metric), phrase(UNITS[found.settings.method])
    before = ""
    for amount in found.settings.amounts:
        losers, measured = found.losers(amount)
        share = say("{share} of its {units}", share=_format.percent(amount, trim=True), units=units)
        if losers and len(losers) < measured:
            more = say(" and {n} more", n=len(losers) - NAMED) if len(losers) > NAMED else ""
            names = say(", ").join(layer.name for layer in losers[:NAMED]) + more
            return say("Without {share}, {n} of {all} layers lose {metric} for sure; keep them whole with skip: "
                       "{names}", share=share, n=len(losers), all=measured, metric=metric, names=names)  # fmt: skip
        if losers and before:
            return say("No layer loses {metric} for sure without {before}, and every one does without {share}: stay "
                       "below that, or train afterwards", metric=metric, before=before, share=share)  # fmt: skip
        if losers:
            return say("Every layer loses {metric} for sure without {share}: take less, or train afterwards",
                       metric=metric, share=share)  # fmt: skip
        before = share if measured else before
    if not before:
        return say("No layer can lose a share of its {units} that was asked", units=units)
    return say("No layer loses {metric} for sure without {before}, on {n:,} queries: these figures spare none",
               metric=metric, before=before, n=found.original.n)  # fmt: skip


def step(found: Sensitivity) -> str:
    """The step of a recipe that the figures lead to: the first amount at which some layers lose for sure and others do
    not, and those spared; ``""`` where there is no such amount.
    """
    for amount in found.settings.amounts:
        losers, measured = found.losers(amount)
        if 0 < len(losers) < measured:
            skipped = ", ".join(json.encode(layer.name).decode() for layer in losers)
            settings = f"amount: {amount:g}, importance: {found.settings.importance}"
            return f"- {found.settings.method}: {{{settings}, skip: [{skipped}]}}"
    return ""


def short_names(found: Sensitivity) -> dict[str, str]:
    """Names of layers without the dotted parts that all of them begin with, and without ``.weight``."""
    parts = [layer.name.split(".") for layer in found.layers]
    shared = 0
    while all(len(part) > shared + 1 for part in parts) and len({part[shared] for part in parts}) == 1:
        shared += 1
    return {".".join(part): ".".join(part[shared:]).removesuffix(".weight") for part in parts}


def kept(point: Point) -> str:
    """The share of quality that is left at a point, or a dash."""
    return _format.percent(1 + point.change.relative) if point.change is not None else _format.DASH


def render(found: Sensitivity, lang: str = "en") -> str:
    """The page as HTML, without scripts or outside resources, in ``en`` or ``zh``.

    Raises:
        MissingExtra: jinja2 is not installed.
        UsageError: another language.
    """
    with speaking(lang) as tag:
        return _rendered(found, tag)


def _rendered(found: Sensitivity, tag: str) -> str:
    filters = {
        name: getattr(_format, name) for name in ("count", "percent", "score", "cosine", "metric_label", "figure")
    }
    filters |= {"kept": kept, "kept_interval": _format.kept_interval, "bounds": _format.bounds,
                "shade": lambda point: _shade(found, point)}  # fmt: skip
    page: str = template("sensitivity.html.j2", filters).render(
        s=found, tag=tag, verdict=verdict(found), step=step(found), panels=panels(found), layers=found.by_sensitivity,
        units=phrase(UNITS[found.settings.method]),
        reasons=[(layer, point) for layer in found.by_sensitivity for point in layer.points if point.reason],
    )  # fmt: skip
    return page


def write(found: Sensitivity, path: Path, lang: str = "en") -> None:
    """Write the page to ``path``, whole or not at all, in ``en`` or ``zh``.

    Raises:
        MissingExtra: jinja2 is not installed.
        UsageError: the file cannot be written, or another language.
    """
    write_atomically(path, render(found, lang).encode("utf-8", errors="replace"))


# ---------------------------------------------------------------- the panels


def panels(found: Sensitivity) -> tuple[Panel, ...]:
    """A panel of each layer that was measured, the most sensitive first, all on one scale."""
    shown = [layer for layer in found.by_sensitivity if layer.measured]
    changes = [change for layer in shown for _, change in layer.measured]
    if not changes:
        return ()
    low, high, ticks = _scale(changes)

    def y(change: float) -> float:
        return round(TOP + (high - min(max(change, low), high)) / (high - low) * (BOTTOM - TOP), 1)

    reach = max(found.settings.amounts)
    labels = short_names(found)
    places = tuple((y(tick), _format.percent(1 + tick, trim=True)) for tick in ticks)
    drawn = []
    for layer in shown:
        # Widths that are rounded up lose less than was asked; a point stands where it truly is.
        dots = tuple(_dot(layer, point, change, reach, y) for point, change in layer.measured)
        line = " ".join(f"{x:g},{height:g}" for x, height in [(LEFT, y(0.0)), *((dot.x, dot.y) for dot in dots)])
        said = say("; ").join(
            say("without {removed} of {width}: {kept}, interval {bounds}", removed=point.removed, width=layer.width,
                kept=_format.kept(change), bounds=_format.kept_interval(change)) for point, change in layer.measured
        )  # fmt: skip
        drawn.append(Panel(layer=layer, label=labels[layer.name], dots=dots, line=line, ticks=places, said=said))
    return tuple(drawn)


def _dot(layer: LayerSensitivity, point: Point, change: Change, reach: float, y: Callable[[float], float]) -> Dot:
    height = y(change.relative)
    return Dot(
        x=round(LEFT + point.removed / layer.width / reach * (RIGHT - 14 - LEFT), 1), y=height,
        low=y(change.interval[0]), high=y(change.interval[1]), said=_format.percent(1 + change.relative, unit=False),
        below=y(change.interval[1]) < TOP + 12,
    )  # fmt: skip


def _scale(changes: Sequence[Change]) -> tuple[float, float, list[float]]:
    """The least and the greatest change that a panel shows, and where lines are drawn; 0 is the first of them."""
    ends = [end for change in changes for end in (*change.interval, change.relative) if math.isfinite(end)]
    low, high = min([*ends, -0.01]), max([*ends, 0.0])
    space = next((space for space in STEPS if (high - low) / space <= 5), STEPS[-1])
    low = math.floor(low / space + 1e-9) * space
    below = [-number * space for number in range(1, round(-low / space) + 1)]
    above = [number * space for number in range(1, int(high / space + 1e-9) + 1)]
    return low, high, [0.0, *below, *above]


def _shade(found: Sensitivity, point: Point) -> int:
    """How dark the ground behind a figure is, in per cent: its loss by the greatest of all."""
    losses = [-change.relative for layer in found.layers for _, change in layer.measured]
    worst = max([*losses, 0.0])
    if point.change is None or not worst:
        return 0
    return round(DARKEST * max(0.0, -point.change.relative) / worst)
