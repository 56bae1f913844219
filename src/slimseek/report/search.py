"""The page of a search under a budget: what was found in one sentence, the front, every trial, what each step saved.

The page is whole without scripts; a small script of its own adds what a pointer or a finger shows, and filters.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slimseek import plugins
from slimseek.budget import attribution, front
from slimseek.folder import write_atomically
from slimseek.measurement import Comparison
from slimseek.report import _format, _trials
from slimseek.report._page import source, template
from slimseek.report._words import later, phrase, recorded, say, speaking, spoken
from slimseek.trial import Budget, Found, Trial, numbered

PAGE = "search.html"
SCRIPT = "search.js.j2"
MOST_EFFECTS = 12


def asked(budget: Budget, *, points: bool = False) -> str:
    """The budget in words: "at most 8.0 MB, 5.00 ms (p95) and a loss of nDCG@10 of 1 %"; ``points``: its metric is an
    error rate.
    """
    sizes = {
        later("{size}"): budget.size, later("{size} of memory"): budget.memory,
        later("{size} of index"): budget.index_size, later("{size} of package and index"): budget.total,
    }  # fmt: skip
    said = [phrase(of).format(size=_format.size(most)) for of, most in sizes.items() if most is not None]
    if budget.latency_p95 is not None:
        said.append(f"{_format.milliseconds(budget.latency_p95)} (p95)")
    if budget.max_loss is not None:
        loss = _format.percent(budget.max_loss, trim=True)
        form = later("{metric} {loss} higher") if points else later("a loss of {metric} of {loss}")
        loss = say("{change} points", change=loss.removesuffix(" %")) if points else loss
        said.append(phrase(form).format(metric=_format.metric_label(budget.metric), loss=loss))
    listed = say(" and ").join([say(", ").join(said[:-1]), said[-1]] if len(said) > 1 else said)
    return say("at most {most}", most=listed) if listed else say("no limit")


def verdict(found: Found) -> str:
    """What was asked and what was found, in two sentences; a third where the budget is not kept."""
    why = unmet(found)
    return say("{headline}. {why}", headline=headline(found), why=why) if why else headline(found)


def unmet(found: Found) -> str:
    """What is not kept and what would do, as a sentence; ``""`` where the budget is met."""
    if found.met or not found.unmet:
        return ""
    said = found.unmet if spoken() == "en" else _missed(found) or recorded(found.unmet) or found.unmet
    return said[:1].upper() + said[1:]


def headline(found: Found) -> str:
    """What was asked and what was found, without the reason where the budget is not kept."""
    trial = chosen(found)
    result = say("met" if found.met else "not met")
    head = say(
        "{source}, asked for {budget}: {result}. ",
        source=found.source,
        budget=asked(found.budget, points=_trials.in_points(found)),
        result=result,
    )
    parts = [part for part in (_size(found, trial), _speed(found, trial), _quality(found, trial)) if part]
    name = _trials.name_of(found, trial) if trial.number else say("the original as it is")
    start = "" if found.met else say("Nearest: ")
    return f"{head}{start}{name}{say(': ') if parts else ''}{say('; ').join(parts)}"


def chosen(found: Found) -> Trial:
    """The trial that was written."""
    return numbered(found.trials, found.chosen)


def original(found: Found) -> Trial:
    """The trial of the original: the first."""
    return found.trials[0]


def render(found: Found, lang: str = "en") -> str:
    """The page as HTML: nothing is loaded from outside, and no script runs but the page's own.

    Args:
        found: the search; what it lacks is left out of the page.
        lang: ``en`` or ``zh``.

    Returns:
        The whole document.

    Raises:
        MissingExtra: jinja2, altair or vl-convert is not installed.
        UsageError: another language.
    """
    with speaking(lang) as tag:
        return _rendered(found, tag)


def _rendered(found: Found, tag: str) -> str:
    page_of = template("search.html.j2", _filters())
    charts, drawn = (plugins.require(f"slimseek.report.{name}") for name in ("_charts", "_front"))
    rows, trial, script = _trials.rows(found), chosen(found), source(SCRIPT)
    effects = attribution.effects(found.trials)
    page: str = page_of.render(
        f=found, tag=tag, headline=headline(found), unmet=unmet(found), limits=front.limits(trial, found.budget),
        chosen=trial,
        chosen_name=_trials.name_of(found, trial), plots=drawn.plots(found, rows), rows=rows,
        on_front=[row for row in rows if row.trial.number in found.front or row.role in ("chosen", "original")],
        off_front=[row for row in rows if row.role in ("beaten", "ended")],
        names=_trials.costs(found), costs=[phrase(_trials.COSTS[cost][0]) for cost in _trials.costs(found)],
        kinds=sorted({kind for row in rows for kind in row.kinds}), metric=_format.metric_label(found.budget.metric),
        kept_label=_trials.kept_label(found),
        steps=charts.steps(trial.records), saved=attribution.attribution(trial, original(found), found.trials),
        effects={kind: [effect for effect in effects if effect.kind == kind] for kind in ("choice", "step", "order")},
        most=MOST_EFFECTS, test_rows=_format.rows(found.test) if found.test else [], test=_on_test(found.test),
        script=script, digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    return page


def write(found: Found, path: Path, lang: str = "en") -> None:
    """Write the page to ``path``, whole or not at all.

    Args:
        found: the search.
        path: the file to make or replace.
        lang: ``en`` or ``zh``.

    Raises:
        MissingExtra: jinja2, altair or vl-convert is not installed.
        UsageError: the file cannot be written, or another language.
    """
    write_atomically(path, render(found, lang).encode("utf-8", errors="replace"))


def _missed(found: Found) -> str:
    """The limits that are not kept and what would do, each limit in the language of the page."""
    over = front.missed(chosen(found), found.budget)
    said = say("; ").join(recorded(limit.said) or limit.said for limit in over)
    if not said or not all(limit.flag for limit in over):
        return say("{limits}: no other value of these limits would do", limits=said) if said else ""
    flags = say(" and ").join(limit.flag for limit in over)
    queries = next((limit.queries for limit in over if limit.queries), None)
    more = say(" (or about {n:,} development queries in place of the loss)", n=queries) if queries else ""
    return say("{limits}: {flags}{more} would do", limits=said, flags=flags, more=more)


# ---------------------------------------------------------------- clauses


def _size(found: Found, trial: Trial) -> str:
    before, after = original(found).figures.size, trial.figures.size
    if before is None or after is None or trial.number == 0:
        return "" if after is None else _format.size(after)
    figures = _format.arrow(_format.size(before), _format.size(after))
    return say("{figures}, {words}", figures=figures, words=_format.in_words("size", before / after))


def _speed(found: Found, trial: Trial) -> str:
    before, after = original(found).figures.latency_p95, trial.figures.latency_p95
    if not before or not after or trial.number == 0:
        return ""
    return _format.in_words("latency", before / after)


def _quality(found: Found, trial: Trial) -> str:
    label, change = _format.metric_label(found.budget.metric), trial.change
    cell = _trials.kept(trial)
    if trial.number == 0 or change is None:
        return ""
    between = say(", interval {bounds}", bounds=cell.detail) if cell.detail else ""
    return say("{metric} {said}{between}, n = {n:,} development queries", metric=label, said=_format.kept(change),
               between=between, n=change.n)  # fmt: skip


def _on_test(test: Comparison | None) -> str:
    change = _format.main_change(test) if test else None
    if change is None:
        return ""
    label = _format.metric_label(change.metric)
    return say("{metric} {said}, interval {bounds}, n = {n:,}", metric=label, said=_format.kept(change),
               bounds=_format.kept_interval(change), n=change.n)  # fmt: skip


def _filters() -> dict[str, Any]:
    shared = ("size", "seconds", "count", "percent", "milliseconds")
    return {name: getattr(_format, name) for name in shared} | {
        "unbroken": _format.unbroken,
        "difference": lambda number, how: _signed(how)(number),
        "spread": _spread,
        "base64": lambda text: base64.b64encode(text.encode("utf-8", errors="replace")).decode(),
        "ends": lambda dot: f"M{dot.x} {dot.ends[0]}V{dot.ends[1]}" if dot.ends else "",
        "pairs": _pairs,
    }


def _signed(how: str) -> Callable[[float], str]:
    """A way of writing, by its name in :mod:`slimseek.report._format`, with the sign of a difference."""
    show = getattr(_format, how)
    return lambda number: str(show(number, signed=True)) if how == "percent" else _trials.difference(number, show)


def _spread(found: attribution.Spread | None, how: str) -> _format.Cell:
    """The mean of some differences, and in small print their ends where there is more than one value."""
    if found is None:
        return _format.Cell(text=_format.DASH)
    signed = _signed(how)
    detail = _format.interval(found.low, found.high, signed) if found.low != found.high else ""
    return _format.Cell(text=signed(found.mean), detail=detail)


def _pairs(found: attribution.Effect, most: int = 3) -> str:
    shown = say(", ").join(say("{one} and {two}", one=one, two=two) for one, two in found.pairs[:most])
    return shown + (say(", and {n} more", n=len(found.pairs) - most) if len(found.pairs) > most else "")
