"""A budget in, a proven model out: the search over recipes, the proof on test queries, and what is written of it."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from slimseek import __version__, choose, data, deploy, integers, kept, plugins, prove_spoken, recipe, spoken, timing
from slimseek import evaluate as measuring
from slimseek import folder as folders
from slimseek.budget import front, loop, store
from slimseek.budget.bench import bench
from slimseek.budget.limits import Limits
from slimseek.budget.loop import Effort
from slimseek.budget.proposer import Proposer
from slimseek.budget.space import check_float
from slimseek.collection import Collection
from slimseek.compress import Compressed
from slimseek.errors import UsageError
from slimseek.fingerprint import fingerprint
from slimseek.measurement import Comparison
from slimseek.memory import give_back
from slimseek.progress import say
from slimseek.prove import Options, proven
from slimseek.report import search as page
from slimseek.scale.connect import connected
from slimseek.scale.trials import cluster
from slimseek.schema import Array, Gates, Model, Recipe
from slimseek.trial import Budget, Found, Trial, numbered

FRONT = "front"
LIBRARIES = ("optuna", "jinja2", "altair", "vl_convert")
DISK_NEEDED = 4
"""Packages, students and the teacher's vectors take at most so many times the original's bytes."""


def compress_within(
    source: str | Path, collection: str | Path, limits: Limits, out: str | Path, effort: Effort | None = None,
    options: Options | None = None, *, metric: str = "", seed: int = 0, ray: str = "", at_once: int = 0,
) -> Found:  # fmt: skip
    """The best model that a budget allows: recipes are tried on development queries, the best is proven on the test's.

    Each trial is kept as it ends, so that a run that was killed goes on, and one with other limits or more time begins
    with what is known. ``out`` holds the trials, ``artifact``, ``search.json``, ``search.html`` and in ``front`` the
    recipe of each point of the front.

    Args:
        source: the MODEL, of floats.
        collection: to judge by.
        limits: what is asked.
        out: the folder of the search.
        effort: how long.
        options: how to measure; its ``force`` begins anew where another model or collection was searched.
        metric: whose loss counts; by default nDCG@10, accuracy of classes, or MAP@R of items alike; of a recogniser
            what is found by what it hears, or where nothing is searched its error rate, whose loss is in points.
        seed: of every random choice.
        ray: address of a Ray cluster that tries the plans: HOST:PORT, ``auto``, or ``local`` to start one here.
        at_once: plans that are asked for at once; 0 for one, or with a cluster for as many as it has machines. What is
            found hangs on it, and not on how many machines there are.

    Returns:
        All that was found. Where the budget was not met, the nearest model is what was written, and ``unmet`` says by
        how much.

    Raises:
        UsageError: anything wrong with the arguments, a budget that no model can meet, or too little room on the disk.
    """
    effort, options, start = effort or Effort(), options or Options(), time.perf_counter()
    _check_tools(options.target)
    threads, out = options.threads or timing.default_threads(), Path(out)
    original, found = _opened(source, collection)
    _check(original, out)
    prove_spoken.check(source, original, options)
    _check_index(original, limits)
    deploy.check_target(options.target, original)
    metric = _metric(metric or options.metric, original, found, options)
    say(data.split(found).notice)
    run = _run(original, found, metric, options, threads, seed)
    with ExitStack() as stack:
        connection = stack.enter_context(connected(ray)) if ray else None
        opened = stack.enter_context(store.opened(out, run, force=options.force))
        tried = _tried(original, found, limits, opened, run, connection, at_once, effort, start)
        give_back()
        comparison = _written(source, original, found, tried, threads, out, options)
        result = _found(choose.name_of(source), found, tried, comparison, options)
        _write(result, out, options.lang)
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tried:
    """What the trials came to; the models and packages that they needed are gone.

    Attributes:
        trials: all of them.
        budget: what was asked.
        chosen: the trial that is written.
        made: its model.
        vectors: what the original gave for some of the documents.
        queries: how many chose, at most.
    """

    trials: list[Trial]
    budget: Budget
    chosen: Trial
    made: Compressed
    vectors: Mapping[str, Array]
    queries: int


def _tried(
    original: Model, collection: Collection, limits: Limits, opened: store.Store, run: store.Run, connection: Any,
    at_once: int, effort: Effort, start: float,
) -> _Tried:  # fmt: skip
    """Measure the original, and try plans until no effort is left, which began at ``start``."""
    measured = bench(original, collection, opened, run.terms, memory=bool(limits.memory))
    budget = limits.absolute(measured.baseline.figures, metric=run.metric, target=run.target, keep_index=run.keep_index)
    proposer = Proposer(original, measured, budget, effort.seconds, run.seed)
    _check_reachable(budget, proposer)
    with ExitStack() as stack:
        workers: loop.Workers = loop.Alone(measured, at_once or 1)
        if connection is not None:
            workers = stack.enter_context(cluster(connection, original, collection, measured, at_once))
        left = msgspec.structs.replace(effort, seconds=max(0.0, effort.seconds - (time.perf_counter() - start)))
        trials = loop.run(measured, budget, opened, left, proposer, workers)
    chosen = numbered(trials, front.choose(trials, budget)[0])
    model, records = measured.prefixes.run(chosen.plan.recipe)
    return _Tried(
        trials=trials, budget=budget, chosen=chosen, made=Compressed(model=model, records=records, failed=None),
        vectors=measured.vectors, queries=len(measured.examiner.sets["whole"].queries),
    )  # fmt: skip


def _check_tools(target: str) -> None:
    """Refuse before any work where a library is missing, or packages for the target do not run here."""
    for library in LIBRARIES:
        plugins.require(library)
    deploy.check_target(target, runs=True)


def _opened(source: str | Path, collection: str | Path) -> tuple[Model, Collection]:
    """The model, and the collection in the form that it is judged by."""
    original = choose.model(source)
    return original, data.load_for(str(collection), original.spec)


def _metric(named: str, original: Model, collection: Collection, options: Options) -> str:
    """The metric whose loss counts: the one that was named, else that of the task."""
    if original.spec.output == "transcript":
        asked = spoken.asked(data.search_set(collection, data.split(collection).test, "test"))
        metric = named or spoken.metrics_of(asked)[0]
        spoken.check_metrics([metric], asked)
        return metric
    if options.keep_index:
        kept.check(original, original, Recipe(steps=()), collection.labelled)
    metric = named or measuring.decisive(collection)
    metric = kept.gates(Gates(metric=metric), named).metric if options.keep_index else metric
    measuring.metric(metric)
    return metric


def _check(original: Model, out: Path) -> None:
    """Refuse what cannot be compressed, and a disk that is too full for it."""
    integers.check_finite(original, "compressed")
    check_float(original)
    place = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    needed = DISK_NEEDED * sum(integers.stored_bytes(tensor) for tensor in original.tensors.values())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UsageError(f"{place} has {free / 1e6:,.0f} MB free, and a search of this model may take "
                         f"{needed / 1e6:,.0f} MB; make room, or choose another --out")  # fmt: skip


def _check_index(original: Model, limits: Limits) -> None:
    """Refuse limits of an index for a model that gives no vectors."""
    for option, given in (("--max-index", limits.index), ("--max-total", limits.total)):
        if given and original.spec.output == "transcript":
            raise UsageError(f"{option} is not for recognisers, which keep no vectors; leave it out")


def _check_reachable(budget: Budget, proposer: Proposer) -> None:
    """Refuse a size that nothing reaches, before the first trial."""
    if budget.size is None:
        return
    smallest, plan = proposer.smallest()
    if budget.size < smallest:
        raise UsageError(f"--max-size is {budget.size / 1e6:.2f} MB; the smallest that can be reached is about "
                         f"{smallest / 1e6:.2f} MB ({plan})")  # fmt: skip


def _run(
    original: Model, collection: Collection, metric: str, options: Options, threads: int, seed: int
) -> store.Run:  # fmt: skip
    return store.Run(
        format_version=store.FORMAT_VERSION, made_with=__version__, model_sha256=fingerprint(original),
        collection_sha256=data.fingerprint(collection), metric=metric, target=options.target,
        keep_index=options.keep_index, cpu=timing.environment(threads).cpu, threads=threads, seed=seed,
        search_with=options.search_with,
    )  # fmt: skip


def _written(
    source: str | Path, original: Model, collection: Collection, tried: _Tried, threads: int, out: Path,
    options: Options,
) -> Comparison:  # fmt: skip
    """The chosen model as an artifact with its proof on the test queries."""
    trial = tried.chosen
    steps = msgspec.structs.replace(
        trial.plan.recipe, gates=tried.budget.gates, targets=(options.target,), name=trial.plan.name
    )
    say(f"proof of trial {trial.number} on the test queries: {trial.plan.name}")
    asked = dataclasses.replace(options, precision=trial.plan.precision)
    place = out / choose.SEARCHED
    with folders.writing(place, force=place.exists()) as folder:
        if original.spec.output == "transcript":
            return prove_spoken.proven(folder, source, original, tried.made, collection, steps, threads, asked)
        return proven(folder, source, original, tried.made, collection, steps, threads, asked, tried.vectors)


def _found(source: str, collection: Collection, tried: _Tried, comparison: Comparison, options: Options) -> Found:
    trials, budget = tried.trials, tried.budget
    number, met = front.choose(trials, budget)
    unmet = front.unmet(tried.chosen, budget)
    failed = next((gate for gate in comparison.gates if gate.status == "failed" and gate.gate != "smaller"), None)
    if met and failed is not None:
        met, unmet = False, f"on the test queries the gate {failed.gate} failed: {failed.detail}"
    return Found(
        source=source, collection=collection.name, budget=budget, trials=tuple(trials), front=front.front(trials),
        chosen=number, met=met, unmet=unmet, test=comparison, command=options.command,
        environment=comparison.original.environment, seconds=sum(trial.seconds for trial in trials),
        notes=(
            f"Trials were measured on at most {tried.queries} development queries, in {options.target}; the test "
            f"queries were asked once, by the trial that was chosen.",
        ),
    )  # fmt: skip


def _write(found: Found, out: Path, lang: str) -> None:
    _write_recipes(found, out / FRONT)
    folders.write_atomically(out / choose.SEARCH, msgspec.json.format(msgspec.json.encode(found), indent=1))
    page.write(found, out / page.PAGE, lang)


def _write_recipes(found: Found, folder: Path) -> None:
    """The recipe of each point of the front, to be run again by ``--recipe``."""
    recipes = {f"{number:04d}.yaml": numbered(found.trials, number).plan.recipe for number in found.front}
    for name, steps in recipes.items():
        if steps.steps:
            folders.write_atomically(folder / name, recipe.dump(steps).encode())
    for left in set(folder.glob("*.yaml")) - {folder / name for name in recipes}:
        left.unlink()
