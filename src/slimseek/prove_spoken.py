"""Compress a recogniser, judged by what is heard and found, and prove it on the test recordings."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from slimseek import choose, data, evaluate, spoken
from slimseek import compress as machine
from slimseek.collection import Collection, SearchSet
from slimseek.compress import Compressed, Judge
from slimseek.errors import UsageError
from slimseek.measurement import Change, Comparison, Measurement
from slimseek.progress import say
from slimseek.prove import Options, judged, packaged, written
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
    student = choose.model(recipe.student) if recipe.student else original
    if student.spec.output != "transcript":
        raise UsageError(f"the student {recipe.student} gives no transcripts, as the original does")
    splits = data.split(collection)
    say(splits.notice)
    test = _test(collection)
    dev = spoken.asked(data.search_set(collection, splits.dev, "dev", max_queries=DEV_RECORDINGS, seed=recipe.seed))
    if recipe.gates.metric == Gates().metric:
        recipe = msgspec.structs.replace(
            recipe, gates=msgspec.structs.replace(recipe.gates, metric=spoken.metrics_of(test)[0])
        )
    metrics = _metrics(recipe, test)
    spoken.check_metrics(metrics, test)
    found = spoken.search(test, options.search_with, threads)
    judge = Judge(
        search_set=dev, threads=threads, search=found,
        original=spoken.quality(choose.recognising(original, "original", threads), dev,
                                list(dict.fromkeys([recipe.gates.metric, spoken.RATES[0]])), found),
    )  # fmt: skip
    samples = dataclasses.replace(spoken.samples(collection, splits), original=original)
    made = machine.run(student, recipe, samples, judge)
    assert isinstance(judge.original, spoken.Heard)
    alone = attribution(original, made.model, dev, judge.original, threads)
    name = choose.name_of(source)
    comparison = _proved(name, original, made, test, metrics, found, recipe, threads, options)
    comparison = msgspec.structs.replace(comparison, alone=alone or msgspec.UNSET)
    return written(folder, made.model, recipe, comparison, collection, options)


def proven(
    folder: Path, source: str | Path, original: Model, made: Compressed, collection: Collection, recipe: Recipe,
    threads: int, options: Options,
) -> Comparison:  # fmt: skip
    """Prove a result on the collection's test recordings, and write the artifact with its report.

    Args:
        folder: an existing empty one.
        source: the MODEL, for its name.
        original: the model as it was given.
        made: what the recipe made of it.
        collection: whose test recordings no step has heard.
        recipe: what made it, and its gate.
        threads: of the runtime.
        options: target and search.
    """
    test, name = _test(collection), choose.name_of(source)
    found = spoken.search(test, options.search_with, threads)
    comparison = _proved(name, original, made, test, _metrics(recipe, test), found, recipe, threads, options)
    return written(folder, made.model, recipe, comparison, collection, options)


def check(source: str | Path, original: Model, options: Options) -> None:
    """Refuse what is about vectors for a model that gives transcripts, and what is about transcripts for others.

    Raises:
        UsageError: an option that is not for this model.
    """
    if original.spec.output != "transcript":
        if options.search_with:
            raise UsageError(f"--search-with is for recognisers; {source} gives no transcripts")
        return
    refused = {"--keep-index": options.keep_index, "--alternatives": options.alternatives,
               "a precision of the index": options.precision != "f32"}  # fmt: skip
    for name, given in refused.items():
        if given:
            raise UsageError(f"{name} is not for recognisers, which keep no vectors and have no alternatives here; "
                             "leave it out")  # fmt: skip


def _test(collection: Collection) -> SearchSet:
    return spoken.asked(data.search_set(collection, data.split(collection).test, "test"))


def _metrics(recipe: Recipe, test: SearchSet) -> tuple[str, ...]:
    """The gate's first."""
    return tuple(dict.fromkeys((recipe.gates.metric, *spoken.metrics_of(test))))


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
        costs = spoken.cost({label: (one, places[label]) for label, one in opened.items()}, items)
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


# ---------------------------------------------------------------- where the loss comes from


def parts(before: Model, after: Model) -> dict[str, Model]:
    """The original with one part of what a recipe made of it: ``encoder``, ``decoder`` and ``token table``.

    Empty where the recipe has changed names or shapes, so that the parts of both do not fit together.
    """
    if before.tensors.keys() != after.tensors.keys() or any(
        before.tensors[name].shape != after.tensors[name].shape for name in before.tensors
    ):
        return {}
    tables = {layer.weight for layer in before.layers if layer.kind == "embedding" and "position" not in layer.name}
    found: dict[str, Model] = {}
    for part in ("encoder", "decoder", "token table"):
        chosen = {name for name in before.tensors if _part(name, tables) == part}
        if not any(after.tensors[name] is not before.tensors[name] for name in chosen):
            continue
        found[part] = dataclasses.replace(
            before,
            tensors={name: (after if name in chosen else before).tensors[name] for name in before.tensors},
            activations=_of(after.activations, chosen), smoothing=_of(after.smoothing, chosen),
        )  # fmt: skip
    return found


def attribution(
    before: Model, after: Model, search_set: SearchSet, original: spoken.Heard, threads: int
) -> dict[str, Change]:
    """What each part's compression alone does to the word error rate, in the reference implementation.

    Args:
        before: the original.
        after: what a recipe made of it.
        search_set: development recordings.
        original: what the original heard there.
        threads: of the reference implementation.
    """
    name = spoken.RATES[0]
    base = original if any(one.name == name for one in original.measurements) else spoken.scored(
        original.transcripts, search_set, [name], None)  # fmt: skip
    found = {}
    for part, model in parts(before, after).items():
        say(f"the {part} alone, compressed")
        one = spoken.quality(choose.recognising(model, f"{part} alone", threads), search_set, [name])
        found[part] = evaluate.compare(base.get(name), one.get(name))
    return found


def _part(name: str, tables: set[str]) -> str:
    if name in tables:
        return "token table"
    return "decoder" if "decoder" in name else "encoder"


def _of(named: Mapping[str, Any], chosen: set[str]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if name.partition("#")[0] in chosen}
