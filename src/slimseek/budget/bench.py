"""One trial: a plan is made, written as a package of the target, and measured through that package.

What costs least is measured first: bytes, quality on a part of the development queries, and time; a trial that cannot
win any more ends there, and the others go on to all development queries.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from slimseek import choose, data, deploy, evaluate, timing
from slimseek import folder as folders
from slimseek.budget.prefixes import Prefixes
from slimseek.budget.store import Store
from slimseek.encoder import Encoder
from slimseek.errors import ArtifactError, SlimseekError
from slimseek.indexes import bytes_of
from slimseek.schema import Collection, Measurement, Model, Precision, Recipe, SearchSet, Value
from slimseek.trial import Budget, Figures, Plan, Reached, Trial

PART_QUERIES, PART_DOCUMENTS = 100, 150
WHOLE_QUERIES, WHOLE_DOCUMENTS = 500, 600
TIMED_QUERIES = 40
ROUNDS = 5
PACKED_SECONDS = 45.0
"""To write two packages, open them in fresh processes and time them."""
ORIGINAL, BASELINE = "original", "baseline.json"


class Baseline(Value, frozen=True):
    """The original's metric on a part of the development queries and on all, and what its package costs.

    Attributes:
        scores: by ``part`` and ``whole``.
        figures: costs.
        seconds_per_item: to encode a document of the whole.
    """

    scores: dict[str, Measurement]
    figures: Figures
    seconds_per_item: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """What all trials of a search are measured with.

    Attributes:
        sets: the development queries: ``part`` of them, and the ``whole``.
        baseline: the original there.
        encoder: the original's package, for times in turns.
        prefixes: runs recipes.
        documents: how many the collection has, for the bytes of an index.
        tested: documents and queries that the proof at the end encodes.
        target: the runtime.
        metric: that decides.
        threads: of the runtime.
        seed: of the trials.
    """

    sets: Mapping[Reached, SearchSet]
    baseline: Baseline
    encoder: Encoder
    prefixes: Prefixes
    documents: int
    tested: int
    target: str
    metric: str
    threads: int
    seed: int

    @property
    def seconds_of_proof(self) -> float:
        """What the proof at the end is likely to take: both models encode everything, are written and opened anew."""
        return 2 * self.tested * self.baseline.seconds_per_item + PACKED_SECONDS

    def original(self) -> Trial:
        """Trial 0: the original as it is."""
        score = self.baseline.scores["whole"]
        return Trial(number=0, plan=Plan(recipe=Recipe(steps=(), name="original"), name="original"), reached="whole",
                     figures=self.baseline.figures, change=evaluate.compare(score, score), seed=self.seed,
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
        trial = Trial(number=number, plan=plan, reached="size", figures=Figures(), seed=self.seed)
        try:
            model, records = self.prefixes.run(plan.recipe)
            with tempfile.TemporaryDirectory() as place:
                trial = msgspec.structs.replace(trial, records=records)
                trial = self._measured(trial, model, Path(place), promising, budget)
        except SlimseekError as error:  # a step that refuses, vectors that are not finite: the plan, not the search
            trial = msgspec.structs.replace(trial, ended=str(error))
        return msgspec.structs.replace(trial, seconds=time.perf_counter() - start)

    def _measured(
        self, trial: Trial, model: Model, place: Path, promising: Callable[[Trial], str], budget: Budget
    ) -> Trial:
        deploy.export(model, self.target, place)
        package = choose.choose(place, self.threads)
        figures = Figures(size=sum(package.shipped.values()),
                          index_size=index_size(self.documents, model.spec.dim, trial.plan.precision))  # fmt: skip
        trial = self._scored(msgspec.structs.replace(trial, figures=figures), package, "part", budget)
        trial = msgspec.structs.replace(trial, figures=self._timed(figures, package, place, budget))
        why = promising(trial)
        return msgspec.structs.replace(trial, ended=why) if why else self._scored(trial, package, "whole", budget)

    def _scored(self, trial: Trial, package: Encoder, reached: Reached, budget: Budget) -> Trial:
        score = evaluate.quality(package, self.sets[reached], [self.metric]).get(self.metric)
        change = evaluate.compare(self.baseline.scores[reached], score, budget.max_loss)
        return msgspec.structs.replace(trial, reached=reached, change=change, per_query=score.per_query or ())

    def _timed(self, figures: Figures, package: Encoder, place: Path, budget: Budget) -> Figures:
        """Milliseconds of one query, in turns with the original: what the machine's mood adds falls on both alike and
        is taken out by what the original took at first.
        """
        found = latencies({"original": self.encoder, "trial": package}, self.sets["whole"])
        drift = self.baseline.figures.latency_p50 / found["original"][0] if self.baseline.figures.latency_p50 else 1.0
        median, high = found["trial"]
        memory = timing.fresh_start(str(place), self.threads).peak_memory_bytes if budget.memory else None
        return msgspec.structs.replace(figures, latency_p50=median * drift, latency_p95=high * drift, memory=memory)


def bench(
    original: Model, collection: Collection, store: Store, *, target: str, metric: str, threads: int, seed: int,
    memory: bool = False,
) -> Bench:  # fmt: skip
    """Measure the original once, or read what an earlier run measured.

    Args:
        original: the model.
        collection: whose development queries judge; no test query is touched.
        store: the search's folder.
        target: the runtime.
        metric: that decides.
        threads: of the runtime.
        seed: of every random choice.
        memory: whether memory is limited, and has to be measured.
    """
    splits = data.split(collection)
    samples = dataclasses.replace(data.samples(collection, splits, seed=seed), original=original)
    sets: dict[Reached, SearchSet] = {
        reached: data.search_set(collection, splits.dev, "dev", max_queries=queries, max_documents=documents, seed=seed)
        for reached, queries, documents in (("part", PART_QUERIES, PART_DOCUMENTS),
                                            ("whole", WHOLE_QUERIES, WHOLE_DOCUMENTS))
    }  # fmt: skip
    encoder = choose.choose(_package(original, store, target), threads)
    baseline = _known(store, memory)
    if baseline is None:
        start = time.perf_counter()
        scores = {str(name): evaluate.quality(encoder, found, [metric]).get(metric) for name, found in sets.items()}
        items = sum(len(found.corpus) + len(found.queries) for found in sets.values())
        pace = (time.perf_counter() - start) / items
        median, high = latencies({"original": encoder}, sets["whole"])["original"]
        used = timing.fresh_start(str(store.cache / ORIGINAL), threads).peak_memory_bytes if memory else None
        figures = Figures(size=sum(encoder.shipped.values()), latency_p50=median, latency_p95=high, memory=used,
                          index_size=index_size(len(collection.corpus), original.spec.dim, "f32"))  # fmt: skip
        baseline = Baseline(scores=scores, figures=figures, seconds_per_item=pace)
        folders.write_atomically(store.cache / BASELINE, msgspec.json.encode(baseline))
    return Bench(sets=sets, baseline=baseline, encoder=encoder, documents=len(collection.corpus),
                 tested=len(collection.corpus) + len(splits.test), target=target,
                 prefixes=Prefixes(original, samples, store.cache, seed), metric=metric, threads=threads,
                 seed=seed)  # fmt: skip


def latencies(encoders: Mapping[str, Encoder], asked: SearchSet) -> dict[str, tuple[float, float]]:
    """Milliseconds of one query by encoder, in turns: the median, and 95 of 100."""
    queries = list(asked.queries.values())[:TIMED_QUERIES]
    found = timing.interleaved(
        {name: lambda number, e=encoder: e.queries([queries[number % len(queries)]])  # type: ignore[misc]
         for name, encoder in encoders.items()}, rounds=ROUNDS, calls=len(queries), warm_up=3,
    )  # fmt: skip
    return {
        name: (float(np.median(seconds)) * 1000, float(np.percentile(seconds, 95)) * 1000)
        for name, seconds in found.items()
    }


def index_size(documents: int, dim: int, precision: Precision) -> int:
    """Bytes of the vectors of so many documents."""
    return bytes_of(documents, dim, precision)


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
