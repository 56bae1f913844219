"""The charts of the report: altair draws them, vl-convert makes them static SVG, and the page's CSS colours them.

Every chart is 400 units wide, so that its text stays readable on a phone. A chart whose data are missing is left out.
Nothing is told by colour alone: models have shapes and names, before and after are hatched and solid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

import altair as alt
import vl_convert

from slimseek.report import _format
from slimseek.schema import Change, Comparison, Measurement, StepRecord

Mark = dict[str, Any]

WIDTH = 400
TEXT, SOFT, LINE, BACK = "#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04"
ORIGINAL, COMPRESSED, OTHER, GAIN, LOSS, HATCH = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06"
COLOURS = {
    TEXT: "currentColor",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    BACK: "var(--paper)",
    ORIGINAL: "var(--original)",
    COMPRESSED: "var(--compressed)",
    OTHER: "var(--other)",
    GAIN: "var(--gain)",
    LOSS: "var(--loss)",
    HATCH: "url(#hatch)",
}
"""The colours that altair is given, and what the page puts in their place."""

_DROPPED = ("aria-", "role", "class", "font-family", "pointer-events")
_SHAPES = ("triangle-up", "square", "cross", "triangle-down", "triangle-right", "triangle-left")
_SHIFTS = ((0, 0), (-8, 1), (8, -1), (-30, 1), (30, -1))
_FONT = 12
_LETTER, _BOLD_LETTER = 6.6, 7.4
"""Width of an average letter in a text of 12 units, on the safe side."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with its words: ``title`` above it, ``svg`` to put in the page, ``key`` of the names it abbreviates."""

    title: str
    svg: str
    key: tuple[tuple[str, str], ...] = ()


def figures(comparison: Comparison) -> dict[str, Figure]:
    """Every chart that there are data for, by name."""
    drawn = {
        "quality-size": _scatter(comparison, "size", "Quality against size"),
        "quality-latency": _scatter(comparison, "latency_p50", "Quality against latency"),
        "steps": _steps(comparison),
        "parts": _parts(comparison),
        "queries": _queries(comparison),
        "metrics": _metrics(comparison),
    }
    return {name: figure for name, figure in drawn.items() if figure}


# ---------------------------------------------------------------- drawing


@dataclass
class _Drawing:
    """Marks in units of the picture, y downwards from the upper edge of the plot; ``left`` and ``top`` are margins."""

    height: float
    left: float = 4
    right: float = 4
    top: float = 4
    bottom: float = 4
    bars: list[Mark] = field(default_factory=list)
    lines: list[Mark] = field(default_factory=list)
    dots: list[Mark] = field(default_factory=list)
    texts: list[Mark] = field(default_factory=list)
    areas: list[alt.Chart] = field(default_factory=list)

    @property
    def width(self) -> float:
        """Width of the plot."""
        return WIDTH - self.left - self.right

    def bar(self, x: float, x2: float, y: float, height: float, *, fill: str) -> None:
        """A rectangle from ``x`` to ``x2``, at least one unit wide."""
        x, x2 = sorted((x, x2))
        stroke = ORIGINAL if fill == HATCH else fill
        self.bars.append({"x": x, "x2": max(x2, x + 1), "y": y, "y2": y + height, "fill": fill, "stroke": stroke})

    def line(self, x: float, y: float, x2: float, y2: float, *, colour: str = LINE, dash: bool = False) -> None:
        """A straight line."""
        self.lines.append({"x": x, "y": y, "x2": x2, "y2": y2, "stroke": colour, "dash": dash})

    def dot(self, x: float, y: float, *, colour: str, shape: str = "circle", name: str = "") -> None:
        """A point; ``name`` shows when the pointer rests on it."""
        self.dots.append({"x": x, "y": y, "fill": colour, "shape": shape, "name": _printable(name)})

    def text(
        self, x: float, y: float, text: str, *, align: str = "left", colour: str = TEXT, bold: bool = False
    ) -> None:
        """A text whose middle is at ``y``."""
        mark = {"x": x, "y": y, "text": _printable(text), "align": align, "fill": colour, "bold": bold}
        self.texts.append(mark)

    def interval(self, x: float, ends: tuple[float, float], y: float, *, colour: str, shape: str = "circle") -> None:
        """A point with a whisker to both sides."""
        self.line(ends[0], y, ends[1], y, colour=colour)
        for end in ends:
            self.line(end, y - 3, end, y + 3, colour=colour)
        self.dot(x, y, colour=colour, shape=shape)

    def svg(self, name: str, title: str, description: str) -> str:
        """The picture as SVG for the page, with its title and description for readers who do not see it."""
        layers = [*self._bars(), *self._lines(), *self.areas, *self._dots(), *self._texts()]
        chart = alt.layer(*layers).properties(
            width=self.width,
            height=self.height,
            padding={"left": self.left, "right": self.right, "top": self.top, "bottom": self.bottom},
            autosize=alt.AutoSizeParams(type="none"),
        )
        spec = chart.configure_view(stroke=None).to_dict()
        version = "_".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
        svg = vl_convert.vegalite_to_svg(spec, vl_version=version, allowed_base_urls=[])
        return _for_page(svg, name, title, description)

    def _bars(self) -> list[alt.Chart]:
        return [_layer(self.bars).mark_rect(strokeWidth=1).encode(fill=_raw("fill"), stroke=_raw("stroke"))]

    def _lines(self) -> list[alt.Chart]:
        return [
            _layer([mark for mark in self.lines if mark["dash"] == dash])
            .mark_rule(strokeWidth=1.2, strokeDash=[4, 3] if dash else [1, 0])
            .encode(stroke=_raw("stroke"))
            for dash in (False, True)
        ]

    def _dots(self) -> list[alt.Chart]:
        return [
            _layer(self.dots)
            .mark_point(size=130, opacity=1, strokeWidth=1.2, stroke=BACK)
            .encode(fill=_raw("fill"), shape=alt.Shape("shape:N", scale=None), description="name:N")
        ]

    def _texts(self) -> list[alt.Chart]:
        styles = sorted({(mark["align"], mark["bold"]) for mark in self.texts})
        return [
            _layer([mark for mark in self.texts if (mark["align"], mark["bold"]) == (align, bold)])
            .mark_text(align=align, baseline="middle", fontSize=_FONT, fontWeight="bold" if bold else "normal")
            .encode(text="text:N", fill=_raw("fill"))
            for align, bold in styles
        ]


