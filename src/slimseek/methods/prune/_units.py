"""What can leave a network as one piece: units of places that go together, through any ONNX graph.

Every place of every axis of a weight starts as a unit of its own. A walk over the graph joins those that the operators
bind together (a sum, a convolution in groups, the places of an attention head) and holds those that must stay (the
network's outputs, what a norm looks at). What is left of the units can go one by one, each from all its places, and
the network computes what it would have computed with zeros there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from slimseek.importance._evidence import NONE, Place
from slimseek.methods.prune._calls import call_of, held_entirely
from slimseek.methods.prune._operators import RULES
from slimseek.methods.prune._sizes import Sizes, sizes, tensors_of, with_initializers
from slimseek.methods.prune._tracks import Bonds, Value, along, axes, extent, fixed, meet, narrowed, tidied, units_along
from slimseek.models._onnx.graph import Weights, _opset, _uses
from slimseek.schema import Array, Batch, is_float


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Units that lie in the same places, so that any of them may go in the place of another.

    Attributes:
        name: the first of its tensors.
        units: numbers of the units, int64 [n].
        places: axes of weights, each with how many of its indices every unit takes: 1 for a plain channel, the width
            of a head, the number of groups of a convolution.
    """

    name: str
    units: Array
    places: Mapping[Place, int]


@dataclass(frozen=True, eq=False)
class Units:
    """All that may leave a graph.

    Attributes:
        groups: units that are interchangeable.
        places: for each axis of a weight that may shrink, the unit of every index, int64 [size]; -1 stays.
        parameters: numbers that go with each unit while all others are there, int64 [units].
        macs: multiplications of convolutions and linear layers, for one item of the sample, that go with each unit
            while all others are there, int64 [units].
        uses: how many multiplications of convolutions and linear layers each number of a weight takes part in, for one
            item of the sample.
        skipped: operators that hold what they take, since it is not known how they could shrink: ``LSTM lstm_1``.
        stays: why an axis of a weight has indices that stay, for those that have.
        values: as ``places``, for the values that nodes compute, whose shapes follow.
        sizes: what the run of the sample told.
    """

    groups: tuple[UnitGroup, ...]
    places: Mapping[Place, Array]
    parameters: Array
    macs: Array
    uses: Mapping[str, int]
    skipped: tuple[str, ...]
    stays: Mapping[Place, str]
    values: Mapping[Place, Array] = field(repr=False)
    sizes: Sizes = field(repr=False)


def units(graph: onnx.ModelProto, weights: Weights, samples: Sequence[Batch] | None = None) -> Units:
    """Find the units of a float graph.

    Args:
        graph: an ONNX graph; what its branches (If, Loop) use stays.
        weights: those of its weights, by name, that are no initializers in it.
        samples: two batches of different size, to tell free axes from those of channels; ``None`` for noise, or
            tokens 0, of sizes that the graph takes.

    Raises:
        UsageError: the graph cannot be run on the samples.
    """
    graph = with_initializers(graph)
    known = tensors_of(graph, weights)
    told = sizes(graph, weights, samples)
    bonds = Bonds()
    start = {name: _alone(bonds, array) for name, array in known.items()}
    _join_copies(bonds, start, known)
    while True:
        before = bonds.changes
        values, skipped = _walked(graph, bonds, start, told)
        if bonds.changes == before:
            return _found(graph, bonds, values, skipped, known, told)


def _alone(bonds: Bonds, array: Array) -> Value:
    """A weight whose places along every axis are bound to nothing; an integer tensor cannot shrink."""
    shape = array.shape
    if not is_float(array):
        return Value(shape)
    tracks = [track for axis, size in enumerate(shape) if size > 1
              for track in along(bonds.fresh(size), axis, len(shape))]  # fmt: skip
    return Value(shape, tuple(tracks))


def _join_copies(bonds: Bonds, start: Mapping[str, Value], known: Weights) -> None:
    """A weight that the graph has twice, the second time as ``NAME#2`` and perhaps transposed, is one weight."""
    for name, array in known.items():
        first = known.get(name.partition("#")[0])
        if first is array or first is None or array.ndim != 2:
            continue
        turned = not np.array_equal(first, array)
        if turned and not np.array_equal(first, array.T):
            continue
        for axis in range(2):
            left, right = start[name], start[name.partition("#")[0]]
            meet(bonds, units_along(left, axis), units_along(right, 1 - axis if turned else axis), "")


