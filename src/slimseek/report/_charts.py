"""The charts of the report: altair draws them, vl-convert makes them static SVG, and the page's CSS colours them.

Every chart is 400 units wide, so that its text stays readable on a phone. A chart whose data are missing is left out.
Nothing is told by colour alone: models have shapes and names, before and after are hatched and solid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from slimseek.measurement import Change, Comparison, StepRecord
from slimseek.report import _format
from slimseek.report._drawing import (
    _BOLD_LETTER,
    _LETTER,
    COMPRESSED,
    GAIN,
    HATCH,
    LINE,
    LOSS,
    SOFT,
    TEXT,
    Figure,
    _cut,
    _Drawing,
    _layer,
    _letters,
)
from slimseek.report._scatter import _scatter, _ticks
from slimseek.report._words import recorded, say


def figures(comparison: Comparison) -> dict[str, Figure]:
    """Every chart that there are data for, by name."""
    drawn = {
        "quality-size": _scatter(comparison, "size", say("Quality against size")),
        "quality-latency": _scatter(comparison, "latency_p50", say("Quality against latency")),
        "steps": steps(comparison.records),
        "parts": _parts(comparison),
        "queries": _queries(comparison),
        "metrics": _metrics(comparison),
    }
    return {name: figure for name, figure in drawn.items() if figure}


# ---------------------------------------------------------------- what each step saved and cost


def steps(records: Sequence[StepRecord]) -> Figure | None:
    """Bytes from the original through each step to the result, and beside them the share of quality that is left;
    ``None`` where there are no steps.
    """
    if not records:
        return None
    with_quality = any(_sound(record.quality) for record in records)
    drawing = _Drawing(height=44 * (len(records) + 2), top=30 if with_quality else 6)
    right = 250.0 if with_quality else drawing.width
    scale = right / max(1, *(size for r in records for size in (r.bytes_before, r.bytes_after)))
    first, last = records[0].bytes_before, records[-1].bytes_after
    _row(drawing, 0, (say("original"), _format.size(first)), right, bold=True)
    drawing.bar(0, first * scale, 19, 15, fill=HATCH)
    for row, record in enumerate(records):
        _step(drawing, row + 1, record, scale, right)
    _row(drawing, len(records) + 1, (say("result"), _format.size(last)), right, bold=True)
    drawing.bar(0, last * scale, 44 * (len(records) + 1) + 19, 15, fill=COMPRESSED)
    if with_quality:
        _quality_beside(drawing, records, left=284.0)
    title = say("Bytes saved by each step, and quality after it" if with_quality else "Bytes saved by each step")
    said = [f"{r.step} {_saved(r)}{_and_kept(r.quality)}" for r in records]
    ends = (f"{say('original')} {_format.size(first)}", f"{say('result')} {_format.size(last)}")
    description = say("; ").join([ends[0], *said, ends[1]])
    return Figure(title=title, svg=drawing.svg("steps", title, description))


def _row(
    drawing: _Drawing, row: float, words: tuple[str, str], right: float, *, colour: str = TEXT, bold: bool = False
) -> None:
    """A name at the left and a figure at the right, above the bars of a row; a long name is cut."""
    name, said = words
    letter = _BOLD_LETTER if bold else _LETTER
    drawing.text(0, 44 * row + 9, _cut(name, (right - 10) / letter - _letters(said)), bold=bold)
    drawing.text(right, 44 * row + 9, said, align="right", colour=colour, bold=bold)


def _step(drawing: _Drawing, row: int, record: StepRecord, scale: float, right: float) -> None:
    y = 44 * row
    start, end = record.bytes_before * scale, record.bytes_after * scale
    colour = LOSS if record.bytes_after > record.bytes_before else GAIN
    _row(drawing, row, (f"{row}  {record.step}", _saved(record)), right, colour=colour)
    drawing.line(start, y - 10, start, y + 19)
    if start != end:
        drawing.bar(start, end, y + 19, 15, fill=colour)
    drawing.line(end, y + 19, end, y + 63)


def _saved(record: StepRecord) -> str:
    difference = record.bytes_after - record.bytes_before
    if not difference:
        return say("no bytes saved")
    return ("+" if difference > 0 else "") + _format.size(difference)


def _and_kept(change: Change | None) -> str:
    return say(", quality {kept}", kept=_format.kept(change)) if change and _sound(change) else ""


def _sound(change: Change | None) -> bool:
    """Whether all of a change can be drawn."""
    return change is not None and all(map(math.isfinite, (change.relative, *change.interval)))


def _quality_beside(drawing: _Drawing, records: Sequence[StepRecord], left: float) -> None:
    """The share of the original's quality after each step, with its interval, on one scale for all steps."""
    measured = [(row, r.quality) for row, r in enumerate(records, 1) if r.quality and _sound(r.quality)]
    x = _share_scale([change for _, change in measured], left, drawing.width - 6)
    points = measured[0][1].points is True
    label = _format.metric_label(measured[0][1].metric)
    label = label if points else say("{share} kept", share=label)
    drawing.text(left - 6, -16, _cut(label, 18), colour=SOFT)
    drawing.line(x(0.0), 18, x(0.0), drawing.height - 44, colour=SOFT, dash=True)
    drawing.text(min(x(0.0), drawing.width - 20), 9, "+0" if points else "100 %", align="center", colour=SOFT)
    for row, change in measured:
        low, high = change.interval
        colour = LOSS if high < 0 else GAIN if low > 0 else TEXT
        at = x(change.relative)
        drawing.interval(at, (x(low), x(high)), 44 * row + 26.5, colour=colour)
        middle = min(max(at, left + 12), drawing.width - 20)
        drawing.text(middle, 44 * row + 9, _share(change), align="center")


