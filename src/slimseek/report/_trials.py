"""Trials as people read them: a row of figures each, the same on the page and in the terminal."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from slimseek import recipe as recipes
from slimseek.budget import attribution, front
from slimseek.report import _format
from slimseek.report._words import later, phrase, recorded, say
from slimseek.trial import Found, Trial

Role = Literal["original", "chosen", "front", "beaten", "ended"]

SAID = {
    "original": later("original"), "chosen": later("chosen"), "front": later("on the front"),
    "beaten": later("beaten"), "ended": later("ended early"),
}  # fmt: skip
COSTS = {
    "size": (later("Size"), _format.size), "latency_p95": (later("Latency p95"), _format.milliseconds),
    "index_size": (later("Index"), _format.size), "memory": (later("Peak memory"), _format.size),
}  # fmt: skip
"""Label and way of writing of each cost that trials are compared by."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A trial in a table and as a point.

    Attributes:
        trial: whose it is.
        name: in words.
        role: ``chosen`` and ``original`` go before ``front``; ``ended``: not measured to the end.
        said: the same in words, with the reason where it ended early.
        kinds: methods of its steps, and how the index keeps vectors where that is not float32; each once.
        costs: figures of the costs shown, in the order of :func:`costs`.
        known: the same as numbers, and the share of quality ``kept``, or of an error rate 1 less what it rose by; what
            was not measured is left out.
        kept: share of quality that is left, with its interval as the small print.
        recipe: YAML that makes it again; ``""`` for one without steps.
        file: name for the recipe's file.
        command: that runs the recipe.
        saved: what each step saved and cost, in words.
    """

    trial: Trial
    name: str
    role: Role
    said: str
    kinds: tuple[str, ...]
    costs: tuple[str, ...]
    known: dict[str, float]
    kept: _format.Cell
    recipe: str
    file: str
    command: str
    saved: tuple[str, ...]


def costs(found: Found) -> tuple[str, ...]:
    """Names of the costs to show: those that were measured, an index size only where trials differ in it."""
    values = {name: [value(trial, name) for trial in found.trials] for name in COSTS}
    known = {name: {value for value in given if math.isfinite(value)} for name, given in values.items()}
    return tuple(name for name, given in known.items() if len(given) > (1 if name == "index_size" else 0))


def value(trial: Trial, cost: str) -> float:
    """A cost as a number; NaN where it was not measured."""
    figure = getattr(trial.figures, cost)
    return math.nan if figure is None else float(figure)


def rows(found: Found) -> tuple[Row, ...]:
    """Every trial, the smallest first; those whose size is not known come last."""
    shown = costs(found)
    ordered = sorted(found.trials, key=lambda trial: (trial.figures.size or math.inf, trial.number))
    return tuple(_row(found, trial, shown) for trial in ordered)


def name_of(found: Found, trial: Trial) -> str:
    """What a trial is called: the original's own name, or what its plan does."""
    if trial.number == 0:
        return found.source
    parts = trial.plan.name.split(", ") if trial.plan.name else [say("trial {number}", number=trial.number)]
    return say(", ").join(recorded(part) or part for part in parts)


def thinned(shown: Sequence[Row], most: int = 10) -> tuple[Row, ...]:
    """At most so many rows of the front: the original, the chosen one, both ends, and of the rest evenly."""
    marked = [row for row in shown if row.role in ("original", "chosen")]
    others = [row for row in shown if row.role == "front"]
    free = max(0, most - len(marked))
    if len(others) > free:
        places = [round(i * (len(others) - 1) / max(1, free - 1)) for i in range(free)]
        others = [others[place] for place in places]
    picked = {row.trial.number for row in [*marked, *others]}
    return tuple(row for row in shown if row.trial.number in picked)


def in_points(found: Found) -> bool:
    """Whether the metric is an error rate, whose change is a difference in points and no share."""
    return any(trial.change is not None and trial.change.points is True for trial in found.trials)


def kept_label(found: Found) -> str:
    """What the column of the quality is called."""
    label = _format.metric_label(found.budget.metric)
    return label if in_points(found) else say("{share} kept", share=label)


