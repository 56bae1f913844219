"""What the terminal shows: at most ten rows of before and after, a verdict in one sentence, the next command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from slimseek import report, timing
from slimseek.bench import Bench, verdict
from slimseek.choose import Package, sizes
from slimseek.deploy import Deployed, searches
from slimseek.measurement import Change, Comparison, GateResult
from slimseek.report import _format as form
from slimseek.report import _trials as trials
from slimseek.report import search as page
from slimseek.report import sensitivity as alone
from slimseek.sensitivity import Point, Sensitivity
from slimseek.trial import Found

MOST_LAYERS = 20
SYMBOLS = {"passed": "ok", "failed": "FAILED", "undecided": "open"}


def comparison(found: Comparison, console: Console, out: Path, served: Path | None = None) -> None:
    """Before, after and the alternatives; gates; the verdict; what to type next."""
    table = Table(title=found.collection, title_justify="left")
    table.add_column("")
    for subject in (found.original, found.compressed):
        table.add_column(subject.subject, justify="right")
    table.add_column("change", justify="right")
    for other in found.alternatives:
        table.add_column(other.subject, justify="right")
    for row in form.rows(found):
        cells = [row.before, row.after, row.change, *row.others]
        table.add_row(row.label, *(_cell(cell) for cell in cells))
    console.print(table)
    gates(found.gates, console)
    for part, change in (found.alone or {}).items():
        console.print(f"  the {part} alone, {_change(change)} (dev)", markup=False, soft_wrap=True)
    console.print(f"\n{report.verdict(found)}", markup=False, soft_wrap=True)
    console.print(f"\nreport: {out / 'report.html'}", markup=False, soft_wrap=True)
    hears = found.compressed.get("real_time_factor") is not None
    if served is not None:
        serving = f"minilm --data news --recogniser {served}" if hears else served
        console.print(f"serve it: slimseek serve {serving}", markup=False, soft_wrap=True)
    else:
        target = "onnxruntime" if hears else "auto"
        console.print(f"next: slimseek deploy {out} --target {target} --out {out}-served", markup=False, soft_wrap=True)


def gates(found: Sequence[GateResult], console: Console) -> None:
    """One line a gate."""
    for gate in found:
        console.print(f"  {SYMBOLS[gate.status]:7}{gate.gate}: {gate.detail}", markup=False, soft_wrap=True)


def evaluation(found: Any, console: Console) -> None:
    """Figures of one model, beside a baseline's where there is one."""
    subjects = [found.subject, *([found.baseline] if found.baseline else [])]
    table = Table(title=found.collection, title_justify="left")
    table.add_column("")
    for subject in subjects:
        table.add_column(subject.subject, justify="right")
    for measurement in found.subject.measurements:
        figures = [subject.get(measurement.name) for subject in subjects]
        table.add_row(form.label(measurement.name), *(_figure(figure) for figure in figures))
    console.print(table)
    for change in found.changes:
        console.print(f"  {_change(change)}", markup=False, soft_wrap=True)
    if found.overlap is not None:
        console.print(f"  top-10 overlap with the baseline: {found.overlap:.3f}", markup=False, soft_wrap=True)


def hearing(found: Any, console: Console) -> None:
    """Figures of a recogniser beside what a search finds for the same queries typed, and a baseline's."""
    others = [(f"typed ({found.search_with})", {one.name: one for one in found.typed})] if found.typed else []
    if found.baseline:
        others.append((found.baseline.subject, {one.name: one for one in found.baseline.measurements}))
    table = Table(title=found.collection, title_justify="left")
    for column in ("", found.subject.subject, *(name for name, _ in others)):
        table.add_column(column, justify="right" if column else "left")
    for one in found.subject.measurements:
        table.add_row(form.label(one.name), _figure(one), *(_figure(each.get(one.name)) for _, each in others))
    console.print(table)
    lines = [f"spoken against typed, {_change(change)}" for change in found.spoken]
    lines += [f"against the baseline, {_change(change)}" for change in found.changes]
    lines += [f"said: {one.said}  heard: {one.heard or '(nothing)'}" for one in found.worst]
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)