def _share(change: Change) -> str:
    """What is kept, without the word for it."""
    return _format.kept(change) if change.points is True else _format.percent(1 + change.relative)


def _share_scale(
    changes: Sequence[Change], left: float, right: float, also: tuple[float, ...] = ()
) -> Callable[[float], float]:
    """Relative changes to positions; no change, and what is in ``also``, is always inside."""
    ends = [end for change in changes for end in (*change.interval, change.relative)]
    low, high = min([*ends, *also, -0.002]), max([*ends, *also, 0.002])
    return lambda share: left + (min(max(share, low), high) - low) / (high - low) * (right - left)


# ---------------------------------------------------------------- bytes by part


def _parts(comparison: Comparison, most: int = 8) -> Figure | None:
    """Bytes of each part of the model before (hatched) and after (solid), the largest first."""
    before, after = comparison.bytes_before, comparison.bytes_after
    names = sorted({*before, *after}, key=lambda name: (-before.get(name, 0), -after.get(name, 0), name))
    if not names or not before or not after:
        return None
    rows = [(recorded(name) or name, before.get(name, 0), after.get(name, 0)) for name in names]
    if len(rows) > most:
        rest = rows[most - 1 :]
        rows = [
            *rows[: most - 1],
            (say("{n} smaller parts", n=len(rest)), sum(r[1] for r in rest), sum(r[2] for r in rest)),
        ]
    drawing = _Drawing(height=44 * len(rows))
    scale = drawing.width / max(1, *(size for row in rows for size in row[1:]))
    for place, (name, was, now) in enumerate(rows):
        said = _format.arrow(_format.size(was), say("gone") if was and not now else _format.size(now))
        _row(drawing, place, (name, said), drawing.width)
        if was:
            drawing.bar(0, was * scale, 44 * place + 18, 8, fill=HATCH)
        if now:
            drawing.bar(0, now * scale, 44 * place + 29, 8, fill=COMPRESSED)
    title = say("Bytes by part of the model")
    description = say("; ").join(
        f"{name} {_format.arrow(_format.size(was), _format.size(now))}" for name, was, now in rows
    )
    return Figure(title=title, svg=drawing.svg("parts", title, description))


# ---------------------------------------------------------------- queries and metrics


def _queries(comparison: Comparison) -> Figure | None:
    """The difference of every query, sorted from the lowest to the highest."""
    metric = _format.main_metric(comparison)
    differences = _differences(comparison, metric) if metric else []
    if metric is None or not differences:
        return None
    n = len(differences)
    fewer, more = sum(d < -1e-9 for d in differences), sum(d > 1e-9 for d in differences)
    up = _format.higher_is_better(comparison, metric)
    sides = ((say("worse"), LOSS), (say("better"), GAIN))
    sides = sides if up else (sides[1], sides[0])
    (lower, below_colour), (higher, above_colour) = sides
    drawing = _Drawing(height=190, left=46, right=8, top=34, bottom=28)
    _areas(drawing, differences, (below_colour, above_colour))
    under = drawing.height + 15
    drawing.text(0, under, say("← {n:,} {side}", n=fewer, side=lower), colour=below_colour)
    drawing.text(drawing.width / 2, under, say("{n:,} the same", n=n - fewer - more), align="center", colour=SOFT)
    drawing.text(drawing.width, under, say("{n:,} {side} →", n=more, side=higher), align="right", colour=above_colour)
    drawing.text(-42, -20, say("{metric}, compressed − original", metric=_format.metric_label(metric)))
    drawing.text(drawing.width, -20, say("{n:,} queries, sorted", n=n), align="right", colour=SOFT)
    title = say("Every query, before against after")
    description = say(
        "Of {n:,} queries {fewer:,} are {lower}, {more:,} {higher} and {same:,} the same; the differences go from "
        "{first} to {last}", n=n, fewer=fewer, lower=lower, more=more, higher=higher, same=n - fewer - more,
        first=_signed(differences[0]), last=_signed(differences[-1]),
    )  # fmt: skip
    return Figure(title=title, svg=drawing.svg("queries", title, description))


