"""Marks that become one SVG, coloured through the page's variables."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from unicodedata import east_asian_width
from xml.etree import ElementTree

import altair as alt
import vl_convert

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


def _letters(text: str) -> float:
    """How many average letters are as wide as this text: one of Chinese is nearly as wide as two."""
    return sum(1.9 if east_asian_width(letter) in "WF" else 1.0 for letter in text)


def _cut(text: str, length: float) -> str:
    if _letters(text) <= length:
        return text
    while text and _letters(text) > length - 1:
        text = text[:-1]
    return text.rstrip() + "…"