def _layer(marks: list[Mark]) -> alt.Chart:
    channels: dict[str, Any] = {
        "x": alt.X("x:Q", scale=None, axis=None),
        "y": alt.Y("y:Q", scale=None, axis=None),
    }
    if marks and "x2" in marks[0]:
        channels |= {"x2": "x2:Q", "y2": "y2:Q"}
    return alt.Chart(alt.InlineData(values=marks)).encode(**channels)


def _raw(field_name: str) -> dict[str, Any]:
    return {"field": field_name, "type": "nominal", "scale": None}


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _for_page(svg: str, name: str, title: str, description: str) -> str:
    """Vega's SVG made fit for the page: no namespaces, fonts or inner roles; colours from the page; a name."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for child in list(element):
            if child.get("class") in ("background", "foreground") or (element is root and child.tag.endswith("rect")):
                element.remove(child)
        if element.get("aria-roledescription") == "point" and element.get("aria-label"):
            ElementTree.SubElement(element, "title").text = element.get("aria-label")
        kept = {key: value for key, value in element.attrib.items() if not key.startswith(_DROPPED)}
        element.attrib.clear()
        element.attrib.update({key: COLOURS.get(value, _rounded(value)) for key, value in kept.items()})
        for value in element.attrib.values():
            assert "NaN" not in value, f"chart {name} has a position that is not a number: {value}"
            assert not value.startswith("#"), f"chart {name} has a colour that the page does not know: {value}"
    _named(root, name, title, description)
    return ElementTree.tostring(root, encoding="unicode")


def _rounded(value: str) -> str:
    return re.sub(r"-?\d+\.\d{2,}(e-\d+)?", lambda number: f"{float(number[0]) + 0.0:.1f}", value)


def _named(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-labelledby": f"{name}-title {name}-desc", "fill": "none"})
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = _printable(text)
        root.insert(position, element)


# ---------------------------------------------------------------- quality against size and latency


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
        (comparison.original, "original", ORIGINAL, "circle"),
        (comparison.compressed, "compressed", COMPRESSED, "diamond"),
        *((other, "alternative", OTHER, _SHAPES[i % len(_SHAPES)]) for i, other in enumerate(comparison.alternatives)),
    ]
    points = []
    for report, role, colour, shape in subjects:
        x, y = report.get(name), report.get(metric)
        if x and y and math.isfinite(x.value) and x.value > 0 and math.isfinite(y.value):
            shown = role if role != "alternative" else report.subject.rpartition("/")[2] or report.subject
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
    description = "; ".join(map(_described, points))
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
    label = f"{_format.label(measurements[0].name)}, {unit}{', logarithmic' if log else ''}  ← less is better"
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
    better = "↑ higher is better" if measurements[0].higher_is_better else "↓ lower is better"
    drawing.text(-42, -22, f"{_format.metric_label(measurements[0].name)}  {better}")
    return y


def _described(point: _Point) -> str:
    bounds = _bounds(point.y)
    between = f" ({_format.interval(*bounds, _format.score)})" if bounds else ""
    metric = _format.metric_label(point.y.name)
    return f"{point.name} ({point.role}): {_format.figure(point.x)}, {metric} {_format.figure(point.y)}{between}"


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
class _Placed:
    """A point in the picture; ``ends`` are those of its whisker, or nothing."""

    point: _Point
    x: float
    y: float
    ends: tuple[float, ...]


def _label_points(drawing: _Drawing, placed: Sequence[_Placed]) -> tuple[tuple[str, str], ...]:
    """Write each name beside its point where nothing is in the way; where no place is free, a letter and a key."""
    taken: list[Box] = [(at.x - 7, at.y - 7, at.x + 7, at.y + 7) for at in placed]
    taken += [(at.x - 4, min(at.ends), at.x + 4, max(at.ends)) for at in placed if at.ends]
    key: list[tuple[str, str]] = []
    for at in placed:
        name, letter = _cut(at.point.shown, 30), "abcdefghijklmnopqrstuvwxyz"[len(key) % 26]
        bold = at.point.role != "alternative"
        free = _free(drawing, at, len(name) * (_BOLD_LETTER if bold else _LETTER), taken)
        text = name if free else letter
        x, y, align, box = free or _free(drawing, at, _LETTER, taken) or _places(at, _LETTER)[0]
        if text != at.point.shown:
            key.append((text, at.point.name))
        taken.append(box)
        drawing.text(x, y, text, align=align, colour=at.point.colour, bold=bold)
    return tuple(key)


def _free(drawing: _Drawing, at: _Placed, width: float, taken: Sequence[Box]) -> Place | None:
    for place in _places(at, width):
        if _inside(place[3], drawing) and not any(_overlap(place[3], box) for box in taken):
            return place
    return None


def _places(at: _Placed, width: float) -> list[Place]:
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


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


# ---------------------------------------------------------------- what each step saved and cost


def _steps(comparison: Comparison) -> Figure | None:
    """Bytes from the original through each step to the result, and beside them the share of quality that is left."""
    records = comparison.records
    if not records:
        return None
    with_quality = any(_sound(record.quality) for record in records)
    drawing = _Drawing(height=44 * (len(records) + 2), top=30 if with_quality else 6)
    right = 250.0 if with_quality else drawing.width
    scale = right / max(1, *(size for r in records for size in (r.bytes_before, r.bytes_after)))
    first, last = records[0].bytes_before, records[-1].bytes_after
    _row(drawing, 0, ("original", _format.size(first)), right, bold=True)
    drawing.bar(0, first * scale, 19, 15, fill=HATCH)
    for row, record in enumerate(records):
        _step(drawing, row + 1, record, scale, right)
    _row(drawing, len(records) + 1, ("result", _format.size(last)), right, bold=True)
    drawing.bar(0, last * scale, 44 * (len(records) + 1) + 19, 15, fill=COMPRESSED)
    if with_quality:
        _quality_beside(drawing, comparison, left=284.0)
    title = "Bytes saved by each step" + (", and quality after it" if with_quality else "")
    said = [f"{r.step} {_saved(r)}{_and_kept(r.quality)}" for r in records]
    description = "; ".join([f"original {_format.size(first)}", *said, f"result {_format.size(last)}"])
    return Figure(title=title, svg=drawing.svg("steps", title, description))


def _row(
    drawing: _Drawing, row: float, words: tuple[str, str], right: float, *, colour: str = TEXT, bold: bool = False
) -> None:
    """A name at the left and a figure at the right, above the bars of a row; a long name is cut."""
    name, said = words
    letter = _BOLD_LETTER if bold else _LETTER
    drawing.text(0, 44 * row + 9, _cut(name, int((right - 10) / letter) - len(said)), bold=bold)
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
        return "no bytes saved"
    return ("+" if difference > 0 else "") + _format.size(difference)


def _and_kept(change: Change | None) -> str:
    return f", quality {_format.kept(change)}" if change and _sound(change) else ""


def _sound(change: Change | None) -> bool:
    """Whether all of a change can be drawn."""
    return change is not None and all(map(math.isfinite, (change.relative, *change.interval)))


def _quality_beside(drawing: _Drawing, comparison: Comparison, left: float) -> None:
    """The share of the original's quality after each step, with its interval, on one scale for all steps."""
    measured = [(row, r.quality) for row, r in enumerate(comparison.records, 1) if r.quality and _sound(r.quality)]
    x = _share_scale([change for _, change in measured], left, drawing.width - 6)
    label = f"{_format.metric_label(measured[0][1].metric)} kept"
    drawing.text(left - 6, -16, _cut(label, 18), colour=SOFT)
    drawing.line(x(0.0), 18, x(0.0), drawing.height - 44, colour=SOFT, dash=True)
    drawing.text(min(x(0.0), drawing.width - 20), 9, "100 %", align="center", colour=SOFT)
    for row, change in measured:
        low, high = change.interval
        colour = LOSS if high < 0 else GAIN if low > 0 else TEXT
        at = x(change.relative)
        drawing.interval(at, (x(low), x(high)), 44 * row + 26.5, colour=colour)
        middle = min(max(at, left + 12), drawing.width - 20)
        drawing.text(middle, 44 * row + 9, _format.percent(1 + change.relative), align="center")


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
    rows = [(name, before.get(name, 0), after.get(name, 0)) for name in names]
    if len(rows) > most:
        rest = rows[most - 1 :]
        rows = [*rows[: most - 1], (f"{len(rest)} smaller parts", sum(r[1] for r in rest), sum(r[2] for r in rest))]
    drawing = _Drawing(height=44 * len(rows))
    scale = drawing.width / max(1, *(size for row in rows for size in row[1:]))
    for place, (name, was, now) in enumerate(rows):
        said = _format.arrow(_format.size(was), "gone" if was and not now else _format.size(now))
        _row(drawing, place, (name, said), drawing.width)
        if was:
            drawing.bar(0, was * scale, 44 * place + 18, 8, fill=HATCH)
        if now:
            drawing.bar(0, now * scale, 44 * place + 29, 8, fill=COMPRESSED)
    title = "Bytes by part of the model"
    description = "; ".join(f"{name} {_format.arrow(_format.size(was), _format.size(now))}" for name, was, now in rows)
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
    sides = (("worse", LOSS), ("better", GAIN)) if up else (("better", GAIN), ("worse", LOSS))
    (lower, below_colour), (higher, above_colour) = sides
    drawing = _Drawing(height=190, left=46, right=8, top=34, bottom=28)
    _areas(drawing, differences, (below_colour, above_colour))
    under = drawing.height + 15
    drawing.text(0, under, f"← {fewer:,} {lower}", colour=below_colour)
    drawing.text(drawing.width / 2, under, f"{n - fewer - more:,} the same", align="center", colour=SOFT)
    drawing.text(drawing.width, under, f"{more:,} {higher} →", align="right", colour=above_colour)
    drawing.text(-42, -20, f"{_format.metric_label(metric)}, compressed {_format.MINUS} original")
    drawing.text(drawing.width, -20, f"{n:,} queries, sorted", align="right", colour=SOFT)
    title = "Every query, before against after"
    description = (
        f"Of {n:,} queries {fewer:,} are {lower}, {more:,} {higher} and {n - fewer - more:,} the same; "
        f"the differences go from {_signed(differences[0])} to {_signed(differences[-1])}"
    )
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
        marks = [(-limit, f"limit {_format.percent(1 - limit, trim=True)}", LOSS), *marks]
    x = _share_scale(changes, 8, drawing.width - 8, also=tuple(share for share, _, _ in marks))
    for row, change in enumerate(changes):
        words = f"{_format.kept(change)} ({_format.kept_interval(change)})"
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
    title = "Quality kept, with its interval"
    said = [f"{_format.metric_label(c.metric)} {_format.kept(c)}, interval {_format.kept_interval(c)}" for c in changes]
    return Figure(title=title, svg=drawing.svg("metrics", title, "; ".join(said)))