def _differences(comparison: Comparison, metric: str) -> list[float]:
    before, after = comparison.original.get(metric), comparison.compressed.get(metric)
    one, two = (before and before.per_query) or (), (after and after.per_query) or ()
    if len(one) != len(two):
        return []
    return sorted(b - a for a, b in zip(one, two, strict=True) if math.isfinite(b - a))


def _areas(drawing: _Drawing, differences: Sequence[float], colours: tuple[str, str], most: int = 400) -> None:
    """The sorted differences as an area below and one above the line of zero; many queries are thinned evenly."""
    reach = max(abs(differences[0]), abs(differences[-1])) or 0.1

    def y(difference: float) -> float:
        return drawing.height / 2 * (1 - difference / (reach * 1.08))

    for tick in _ticks(-reach, reach, 4):
        drawing.line(0, y(tick), drawing.width, y(tick), colour=LINE if tick else SOFT)
        drawing.text(-7, y(tick), f"{tick:+g}".replace("-", _format.MINUS) if tick else "0", align="right", colour=SOFT)
    n, steps = len(differences), min(len(differences), most)
    shown = [differences[(2 * i + 1) * n // (2 * steps)] for i in range(steps)]
    for values, colour in zip(([min(d, 0.0) for d in shown], [max(d, 0.0) for d in shown]), colours, strict=True):
        corners = [{"x": i * drawing.width / steps, "y": y(d), "y2": y(0)} for i, d in enumerate([*values, values[-1]])]
        area = _layer(corners).mark_area(interpolate="step-after", fill=colour, opacity=1, line=False)
        drawing.areas.append(area.encode(y2="y2:Q"))


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", _format.MINUS)


def _metrics(comparison: Comparison) -> Figure | None:
    """The share of each metric that is kept, with the paired 95 % interval, and the limit that was asked."""
    changes = [c for c in comparison.changes if _sound(c) and _format.higher_is_better(comparison, c.metric)]
    if not changes:
        return None
    drawing = _Drawing(height=44 * len(changes) - 2, bottom=20)
    limit = _format.loss_limit(comparison)
    marks = [(0.0, "100 %", SOFT)]
    if limit is not None:
        marks = [(-limit, say("limit {share}", share=_format.percent(1 - limit, trim=True)), LOSS), *marks]
    x = _share_scale(changes, 8, drawing.width - 8, also=tuple(share for share, _, _ in marks))
    for row, change in enumerate(changes):
        words = say("{kept} ({interval})", kept=_format.kept(change), interval=_format.kept_interval(change))
        _row(drawing, row, (_format.metric_label(change.metric), words), drawing.width, bold=row == 0)
        for share, _, colour in marks:
            drawing.line(x(share), 44 * row + 19, x(share), 44 * row + 35, colour=colour, dash=share < 0)
        ends = (x(change.interval[0]), x(change.interval[1]))
        drawing.interval(x(change.relative), ends, 44 * row + 27, colour=COMPRESSED, shape="diamond")
    after = -math.inf
    for share, words, colour in marks:
        at = min(max(x(share), 36), drawing.width - 20)
        if at > after:
            drawing.text(at, drawing.height + 9, words, align="center", colour=colour)
        after = at + 66
    title = say("Quality kept, with its interval")
    said = [
        say("{metric} {said}, interval {bounds}", metric=_format.metric_label(c.metric), said=_format.kept(c),
            bounds=_format.kept_interval(c)) for c in changes
    ]  # fmt: skip
    return Figure(title=title, svg=drawing.svg("metrics", title, say("; ").join(said)))
