"""Figures as people read them: the same words in the terminal's table, in the verdict and on the page.

Sizes are decimal (1 MB = 10^6 bytes); a figure that is absent or not finite is a dash, never "nan".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from slimseek import plugins
from slimseek.errors import SlimseekError
from slimseek.measurement import Change, Comparison, GateResult, Measurement
from slimseek.report._labels import LABELS, WORDS
from slimseek.report._words import phrase, recorded, say
from slimseek.timing import NO_FASTER

DASH = "–"
MINUS = "\N{MINUS SIGN}"

_CLOCKED = ("latency", "throughput", "cold", "real")
_ROWS = (
    "size", "size_weights", "index_size", "rescore_size", "parameters", "latency_p50", "latency_p95", "throughput",
    "latency_first_token", "real_time_factor", "cold_start", "peak_memory", "invariance", "macs", "size_rest",
    "latency_p99",
)  # fmt: skip


# ---------------------------------------------------------------- numbers


def significant(value: float, digits: int = 3) -> str:
    """Three significant digits without exponents where that is readable: 0.0421, 4.62, 86.4, 1,240, 3.1e-06."""
    if not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if exponent < -4:
        return f"{value:.{max(digits - 2, 0)}e}".replace("-", MINUS)
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}".replace("-", MINUS)


def size(value: float) -> str:
    """Bytes as MB (kB and B when small, GB from 10 GB): 438 MB, 90.9 MB, 9.6 MB, 0.82 MB, 42.0 kB."""
    if not math.isfinite(value):
        return DASH
    magnitude = abs(value)
    if magnitude < 1e3:
        return f"{value:.0f} B".replace("-", MINUS)
    if magnitude < 1e5:
        return f"{value / 1e3:.1f} kB".replace("-", MINUS)
    scale, unit = (1e9, "GB") if magnitude >= 1e10 else (1e6, "MB")
    scaled = magnitude / scale
    decimals = 0 if scaled >= 99.95 else 1 if scaled >= 0.95 else 2
    return f"{value / scale:,.{decimals}f} {unit}".replace("-", MINUS)


def milliseconds(value: float) -> str:
    """Milliseconds, or µs and s where that is the shorter reading."""
    if not math.isfinite(value):
        return DASH
    if abs(value) >= 10_000:
        return f"{significant(value / 1e3)} s"
    if 0 < abs(value) < 0.1:
        return f"{significant(value * 1e3)} µs"
    return f"{significant(value)} ms"


def seconds(value: float) -> str:
    """Seconds, or milliseconds below a tenth, or minutes and hours above a hundred seconds."""
    if not math.isfinite(value):
        return DASH
    if 0 < abs(value) < 0.1:
        return milliseconds(value * 1e3)
    if abs(value) >= 7200:
        return f"{significant(value / 3600)} h"
    if abs(value) >= 100:
        return f"{significant(value / 60)} min"
    return f"{significant(value)} s"


def count(value: float) -> str:
    """A count with M and G: 950, 12,400, 22.7 M, 1.42 G."""
    for limit, unit in ((999.5e6, "G"), (999.5e3, "M")):
        if math.isfinite(value) and abs(value) >= limit:
            scale = 1e9 if unit == "G" else 1e6
            return f"{significant(value / scale)} {unit}"
    return f"{value:,.0f}".replace("-", MINUS) if math.isfinite(value) else DASH


def percent(share: float, *, signed: bool = False, unit: bool = True, trim: bool = False) -> str:
    """A share as per cent with one decimal; ``trim`` drops ``.0``, ``signed`` writes + and −."""
    if not math.isfinite(share):
        return DASH
    value = round(share * 100, 1) + 0.0
    text = f"{value:+,.1f}" if signed and value else f"{value:,.1f}"
    text = text.removesuffix(".0") if trim else text
    return text.replace("-", MINUS) + (" %" if unit else "")


def score(value: float) -> str:
    """A score with three decimals."""
    return f"{round(value, 3) + 0.0:.3f}".replace("-", MINUS) if math.isfinite(value) else DASH


def cosine(value: float) -> str:
    """A cosine with five decimals, never rounded up to 1."""
    if not math.isfinite(value):
        return DASH
    return f"{math.floor(value * 1e5 + 1e-6) / 1e5:.5f}".replace("-", MINUS)


def times(ratio: float) -> str:
    """A ratio: 1.06, 2.6, 9.4, 12.4, 1,240."""
    if not math.isfinite(ratio):
        return DASH
    return f"{ratio:.2f}" if ratio < 1.095 else f"{ratio:.1f}" if ratio < 99.95 else f"{ratio:,.0f}"


def interval(low: float, high: float, show: Callable[[float], str]) -> str:
    """An interval, its unit said once: "98.2 to 100.1", "4.5 to 4.8 ms"."""
    return _once(show(low), show(high), phrase(" to "))


def arrow(before: str, after: str) -> str:
    """Before and after, the unit said once where it is the same: "90.9 → 9.6 MB"."""
    return _once(before, after, " → ")


def unbroken(text: str) -> str:
    """A text in which a number keeps to its unit, and an arrow to both sides, on one line."""
    said = re.sub(r"(?<=[\d.]) (?=(%|[kMG]?B|m?s|µs|min|h|times|[MG])\b|%|项)", "\N{NO-BREAK SPACE}", text)
    # Of the same type: what is marked as safe for a page stays so, for nothing but spaces is changed.
    return type(text)(re.sub(r" (=|→) ", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", said))


def _once(first: str, second: str, between: str) -> str:
    number, _, unit = first.partition(" ")
    same = unit and unit == second.partition(" ")[2]
    return f"{number if same else first}{between}{second}"


# ---------------------------------------------------------------- figures and their changes


def metric_label(name: str) -> str:
    """``ndcg@10`` as nDCG@10: the label stands in the metric's own file."""
    base, at, cutoff = name.partition("@")
    try:
        label = str(plugins.load("metrics", base).label)
    except (SlimseekError, AttributeError):
        label = base.replace("_", " ")
        label = label[:1].upper() + label[1:]
    label = recorded(label) or label
    return label if "@" in label else f"{label}{at}{cutoff}"


