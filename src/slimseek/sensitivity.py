"""How much each layer can lose: one layer at a time loses a share of its units, and the search is measured again.

What was measured is kept in a file after every point, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from slimseek import __version__, choose, data, evaluate, plugins, timing
from slimseek import folder as folders
from slimseek.collection import SearchSet
from slimseek.errors import UsageError
from slimseek.fingerprint import fingerprint
from slimseek.inputs.batches import spread
from slimseek.measurement import Change, Measurement
from slimseek.progress import say, shown_on, track
from slimseek.schema import Array
from slimseek.value import Value

FILE = "sensitivity.json"
FORMAT_VERSION = 1
METHODS = ("prune.channels", "prune.heads")
COMPARED = 64
"""Calibration items whose vectors are compared with the original's."""


class Settings(Value, frozen=True):
    """What to take from each layer, and how to measure what is left.

    Attributes:
        method: ``prune.channels`` or ``prune.heads``, with its defaults for all that is not told here.
        amounts: shares of a layer's units, rising, above 0 and below 1.
        importance: which units go first: a measure of the folder ``importance``.
        metric: such as ``ndcg@10``.
        max_queries: a random part of the development queries, at most so many.
        max_documents: what they judge, and others that share words with them, so many in all.
        seed: of the random choices.
    """

    method: str = "prune.channels"
    amounts: tuple[float, ...] = (0.25, 0.5, 0.75)
    importance: str = "taylor"
    metric: str = "ndcg@10"
    max_queries: int = 300
    max_documents: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"sensitivity: method is {self.method!r}; {' and '.join(METHODS)} are allowed")
        said = ", ".join(f"{amount:g}" for amount in self.amounts) or "empty"
        rising = list(self.amounts) == sorted(set(self.amounts))
        if not self.amounts or not rising or not all(0 < amount < 1 for amount in self.amounts):
            raise UsageError(f"sensitivity: amounts are {said}; rising shares above 0 and below 1 are allowed")
        if self.max_queries < 2:
            raise UsageError(f"sensitivity: max_queries is {self.max_queries}; 2 or more is allowed")
        if self.max_documents < 1:
            raise UsageError(f"sensitivity: max_documents is {self.max_documents}; 1 or more is allowed")
        evaluate.metric(self.metric)


class Point(Value, frozen=True):
    """One layer without a share of its units, every other layer whole.

    Attributes:
        amount: the share that was asked.
        removed: units that left: fewer than asked where widths are rounded up, 0 where nothing was measured.
        parameters: weights of the model that left with them.
        change: of the metric against the original on the same queries; ``None`` where nothing was measured.
        cosine: mean cosine of the vectors of calibration items to the original's, -1 to 1.
        reason: why nothing was measured, else ``""``.
    """

    amount: float
    removed: int
    parameters: int
    change: Change | None = None
    cosine: float | None = None
    reason: str = ""


class LayerSensitivity(Value, frozen=True):
    """One layer.

    Attributes:
        name: the first of its tensors: what ``skip`` of the method takes.
        width: its units (channels or heads), those coupled to it included only once.
        parameters: weights of the model that would leave with all of them.
        points: one for each amount that is measured so far, in the order of the amounts.
    """

    name: str
    width: int
    parameters: int
    points: tuple[Point, ...] = ()

    @property
    def measured(self) -> tuple[tuple[Point, Change], ...]:
        """The points that have a figure."""
        return tuple((point, point.change) for point in self.points if point.change is not None)


class Sensitivity(Value, frozen=True):
    """All layers of a model: the content of ``sensitivity.json``.

    Attributes:
        made_with: version of slimseek.
        model: name of the model.
        model_sha256: of its specification, files and weights.
        collection: name of the collection and split.
        collection_sha256: of its texts and judgements.
        settings: what was asked.
        documents: how many documents were searched.
        original: the whole model's metric, with the value of each query.
        layers: in the order in which the model computes them.
    """

    format_version: int
    made_with: str
    model: str
    model_sha256: str
    collection: str
    collection_sha256: str
    settings: Settings
    documents: int
    original: Measurement
    layers: tuple[LayerSensitivity, ...]

    @property
    def left(self) -> int:
        """How many points are still to be measured."""
        return sum(len(self.settings.amounts) - len(layer.points) for layer in self.layers)

    @property
    def by_sensitivity(self) -> tuple[LayerSensitivity, ...]:
        """The layers, first the one that keeps least of the metric, mean over its points; ties by the mean cosine."""

        def keeps(layer: LayerSensitivity) -> tuple[float, float]:
            if not layer.measured:
                return np.inf, np.inf
            cosines = [1.0 if point.cosine is None else point.cosine for point, _ in layer.measured]
            return float(np.mean([change.relative for _, change in layer.measured])), float(np.mean(cosines))

        return tuple(sorted(self.layers, key=keeps))

    def losers(self, amount: float) -> tuple[tuple[LayerSensitivity, ...], int]:
        """The layers that lose for sure at this amount, their whole interval below zero, the most sensitive first; and
        how many layers were measured there.
        """
        found = [(layer, change) for layer in self.by_sensitivity
                 for point, change in layer.measured if point.amount == amount]  # fmt: skip
        return tuple(layer for layer, change in found if change.interval[1] < 0), len(found)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bench:
    """What every point is measured by.

    Attributes:
        search_set: development queries and what they search.
        original: the whole model's metric there.
        items: calibration items.
        vectors: the whole model's vectors of them, float32 [items, dim].
        threads: of the reference implementation.
    """

    search_set: SearchSet
    original: Measurement
    items: Sequence[str]
    vectors: Array
    threads: int


