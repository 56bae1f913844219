"""One trial: a plan is made, written as a package of the target, and measured through that package.

What costs least is measured first: bytes, quality on a part of the development queries, and time; a trial that cannot
win any more ends there, and the others go on to all development queries.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from slimseek import choose, data, deploy, evaluate, indexes, reading, spoken, timing
from slimseek import folder as folders
from slimseek.budget import sizes
from slimseek.budget.examiners import Examiner, Package, examiner
from slimseek.budget.prefixes import Prefixes
from slimseek.budget.store import Store, Terms
from slimseek.collection import Collection, SearchSet
from slimseek.data import Splits
from slimseek.errors import ArtifactError, SlimseekError
from slimseek.evaluate import Quality
from slimseek.fingerprint import hashed
from slimseek.measurement import Measurement, StepRecord
from slimseek.memory import give_back
from slimseek.schema import Array, Model, Recipe, Samples
from slimseek.trial import Budget, Figures, Plan, Reached, Trial
from slimseek.value import Value

ROUNDS = 5
PACKED_SECONDS = 45.0
"""To write two packages, open them in fresh processes and time them."""
ORIGINAL, BASELINE, VECTORS = "original", "baseline.json", "documents.npy"


class Baseline(Value, frozen=True):
    """The original's metric on a part of the development queries and on all, and what its package costs.

    Attributes:
        scores: by ``part`` and ``whole``.
        figures: costs.
        seconds_per_item: to encode a document of the whole, or to hear a recording.
    """

    scores: dict[str, Measurement]
    figures: Figures
    seconds_per_item: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Measured:
    """What a recipe's package gave on all queries, for plans that differ in the precision of the index alone."""

    records: tuple[StepRecord, ...]
    figures: Figures
    dim: int
    found: Quality


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What all trials of a search are measured with.

    Attributes:
        examiner: asks packages the development queries.
        baseline: the original there.
        package: the original's, opened, for times in turns.
        prefixes: runs recipes.
        vectors: what the original gave for the documents of the whole, by text or path; empty where it is not known,
            and of recognisers.
        documents: how many an index would hold, for its bytes.
        terms: how trials are judged.
        measured: what packages gave, by the steps of their recipes.
        known: what the bytes of the original's package tell of others that are not built yet.
    """

    examiner: Examiner
    baseline: Baseline
    package: Package
    prefixes: Prefixes
    vectors: Mapping[str, Array]
    documents: int
    terms: Terms
    known: Sequence[sizes.Known]
    measured: dict[bytes, _Measured] = field(default_factory=dict)

    def seconds_of_proof(self, share: float) -> float:
        """What the proof at the end is likely to take: both models give all there is, are written and opened anew.

        Args:
            share: of the original's time that the chosen model takes.
        """
        original, chosen = self.examiner.tested
        return (original - len(self.vectors) + share * chosen) * self.baseline.seconds_per_item + PACKED_SECONDS

    def original(self) -> Trial:
        """Trial 0: the original as it is."""
        score = self.baseline.scores["whole"]
        return Trial(number=0, plan=Plan(recipe=Recipe(steps=(), name="original"), name="original"), reached="whole",
                     figures=self.baseline.figures, change=evaluate.compare(score, score), seed=self.terms.seed,
                     per_query=score.per_query or ())  # fmt: skip

    def attempt(self, number: int, plan: Plan, promising: Callable[[Trial], str], budget: Budget) -> Trial:
        """Try a plan.

        Args:
            number: of the trial.
            plan: what to try.
            promising: ``""`` where a trial that was measured on a part shall be measured on the whole, else why not.
            budget: whose limits of time and memory ask for those figures.
        """
        start = time.perf_counter()
        trial = Trial(number=number, plan=plan, reached="size", figures=Figures(), seed=self.terms.seed)
        known = None if self.terms.keep_index else self.measured.get(msgspec.json.encode(plan.recipe.steps))
        try:
            if known is not None:
                trial = self._at_precision(trial, known, budget)
            else:
                model, records = self.prefixes.run(plan.recipe)
                trial = msgspec.structs.replace(trial, records=records)
                with tempfile.TemporaryDirectory() as place:
                    trial = self._measured(trial, model, Path(place), promising, budget)
        except SlimseekError as error:  # a step that refuses, vectors that are not finite: the plan, not the search
            trial = msgspec.structs.replace(trial, ended=str(error))
        except Exception as error:  # a fault of a library or of ours: the next run would meet it again
            trial = msgspec.structs.replace(trial, ended=f"a fault, {type(error).__name__}: {error}")
        give_back()
        return msgspec.structs.replace(trial, seconds=time.perf_counter() - start)

    def _measured(
        self, trial: Trial, model: Model, place: Path, promising: Callable[[Trial], str], budget: Budget
    ) -> Trial:
        deploy.export(model, self.terms.target, place)
        package = self.examiner.open(place)
        size = sum(package.shipped.values())
        figures = self._sized(Figures(size=size), trial.plan, model.spec.dim)
        part = self.examiner.quality(package, "part", trial.plan.precision)
        trial = self._scored(msgspec.structs.replace(trial, figures=figures), "part", part, budget)
        figures = self._timed(figures, package, place, budget)
        trial = msgspec.structs.replace(trial, figures=figures)
        why = promising(trial)
        if why:
            return msgspec.structs.replace(trial, ended=why)
        known = self.examiner.given("part", part)
        whole = self.examiner.quality(package, "whole", trial.plan.precision, known)
        if budget.total or budget.index_size:  # other precisions may follow
            self.measured[msgspec.json.encode(trial.plan.recipe.steps)] = _Measured(
                records=trial.records, figures=figures, dim=model.spec.dim, found=whole
            )
        return self._scored(trial, "whole", whole, budget)

    def _at_precision(self, trial: Trial, known: _Measured, budget: Budget) -> Trial:
        """The same package with another precision of the index: nothing is encoded anew."""
        figures = self._sized(known.figures, trial.plan, known.dim)
        trial = msgspec.structs.replace(trial, records=known.records, figures=figures)
        vectors = known.found.documents, known.found.queries
        found = evaluate.ranked(*vectors, self.examiner.sets["whole"], [self.terms.metric], trial.plan.precision)
        return self._scored(trial, "whole", found, budget)

    def _sized(self, figures: Figures, plan: Plan, dim: int) -> Figures:
        asked = self.documents, dim, plan.precision
        return msgspec.structs.replace(figures, index_size=indexes.bytes_of(*asked),
                                       rescore_size=indexes.rescore_bytes_of(*asked))  # fmt: skip

    def _scored(self, trial: Trial, reached: Reached, found: Quality, budget: Budget) -> Trial:
        score = found.get(self.terms.metric)
        change = evaluate.compare(self.baseline.scores[reached], score, budget.max_loss)
        return msgspec.structs.replace(trial, reached=reached, change=change, per_query=score.per_query or ())

    def _timed(self, figures: Figures, package: Package, place: Path, budget: Budget) -> Figures:
        """Milliseconds of one query, in turns with the original: what the machine's mood adds falls on both alike and
        is taken out by what the original took at first.
        """
        found = latencies(self.examiner, {"original": self.package, "trial": package})
        drift = self.baseline.figures.latency_p50 / found["original"][0] if self.baseline.figures.latency_p50 else 1.0
        median, high = found["trial"]
        memory = timing.fresh_start(str(place), self.terms.threads).peak_memory_bytes if budget.memory else None
        return msgspec.structs.replace(figures, latency_p50=median * drift, latency_p95=high * drift, memory=memory)


def bench(original: Model, collection: Collection, store: Store, terms: Terms, *, memory: bool = False) -> Bench:
    """Measure the original once, or read what an earlier run measured.

    Args:
        original: the model.
        collection: whose development queries judge; no test query is touched.
        store: the search's folder.
        terms: how trials are judged.
        memory: whether memory is limited, and has to be measured.
    """
    splits = judging(original, collection)
    samples = unseen(original, collection, seed=terms.seed, keep_index=terms.keep_index)
    asking = examiner(original, collection, splits, terms)
    package = asking.open(_package(original, store, terms.target))
    baseline = _known(store, memory)
    found: dict[Reached, Quality] = {}
    hears = original.spec.output == "transcript"
    documents = 0 if collection.labelled or hears else len(collection.corpus)
    if baseline is None or terms.keep_index:
        start = time.perf_counter()
        found["whole"] = asking.original(package, "whole")
        pace = (time.perf_counter() - start) / asking.items
        found["part"] = asking.original(package, "part", asking.given("whole", found["whole"]))
        package = asking.open(store.cache / ORIGINAL)  # anew: it keeps the memory of its longest batch
        give_back()
    if baseline is None:
        if documents:
            with (store.cache / VECTORS).open("wb") as file:
                np.save(file, found["whole"].documents, allow_pickle=False)
        median, high = latencies(asking, {"original": package})["original"]
        used = timing.fresh_start(str(store.cache / ORIGINAL), terms.threads).peak_memory_bytes if memory else None
        figures = Figures(size=sum(package.shipped.values()), latency_p50=median, latency_p95=high, memory=used,
                          index_size=indexes.bytes_of(documents, original.spec.dim, "f32"))  # fmt: skip
        scores: dict[str, Measurement] = {reached: quality.get(terms.metric) for reached, quality in found.items()}
        baseline = Baseline(scores=scores, figures=figures, seconds_per_item=pace)
        folders.write_atomically(store.cache / BASELINE, msgspec.json.encode(baseline))
    assert baseline.figures.size is not None
    vectors: Mapping[str, Array] = {}
    if not hears:
        whole = asking.sets["whole"]
        vectors = asking.given("whole", found["whole"]) if found else _kept(store, whole, original.spec.dim)
    return Bench(examiner=asking, known=[sizes.learned(original, terms.target, baseline.figures.size)],
                 baseline=baseline, package=package, vectors=vectors, documents=documents, terms=terms,
                 prefixes=Prefixes(original, samples, store.cache, terms.seed))  # fmt: skip


def _kept(store: Store, asked: SearchSet, dim: int) -> dict[str, Array]:
    """The original's vectors of these documents as an earlier run kept them; empty where that is not what is there."""
    items = list(asked.corpus.values())
    try:
        found = reading.array(store.cache / VECTORS)
    except (OSError, ValueError):
        return {}
    fits = found.shape == (len(items), dim) and found.dtype == np.float32
    return dict(zip(items, found, strict=True)) if fits else {}