def tuning(found: Any, console: Console, out: Path) -> None:
    """The metric of the development queries before and after a fine-tuning, and what to type next."""
    table = Table(title=f"{found.model}, fine-tuned by {found.loss}: {found.collection}", title_justify="left")
    for column in ("", "before", "after", "change"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row(form.label(found.after.name), _figure(found.before), _figure(found.after),
                  f"{form.moved(found.change)}\n{form.moved_interval(found.change)}")  # fmt: skip
    table.add_row("items, steps", "", f"{found.items:,}, {found.steps:,}", "")
    table.add_row("seconds", "", f"{found.seconds:,.0f}", "")
    console.print(table)
    console.print(f"\nnext: slimseek evaluate {out} --data DATA", markup=False, soft_wrap=True)


def search(found: Found, console: Console, out: Path) -> None:
    """The front of a search under a budget, thinned to ten rows with the chosen one marked; what to type next."""
    table = Table(title=f"{found.source}: {found.collection}, {len(found.trials)} trials", title_justify="left")
    table.add_column("")
    table.add_column("trial", overflow="fold")
    costs = [trials.COSTS[name][0] for name in trials.costs(found)]
    for column in (*costs, trials.kept_label(found)):
        table.add_column(column, justify="right")
    rows = trials.rows(found)
    shown = trials.thinned(rows)
    for row in shown:
        mark = "->" if row.role == "chosen" else ""
        style = "bold" if row.role == "chosen" else None
        table.add_row(mark, escape(f"{row.trial.number} {row.name}"), *row.costs, _cell(row.kept), style=style)
    console.print(table)
    left = sum(row.role == "front" for row in rows) - sum(row.role == "front" for row in shown)
    if left:
        console.print(f"  {left} more are on the front", markup=False, soft_wrap=True)
    console.print(f"\n{page.verdict(found)}", markup=False, soft_wrap=True)
    console.print(f"\nevery trial and its recipe: {out / page.PAGE}", markup=False, soft_wrap=True)
    following = f"slimseek deploy {out} --target {found.budget.target} --out {out}-served"
    console.print(f"next: {following}", markup=False, soft_wrap=True)


def sensitivity(found: Sensitivity, console: Console, out: Path) -> None:
    """What is left of the quality without a share of each layer, the most sensitive first; what to do with it."""
    metric, units = form.metric_label(found.settings.metric), alone.UNITS[found.settings.method]
    table = Table(
        title=f"{found.model}: {metric} kept, {found.collection}, n = {found.original.n:,}", title_justify="left"
    )
    table.add_column("layer", overflow="fold")
    shares = [f"-{form.percent(amount, trim=True)}" for amount in found.settings.amounts]
    for column in (units, "weights", *shares, "cosine"):
        table.add_column(column, justify="right", no_wrap=True)
    layers, names = found.by_sensitivity, alone.short_names(found)
    for layer in layers[:MOST_LAYERS]:
        cosines = [point.cosine for point in layer.points if point.cosine is not None]
        table.add_row(names[layer.name], f"{layer.width:,}", form.count(layer.parameters), *map(_kept, layer.points),
                      form.cosine(cosines[-1]) if cosines else form.DASH)  # fmt: skip
    console.print(table)
    notes = [f"{layer.name}, {form.percent(point.amount, trim=True)}: {point.reason}"
             for layer in layers[:MOST_LAYERS] for point in layer.points if point.reason]  # fmt: skip
    if len(layers) > MOST_LAYERS:
        notes.append(f"{len(layers) - MOST_LAYERS} less sensitive layers are in {out / alone.PAGE}")
    lines = ["* the 95 % interval lies below 100 %; cosine: of the vectors, at the largest share", *notes, "",
             alone.verdict(found), "", f"figures: {out / alone.PAGE}"]  # fmt: skip
    if alone.step(found):
        lines.append(f"a step for a recipe: {alone.step(found)}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def model(found: Any, console: Console) -> None:
    """Layers by their share of the bytes."""
    table = Table(
        title=f"{found.name}: {found.parameters:,} parameters, {form.size(found.bytes)} of weights",
        title_justify="left",
    )
    for column in ("layer", "kind", "shape", "stored", "input"):
        table.add_column(column)
    for column in ("bytes", "share", "MACs"):
        table.add_column(column, justify="right")
    for layer in found.layers:
        shape = " x ".join(str(size) for size in layer.shape)
        table.add_row(
            layer.name, layer.kind, shape, layer.stored, layer.input, f"{layer.bytes:,}", f"{layer.share:.1%}",
            f"{layer.macs / 1e6:,.1f} M" if layer.macs else "",
        )  # fmt: skip
    console.print(table)
    console.print(f"biases, norms and buffers {form.size(found.rest_bytes)}; files {form.size(found.files_bytes)}; "
                  f"{found.macs / 1e6:,.0f} M multiply-accumulates for "
                  f"{'a text of 128 tokens' if found.spec.preprocess else 'one item'}")  # fmt: skip


def collection(found: Any, console: Console) -> None:
    """What a collection holds, and what is odd in it."""
    for name, value in msgspec.to_builtins(found).items():
        if name != "findings":
            console.print(f"{name.replace('_', ' ')}: {_plain(value)}", markup=False, soft_wrap=True)
    for finding in found.findings:
        shown = f" ({', '.join(finding.examples)})" if finding.examples else ""
        console.print(f"  {finding.what}: {finding.count:,}{shown}", markup=False, soft_wrap=True)


def package(found: Any, console: Console, out: Path) -> None:
    """A deployed package: target, bytes, gates, next command."""
    console.print(f"{out}: {found.target}, {form.size(_shipped(found))} shipped", markup=False, soft_wrap=True)
    others = [entry.path for entry in found.files if entry.path not in sizes(found)]
    if others:
        console.print(f"written for other machines, not run here: {', '.join(others)}", markup=False, soft_wrap=True)
    gates(found.gates, console)
    data = "" if found.collection else " --data DATA"
    following = (
        f"serve {out}{data}" if not found.spec.classes else f"evaluate {out} --data {found.collection or 'DATA'}"
    )
    following = f"python3 -m http.server --directory {out}" if searches(found.target) else f"slimseek {following}"
    console.print(f"\nnext: {following}", markup=False, soft_wrap=True)


def deployed(found: Deployed, console: Console, out: Path) -> None:
    """A row for every target: bytes, parity and gates, or the reason why there is no package; what to type next."""
    table = Table(title=str(out), title_justify="left")
    table.add_column("target")
    for column in ("bytes", "parity", "top-10 overlap"):
        table.add_column(column, justify="right")
    table.add_column("gates, or why it is left out", overflow="fold")
    for name, one in found.packages.items():
        passed = f"{', '.join(gate.gate for gate in one.gates)} passed"
        words = passed if one.not_run is msgspec.UNSET else f"{passed} in a stand-in; not run here: {one.not_run}"
        table.add_row(name, form.size(_shipped(one)), form.cosine(one.parity["cosine_mean"]),
                      form.score(one.parity["top10_overlap"]), escape(words))  # fmt: skip
    for name, reason in found.left_out.items():
        table.add_row(name, form.DASH, form.DASH, form.DASH, escape(reason))
    console.print(table)
    run = [str(out / name) for name, one in found.packages.items() if one.not_run is msgspec.UNSET]
    if len(run) > 1:
        console.print(f"\nnext: slimseek bench {' '.join(run)}", markup=False, soft_wrap=True)


def side_by_side(found: Bench, console: Console) -> None:
    """A row for each model that was measured: time, speed against the first, memory, bytes; which is the fastest."""
    names = ("latency_p50", "latency_p95", "throughput", "peak_memory", "size")
    table = Table(title=f"{found.subjects[0].environment.threads} threads", title_justify="left")
    table.add_column("", overflow="fold")
    for column in (*map(form.label, names), "speed-up"):
        table.add_column(column, justify="right")
    for number, (one, speed) in enumerate(zip(found.subjects, found.speeds, strict=True)):
        against = form.DASH if not number else "none" if speed < timing.NO_FASTER else form.times(speed)
        style = "bold" if one.subject == found.fastest else None
        table.add_row(escape(one.subject), *(form.figure(one.get(name)) for name in names), against, style=style)
    console.print(table)
    for line in (*found.notes, verdict(found)):
        console.print(line, markup=False, soft_wrap=True)


def index(found: Any, console: Console, out: Path) -> None:
    """An index that was written: documents, kind, bytes."""
    line = f"{out}: {found.documents:,} documents, {found.kind} {found.precision}, {found.index_bytes / 1e6:.1f} MB"
    if found.rescore is not None:
        line += f" in memory, and {found.rescore_bytes / 1e6:.1f} MB of {found.rescore} on disk to rescore with"
    console.print(line, markup=False, soft_wrap=True)


def results(found: Any, console: Console) -> None:
    """Hits, best first."""
    for result in found:
        console.print(
            f"{result.rank:3}  {result.score:.4f}  {result.id}  {' '.join(result.text.split())[:100]}", markup=False
        )


def catalogue(found: Any, console: Console) -> None:
    """What there is, and what works here."""
    for title, entries in (("models", found.models), ("backends", found.backends), ("extras", found.extras)):
        console.print(f"{title}:")
        for name, reason in entries.items():
            console.print(f"  {name:14} {reason or 'works here'}", markup=False, soft_wrap=True)
    for title in ("families", "methods", "recipes", "metrics"):
        console.print(f"{title}: {', '.join(getattr(found, title))}", markup=False, soft_wrap=True)
    machine = found.environment
    exact = "exact" if timing.products_are_exact(machine.instruction_sets) else "may saturate (no VNNI)"
    console.print(f"sums of eight-bit products: {exact}", markup=False)
    console.print(
        f"machine: {machine.cpu}, {machine.cores} cores, {', '.join(machine.instruction_sets) or 'no vector units'}",
        markup=False,
        soft_wrap=True,
    )


def _shipped(found: Package) -> int:
    return sum(sizes(found).values())


def _cell(cell: form.Cell) -> str:
    return cell.text if not cell.detail else f"{cell.text}\n{cell.detail}"


def _kept(point: Point) -> str:
    sure = point.change is not None and point.change.interval[1] < 0
    return alone.kept(point) + (" *" if sure else "")


def _change(change: Change) -> str:
    low, high = change.interval
    if change.points is True:
        said = f"{0 - 100 * change.relative:+.2f} points, 95 % interval {0 - 100 * high:+.2f} to {0 - 100 * low:+.2f}"
    else:
        said = f"{change.relative:+.2%}, 95 % interval {low:+.2%} to {high:+.2%}"
    return f"{change.metric}: {said}, n = {change.n}"


def _figure(measurement: Any) -> str:
    bounds = form.bounds(measurement)
    return form.figure(measurement) + (f" ({bounds})" if bounds else "")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int) else f"{value:.1%}" if isinstance(value, float) else str(value)
