"""Evaluate again: the original and the compressed model in the runtime that will serve them, on the test queries."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slimseek import alternatives as others
from slimseek import artifact, choose, data, deploy, evaluate, kept, report, timing
from slimseek import compress as machine
from slimseek.collection import Collection, SearchSet
from slimseek.compress import Compressed
from slimseek.costs import index_cost
from slimseek.encoder import Encoder
from slimseek.evaluate import Quality
from slimseek.indexes._vectors import RESCORED_WITH
from slimseek.measurement import Change, Comparison, GateResult, Measurement, QueryExample, Report
from slimseek.memory import give_back
from slimseek.schema import Array, Model, Precision, Recipe

TIMED_QUERIES = 200
TIMED_DOCUMENTS = 32
PARITY_TEXTS = 48


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run measures.

    Attributes:
        target: the runtime in which before and after are measured.
        threads: threads of every runtime; 0 for all cores that this process may use.
        alternatives: also measure what other libraries give with one call.
        keep_index: encode queries alone by the compressed model, and search the vectors of the original.
        metric: of the gate, where the user named one; ``""`` for the recipe's or the mode's own.
        precision: how the index keeps the vectors of the compressed model; those of the original stay float32.
        command: the command line that reproduces the run, for the report.
        force: replace what an earlier run wrote.
        search_with: of a recogniser, the MODEL that encodes the texts that are found by what it hears; ``""`` for the
            built-in one.
        lang: language of the HTML report, ``en`` or ``zh``.
    """

    target: str = "onnxruntime"
    threads: int = 0
    alternatives: bool = False
    keep_index: bool = False
    metric: str = ""
    precision: Precision = "f32"
    command: str = ""
    force: bool = False
    search_with: str = ""
    lang: str = "en"

    def __post_init__(self) -> None:
        report.checked(self.lang)


def proven(
    folder: Path, source: str | Path, original: Model, compressed: Compressed, collection: Collection, recipe: Recipe,
    threads: int, options: Options, known: Mapping[str, Array] | None = None,
) -> Comparison:  # fmt: skip
    """Prove a result on the collection's test queries, and write the artifact with its report.

    Args:
        folder: an existing empty one.
        source: the MODEL, for its name.
        original: the model as it was given.
        compressed: what the recipe made of it.
        collection: whose test queries no step has seen.
        recipe: what made it, and its gate.
        threads: of the runtime.
        options: target and alternatives.
        known: vectors that the original gave for some of the documents before, by their text or path.
    """
    name, test = choose.name_of(source), data.search_set(collection, data.split(collection).test, "test")
    comparison = prove(name, original, compressed, test, recipe, threads, options, known)
    index = kept.index_of(choose.encoder(original, name, threads), original) if options.keep_index else None
    return written(folder, compressed.model, recipe, comparison, collection, options, index)


def written(
    folder: Path, model: Model, recipe: Recipe, comparison: Comparison, collection: Collection, options: Options,
    index: artifact.KeptIndex | None = None,
) -> Comparison:  # fmt: skip
    """Write an artifact with its report, and give what was proven of it."""
    artifact.write(model, folder, recipe=recipe, comparison=comparison, collection=collection.path,
                   versions=timing.versions(timing.LIBRARIES), index_of=index)  # fmt: skip
    report.write(comparison, folder / "report.html", options.lang)
    return comparison


