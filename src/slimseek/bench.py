"""Models and packages side by side: time in turns, bytes, memory, and which is the fastest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from slimseek import choose, data, evaluate, timing
from slimseek.encoder import Encoder
from slimseek.errors import UsageError
from slimseek.inputs.samples import examples
from slimseek.measurement import Report
from slimseek.schema import ModelSpec
from slimseek.timing import NO_FASTER, default_threads
from slimseek.value import Value

TIMED = 64
TRIED_CALLS, TRIED_DOCUMENTS = 3, 8
FAR_BEHIND = 4.0


class Bench(Value, frozen=True):
    """Several models measured in turns, one query at a time and in batches.

    Attributes:
        subjects: figures of each, in the order in which they were given.
        speeds: of each, how many times as fast as the first it answers one query and encodes batches: the geometric
            mean of both, which count alike.
        fastest: name of the one of the highest speed.
        speed_up: how many times as fast as the next it is; ``None`` below 1.05, which no clock tells from 1, and
            where there is no other.
        notes: what a reader should know.
    """

    subjects: tuple[Report, ...]
    speeds: tuple[float, ...]
    fastest: str
    speed_up: float | None
    notes: tuple[str, ...] = ()


def bench(sources: Sequence[str | Path], collection: str = "", *, threads: int = 0) -> Bench:
    """Measure models or packages side by side; the peak of memory is of a process of their own.

    Args:
        sources: any MODELs that take the same items.
        collection: whose queries and documents are timed; ``""`` for built-in examples.
        threads: of the runtimes; 0 for all cores.

    Raises:
        UsageError: one of them cannot be opened or does not run here, is named twice, or takes other items.
    """
    names = [str(source) for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice; each is measured once")
    encoders = {name: choose.choose(name, threads or default_threads()) for name in names}
    first = encoders[names[0]]
    other = next((name for name, encoder in encoders.items() if not _same_items(encoder.spec, first.spec)), None)
    if other is not None:
        raise UsageError(f"{other} takes other items than {names[0]}; measure them apart")
    if not collection:
        queries, documents = asked(first.spec)
    else:
        found = data.load_for(collection, first.spec)
        documents = [text for text in found.items.values() if text][:TIMED]
        queries = [text for text in found.queries.values() if text][:TIMED] or documents
    return side_by_side({name: (encoder, name) for name, encoder in encoders.items()}, queries, documents)


def side_by_side(
    subjects: Mapping[str, tuple[Encoder, str]], queries: Sequence[str], documents: Sequence[str]
) -> Bench:
    """Measure encoders in turns (see :func:`slimseek.evaluate.cost`).

    Args:
        subjects: name to encoder and the MODEL that it opens from; ``""`` where its memory is not asked for.
        queries: for single calls.
        documents: for batches.
    """
    costs = evaluate.cost(subjects, queries, documents)
    reports = tuple(evaluate.report(name, encoder.threads, costs[name]) for name, (encoder, _) in subjects.items())
    speeds = tuple(_speed(one, reports[0]) for one in reports)
    order = sorted(range(len(reports)), key=lambda number: -speeds[number])
    speed_up = speeds[order[0]] / speeds[order[1]] if len(order) > 1 else 1.0
    dims = {name: encoder.spec.dim for name, (encoder, _) in subjects.items()}
    notes = () if len(set(dims.values())) == 1 else (
        "vectors differ in their number of elements: " + ", ".join(f"{name} {dim}" for name, dim in dims.items()),
    )  # fmt: skip
    return Bench(subjects=reports, speeds=speeds, fastest=reports[order[0]].subject, notes=notes,
                 speed_up=speed_up if speed_up >= NO_FASTER else None)  # fmt: skip


def in_reach(subjects: Mapping[str, Encoder], queries: Sequence[str], documents: Sequence[str]) -> dict[str, Encoder]:
    """Those that may be the fastest: at most four times as slow as another, by a few calls of each.

    So little tells no two apart that are close, but a runtime that is ten times as slow would take most of the time
    that a measurement in turns takes.

    Args:
        subjects: name to encoder.
        queries: for single calls, of which three are made.
        documents: the first eight are encoded at once.
    """
    singly = timing.interleaved(
        {name: lambda number, e=encoder: e.queries([queries[number % len(queries)]])  # type: ignore[misc]
         for name, encoder in subjects.items()}, rounds=1, calls=TRIED_CALLS,
    )  # fmt: skip
    together = timing.interleaved(
        {name: lambda number, e=encoder: e.documents(documents[:TRIED_DOCUMENTS])  # type: ignore[misc]
         for name, encoder in subjects.items()}, rounds=1, calls=1, warm_up=1,
    )  # fmt: skip
    taken = {name: math.sqrt(singly[name].min() * together[name].min()) for name in subjects}
    least = min(taken.values())
    return {name: encoder for name, encoder in subjects.items() if taken[name] <= FAR_BEHIND * least}


def asked(spec: ModelSpec, items: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Queries and documents to time, where there are no queries: the shorter half of the items, and all of them.

    Args:
        spec: of the model, for built-in examples.
        items: real ones; none for the examples.
    """
    documents = list(items or examples(spec))[:TIMED]
    return sorted(documents, key=len)[: max(2, len(documents) // 2)], documents


def lines(found: Bench) -> list[str]:
    """A line for each: time of a query, items a second, and which is the fastest."""
    shown = []
    for one in found.subjects:
        latency, throughput = one.get("latency_p50"), one.get("throughput")
        assert latency is not None
        assert throughput is not None
        text = f"{one.subject}: {latency.value:.2f} ms a query, {throughput.value:.0f} items a second"
        shown.append(text + (", the fastest" if one.subject == found.fastest else ""))
    return shown


def verdict(found: Bench) -> str:
    """Which is the fastest, and by how much."""
    if len(found.subjects) == 1:
        return f"{found.fastest} alone was measured; name another to compare"
    others = sorted(zip(found.speeds, found.subjects, strict=True), key=lambda pair: -pair[0])
    following = next(one.subject for _, one in others if one.subject != found.fastest)
    if found.speed_up is None:
        return f"{found.fastest} is the fastest, but no speed-up over {following}: less than {NO_FASTER - 1:.0%}"
    return f"{found.fastest} is the fastest: {found.speed_up:.2f} times as fast as {following}"


def _speed(one: Report, first: Report) -> float:
    ratios = []
    for name in ("latency_p50", "throughput"):
        mine, others = one.get(name), first.get(name)
        assert mine is not None
        assert others is not None
        ratios.append(mine.value / others.value if mine.higher_is_better else others.value / mine.value)
    return math.sqrt(math.prod(ratios))


def _same_items(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether both take texts, or both pictures, or both arrays of the same names."""
    if (one.preprocess is None) != (other.preprocess is None) or one.modality != other.modality:
        return False
    return one.preprocess is not None or {tensor.name for tensor in one.inputs} == {
        tensor.name for tensor in other.inputs
    }