def kept(trial: Trial) -> _format.Cell:
    """The share of quality that is left, with its interval, and n where it is not of all development queries; of an
    error rate the points that it rose by.
    """
    change = trial.change
    if trial.number == 0:
        return _format.Cell(text=_format.moved(change) if change and change.points is True else "100 %")
    if change is None or not math.isfinite(change.relative):
        return _format.Cell(text=_format.DASH)
    detail = _format.kept_interval(change) if all(map(math.isfinite, change.interval)) else ""
    if trial.reached != "whole":
        n = f"n = {change.n:,}"
        detail = say("{interval}, {n}", interval=detail, n=n) if detail else n
    text = _format.moved(change) if change.points is True else _format.percent(1 + change.relative)
    return _format.Cell(text=text, detail=detail)


def _row(found: Found, trial: Trial, shown: Sequence[str]) -> Row:
    role = _role(found, trial)
    methods = [step.method for step in trial.plan.recipe.steps]
    precision = trial.plan.precision
    index = [] if precision == "f32" else [say("index {precision}", precision=precision)]
    figures = [_cost(trial, name) for name in shown]
    file = f"trial-{trial.number}.yaml"
    numbers = {name: value(trial, name) for name in shown} | {"kept": 1 + front.quality(trial)}
    has_steps = bool(methods)
    return Row(
        trial=trial, name=name_of(found, trial), role=role, said=_said(found, trial, role),
        kinds=tuple(dict.fromkeys([*methods, *index])), costs=tuple(figures), kept=kept(trial),
        known={name: number for name, number in numbers.items() if math.isfinite(number)},
        recipe=recipes.dump(trial.plan.recipe) if has_steps else "", file=file,
        command=_command(found, trial, file) if has_steps else "", saved=_saved(found, trial),
    )  # fmt: skip


def _role(found: Found, trial: Trial) -> Role:
    if trial.number == found.chosen:
        return "chosen"
    if trial.number == 0:
        return "original"
    if trial.number in found.front:
        return "front"
    return "beaten" if front.measured(trial) else "ended"


def _said(found: Found, trial: Trial, role: Role) -> str:
    if role == "ended" and trial.ended:
        return recorded(trial.ended) or trial.ended
    more = say(", the original") if trial.number == 0 and role == "chosen" else ""
    return phrase(SAID[role]) + more


def _cost(trial: Trial, name: str) -> str:
    figure = value(trial, name)
    if not math.isfinite(figure):
        return _format.DASH
    predicted = say(" predicted") if name == "size" and trial.reached == "size" else ""
    return COSTS[name][1](figure) + predicted


def _command(found: Found, trial: Trial, file: str) -> str:
    """The commands that make a trial again: the model, and the index where it keeps vectors otherwise."""
    model, data = _given(found)
    out = file.removesuffix(".yaml")
    command = shlex.join(["slimseek", "compress", model, "--data", data, "--recipe", file, "--out", out])
    if trial.plan.precision == "f32":
        return command
    index = ["slimseek", "index", out, "--data", data, "--precision", trial.plan.precision, "--out", f"{out}-index"]
    return f"{command}\n{shlex.join(index)}"


def _given(found: Found) -> tuple[str, str]:
    """Model and collection as the command of the search names them, else by their names."""
    try:
        words = shlex.split(found.command)
    except ValueError:
        words = []
    model = words[2] if len(words) > 2 and not words[2].startswith("-") else found.source
    data = words[words.index("--data") + 1] if "--data" in words[:-1] else found.collection
    return model, data


def _saved(found: Found, trial: Trial) -> tuple[str, ...]:
    if not trial.records:
        return ()
    original = next((other for other in found.trials if other.number == 0), trial)
    return tuple(saved_in_words(row) for row in attribution.attribution(trial, original, found.trials))


def saved_in_words(row: attribution.Saved) -> str:
    """A step with what it saved and cost: "prune.layers: −21.9 MB, −3.10 ms, quality −0.4 %"."""
    said = [] if row.step == attribution.REST and not row.bytes else [difference(-row.bytes, _format.size)]
    if row.milliseconds is not None:
        said.append(difference(-row.milliseconds, _format.milliseconds))
    if row.quality is not None:
        said.append(say("quality {change}", change=_format.percent(row.quality, signed=True)))
    return say("{step}: {said}", step=recorded(row.step) or row.step, said=say(", ").join(said))


def difference(number: float, show: Callable[[float], str]) -> str:
    """A difference with its sign."""
    return f"+{show(number)}" if number > 0 else show(number)