def prove(
    name: str, original: Model, compressed: Compressed, test: SearchSet, recipe: Recipe, threads: int, options: Options,
    known: Mapping[str, Array] | None = None,
) -> Comparison:  # fmt: skip
    """Before and after in the target runtime, costs measured in turns.

    Args:
        name: of the original, for the report.
        original: the model as it was given.
        compressed: what the recipe made of it.
        test: queries that no step has seen.
        recipe: for its gate.
        threads: of the runtime.
        options: target and alternatives.
        known: see :func:`proven`.
    """
    metrics = tuple(dict.fromkeys((recipe.gates.metric, *evaluate.default_metrics(test))))
    with tempfile.TemporaryDirectory() as temporary:
        models = {name: original, f"{name} {recipe.name}": compressed.model}
        texts = list(test.items.values())[:PARITY_TEXTS]
        places, gates = packaged(models, Path(temporary), texts, options.target, threads)
        openers: dict[str, Callable[[], Encoder]] = {
            label: lambda label=label, place=place: dataclasses.replace(choose.choose(place, threads), name=label)  # type: ignore[misc]
            for label, place in places.items()
        }
        if options.alternatives:
            alternative = others.dynamic_int8(original, threads)
            openers["onnxruntime dynamic int8"] = lambda: alternative
        found = _found(openers, test, metrics, options, known)
        subjects = {label: (open_one(), places.get(label, "")) for label, open_one in openers.items()}
        queries = list(test.queries.values())[:TIMED_QUERIES]
        costs = evaluate.cost(subjects, queries, list(test.items.values())[:TIMED_DOCUMENTS])
    reports = [
        evaluate.report(
            label,
            threads,
            costs[label],
            found[label].measurements,
            _index(found[label], test, options.precision if number == 1 else "f32"),
            _static(label, subjects, original, compressed),
        )
        for number, label in enumerate(subjects)
    ]
    before, after = (found[label] for label in list(subjects)[:2])
    changes = tuple(
        evaluate.compare(before.get(metric), after.get(metric), recipe.gates.max_loss) for metric in metrics
    )
    examples = _examples(test, before, after, recipe.gates.metric, options.keep_index)
    notes = (*_index_notes(name, options), *_notes(original, compressed, before, after, options.target, recipe))
    return judged(test, original, compressed, recipe, reports, changes, gates, examples, notes, options.command)


def packaged(
    models: Mapping[str, Model], folder: Path, items: Sequence[str], target: str, threads: int
) -> tuple[dict[str, str], list[GateResult]]:
    """The package of each model under ``folder``, checked by the items: its path, and the gates of the last."""
    places: dict[str, str] = {}
    gates: tuple[GateResult, ...] = ()
    for label, model in models.items():
        place = folder / str(len(places))
        place.mkdir()
        gates = deploy.write(model, target, place, texts=items, threads=threads).gates
        places[label] = str(place)
    return places, list(gates)


def judged(
    test: SearchSet, original: Model, compressed: Compressed, recipe: Recipe, reports: Sequence[Report],
    changes: Sequence[Change], gates: Sequence[GateResult], examples: tuple[QueryExample, ...], notes: tuple[str, ...],
    command: str,
) -> Comparison:  # fmt: skip
    """What was measured, with the gates of the whole run: a step's that failed, quality, the package's, and size.

    Args:
        test: what it was measured on.
        original: the model as it was given.
        compressed: what the recipe made of it.
        recipe: for its gate.
        reports: of the original, of the result, and of what a user could do instead.
        changes: the gate's metric first.
        gates: of the package.
        examples: queries that changed most.
        notes: what a reader must know.
        command: that made it.
    """
    failed = [compressed.failed] if compressed.failed is not None else []
    quality = evaluate.quality_gate(changes[0], recipe.gates.max_loss)
    return Comparison(
        collection=test.name,
        original=reports[0],
        compressed=reports[1],
        alternatives=tuple(reports[2:]),
        changes=tuple(changes),
        gates=(*failed, quality, *gates, smaller_gate(reports[0], reports[1])),
        records=compressed.records,
        bytes_before=machine.bytes_by_part(original),
        bytes_after=machine.bytes_by_part(compressed.model),
        examples=examples,
        command=command,
        notes=notes,
    )


def _found(
    openers: Mapping[str, Callable[[], Encoder]], test: SearchSet, metrics: tuple[str, ...], options: Options,
    known: Mapping[str, Array] | None,
) -> dict[str, Quality]:  # fmt: skip
    """What each subject finds; the second is the compressed one, for whom vectors are kept at the precision.

    One is open at a time: runtimes keep the memory that the longest batch of a collection took.
    """
    found: dict[str, Quality] = {}
    for number, (label, open_one) in enumerate(openers.items()):
        precision, encoder = options.precision if number == 1 else "f32", open_one()
        if not options.keep_index:
            found[label] = evaluate.quality(
                encoder, test, metrics, precision=precision, known=None if number else known
            )
        elif number:
            found[label] = kept.quality(encoder, test, next(iter(found.values())), metrics, precision)
        else:
            found[label] = kept.original(encoder, test, metrics, known=known)
        del encoder
        give_back()
    return found