def label(name: str) -> str:
    """What a figure is called in a table."""
    return phrase(LABELS[name][0]) if name in LABELS else metric_label(name)


def formatter(name: str, unit: str) -> Callable[[float], str]:
    """How the figures of this name and unit are written."""
    known = {"B": size, "ms": milliseconds, "s": seconds, "MAC": count}
    if unit in known:
        return known[unit]
    if name in ("parameters", "macs"):
        return count
    if name == "invariance":
        return cosine
    if not unit:
        return score
    return lambda value: f"{significant(value)} {recorded(unit) or unit}"


def figure(measurement: Measurement | None) -> str:
    """A measured figure with its unit, or a dash."""
    return formatter(measurement.name, measurement.unit)(measurement.value) if measurement else DASH


def bounds(measurement: Measurement | None) -> str:
    """The interval of a measured figure, or nothing."""
    if measurement is None or measurement.interval is None or not all(map(math.isfinite, measurement.interval)):
        return ""
    return interval(*measurement.interval, formatter(measurement.name, measurement.unit))


def ratio(before: Measurement | None, after: Measurement | None) -> float | None:
    """How many times better ``after`` is (below 1: worse); ``None`` where that cannot be said.

    For the figures with words of their own: of all these but the throughput, less is better.
    """
    if before is None or after is None or not (before.value > 0 and after.value > 0):
        return None
    quotient = after.value / before.value if before.name == "throughput" else before.value / after.value
    return quotient if math.isfinite(quotient) else None


def in_words(name: str, better: float) -> str:
    """A ratio in words: "9.4 times smaller", "1.3 times slower", "no faster"."""
    good, bad, neither = WORDS[name.partition("_")[0]]
    way = _way(name, better)
    return say((bad, neither, good)[way + 1], ratio=times(better if way > 0 else 1 / better))


def _way(name: str, better: float) -> int:
    """1 for a ratio that is better, -1 for worse; 0 where too little differs to say so."""
    threshold = NO_FASTER if name.startswith(_CLOCKED) else 1.005
    return (better >= threshold) - (better <= 1 / threshold)


def same_way(name: str, one: float, two: float) -> bool:
    """Whether two ratios would be said with the same words."""
    return _way(name, one) == _way(name, two)


def moved(change: Change, loss: float | None = None) -> str:
    """A paired change, or its bound, as it is measured: "−1.8 %"; of an error rate, "+0.4 points" for 0.4 more."""
    loss = change.relative if loss is None else loss
    if change.points is not True:
        return percent(loss, signed=True)
    return say("{change} points", change=percent(0 - loss, signed=True, unit=False))


def lost(share: float, *, points: bool) -> str:
    """A loss that is allowed: "loss of 1 %"; of an error rate, "+1 points"."""
    said = percent(share, trim=True)
    return say("{change} points", change=f"+{said.removesuffix(' %')}") if points else say("loss of {loss}", loss=said)


def moved_interval(change: Change) -> str:
    """Its 95 % interval, the lower end first."""
    low, high = change.interval
    low, high = (high, low) if change.points is True else (low, high)
    return interval(low, high, lambda loss: moved(change, loss))


def kept(change: Change) -> str:
    """A paired change in words: "99.1 % kept" where more is better."""
    return moved(change) if change.points is True else say("{share} kept", share=percent(1 + change.relative))