def _walked(
    graph: onnx.ModelProto, bonds: Bonds, start: Mapping[str, Value], told: Sizes
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """One pass over the nodes: every value with its tracks, and the operators that hold what they do not know."""
    values = {name: Value(value.shape, tidied(bonds, value.tracks)) for name, value in start.items()}
    skipped = []
    opset = _opset(graph)
    for node in graph.graph.node:
        call = call_of(node, told, opset)
        names = list(node.input) if not _uses(node) - set(node.input) else sorted(_uses(node))
        given = [_current(bonds, values.get(name) or Value(told.shapes.get(name, ()))) for name in names]
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None and any(value.tracks for value in given):
            skipped.append(f"{node.op_type} {call.name}")
        made = (rule or held_entirely)(bonds, call, given)
        values |= {name: value for name, value in zip(node.output, made, strict=False) if name}
    for output in graph.graph.output:
        fixed(bonds, values[output.name], extent(values[output.name]), "output of the graph")
    return {name: _single(bonds, value, told.free.get(name, frozenset())) for name, value in values.items()}, (
        tuple(skipped)
    )


def _current(bonds: Bonds, value: Value) -> Value:
    return Value(value.shape, tidied(bonds, value.tracks))


def _single(bonds: Bonds, value: Value, free: frozenset[int]) -> Value:
    """The value with every track along one axis, since what is left must be a block: the axis of most units, and none
    whose size is free.
    """
    tracks = []
    for track in tidied(bonds, value.tracks):
        lie = sorted(axes(track))
        if len(lie) == 1:
            tracks.append(track)
            continue
        choice = max((axis for axis in lie if axis not in free), key=lambda axis: _different(track, axis), default=-1)
        tracks += narrowed(bonds, track, frozenset([choice]), "would not leave a block")
    return Value(value.shape, tidied(bonds, tracks))


def _different(track: Array, axis: int) -> int:
    first = np.moveaxis(track, axis, 0).reshape(track.shape[axis], -1)[:, 0]
    return len(np.unique(first))


def _found(
    graph: onnx.ModelProto, bonds: Bonds, values: Mapping[str, Value], skipped: tuple[str, ...], known: Weights,
    told: Sizes,
) -> Units:  # fmt: skip
    """The bonds as numbers from 0, with what hangs on each."""
    read = {name for node in graph.graph.node for name in node.input}
    lines = {(name, axis): track.reshape(-1)
             for name, value in values.items() if name in read or name not in known
             for track in value.tracks for axis in axes(track)}  # fmt: skip
    roots = np.unique(
        np.concatenate([line for (name, _), line in lines.items() if name in known] or [np.zeros(0, int)])
    )
    free = [root for root in roots.tolist() if bonds.reason(root) is None]
    number = {root: place for place, root in enumerate(free)}
    numbered = {place: np.array([number.get(root, NONE) for root in line.tolist()]) for place, line in lines.items()}
    moving = {place: line for place, line in numbered.items() if (line != NONE).any()}
    places = {place: line for place, line in moving.items() if place[0] in known}
    uses = _uses_of(graph, known, told)
    stays = {place: _reason(bonds, line) for place, line in lines.items()
             if place[0] in known and (numbered[place] == NONE).any()}  # fmt: skip
    return Units(
        groups=_groups(places, len(free)),
        places=places,
        parameters=_sums(places, {name: array.size for name, array in known.items()}, known, len(free)),
        macs=_sums(places, {name: known[name].size * times for name, times in uses.items()}, known, len(free)),
        uses=uses,
        skipped=skipped,
        stays=stays,
        values={place: line for place, line in moving.items() if place[0] not in known},
        sizes=told,
    )


def _reason(bonds: Bonds, line: Array) -> str:
    return next(reason for root in line.tolist() if (reason := bonds.reason(root)) is not None)


def _groups(places: Mapping[Place, Array], count: int) -> tuple[UnitGroup, ...]:
    """Units by the places that they lie in."""
    lie: list[dict[Place, int]] = [{} for _ in range(count)]
    for place, line in places.items():
        for unit, times in zip(*np.unique(line[line != NONE], return_counts=True), strict=True):
            lie[unit][place] = int(times)
    found: dict[tuple[tuple[Place, int], ...], list[int]] = {}
    for unit, where in enumerate(lie):
        found.setdefault(tuple(where.items()), []).append(unit)
    return tuple(UnitGroup(where[0][0][0], np.array(members), dict(where)) for where, members in found.items())


def _sums(places: Mapping[Place, Array], amounts: Mapping[str, int], known: Weights, count: int) -> Array:
    """What a unit has a share in, axis by axis."""
    total = np.zeros(count, np.int64)
    for (name, axis), line in places.items():
        share = amounts.get(name, 0) // known[name].shape[axis]
        np.add.at(total, line[line != NONE], share)
    return total


def _uses_of(graph: onnx.ModelProto, known: Weights, told: Sizes) -> dict[str, int]:
    """Multiplications with each number of a weight for one item of the sample."""
    found: dict[str, int] = {}
    for node in graph.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        for name in node.input[:2]:
            if name not in known:
                continue
            # Every number of a convolution's weight is used once for each place of the picture, of the output's, or
            # of the input's where it is transposed; of a linear layer's once for each row.
            shape = told.shapes[node.input[0] if node.op_type == "ConvTranspose" else node.output[0]]
            times = shape[2:] if node.op_type.startswith("Conv") else shape[1:-1]
            found[name] = found.get(name, 0) + int(np.prod(times))
    return found
