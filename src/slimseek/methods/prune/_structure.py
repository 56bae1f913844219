"""A model as a graph whose parts can leave, what it costs without some of them, and the model without them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx
from onnx import numpy_helper

from slimseek import integers
from slimseek.choose import family
from slimseek.errors import UsageError
from slimseek.importance._evidence import NONE, Place
from slimseek.methods import _blocks as blocks
from slimseek.methods.prune._removal import removed
from slimseek.methods.prune._units import UnitGroup, Units, units
from slimseek.models._onnx.graph import Weights
from slimseek.schema import Array, Model, QuantizedTensor, is_float


@dataclass(frozen=True, eq=False)
class Structure:
    """A model with its units.

    Attributes:
        model: the float model.
        graph: what computes it, without ``weights``.
        weights: those of the graph's weights that are no initializers in it.
        found: its units, by the names and axes of the graph.
        places: the same by the names and axes of the model's tensors.
    """

    model: Model
    graph: onnx.ModelProto
    weights: Weights
    found: Units
    places: Mapping[Place, Array]

    @property
    def groups(self) -> tuple[UnitGroup, ...]:
        """Units that may stand for each other, in the order in which the graph computes with them."""
        order: dict[str, int] = {}
        for number, node in enumerate(self.graph.graph.node):
            for name in node.input:
                order.setdefault(name, number)
        last = len(self.graph.graph.node)

        def first(group: UnitGroup) -> int:
            return min(order.get(name, last) for name, _ in group.places)

        return tuple(sorted(self.found.groups, key=first))


@lru_cache(maxsize=2)
def structure(model: Model) -> Structure:
    """Look for what may leave a model; the last two answers are kept.

    Raises:
        UsageError: weights are not finite, quantized or tied, inputs are rounded, or the graph cannot be run.
    """
    integers.check_finite(model, "pruned")
    if model.activations or model.smoothing or any(isinstance(tensor, QuantizedTensor) for tensor in
                                                   model.tensors.values()):  # fmt: skip
        raise UsageError("the model is quantized or smoothed; prune before that")
    blocks.check_untied(model, "prune")
    graph, weights = family(model).parts(model)
    found = units(graph, dict(weights))
    return Structure(model, graph, dict(weights), found, _own_places(model, graph, found))


def _own_places(model: Model, graph: onnx.ModelProto, found: Units) -> dict[Place, Array]:
    """The graph's places in the model's tensors, which it may hold transposed, or twice as ``NAME#2``."""
    initializers = {tensor.name: tensor for tensor in graph.graph.initializer}
    places: dict[Place, Array] = {}
    for (name, axis), line in found.places.items():
        tensor = model.tensors.get(name)
        if tensor is None:
            continue
        assert not isinstance(tensor, QuantizedTensor)
        turned = name in initializers and tensor.ndim == 2 and _is_turned(tensor, initializers[name])
        places[name, 1 - axis if turned else axis] = line
    return places


def _is_turned(tensor: Array, initializer: onnx.TensorProto) -> bool:
    held = numpy_helper.to_array(initializer)
    return held.shape != tensor.shape or not np.array_equal(held, tensor.astype(held.dtype))


def without(whole: Structure, chosen: Collection[int]) -> Model:
    """The model without some units.

    Raises:
        UsageError: nothing of an axis would be left, or the family cannot have such shapes.
    """
    if not chosen:
        return whole.model
    graph, _ = removed(whole.graph, whole.weights, whole.found, chosen)
    tensors = dict(whole.model.tensors)
    for (name, axis), line in whole.places.items():
        stay = ~np.isin(line, list(chosen))
        tensor = tensors[name]
        assert not isinstance(tensor, QuantizedTensor)
        tensors[name] = tensor if stay.all() else np.ascontiguousarray(np.compress(stay, tensor, axis))
    return family(whole.model).resized(whole.model, graph, tensors)


def masked(whole: Structure, chosen: Collection[int]) -> Model:
    """The model with zeros in every weight that would leave with these units."""
    tensors = dict(whole.model.tensors)
    for (name, axis), line in whole.places.items():
        gone = np.isin(line, list(chosen)) & (line != NONE)
        if gone.any():
            tensor = tensors[name]
            assert not isinstance(tensor, QuantizedTensor)
            tensor = tensor.copy()
            np.moveaxis(tensor, axis, 0)[gone] = 0
            tensors[name] = tensor
    return dataclasses.replace(whole.model, tensors=tensors)


def parameters(whole: Structure, chosen: Collection[int]) -> int:
    """Weights left without these units."""
    shapes = {name: tensor.shape for name, tensor in whole.model.tensors.items()
              if not isinstance(tensor, QuantizedTensor) and is_float(tensor)}  # fmt: skip
    return sum(_left(shapes, whole.places, chosen).values())


def macs(whole: Structure, chosen: Collection[int]) -> int:
    """Multiplications with weights for one item of the sample that the units were found with, left without these."""
    shapes = {name: whole.found.sizes.shapes[name] for name in whole.found.uses}
    left = _left(shapes, whole.found.places, chosen)
    return sum(whole.found.uses[name] * size for name, size in left.items())


def _left(
    shapes: Mapping[str, tuple[int, ...]], places: Mapping[Place, Array], chosen: Collection[int]
) -> dict[str, int]:
    """Numbers left of each tensor."""
    sizes = {name: list(shape) for name, shape in shapes.items()}
    gone = np.fromiter(chosen, np.int64)
    for (name, axis), line in places.items():
        if name in sizes:
            sizes[name][axis] -= int(np.isin(line, gone).sum())
    return {name: math.prod(shape) for name, shape in sizes.items()}
