"""The report of a run: one HTML file that opens offline, and the one sentence that says what changed.

:func:`verdict` and the table in :mod:`slimseek.report._format` need nothing beside slimseek; :func:`render` and
:func:`write` need the extra ``report`` (jinja2, altair, vl-convert) and load it when they are called.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from slimseek import plugins
from slimseek.folder import write_atomically
from slimseek.measurement import Change, Comparison, GateResult, QueryExample, Report
from slimseek.report import _format
from slimseek.report._labels import LABELS
from slimseek.report._page import template
from slimseek.report._words import checked, recorded, say, speaking

__all__ = ["checked", "render", "verdict", "write"]

_LONGEST_QUERY = 300
_LONGEST_TITLE = 140


def verdict(comparison: Comparison) -> str:
    """What changed, in one sentence: size, speed, quality with its interval, and any gate that did not pass."""
    clauses = [_size(comparison), _speed(comparison), _quality(comparison), *_gates(comparison)]
    said = say("; ").join(clause for clause in clauses if clause)
    return say("{subject}: {said}", subject=comparison.original.subject, said=said or say("nothing was measured"))


def render(comparison: Comparison, lang: str = "en") -> str:
    """The page as HTML, without scripts or outside resources.

    Args:
        comparison: the run; whatever it lacks is left out of the page.
        lang: ``en`` or ``zh``.

    Returns:
        The whole document.

    Raises:
        MissingExtra: jinja2, altair or vl-convert is not installed.
        UsageError: another language.
    """
    with speaking(lang) as tag:
        page_of = template("page.html.j2", _filters())
        charts = plugins.require("slimseek.report._charts")
        page: str = page_of.render(
            c=comparison,
            tag=tag,
            verdict=verdict(comparison),
            rows=_format.rows(comparison),
            metric=_format.main_metric(comparison),
            metrics=_metrics(comparison),
            same_machine=_format.same_machine(comparison),
            limit=_format.loss_limit(comparison),
            environments=_environments(comparison),
            figures=charts.figures(comparison),
        )
        return page


def write(comparison: Comparison, path: Path, lang: str = "en") -> None:
    """Write the page to ``path``, whole or not at all.

    Args:
        comparison: the run.
        path: the file to make or replace.
        lang: ``en`` or ``zh``.

    Raises:
        MissingExtra: jinja2, altair or vl-convert is not installed.
        UsageError: the file cannot be written, or another language.
    """
    write_atomically(path, render(comparison, lang).encode("utf-8", errors="replace"))


# ---------------------------------------------------------------- clauses of the verdict


def _size(comparison: Comparison) -> str:
    for name in ("size", "size_weights"):
        before, after = comparison.original.get(name), comparison.compressed.get(name)
        better = _format.ratio(before, after)
        if better is not None:
            figures = _format.arrow(_format.figure(before), _format.figure(after))
            words = _format.in_words("size", better)
            weights = name == "size_weights"
            return say("weights {figures}, {words}" if weights else "{figures}, {words}", figures=figures, words=words)
    return ""


def _speed(comparison: Comparison) -> str:
    single, batch = (
        _format.ratio(comparison.original.get(name), comparison.compressed.get(name))
        for name in ("latency_p50", "throughput")
    )
    if single is None and batch is None:
        return ""
    if not _format.same_machine(comparison):
        return say("speed not compared, for it was measured on different machines or thread counts")
    if single is None or batch is None:
        return _format.in_words("latency", single or batch or 1.0)
    said, in_batches = _format.in_words("latency", single), _format.in_words("latency", batch)
    if _format.same_way("latency", single, batch):
        return said
    return say("{one} for one query, {many} in batches", one=said, many=in_batches)


def _quality(comparison: Comparison) -> str:
    change = _format.main_change(comparison)
    if change is None:
        return _unpaired(comparison)
    label = _format.metric_label(change.metric)
    if not math.isfinite(change.relative):
        scores = _format.arrow(_format.score(change.before), _format.score(change.after))
        return say("{metric} {said}, n = {n:,}", metric=label, said=scores, n=change.n)
    if _format.higher_is_better(comparison, change.metric):
        said, bounds = _format.kept(change), _format.kept_interval(change)
    else:
        said, bounds = _format.moved(change), _format.moved_interval(change)
    return say("{metric} {said}, interval {bounds}, n = {n:,}", metric=label, said=said, bounds=bounds, n=change.n)


def _unpaired(comparison: Comparison) -> str:
    metric = _format.main_metric(comparison)
    if metric is None:
        return ""
    before, after = comparison.original.get(metric), comparison.compressed.get(metric)
    if before is None or after is None:
        return ""
    scores = _format.arrow(_format.figure(before), _format.figure(after))
    return say("{metric} {said}, no interval", metric=_format.metric_label(metric), said=scores)


def _gates(comparison: Comparison) -> list[str]:
    failed = [recorded(gate.gate) or gate.gate for gate in comparison.gates if gate.status == "failed"]
    one = say("gate failed: {names}" if len(failed) == 1 else "gates failed: {names}", names=say(", ").join(failed))
    clauses = [one] if failed else []
    undecided = [gate for gate in comparison.gates if gate.status == "undecided"]
    return clauses + [_undecided(gate, _format.main_change(comparison)) for gate in undecided]


def _undecided(gate: GateResult, change: Change | None) -> str:
    if change is None or not _format.is_quality(gate, change.metric):
        return say("undecided: {name}", name=recorded(gate.gate) or gate.gate)
    loss = (
        say("such a loss")
        if gate.limit is None
        else say("a loss of {share}", share=_format.percent(abs(gate.limit), trim=True))
    )
    few = say("undecided: n = {n:,} is too few to rule out {loss}", n=change.n, loss=loss)
    return few + (say(", it would take n = {n:,}", n=change.n_needed) if change.n_needed else "")


# ---------------------------------------------------------------- what the page needs beside the comparison


def _filters() -> dict[str, Any]:
    shared = ("size", "seconds", "count", "percent", "score", "significant", "label", "figure", "arrow")
    return {name: getattr(_format, name) for name in shared} | {
        "bounds": _format.bounds,
        "moved": _format.moved,
        "moved_interval": _format.moved_interval,
        "unbroken": _format.unbroken,
        "query": lambda text: _shortened(text, _LONGEST_QUERY),
        "title_of": lambda text: _shortened(text, _LONGEST_TITLE),
        "moves": _moves,
        "setting": _setting,
    }


def _metrics(comparison: Comparison) -> list[tuple[str, Change | None]]:
    """Every metric that either model has, with its paired change; those that have one first."""
    changes: dict[str, Change | None] = {change.metric: change for change in comparison.changes}
    for report in (comparison.original, comparison.compressed):
        for measurement in report.measurements:
            if not measurement.unit and measurement.name not in LABELS:
                changes.setdefault(measurement.name, None)
    return list(changes.items())


def _environments(comparison: Comparison) -> list[Report]:
    """The reports whose machine or versions differ from those before them, each machine once."""
    reports = (comparison.compressed, comparison.original, *comparison.alternatives)
    return [r for i, r in enumerate(reports) if r.environment not in [before.environment for before in reports[:i]]]


def _shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0][:length].rstrip(" ,;:.") + " …"


def _moves(example: QueryExample) -> list[str]:
    """For each result of the compressed model, where the original had it: "was 4", "new", or nothing."""
    places = {title: place for place, (title, _) in reversed(list(enumerate(example.before, start=1)))}
    moves = []
    for place, (title, _) in enumerate(example.after, start=1):
        was = places.get(title)
        moves.append(say("new") if was is None else "" if was == place else say("was {place}", place=was))
    return moves


def _setting(value: Any) -> str:
    """A parameter of a step as one reads it in a recipe."""
    if isinstance(value, bool) or value is None:
        return say("yes" if value else "none" if value is None else "no")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_setting(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_setting, value)) + "]"
    return str(value)
