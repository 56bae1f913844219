"""The command line: parse, call one verb, print. Exit codes come from :mod:`slimseek.errors`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slimseek import __version__
from slimseek.cli import index, serve, speech
from slimseek.cli.command import (
    Artifact,
    Command,
    Data,
    DeployData,
    Force,
    Json,
    Lang,
    Model,
    Out,
    Quiet,
    Ray,
    SearchWith,
    Seed,
    Target,
    Threads,
)
from slimseek.errors import BudgetUnmet, GateFailed, SlimseekError, UsageError, of_the_system

if TYPE_CHECKING:
    from slimseek.prove import Options
    from slimseek.schema import Recipe

app = typer.Typer(
    name="slimseek", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Makes the neural model behind a search smaller and faster, and proves that the search still finds the same.",
)  # fmt: skip


@app.command()
def models(json: Json = False) -> None:
    """List built-in models, families, backends and methods, and what works on this machine."""
    from slimseek.cli import show
    from slimseek.cli.catalogue import catalogue

    with Command(json, quiet=True) as run:
        found = catalogue()
        run.answer(found, lambda console: show.catalogue(found, console))


@app.command()
def inspect(model: Model, json: Json = False) -> None:
    """Show a model layer by layer: parameters, bytes, multiply-accumulates."""
    from slimseek.cli import show
    from slimseek.inspect import inspect as look

    with Command(json, quiet=True) as run:
        found = look(model)
        run.answer(found, lambda console: show.model(found, console))


@app.command()
def data(
    collection: Annotated[str, typer.Argument(metavar="DATA")],
    model: Annotated[str, typer.Option("--model", help="Whose tokenizer counts truncated texts.")] = "",
    json: Json = False,
) -> None:
    """Check a collection: counts, splits, faults, and with a model the share of truncated texts."""
    from slimseek import data as collections
    from slimseek.choose import model as open_model
    from slimseek.cli import show
    from slimseek.inputs.reader import reader

    with Command(json, quiet=True) as run:
        opened = open_model(model) if model else None
        read = None if opened is None else reader(opened.spec, opened.files)
        found = collections.describe(collections.load(collection), read)
        run.answer(found, lambda console: show.collection(found, console))


@app.command()
def evaluate(
    model: Model, data: Data,
    baseline: Annotated[str, typer.Option("--baseline", metavar="MODEL", help="Compare with this, paired.")] = "",
    split: Annotated[str, typer.Option("--split", help="test, dev or train.")] = "test",
    metric: Annotated[list[str] | None, typer.Option("--metric", help="Such as ndcg@10; may be repeated.")] = None,
    search_with: SearchWith = "", threads: Threads = 0, json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Measure quality with intervals, size, latency and memory; with a baseline, paired differences."""
    from slimseek.cli import show
    from slimseek.pipeline import evaluate as measure

    with Command(json, quiet) as run:
        found = measure(model, data, baseline=baseline or None, split=split, metrics=metric or None, threads=threads,
                        search_with=search_with)  # fmt: skip
        shown: Any = show.hearing if hasattr(found, "spoken") else show.evaluation
        run.answer(found, lambda console: shown(found, console))


