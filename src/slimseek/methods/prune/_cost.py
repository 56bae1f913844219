"""What a model costs without some of its units, by what it costs with them: each of the things a target may name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from slimseek.inputs.reader import reader
from slimseek.inputs.samples import examples
from slimseek.methods.prune._removal import removed
from slimseek.methods.prune._structure import Structure, macs, parameters
from slimseek.methods.prune._units import UnitGroup
from slimseek.models._onnx.graph import _session
from slimseek.schema import Batch
from slimseek.timing import default_threads, interleaved

Cost = Callable[[frozenset[int]], float]
"""What is left without some units, as a share of the whole, 0 to 1."""
LENGTH = 128
ROUNDS, CALLS = 5, 10


def _latency(whole: Structure, groups: Sequence[UnitGroup]) -> Cost:
    """Median time of one item, in ONNX Runtime in float32, by that of the whole model; a text has up to 128 tokens."""
    batch, threads = _one_item(whole), default_threads()
    before = _session(whole.graph, whole.weights, threads)

    def cost(chosen: frozenset[int]) -> float:
        if not chosen:
            return 1.0
        after = _session(*removed(whole.graph, whole.weights, whole.found, chosen), threads)
        seconds = interleaved(
            {"before": lambda number: before(batch), "after": lambda number: after(batch)},
            rounds=ROUNDS, calls=CALLS, warm_up=3,
        )  # fmt: skip
        return float(np.median(seconds["after"]) / np.median(seconds["before"]))

    return cost


def _one_item(whole: Structure) -> Batch:
    read: Any = reader(whole.model.spec, whole.model.files)
    if whole.model.spec.preprocess is None:
        single: Batch = read(examples(whole.model.spec)[:1])
        return single
    length = min(LENGTH, whole.model.spec.preprocess.max_length)
    longest = max(read.rows(examples(whole.model.spec)), key=len)[:length]
    batch: Batch = read.batch([longest], length)
    return batch


def _units(whole: Structure, groups: Sequence[UnitGroup]) -> Cost:
    count = sum(len(group.units) for group in groups)
    return lambda chosen: 1 - len(chosen) / count


def _share(amount: Callable[[Structure, frozenset[int]], int]) -> Callable[[Structure, Sequence[UnitGroup]], Cost]:
    def of(whole: Structure, groups: Sequence[UnitGroup]) -> Cost:
        every = amount(whole, frozenset())
        return lambda chosen: amount(whole, chosen) / every

    return of


COSTS: dict[str, Callable[[Structure, Sequence[UnitGroup]], Cost]] = {
    "units": _units,
    "parameters": _share(parameters),
    "macs": _share(macs),
    "latency": _latency,
}
"""What the amount of a target is of: the units of the groups, or something of the whole model."""
