"""The table of contents: the stages called in order, for one model, one collection and one recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from slimseek import (
    choose,
    data,
    deploy,
    documents,
    hearing,
    index_folder,
    integers,
    kept,
    plugins,
    prove_spoken,
    search,
    similar,
    spoken,
    timing,
    updates,
)
from slimseek import compress as machine
from slimseek import evaluate as measuring
from slimseek import folder as folders
from slimseek import recipe as recipes
from slimseek import sensitivity as alone
from slimseek.collection import Collection, Qrels
from slimseek.compress import Judge
from slimseek.errors import UsageError
from slimseek.measurement import Change, Comparison, Measurement, Report
from slimseek.progress import say
from slimseek.prove import TIMED_DOCUMENTS, TIMED_QUERIES, Options, proven
from slimseek.report import checked
from slimseek.report import sensitivity as sensitivity_page
from slimseek.scale import bulk, joining
from slimseek.scale.connect import connected
from slimseek.scale.encoding import encode, teaching
from slimseek.schema import Gates, Model, Precision, Recipe
from slimseek.value import Value

if TYPE_CHECKING:
    from slimseek.training.finetune import Tuned
    from slimseek.training.settings import Settings

DEV_QUERIES = 300
DEV_DOCUMENTS = 300
PARITY_TEXTS = 64


class Evaluation(Value, frozen=True):
    """One model on one collection, and how it differs from a baseline on the same queries."""

    collection: str
    subject: Report
    baseline: Report | None = None
    changes: tuple[Change, ...] = ()
    overlap: float | None = None


def compress(
    source: str | Path,
    collection: str | Path,
    recipe: str | Path | Recipe,
    out: str | Path,
    options: Options | None = None,
    *,
    ray: str = "",
) -> Comparison:
    """Compress a model by a recipe and prove what changed; writes an artifact with its report to ``out``.

    Steps are judged on development queries. The test queries are used once, at the end, on what the target runtime
    gives before and after.

    Args:
        source: the MODEL.
        collection: the collection to judge by; where the recipe has no metric of its own, labels are judged by accuracy
            and items alike by MAP@R.
        recipe: a shorthand, a file, or a recipe.
        out: folder of the artifact.
        options: how to measure.
        ray: address of a Ray cluster that computes what teachers give; see :func:`slimseek.scale.connect.connected`.

    Returns:
        Before and after. A failed gate is among its gates; the last good model is what was written.

    Raises:
        UsageError: anything wrong with the arguments, before any long work.
    """
    options = options or Options()
    steps, threads = recipes.load(recipe), options.threads or timing.default_threads()
    if spoken.error_rate(steps.gates.metric) is None:
        measuring.metric(steps.gates.metric)
    deploy.check_target(options.target, runs=True)
    placed = folders.writing(Path(out), inputs=_paths(source, collection, steps.student or ""), force=options.force)
    with placed as folder, _spread(ray, source, steps):
        original = choose.model(source)
        integers.check_finite(original, "compressed")
        deploy.check_target(options.target, original)
        prove_spoken.check(source, original, options)
        found = data.load_for(str(collection), original.spec)
        if original.spec.output == "transcript":
            return prove_spoken.compressed(folder, source, original, found, steps, threads, options)
        measuring.metric(steps.gates.metric)
        if steps.gates.metric == Gates().metric:
            gates = msgspec.structs.replace(steps.gates, metric=measuring.decisive(found))
            steps = msgspec.structs.replace(steps, gates=gates)
        student = choose.model(steps.student) if steps.student else original
        if options.keep_index:
            kept.check(original, student, steps, found.labelled)
            steps = msgspec.structs.replace(steps, gates=kept.gates(steps.gates, options.metric))
        splits = data.split(found)
        say(splits.notice)
        samples = data.samples(found, splits, seed=steps.seed, queries_first=options.keep_index)
        samples = dataclasses.replace(samples, original=original)
        judge = _judge(original, found, splits.dev, steps, threads, options.keep_index)
        compressed = machine.run(student, steps, samples, judge)
        return proven(folder, source, original, compressed, found, steps, threads, options)


def _spread(ray: str, source: str | Path, steps: Recipe) -> AbstractContextManager[None]:
    """Teachers asked on the cluster, if there is one; a UsageError where no vectors of a teacher would be."""
    if not ray:
        return nullcontext()
    asked = any(recipes.build(step).asks_teacher for step in steps.steps)
    if not asked or choose.spec_of(source).output == "transcript":
        raise UsageError(f"--ray {ray}: of a recipe the cluster computes the vectors that a teacher gives, and no step "
                         "asks for any; leave it out, or give a budget (--max-size, --max-loss, ...)")  # fmt: skip
    return teaching(ray)


def evaluate(
    source: str | Path, collection: str | Path, *, baseline: str | Path | None = None, split: str = "test",
    metrics: Sequence[str] | None = None, threads: int = 0, search_with: str = "",
) -> Evaluation | hearing.Hearing:  # fmt: skip
    """Measure a model on a collection: quality with intervals, bytes, time, memory; against a baseline, paired.

    A recogniser is measured by what it hears, and by what a search of texts finds by that.

    Args:
        source: any MODEL.
        collection: the collection.
        baseline: a MODEL to compare with, measured in the same run.
        split: whose queries.
        metrics: such as ``ndcg@10``; by default nDCG, recall, MRR and MAP, or those of classes or of items alike.
        threads: of the runtimes; 0 for all cores.
        search_with: the MODEL that encodes the texts which a recogniser finds; ``""`` for the built-in one.
    """
    read = data.load(str(collection))
    if choose.spec_of(source).output == "transcript":
        _check_split(read, split)
        return hearing.evaluation(str(source), read, baseline=str(baseline or ""), split=split, metrics=metrics,
                                 search_with=search_with, threads=threads)  # fmt: skip
    if search_with:
        raise UsageError(f"--search-with is for recognisers; {source} gives no transcripts")
    chosen = [(path, choose.choose(path, threads or None)) for path in (source, baseline) if path is not None]
    found = similar.suited(read, chosen[0][1].spec)
    _check_split(found, split)
    queries = data.search_set(found, found.qrels[split], split)
    names = tuple(metrics or measuring.default_metrics(queries))
    quality = [measuring.quality(encoder, queries, names) for _, encoder in chosen]
    costs = measuring.cost(
        {str(number): (encoder, str(path)) for number, (path, encoder) in enumerate(chosen)},
        list(queries.queries.values())[:TIMED_QUERIES], list(queries.items.values())[:TIMED_DOCUMENTS],
    )  # fmt: skip
    reports = [
        measuring.report(f"{encoder.name} ({encoder.runtime})", encoder.threads, costs[str(number)],
                         quality[number].measurements, _static(path))
        for number, (path, encoder) in enumerate(chosen)
    ]  # fmt: skip
    if baseline is None:
        return Evaluation(collection=queries.name, subject=reports[0])
    changes = tuple(measuring.compare(quality[1].get(name), quality[0].get(name)) for name in names)
    shared = measuring.overlap(quality[1].ranking, quality[0].ranking)
    return Evaluation(collection=queries.name, subject=reports[0], baseline=reports[1], changes=changes, overlap=shared)


def train(
    source: str | Path, collection: str | Path, out: str | Path, settings: Settings | None = None, *,
    threads: int = 0, force: bool = False,
) -> Tuned:  # fmt: skip
    """Fine-tune a model on a collection's train queries, or on its labels; writes an artifact to ``out``.

    Args:
        source: the MODEL, of floats.
        collection: with train queries, or labelled: then the artifact is a classifier.
        out: the folder; a run that was killed goes on from what lies there.
        settings: loss, negatives, steps, rate.
        threads: of everything; 0 for all cores.
        force: replace what lies there, and begin anew.

    Raises:
        UsageError: the model cannot be trained, there is nothing to train on, or the folder is taken.
        NoEffect: no state was better on the development queries; nothing is written.
    """
    finetuning = plugins.require("slimseek.training.finetune")
    tuned: Tuned = finetuning.finetune(
        source, collection, out, settings or finetuning.Settings(), threads=threads, force=force
    )
    return tuned


def sensitivity(
    source: str | Path, collection: str | Path, out: str | Path, settings: alone.Settings | None = None, *,
    threads: int = 0, force: bool = False, lang: str = "en",
) -> alone.Sensitivity:  # fmt: skip
    """Measure what each layer of a model can lose; writes ``sensitivity.json`` and ``sensitivity.html`` to ``out``.

    Args:
        source: the MODEL.
        collection: the collection; only its development queries are asked.
        out: the folder; a run that was killed goes on from what lies there.
        settings: what to take from each layer, and how to measure.
        threads: of the reference implementation; 0 for all cores.
        force: measure anew whatever lies there.
        lang: language of the page, ``en`` or ``zh``.

    Raises:
        UsageError: the method refuses the model, or the folder's file is of another model, collection or settings.
    """
    plugins.require("jinja2")
    checked(lang)
    found = alone.measure(
        source, str(collection), Path(out), settings or alone.Settings(), threads=threads, force=force
    )
    sensitivity_page.write(found, Path(out) / sensitivity_page.PAGE, lang)
    return found


def deploy_on(
    source: str | Path, target: str, out: str | Path, *, data: str = "", threads: int = 0, force: bool = False
) -> choose.Package:
    """Deploy, with parity on the texts of a collection: the given one, else the one the artifact was judged by.

    A given one also goes into a package that searches by itself.
    """
    texts = _texts(source, data or choose.collection_of(source), asked=bool(data))
    corpus = (
        documents.searched_by(source, data, choose.spec_of(source))[0] if data and deploy.searches(target) else None
    )
    return deploy.deploy(source, target, out, texts=texts, corpus=corpus, threads=threads or None, force=force)


def deploy_all_on(
    source: str | Path, out: str | Path, *, data: str = "", threads: int = 0, force: bool = False
) -> deploy.Deployed:
    """The same for every target that this machine can write."""
    texts = _texts(source, data or choose.collection_of(source), asked=bool(data))
    return deploy.deploy_all(source, out, texts=texts, threads=threads or None, force=force)


def index_on(
    source: str, collection: str, out: Path, *, kind: str = "exact", precision: Precision = "f32",
    rescore: search.Rescore = "auto", oversample: int = index_folder.OVERSAMPLE, processes: int = 1, ray: str = "",
    documents_per_part: int = 0, threads: int = 0, force: bool = False,
) -> search.Stats:  # fmt: skip
    """Encode the documents of a collection, here or on the Ray cluster at the address, and write an index.

    A ``.jsonl`` file is read line by line and never held in memory, and its index may be in parts (see
    :mod:`slimseek.scale.bulk`).

    Raises:
        UsageError: anything wrong with the arguments; no cluster answers at the address, which is tried first.
    """
    how: dict[str, Any] = {"kind": kind, "precision": precision, "rescore": rescore, "oversample": oversample,
                           "force": force}  # fmt: skip
    elsewhere = (lambda texts: encode(source, texts, ray, threads=threads)) if ray else None
    if collection.endswith(bulk.SUFFIX):
        if ray and processes != 1:
            raise UsageError("documents are encoded by the cluster of --ray or by --processes here; leave one out")
        with connected(ray) if ray else nullcontext():
            bulk.index(source, Path(collection), out, processes=processes, threads=threads, encode=elsewhere,
                       documents_per_part=documents_per_part, **how)  # fmt: skip
        return search.open(out, choose.choose(source, threads or None)).stats()
    if processes != 1 or documents_per_part:
        option = "--processes" if processes != 1 else "--documents-per-part"
        raise UsageError(f"{option} is for a .jsonl file, such as {Path(collection) / 'corpus.jsonl'}")
    with connected(ray) if ray else nullcontext():
        encoder, forget = choose.choose(source, threads or None), updates.replaced(out)
        corpus, media = documents.searched(data.load(collection), encoder.spec)
        search.index(encoder, corpus, out, media=media, encode=elsewhere, **how)
        forget()
    return search.open(out, encoder).stats()


def join_on(source: str, indexes: Sequence[str], out: Path, *, threads: int = 0, force: bool = False) -> search.Stats:
    """Write an index whose parts are others; see :func:`slimseek.scale.joining.join`."""
    encoder = choose.choose(source, threads or None)
    joining.join([Path(index) for index in indexes], encoder, out, force=force)
    return search.open(out, encoder).stats()


def update_on(source: str, out: Path, *, add: str = "", delete: Sequence[str] = (), threads: int = 0) -> search.Stats:
    """Add the documents of a collection or a ``.jsonl`` file to an index, and delete others by their ids.

    Args:
        source: the MODEL that made it.
        out: the index.
        add: a collection, or a ``.jsonl`` file.
        delete: ids, or ``@FILE`` with an id a line.
        threads: of the runtime.

    Raises:
        UsageError: see :func:`slimseek.updates.update`; a file cannot be read.
    """
    encoder = choose.choose(source, threads or None)
    new: Mapping[str, str] = {}
    if add.endswith(bulk.SUFFIX):
        new = bulk.texts(Path(add))
    elif add:
        new, _ = documents.searched(data.load(add), encoder.spec)
    updates.update(out, encoder, add=new, delete=[name for part in delete for name in _ids(part)])
    return search.open(out, encoder).stats()


def _ids(given: str) -> list[str]:
    """An id, or those of a file; blank lines mean nothing."""
    if not given.startswith("@"):
        return [given]
    try:
        return [line for line in Path(given[1:]).read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--delete {given}: {getattr(error, 'strerror', None) or error}") from error


def _judge(model: Model, collection: Collection, qrels: Qrels, recipe: Recipe, threads: int, keep_index: bool) -> Judge:
    dev = data.search_set(
        collection, qrels, "dev", max_queries=DEV_QUERIES, max_documents=DEV_DOCUMENTS, seed=recipe.seed
    )
    measure = kept.original if keep_index else measuring.quality
    original = measure(choose.encoder(model, "original", threads), dev, [recipe.gates.metric])
    return Judge(search_set=dev, original=original, threads=threads, keep_index=keep_index)


def _check_split(found: Collection, split: str) -> None:
    if split not in found.qrels:
        raise UsageError(f"{found.path} has no split {split!r}; it has {', '.join(found.qrels)}")


def _paths(*sources: str | Path) -> tuple[Path, ...]:
    return tuple(Path(source) for source in sources if source and Path(source).exists())


def _static(source: str | Path) -> tuple[Measurement, ...]:
    parameters, macs = choose.size_of(source)
    return (
        Measurement(name="parameters", value=float(parameters), higher_is_better=False, n=1),
        Measurement(name="macs", value=float(macs), unit="MAC", higher_is_better=False, n=1),
    )


def _texts(source: str | Path, collection: str, asked: bool) -> Sequence[str]:
    if not collection or not (asked or Path(collection).exists() or collection in ("news", "news-full")):
        return ()
    spec = choose.spec_of(source)
    found = data.load_for(collection, spec)
    if spec.output == "transcript":  # its documents are texts, which it does not take
        return [item for item in found.queries.values() if item in found.said][:PARITY_TEXTS]
    return [text for text in found.items.values() if text][:PARITY_TEXTS]
