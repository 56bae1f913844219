"""The size of every value in a graph, found by running it on samples of two sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from slimseek.errors import UsageError, first_line
from slimseek.models._onnx.folding import _take_constants_
from slimseek.models._onnx.graph import Weights, _session
from slimseek.schema import Array, Batch

ROWS = (2, 3)
LENGTHS = ((5, 7), (16, 24), (64, 96), (224, 256), (512, 768), (4000, 8000))
"""Of free axes other than the batch, in the first sample and in the second: the first pair that the graph takes."""
SEQUENCES = ("Sequence", "ZipMap", "Optional")
"""Marks of operators that give something else than tensors."""
INTEGER_ARGUMENTS = frozenset((
    "CumSum", "Expand", "Gather", "Pad", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Reshape", "Resize", "Slice",
    "Split", "Squeeze", "Tile", "Unsqueeze",
))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sizes:
    """What two runs of a graph tell.

    Attributes:
        shapes: of every value, weight and constant, in the first run.
        free: axes of values whose size differs between the runs.
        integers: integer arguments of operators, such as a shape or bounds, in the first run.
        constant: names of those arguments that no input of the graph has a part in.
    """

    shapes: Mapping[str, tuple[int, ...]]
    free: Mapping[str, frozenset[int]]
    integers: Mapping[str, Array]
    constant: frozenset[str]


def with_initializers(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose constants are initializers."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    _take_constants_(model.graph)
    return model


def tensors_of(graph: onnx.ModelProto, weights: Weights) -> Weights:
    """The weights and initializers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer} | weights


def sizes(graph: onnx.ModelProto, weights: Weights, samples: Sequence[Batch] | None) -> Sizes:
    """Run the graph on two samples.

    Args:
        graph: with constants as initializers.
        weights: those of its weights that are no initializers.
        samples: two batches of different size; ``None`` to make some.

    Raises:
        UsageError: the graph cannot be run on them.
    """
    known = tensors_of(graph, weights)
    watched, arguments = _watched(graph, known)
    whole = onnx.ModelProto()
    whole.CopyFrom(graph)
    del whole.graph.output[:]
    for number, name in enumerate(watched):
        whole.graph.node.append(helper.make_node("Shape", [name], [f"slimseek.shape.{number}"]))
        whole.graph.output.add(name=f"slimseek.shape.{number}")
    for name in arguments:
        whole.graph.output.add(name=name)
    values, others = _runs(graph.graph, _session(whole, weights, threads=0), samples)
    count = len(watched)
    shapes = {name: tuple(shape.tolist()) for name, shape in zip(watched, values[:count], strict=True)}
    free = {
        name: frozenset(np.flatnonzero(one != other).tolist())
        for name, one, other in zip(watched, values, others[:count], strict=False)
    }
    found = dict(zip(arguments, values[count:], strict=True))
    integers = {name: array for name, array in known.items() if array.dtype.kind == "i"}
    return Sizes(
        shapes=shapes | {name: array.shape for name, array in known.items()},
        free=free,
        integers=integers | {name: array for name, array in found.items() if array.dtype.kind == "i"},
        constant=frozenset(integers),
    )


def _watched(graph: onnx.ModelProto, known: Weights) -> tuple[list[str], list[str]]:
    """Values whose shapes are wanted, and integer arguments of operators that are wanted themselves."""
    inputs = [value.name for value in graph.graph.input if value.name not in known]
    nodes = [node for node in graph.graph.node if not any(mark in node.op_type for mark in SEQUENCES)]
    made = [name for node in nodes for name in node.output if name]
    arguments = [name for node in nodes if node.op_type in INTEGER_ARGUMENTS for name in node.input[1:]]
    return [*inputs, *made], [name for name in dict.fromkeys(arguments) if name in set(made)]


def _runs(
    graph: onnx.GraphProto, compute: Callable[[Batch], list[Array]], samples: Sequence[Batch] | None
) -> list[list[Array]]:
    """What the two samples give; of those that are made, the first two that the graph takes."""
    if samples is not None:
        return [compute(batch) for batch in samples]
    for lengths in LENGTHS:
        batches = [_sample(graph, rows, length) for rows, length in zip(ROWS, lengths, strict=True)]
        try:
            return [compute(batch) for batch in batches]
        except Exception as error:  # ONNX Runtime raises its own kinds, for instance where a picture is too small
            reason = first_line(error)
    raise UsageError(f"the graph cannot be run on samples of any of {len(LENGTHS)} sizes: {reason}")


def _sample(graph: onnx.GraphProto, rows: int, length: int) -> Batch:
    """Noise; token 0 and no padding where integers are taken."""
    constants = {tensor.name for tensor in graph.initializer}
    generator = np.random.default_rng(0)
    batch = {}
    for value in graph.input:
        if value.name in constants:
            continue
        dims = value.type.tensor_type.shape.dim
        shape = [axis.dim_value or (length if place else rows) for place, axis in enumerate(dims)]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        noise = generator.normal(size=shape) if dtype.kind == "f" else np.full(shape, int("mask" in value.name))
        batch[value.name] = noise.astype(dtype)
    return batch