def judging(original: Model, collection: Collection) -> Splits:
    """The queries that choose, and those that prove.

    The documents of a collection are there for steps to look at; of a recogniser there are recordings alone. So where
    all of them are of dev or test, a third of the former do not choose.
    """
    splits = data.split(collection)
    if original.spec.output != "transcript" or spoken.apart(collection, _hiding(splits)):
        return splits
    ids = sorted(splits.dev, key=hashed)
    return dataclasses.replace(splits, dev={query: splits.dev[query] for query in ids[: max(1, 2 * len(ids) // 3)]})


def unseen(original: Model, collection: Collection, *, seed: int, keep_index: bool = False) -> Samples:
    """What the steps of a search may look at: no test query, and none that chooses either, for a step that had seen
    these would look better than it is.
    """
    hidden = _hiding(judging(original, collection))
    if original.spec.output == "transcript":
        found = spoken.samples(collection, hidden)
    else:
        found = data.samples(collection, hidden, seed=seed, queries_first=keep_index)
    return dataclasses.replace(found, original=original)


def _hiding(splits: Splits) -> Splits:
    """The same, with the queries that choose as those that no step may see."""
    return dataclasses.replace(splits, test={**splits.test, **splits.dev})


def latencies(asking: Examiner, packages: Mapping[str, Package]) -> dict[str, tuple[float, float]]:
    """Milliseconds of one query by package, in turns: the median, and 95 of 100."""
    queries = list(asking.sets["whole"].queries.values())[: asking.timed]
    found = timing.interleaved(
        {name: lambda number, p=package: asking.ask(p, queries[number % len(queries)])  # type: ignore[misc]
         for name, package in packages.items()}, rounds=ROUNDS, calls=len(queries), warm_up=3,
    )  # fmt: skip
    return {
        name: (float(np.median(seconds)) * 1000, float(np.percentile(seconds, 95)) * 1000)
        for name, seconds in found.items()
    }


def _package(original: Model, store: Store, target: str) -> Path:
    """The original's package, written once."""
    place = store.cache / ORIGINAL
    try:
        choose.read_package(place)
    except ArtifactError:
        with folders.writing(place, force=place.exists()) as written:
            deploy.export(original, target, written)
    return place


def _known(store: Store, memory: bool) -> Baseline | None:
    """What an earlier run measured of the original, if that is all that is asked now."""
    try:
        found = folders.read_json(store.cache / BASELINE, Baseline)
    except ArtifactError:
        return None
    return None if memory and found.figures.memory is None else found
