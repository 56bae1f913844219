"""Compress a recogniser, judged by what is heard and found, and prove it on the test recordings."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from slimseek import artifact, choose, data, evaluate, report, spoken, timing
from slimseek import compress as machine
from slimseek.collection import Collection, SearchSet
from slimseek.compress import Compressed, Judge
from slimseek.errors import UsageError
from slimseek.measurement import Comparison, Measurement
from slimseek.progress import say
from slimseek.prove import Options, judged, packaged
from slimseek.schema import Gates, Model, Recipe

DEV_RECORDINGS = 100
PARITY_RECORDINGS = 8


def compressed(
    folder: Path, source: str | Path, original: Model, collection: Collection, recipe: Recipe, threads: int,
    options: Options,
) -> Comparison:  # fmt: skip
    """Run a recipe on a recogniser, judged on development recordings; prove the result on the test's, write both.

    The gate is about the search's metric where there is a search, else about the error rate, unless the recipe has a
    metric of its own.

    Args:
        folder: an existing empty one, for the artifact with its report.
        source: the MODEL, for its name.
        original: the model as it was given.
        collection: recordings with transcripts.
        recipe: checked steps.
        threads: of every runtime.
        options: target and search.

    Raises:
        UsageError: an option or a metric that is not for recognisers, or recordings without transcripts.
    """
    _check(recipe, options)
    name, splits = choose.name_of(source), data.split(collection)
    say(splits.notice)
    test = spoken.asked(data.search_set(collection, splits.test, "test"))
    dev = spoken.asked(data.search_set(collection, splits.dev, "dev", max_queries=DEV_RECORDINGS, seed=recipe.seed))
    if recipe.gates.metric == Gates().metric:
        recipe = msgspec.structs.replace(
            recipe, gates=msgspec.structs.replace(recipe.gates, metric=spoken.metrics_of(test)[0])
        )
    metrics = tuple(dict.fromkeys((recipe.gates.metric, *spoken.metrics_of(test))))
    spoken.check_metrics(metrics, test)
    found = spoken.search(test, options.search_with, threads)
    judge = Judge(
        search_set=dev, threads=threads, search=found,
        original=spoken.quality(choose.recognising(original, "original", threads), dev,
                                list(dict.fromkeys([recipe.gates.metric, spoken.RATES[0]])), found),
    )  # fmt: skip
    made = machine.run(original, recipe, spoken.samples(collection, splits), judge)
    assert isinstance(judge.original, spoken.Heard)
    alone = spoken.attribution(original, made.model, dev, judge.original, threads)
    comparison = _proved(name, original, made, test, metrics, found, recipe, threads, options)
    comparison = msgspec.structs.replace(comparison, alone=alone or msgspec.UNSET)
    artifact.write(made.model, folder, recipe=recipe, comparison=comparison, collection=collection.path,
                   versions=timing.versions(timing.LIBRARIES))  # fmt: skip
    report.write(comparison, folder / "report.html", options.lang)
    return comparison


def _check(recipe: Recipe, options: Options) -> None:
    refused = {"--keep-index": options.keep_index, "--alternatives": options.alternatives,
               "a precision of the index": options.precision != "f32", "--student": bool(recipe.student)}  # fmt: skip
    for name, given in refused.items():
        if given:
            raise UsageError(f"{name} is not for recognisers, which keep no vectors and have no alternatives here; "
                             "leave it out")  # fmt: skip


def _proved(
    name: str, original: Model, made: Compressed, test: SearchSet, metrics: tuple[str, ...],
    found: spoken.Search | None, recipe: Recipe, threads: int, options: Options,
) -> Comparison:  # fmt: skip
    """Before and after in the target's package, on the test recordings."""
    models = {name: original, f"{name} {recipe.name}": made.model}
    items = list(test.queries.values())
    with tempfile.TemporaryDirectory() as temporary:
        places, gates = packaged(models, Path(temporary), items[:PARITY_RECORDINGS], options.target, threads)
        opened = {label: choose.recogniser(place, threads) for label, place in places.items()}
        heard = {label: spoken.quality(one, test, metrics, found) for label, one in opened.items()}
        costs = spoken.cost(opened, items)
    before, after = heard.values()
    reports = [
        evaluate.report(label, threads, costs[label], heard[label].measurements, _static(model))
        for label, model in models.items()
    ]
    changes = tuple(evaluate.compare(before.get(one), after.get(one), recipe.gates.max_loss) for one in metrics)
    examples = spoken.examples(test, before, after, spoken.RATES[0] if spoken.RATES[0] in metrics else metrics[0])
    notes = _notes(test, before, after, metrics, found, options.target)
    return judged(test, original, made, recipe, reports, changes, gates, examples, notes, options.command)


def _static(model: Model) -> tuple[Measurement, ...]:
    return (Measurement(name="parameters", value=float(model.parameters), higher_is_better=False, n=1),)


def _notes(
    test: SearchSet, before: spoken.Heard, after: spoken.Heard, metrics: tuple[str, ...], found: spoken.Search | None,
    target: str,
) -> tuple[str, ...]:  # fmt: skip
    same = sum(text == after.transcripts[query] for query, text in before.transcripts.items())
    notes = [f"Both sides run in {target}.",
             f"{same:,} of {len(test.queries):,} recordings are heard alike."]  # fmt: skip
    if found is not None:
        plain = spoken.typed(test, metrics, found)
        for one in plain.measurements:
            spoken_ones = [heard.get(one.name).value for heard in (before, after)]
            notes.append(f"{one.name} of the same queries typed, by {found.encoder.name}: {one.value:.3f}; spoken "
                         f"{spoken_ones[0]:.3f} before and {spoken_ones[1]:.3f} after.")  # fmt: skip
    return tuple(notes)