def kept_interval(change: Change) -> str:
    """The 95 % interval of the share kept, in per cent without the sign: "98.2 to 100.1"; else in points."""
    if change.points is True:
        return moved_interval(change)
    return interval(*change.interval, lambda share: percent(1 + share, unit=False))


# ---------------------------------------------------------------- the table of a run


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure and, in small print below it, its interval."""

    text: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table of before and after.

    Attributes:
        name: the measurement's name.
        label: what it is called, with ``hint`` as the small print.
        before: the original's figure.
        after: the compressed model's.
        change: the ratio in words.
        better: whether the change is for the better; ``None`` where it is neither, or its interval holds no change.
        others: the figures of the alternatives, in their order.
    """

    name: str
    label: str
    hint: str
    before: Cell
    after: Cell
    change: Cell
    better: bool | None
    others: tuple[Cell, ...] = ()


def main_change(comparison: Comparison) -> Change | None:
    """The paired change that the run is judged by: the first."""
    return comparison.changes[0] if comparison.changes else None


def main_metric(comparison: Comparison) -> str | None:
    """Name of the metric that the run is judged by: that of the first change, else the first score measured."""
    change = main_change(comparison)
    if change:
        return change.metric
    scores = [m.name for m in comparison.original.measurements if not m.unit and m.name not in LABELS]
    return scores[0] if scores else None


def higher_is_better(comparison: Comparison, metric: str) -> bool:
    """The direction of a metric, as its measurement says it."""
    measured = comparison.compressed.get(metric) or comparison.original.get(metric)
    return measured.higher_is_better if measured else True


def is_quality(gate: GateResult, metric: str | None) -> bool:
    """Whether a gate is the one of quality."""
    return gate.gate.startswith("quality") or (metric is not None and gate.gate.startswith(metric))


def loss_limit(comparison: Comparison) -> float | None:
    """The relative loss that the gate of quality allows, 0.01 for one per cent."""
    metric = main_metric(comparison)
    limits = [gate.limit for gate in comparison.gates if is_quality(gate, metric)]
    limit = limits[0] if limits else None
    return abs(limit) if limit is not None and math.isfinite(limit) and abs(limit) < 1 else None


def same_machine(comparison: Comparison) -> bool:
    """Whether the clocks of both models can be compared: one CPU, and the same number of threads."""
    one, two = comparison.original.environment, comparison.compressed.environment
    return (one.cpu, one.threads) == (two.cpu, two.threads)


def rows(comparison: Comparison, limit: int = 10) -> list[Row]:
    """The table of before and after: the metric first, then size, speed and memory.

    What neither model has is left out, and so are vectors of the same bytes before and after.
    """
    metric = main_metric(comparison)
    names = ([metric] if metric else []) + list(_ROWS)
    present = [name for name in names if comparison.original.get(name) or comparison.compressed.get(name)]
    present = [name for name in present if name != "index_size" or _differs(comparison, name)]
    return [_row(comparison, name) for name in present[:limit]]


def _differs(comparison: Comparison, name: str) -> bool:
    before, after = comparison.original.get(name), comparison.compressed.get(name)
    return before is None or after is None or before.value != after.value


def _row(comparison: Comparison, name: str) -> Row:
    before, after = comparison.original.get(name), comparison.compressed.get(name)
    change, better = _changed(comparison, name)
    return Row(
        name=name, label=label(name), hint=_hint(name, after or before),
        before=_cell(before), after=_cell(after), change=change, better=better,
        others=tuple(_cell(report.get(name)) for report in comparison.alternatives),
    )  # fmt: skip


def _hint(name: str, measurement: Measurement | None) -> str:
    """The small print below a label: what a figure is, or of how many queries a metric is."""
    if name in LABELS:
        return phrase(LABELS[name][1]) if LABELS[name][1] else ""
    return "" if measurement is None or measurement.n < 1 else say("n = {n:,} queries", n=measurement.n)


def _cell(measurement: Measurement | None) -> Cell:
    return Cell(text=figure(measurement), detail=bounds(measurement))


def _changed(comparison: Comparison, name: str) -> tuple[Cell, bool | None]:
    change = next((c for c in comparison.changes if c.metric == name), None)
    if change and math.isfinite(change.relative):
        up = change.points is True or higher_is_better(comparison, name)
        low, high = change.interval
        better = None if low <= 0 <= high else (low > 0) == up
        if up and change.points is not True:
            return Cell(text=kept(change), detail=f"{kept_interval(change)} %"), better
        return Cell(text=moved(change), detail=moved_interval(change)), better
    better_by = ratio(comparison.original.get(name), comparison.compressed.get(name))
    clocked = name.startswith(_CLOCKED)
    if better_by is None or name.partition("_")[0] not in WORDS or (clocked and not same_machine(comparison)):
        return Cell(text=DASH), None
    words = in_words(name, better_by).replace(" times", "×")
    return Cell(text=words), better_by > 1 if _way(name, better_by) else None