@app.command()
def compress(
    model: Model, data: Data, out: Out,
    recipe: Annotated[str, typer.Option("--recipe", help="A shorthand (see slimseek recipe) or a YAML file.")] = "",
    max_size: Annotated[str, typer.Option("--max-size", help="Of the package: 10MB, or 12% of the original's.")] = "",
    max_latency: Annotated[str, typer.Option("--max-latency", help="Of a query, 95 of 100: 5ms, or 50%.")] = "",
    max_memory: Annotated[str, typer.Option("--max-memory", help="Of a process that encodes: 200MB, or 50%.")] = "",
    max_index: Annotated[str, typer.Option("--max-index", help="Of all documents' vectors: 20MB, or 25%.")] = "",
    max_total: Annotated[str, typer.Option("--max-total", help="Of package and index together.")] = "",
    max_loss: Annotated[str, typer.Option("--max-loss", help="Largest relative loss, such as 1%.")] = "",
    time: Annotated[str, typer.Option("--time", help="That a search under a budget may take: 20m.")] = "10m",
    trials: Annotated[int, typer.Option("--trials", min=0, help="Most trials; 0 for as many as time allows.")] = 0,
    student: Annotated[str, typer.Option("--student", metavar="MODEL", help="Smaller model to begin with.")] = "",
    target: Annotated[str, typer.Option("--target", "--for", help="Runtime that before and after run in.")] = "",
    metric: Annotated[str, typer.Option("--metric", help="Metric of the gate; by default the recipe's.")] = "",
    keep_index: Annotated[bool, typer.Option("--keep-index", help="Encode queries alone; the index stays.")] = False,
    alternatives: Annotated[bool, typer.Option("--alternatives", help="Also measure other libraries.")] = False,
    search_with: SearchWith = "",
    ray: Ray = "",
    at_once: Annotated[int, typer.Option("--at-once", min=0, help="Plans a round; 0 for one a machine.")] = 0,
    threads: Threads = 0, seed: Seed = 0, force: Force = False, lang: Lang = "en", json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Compress a model by a recipe, or search for the recipe that a budget allows (--max-...), and prove the result."""
    from slimseek import recipe as recipes
    from slimseek.prove import Options

    options = Options(target=target, threads=threads, alternatives=alternatives, keep_index=keep_index, metric=metric,
                      force=force, command=_command(), search_with=search_with, lang=lang)  # fmt: skip
    limits = {"size": max_size, "latency": max_latency, "memory": max_memory, "index": max_index, "total": max_total}
    with Command(json, quiet) as run:
        if any(limits.values()) or (max_loss and not recipe and not student):
            if recipe or student:
                raise UsageError("a recipe or a budget: leave out --recipe and --student, or the --max options")
            how = {"metric": metric, "seed": seed, "ray": ray, "at_once": at_once}
            _search(run, model, data, out, limits | {"loss": max_loss}, (time, trials), how, options)
        else:
            if at_once:
                raise UsageError("--at-once is of a search under a budget (--max-size, --max-loss, ...)")
            steps = recipes.with_options(
                recipes.load(recipe or "int8"), metric=metric, max_loss=max_loss, student=student, seed=seed
            )
            _by_recipe(run, model, data, out, steps, options, ray)


def _by_recipe(run: Command, model: str, data: str, out: Path, steps: Recipe, options: Options, ray: str) -> None:
    from slimseek.cli import show
    from slimseek.pipeline import compress as run_recipe

    found = run_recipe(model, data, steps, out, replace(options, target=options.target or steps.targets[0]), ray=ray)
    run.answer(found, lambda console: show.comparison(found, console, out))
    failed = next((gate for gate in found.gates if gate.status == "failed"), None)
    if failed is not None:
        raise GateFailed(f"the gate {failed.gate} failed: {failed.detail}; the last good model is in {out}")


def _search(
    run: Command, model: str, data: str, out: Path, limits: dict[str, str], effort: tuple[str, int],
    how: dict[str, Any], options: Options,
) -> None:  # fmt: skip
    from slimseek.budget.limits import Limits, seconds
    from slimseek.budget.loop import Effort
    from slimseek.cli import show
    from slimseek.within import compress_within

    time, trials = effort
    found = compress_within(
        model, data, Limits(**limits), out, Effort(seconds=seconds(time), trials=trials),
        replace(options, target=options.target or "onnxruntime"), **how,
    )  # fmt: skip
    run.answer(found, lambda console: show.search(found, console, out))
    if not found.met:
        raise BudgetUnmet(f"the budget is not met: {found.unmet}; the nearest model is in {out / 'artifact'}")


@app.command()
def train(
    model: Model, data: Data, out: Out,
    loss: Annotated[str, typer.Option("--loss", help="As docs/training.md has it; empty for the usual one.")] = "",
    teacher: Annotated[str, typer.Option("--teacher", metavar="MODEL", help="Of margin_mse.")] = "",
    steps: Annotated[int, typer.Option("--steps", help="Updates of the weights.")] = 300,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Queries or labelled items in a batch.")] = 16,
    accumulate: Annotated[int, typer.Option("--accumulate", help="Batches to one step.")] = 1,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="The highest.")] = 5e-5,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer texts are cut in training.")] = 128,
    hard_negatives: Annotated[int, typer.Option("--hard-negatives", help="For each query, of what is found.")] = 1,
    max_documents: Annotated[int, typer.Option("--max-documents", help="Where they are looked for.")] = 20_000,
    views: Annotated[int, typer.Option("--views", help="Side of random views of pictures; 0 for whole ones.")] = 0,
    patience: Annotated[int, typer.Option("--patience", help="Checks without a better state; 0 for all steps.")] = 0,
    precision: Annotated[str, typer.Option("--precision", help="auto, float32 or bfloat16.")] = "auto",
    metric: Annotated[str, typer.Option("--metric", help="To keep the best by; nDCG@10, or accuracy.")] = "",
    threads: Threads = 0, seed: Seed = 0, force: Force = False, json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Fine-tune a model on train queries or on labels, judged by development queries; a killed run goes on."""
    from slimseek import plugins
    from slimseek.cli import show
    from slimseek.pipeline import train as tune

    with Command(json, quiet) as run:
        wanted, train = (plugins.require(f"slimseek.training.{name}") for name in ("settings", "train"))
        training = train.Training(
            steps=steps, batch_size=batch_size, accumulate=accumulate, learning_rate=learning_rate,
            max_tokens=max_tokens, patience=patience, precision=precision, seed=seed, views=views,
        )  # fmt: skip
        settings = wanted.Settings(
            loss=loss, teacher=teacher, hard_negatives=hard_negatives, max_documents=max_documents, metric=metric,
            training=training,
        )  # fmt: skip
        found = tune(model, data, out, settings, threads=threads, force=force)
        run.answer(found, lambda console: show.tuning(found, console, out))


@app.command()
def sensitivity(
    model: Model, data: Data, out: Out,
    method: Annotated[str, typer.Option("--method", help="prune.channels or prune.heads.")] = "prune.channels",
    amount: Annotated[list[float] | None, typer.Option("--amount", help="Share to take; may be repeated.")] = None,
    importance: Annotated[str, typer.Option("--importance", help="Measure that tells what goes first.")] = "taylor",
    metric: Annotated[str, typer.Option("--metric", help="Such as ndcg@10.")] = "ndcg@10",
    max_queries: Annotated[int, typer.Option("--max-queries", help="Development queries, at most.")] = 300,
    max_documents: Annotated[int, typer.Option("--max-documents", help="Documents, unless more are judged.")] = 300,
    threads: Threads = 0, seed: Seed = 0, force: Force = False, lang: Lang = "en", json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Measure what each layer can lose: quality without a share of its units, layer by layer; a killed run goes on."""
    from slimseek.cli import show
    from slimseek.pipeline import sensitivity as measure
    from slimseek.sensitivity import Settings

    with Command(json, quiet) as run:
        settings = Settings(
            method=method, amounts=tuple(sorted(set(amount or Settings().amounts))), importance=importance,
            metric=metric, max_queries=max_queries, max_documents=max_documents, seed=seed,
        )  # fmt: skip
        found = measure(model, data, out, settings, threads=threads, force=force, lang=lang)
        run.answer(found, lambda console: show.sensitivity(found, console, out))


@app.command()
def rebuild(artifact: Artifact, out: Out, threads: Threads = 0, force: Force = False, json: Json = False,
            quiet: Quiet = False) -> None:  # fmt: skip
    """Write an ordinary model that sentence-transformers and transformers load without slimseek."""
    from slimseek.rebuild import rebuild as write

    with Command(json, quiet) as run:
        parity = write(artifact, out, threads=threads or None, force=force)
        run.answer(parity, lambda console: console.print(f"{out}: {parity.detail}", markup=False, soft_wrap=True))


@app.command()
def deploy(artifact: Artifact, out: Out, target: Target = "auto", data: DeployData = "", threads: Threads = 0,
           force: Force = False, json: Json = False, quiet: Quiet = False) -> None:  # fmt: skip
    """Write a package for a runtime, reopen it in a fresh process and check that it gives the same vectors."""
    from slimseek.cli import show
    from slimseek.pipeline import deploy_all_on, deploy_on

    with Command(json, quiet) as run:
        if target == "all":
            found = deploy_all_on(artifact, out, data=data, threads=threads, force=force)
            run.answer(found, lambda console: show.deployed(found, console, out))
            if not found.packages:
                raise GateFailed(f"no target passes its gates here; {out / 'targets.json'} says why")
            return
        package = deploy_on(artifact, target, out, data=data, threads=threads, force=force)
        run.answer(package, lambda console: show.package(package, console, out))


@app.command()
def bench(packages: Annotated[list[str], typer.Argument(metavar="PACKAGE...", help="Packages, or any MODELs.")],
          data: Annotated[str, typer.Option("--data", metavar="DATA", help="Whose texts are timed.")] = "",
          threads: Threads = 0, json: Json = False, quiet: Quiet = False) -> None:  # fmt: skip
    """Measure packages side by side, in turns: one query, batches, memory, bytes; name the fastest."""
    from slimseek import bench as benches
    from slimseek.cli import show

    with Command(json, quiet) as run:
        found = benches.bench(packages, data, threads=threads)
        run.answer(found, lambda console: show.side_by_side(found, console))


@app.command()
def setup(target: Annotated[str, typer.Argument(metavar="TARGET", help="Such as paddlelite.")],
          python: Annotated[str, typer.Option("--python", metavar="PATH", help="The CPython to make it with.")] = "",
) -> None:  # fmt: skip
    """Make the interpreter of its own that a runtime needs which does not install beside slimseek."""
    from slimseek import setup as environments

    print(environments.install(target, python))


@app.command()
def report(artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT")], out: Annotated[Path, typer.Option("--out")],
           lang: Lang = "en", json: Json = False) -> None:  # fmt: skip
    """Write the HTML report of an artifact, or the page of a search under a budget."""
    from slimseek import report as reports
    from slimseek.choose import report_of, search_of
    from slimseek.report import search as pages

    with Command(json, quiet=True) as run:
        found: Any = search_of(artifact)
        page: Any = reports if found is None else pages
        found = report_of(artifact) if found is None else found
        page.write(found, out, lang)
        run.answer(found, lambda console: console.print(f"{page.verdict(found)}\n{out}", markup=False, soft_wrap=True))


@app.command()
def recipe(name: Annotated[str, typer.Argument(help="A shorthand; without one, all are listed.")] = "") -> None:
    """Print a recipe to read, edit and pass to compress --recipe."""
    from slimseek import recipe as recipes

    if name:
        print(recipes.text_of(name), end="")
    for shorthand in () if name else recipes.shorthands():
        print(f"{shorthand:18} {recipes.text_of(shorthand).splitlines()[0].removeprefix('# ')}")


app.command()(speech.transcribe)
app.command()(index.index)
app.command()(index.query)
app.command()(serve.serve)
app.command()(serve.demo)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"slimseek {__version__}")
        raise typer.Exit


def main() -> None:
    """Run a command; every error that a user can mend is one line and the exit code of its kind."""
    try:
        code = app(standalone_mode=False)
    except SlimseekError as error:
        print(f"slimseek: {' '.join(str(error).split())}", file=sys.stderr)
        code = error.exit_code
    except typer.Abort:
        code = 130
    except KeyboardInterrupt:
        print("slimseek: interrupted", file=sys.stderr)
        code = 130
    except Exception as error:
        usage = getattr(error, "format_message", None)
        said = usage() if usage is not None else of_the_system(error)
        if said is None:
            raise
        print(f"slimseek: {said}", file=sys.stderr)
        code = UsageError.exit_code
    sys.exit(code or 0)


def _command() -> str:
    return shlex.join(["slimseek", *sys.argv[1:]])