def measure(
    source: str | Path, collection: str | Path, out: Path, settings: Settings, *, threads: int = 0, force: bool = False
) -> Sensitivity:
    """Take shares of every layer in turn, and measure the search; what is in ``out`` from before is not repeated.

    Args:
        source: the MODEL.
        collection: whose development queries judge; test queries are not looked at.
        out: folder of ``sensitivity.json``.
        settings: what to measure.
        threads: of the reference implementation; 0 for all cores.
        force: measure anew whatever the file holds.

    Raises:
        UsageError: the method refuses the model, or the file is of another model, collection or other settings.
    """
    step = plugins.load("methods", settings.method)(importance=settings.importance, seed=settings.seed)
    model = choose.model(source)
    read = data.load_for(str(collection), model.spec)
    splits = data.split(read)
    say(splits.notice)
    search_set = data.search_set(read, splits.dev, "dev", max_queries=settings.max_queries,
                                 max_documents=settings.max_documents, seed=settings.seed)  # fmt: skip
    wanted: dict[str, Any] = {
        "made_with": __version__, "model_sha256": fingerprint(model), "collection_sha256": data.fingerprint(read),
        "settings": settings,
    }  # fmt: skip
    known = None if force else _known(out / FILE, wanted)
    if known is not None and not known.left:
        say(f"{out / FILE} holds all {len(known.layers) * len(settings.amounts)} points: nothing is left to measure")
        return known
    samples = data.samples(read, splits, seed=settings.seed)
    layers = step.layers(model, samples)
    encoder = choose.encoder(model, "original", threads or timing.default_threads())
    items = spread(samples.calibration, COMPARED)
    found = known or Sensitivity(
        **wanted, format_version=FORMAT_VERSION, model=choose.name_of(source), collection=search_set.name,
        documents=len(search_set.corpus),
        original=evaluate.quality(encoder, search_set, [settings.metric]).get(settings.metric),
        layers=tuple(LayerSensitivity(name=layer.name, width=layer.width, parameters=layer.parameters(layer.width))
                     for layer in layers),
    )  # fmt: skip
    bench = _Bench(search_set=search_set, original=found.original, items=items, vectors=encoder.documents(items),
                   threads=encoder.threads)  # fmt: skip
    return _measured(found, layers, bench, out / FILE)


def _measured(found: Sensitivity, layers: Sequence[Any], bench: _Bench, file: Path) -> Sensitivity:
    """Every point that is not there yet, written as soon as it is known."""
    total = len(layers) * len(found.settings.amounts)
    if found.left < total:
        say(f"{file} holds {total - found.left} of {total} points; the rest follows")
    with track("layers without a share of their units", found.left) as advance:
        for position, layer in enumerate(layers):
            for amount in found.settings.amounts[len(found.layers[position].points) :]:
                with shown_on(None):  # the bars of each point would cover the one over all of them
                    point = _point(layer, amount, found.layers[position].points, bench)
                found = _with(found, position, point)
                folders.write_atomically(file, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
                advance(1)
    return found


def _with(found: Sensitivity, position: int, point: Point) -> Sensitivity:
    layer = found.layers[position]
    layer = msgspec.structs.replace(layer, points=(*layer.points, point))
    return msgspec.structs.replace(found, layers=(*found.layers[:position], layer, *found.layers[position + 1 :]))


def _point(layer: Any, amount: float, before: Sequence[Point], bench: _Bench) -> Point:
    """One point; shares that come to the same number of units are measured once."""
    count = layer.removable(amount)
    same = next((point for point in before if point.removed == count), None)
    if same is not None:
        return msgspec.structs.replace(same, amount=amount)
    if not count:
        return Point(amount=amount, removed=0, parameters=0, reason="so small a share of its units cannot go")
    result = layer.without(count)
    if result.refused:
        return Point(amount=amount, removed=0, parameters=0, reason="; ".join(result.refused.values()))
    encoder = choose.encoder(result.model, f"the model without {count} units of {layer.name}", bench.threads)
    name = bench.original.name
    try:
        change = evaluate.compare(bench.original, evaluate.quality(encoder, bench.search_set, [name]).get(name))
        cosine = float(evaluate.cosines(bench.vectors, encoder.documents(bench.items)).mean())
    except UsageError as error:
        return Point(amount=amount, removed=0, parameters=0, reason=str(error))
    return Point(amount=amount, removed=count, parameters=layer.parameters(count), change=change, cosine=cosine)


def _known(file: Path, wanted: dict[str, Any]) -> Sensitivity | None:
    """What the file holds, if there is one, and it is of what is wanted."""
    if not file.exists():
        return None
    found = folders.read_manifest(file, Sensitivity, FORMAT_VERSION)
    said = folders.other(found, wanted, lambda name: _difference(found.settings, wanted[name]))
    if said:
        raise UsageError(f"{file} is of {said}; choose another --out, or add --force to measure anew")
    return found


def _difference(had: Settings, wanted: Settings) -> str:
    """The first setting that differs, in words."""
    name = next(name for name in had.__struct_fields__ if getattr(had, name) != getattr(wanted, name))
    return f"{name} {_plain(getattr(had, name))} and not {_plain(getattr(wanted, name))}"


def _plain(value: Any) -> str:
    return ", ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)