def smaller_gate(before: Report, after: Report) -> GateResult:
    """Whether fewer bytes are shipped in fact."""
    sizes = [subject.get("size") for subject in (before, after)]
    assert sizes[0] is not None
    assert sizes[1] is not None
    ratio = sizes[1].value / sizes[0].value
    detail = f"{sizes[0].value / 1e6:.1f} MB shipped before, {sizes[1].value / 1e6:.1f} MB after, ratio {ratio:.3f}"
    return GateResult(gate="smaller", status="passed" if ratio < 1 else "failed", detail=detail, value=ratio, limit=1.0)


def _static(
    label: str, subjects: dict[str, tuple[Encoder, str]], original: Model, compressed: Compressed
) -> tuple[Measurement, ...]:
    """Parameters and multiply-accumulates, of the model that the label stands for."""
    model = compressed.model if label == list(subjects)[1] else original
    macs = choose.family(model).macs(model, choose.REFERENCE_LENGTH)
    return (
        Measurement(name="parameters", value=float(model.parameters), higher_is_better=False, n=1),
        Measurement(name="macs", value=float(macs), unit="MAC", higher_is_better=False, n=1),
    )


def _index(found: Quality, test: SearchSet, precision: Precision) -> tuple[Measurement, ...]:
    """Bytes of the documents' vectors; of classes nothing is kept."""
    return () if test.labelled else index_cost(len(found.documents), found.documents.shape[1], precision)


def _examples(
    test: SearchSet, before: Quality, after: Quality, metric: str, keep_index: bool
) -> tuple[QueryExample, ...]:
    """The queries that changed most; with an index that is kept, by what the original found."""
    return evaluate.examples(kept.judged(test, before, metric) if keep_index else test, before, after, metric)


def _index_notes(name: str, options: Options) -> tuple[str, ...]:
    """Which vectors were searched."""
    notes = []
    if options.keep_index:
        notes.append(
            f"The index is kept: only queries are encoded by the compressed model, and search the vectors of {name}. "
            f"{kept.METRIC} is the share of its first ten results that are found again."
        )
    if options.precision != "f32":
        finer = RESCORED_WITH.get(options.precision)
        ranks = f", and {finer} vectors on disk rank what it finds" if finer else ""
        notes.append(f"The index of the compressed model keeps vectors at {options.precision}{ranks}; that of {name} "
                     "at float32.")  # fmt: skip
    return tuple(notes)


def _notes(
    original: Model, compressed: Compressed, before: Quality, after: Quality, target: str, recipe: Recipe
) -> tuple[str, ...]:  # fmt: skip
    mean, largest, sqnr = machine.weight_error(original, compressed.model)
    notes = [
        f"Both sides run in {target}; the original is the fp32 graph with fused operators.",
        f"Top-10 overlap with the original's results: {evaluate.overlap(before.ranking, after.ranking):.3f}.",
    ]
    if recipe.student:
        notes.append(f"The steps began with {choose.name_of(recipe.student)}, not with the original.")
    if mean is not None and largest is not None and sqnr is not None:
        notes.append(
            f"Weights against the original: error {mean:.2e} on average, {largest:.2e} at most, {sqnr:.1f} dB."
        )
    if compressed.model.activations:
        exact = timing.products_are_exact(timing.environment(1).instruction_sets)
        notes.append(
            "Sums of eight-bit products are exact on this CPU." if exact else
            "This CPU has no VNNI: sums of unsigned by signed eight-bit products may saturate. In ONNX Runtime the "
            "weights are stored unsigned where its kernel does so; parity shows what is left."
        )  # fmt: skip
    return tuple(notes)
