"""Units leave a graph: tensors are cut, and the shapes, bounds and group counts that are written in it follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from slimseek.errors import UsageError
from slimseek.importance._evidence import Place
from slimseek.methods.prune._calls import Call, call_of
from slimseek.methods.prune._movements import slices
from slimseek.methods.prune._sizes import tensors_of, with_initializers
from slimseek.methods.prune._units import Units
from slimseek.models._onnx.graph import Weights, _opset, _replace_nodes_, _uses, _Writer
from slimseek.schema import Array

UNKNOWN = -1


def removed(
    graph: onnx.ModelProto, weights: Weights, found: Units, chosen: Iterable[int]
) -> tuple[onnx.ModelProto, Weights]:
    """The graph and its weights without some units.

    Args:
        graph: the graph that ``found`` was found in.
        weights: those of its weights that are no initializers in it.
        found: by :func:`slimseek.methods.prune._units.units`.
        chosen: numbers of the units that go.

    Returns:
        New ones; what was given is as before.

    Raises:
        UsageError: nothing would be left of a weight's axis, or of a value.
    """
    cut = _Cut(found, np.fromiter(chosen, np.int64))
    model = with_initializers(graph)
    opset = _opset(model)
    tensors = {name: cut.tensor(name, array) for name, array in tensors_of(model, weights).items()}
    for tensor in model.graph.initializer:
        if tensor.name not in weights and cut.shrinks(tensor.name):
            tensor.CopyFrom(numpy_helper.from_array(tensors[tensor.name], tensor.name))
    write = _Writer(model)
    nodes = list(model.graph.node)
    _replace_nodes_(model.graph, [])
    for node in nodes:
        repair = REPAIRS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if repair is not None and any(map(cut.shrinks, (*node.input, *node.output))):
            repair(cut, write, node, call_of(node, found.sizes, opset))
        model.graph.node.append(node)
    for value in (*model.graph.value_info, *model.graph.input):
        _shrink_(cut, value)
    _drop_unread_(model)
    return model, {name: tensors[name] for name in weights}


@dataclass(frozen=True, eq=False)
class _Cut:
    """What is kept of every tensor and value."""

    found: Units
    chosen: Array

    def keep(self, name: str, axis: int) -> Array | None:
        """Which places stay along an axis, bool [size]; ``None`` where all do.

        Raises:
            UsageError: none does.
        """
        place: Place = (name, axis)
        line = self.found.places.get(place, self.found.values.get(place))
        if line is None:
            return None
        stay: Array = ~np.isin(line, self.chosen)
        if not stay.any():
            raise UsageError(f"{name} would be left without anything along axis {axis}; keep one of its units")
        return None if stay.all() else stay

    def size(self, name: str, axis: int) -> int:
        """What is left along an axis."""
        stay = self.keep(name, axis)
        return self.found.sizes.shapes[name][axis] if stay is None else int(stay.sum())

    def shape(self, name: str) -> list[int]:
        """What is left of a value of the sample."""
        return [self.size(name, axis) for axis in range(len(self.found.sizes.shapes.get(name, ())))]

    def shrinks(self, name: str) -> bool:
        """Whether it changes."""
        return self.shape(name) != list(self.found.sizes.shapes.get(name, ()))

    def tensor(self, name: str, array: Array) -> Array:
        """What is left of a tensor."""
        for axis in range(array.ndim):
            stay = self.keep(name, axis)
            if stay is not None:
                array = np.compress(stay, array, axis)
        return np.ascontiguousarray(array)


def _shape(cut: _Cut, write: _Writer, node: Any, call: Call) -> None:
    """The target of Reshape and Expand, and of Resize by sizes."""
    position = 3 if call.kind == "Resize" else 1
    target = call.integers.get(position)
    if target is None:
        return
    output, rank = node.output[0], len(call.shapes[0])
    copied = 0 if call.kind == "Reshape" and not call.settings.get("allowzero", 0) else None
    settled: dict[int, int] = {}
    scaled: dict[int, int] = {}
    for axis, entry in enumerate(target.tolist(), rank - len(target)):
        place = axis - rank + len(target)
        size, left = call.shapes[0][axis], cut.size(output, axis)
        if size == left or entry != size or entry == copied:
            continue  # one that is not told follows by itself
        if axis not in cut.found.sizes.free.get(output, ()):
            settled[place] = left
        elif call.kind == "Reshape" and UNKNOWN not in (*target.tolist(), *settled.values()):
            settled[place] = UNKNOWN
        else:
            scaled[place] = axis
    if scaled:
        parts = [np.ones(len(target), np.int64) for _ in range(2)]
        for place, axis in scaled.items():
            parts[0][place], parts[1][place] = cut.size(output, axis), call.shapes[0][axis]
        times = write.node("Mul", [node.input[position], write.constant(parts[0])])
        node.input[position] = write.node("Div", [times, write.constant(parts[1])])
    _settle(write, node, call, position, settled)


def _settle(write: _Writer, node: Any, call: Call, position: int, entries: Mapping[int, int]) -> None:
    """Put entries into an integer argument, be it a constant or computed."""
    if not entries:
        return
    new = np.atleast_1d(call.integers[position]).copy()
    new[list(entries)] = list(entries.values())
    if position in call.constant:
        node.input[position] = write.constant(new)
        return
    chosen = np.isin(np.arange(len(new)), list(entries))
    node.input[position] = write.node("Where", [write.constant(chosen), write.constant(new), node.input[position]])


def _split(cut: _Cut, write: _Writer, node: Any, call: Call) -> None:
    """The sizes of the pieces."""
    axis = call.settings.get("axis", 0) % len(call.shapes[0])
    pieces = [cut.size(name, axis) for name in node.output]
    if pieces == [shape[axis] for shape in call.shapes]:
        return
    kept = [attribute for attribute in node.attribute if attribute.name not in ("split", "num_outputs")]
    del node.attribute[:]
    node.attribute.extend(kept)
    if call.opset < 13:
        node.attribute.append(helper.make_attribute("split", pieces))
    else:
        del node.input[1:]
        node.input.append(write.constant(np.array(pieces, np.int64)))


def _slice(cut: _Cut, write: _Writer, node: Any, call: Call) -> None:
    """The bounds, by what is left before them."""
    shape = cut.found.sizes.shapes[node.input[0]]
    starts, ends = {}, {}
    for place, (axis, taken) in enumerate(slices(call, shape).items()):
        stay = cut.keep(node.input[0], axis)
        if stay is not None:
            starts[place], ends[place] = int(stay[: taken.start].sum()), int(stay[: taken.stop].sum())
    if call.opset >= 10:
        _settle(write, node, call, 1, starts)
        _settle(write, node, call, 2, ends)
        return
    for attribute in node.attribute:
        for place, bound in {"starts": starts, "ends": ends}.get(attribute.name, {}).items():
            attribute.ints[place] = bound


def _gather(cut: _Cut, write: _Writer, node: Any, call: Call) -> None:
    """Constant numbers, without those that are gone, counted anew."""
    shape = cut.found.sizes.shapes[node.input[0]]
    axis = call.settings.get("axis", 0) % len(shape)
    stay = cut.keep(node.input[0], axis)
    if stay is None:
        return
    numbers = call.integers[1] % shape[axis]
    for inner in range(numbers.ndim):
        left = cut.keep(node.output[0], axis + inner)
        numbers = numbers if left is None else np.compress(left, numbers, inner)
    node.input[1] = write.constant((np.cumsum(stay) - 1)[numbers].astype(np.int64))


def _groups(cut: _Cut, write: _Writer, node: Any, call: Call) -> None:
    """How many groups a convolution or a norm has left."""
    if call.kind == "GroupNormalization":
        name, groups = "num_groups", call.settings["num_groups"]
        width = call.shapes[0][1] // groups
        left = cut.size(node.output[0], 1) // width
    else:
        name, groups = "group", call.settings.get("group", 1)
        channels = cut.size(node.input[0] if call.kind == "Conv" else node.output[0], 1)
        left = channels // cut.size(node.input[1], 1)
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.i = left
    assert groups > 1 or left == groups


def _shrink_(cut: _Cut, value: onnx.ValueInfoProto) -> None:
    """The written shape of a value."""
    for axis, size in enumerate(value.type.tensor_type.shape.dim):
        stay = cut.keep(value.name, axis)
        if stay is not None and size.dim_value:
            size.dim_value = int(stay.sum())


def _drop_unread_(model: onnx.ModelProto) -> None:
    """Leave out constants that no node reads any more."""
    read = {name for node in model.graph.node for name in _uses(node)} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


REPAIRS: dict[str, Callable[[_Cut, _Writer, Any, Call], None]] = {
    **dict.fromkeys(("Reshape", "Expand", "Resize"), _shape),
    **dict.fromkeys(("Conv", "ConvTranspose", "GroupNormalization"), _groups),
    "Gather": _gather, "Slice": _slice, "Split": _split,
}  # fmt: skip
