"""What a float graph does for batches of two sizes: which values are constant, and which axes of a shape change.

Paddle Lite has no arithmetic on shapes that could be relied on. The graph runs twice here, in ONNX Runtime, with
batches and lengths that differ: what stays the same is written as a number, what changes is copied from the input of
the operator, and a constant that grows with the length (positions, say) becomes an input that is fed its part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from slimseek.backends._lowering import _is_stored as is_stored
from slimseek.backends._lowering import tensor_name
from slimseek.backends._paddlelite.package import BATCH, FIXED, LENGTH, Fed, part
from slimseek.errors import UsageError, first_line
from slimseek.schema import Array, Batch, Model, ModelSpec, QuantizedTensor, is_float

SHAPES = ("Shape", "Size")
RESHAPES = ("Reshape", "Expand", "Squeeze", "Unsqueeze")
"""Operators whose result's shape is known here, so that nothing reads the shape that they are given."""
INSIDE = ("If", "Loop", "Scan")


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What two runs showed.

    Attributes:
        nodes: those that compute something from the inputs, in order.
        constants: arrays that are the same for every batch, by name.
        fed: constants that are not, by name.
        shapes: of every other value, in the two runs.
        dtypes: numpy name of its dtype.
    """

    nodes: tuple[Any, ...]
    constants: Mapping[str, Array]
    fed: Mapping[str, Fed]
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    dtypes: Mapping[str, str]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of any value, -1 where it changes."""
        if name in self.constants:
            return self.constants[name].shape
        return tuple(one if one == other else -1 for one, other in zip(*self.shapes[name], strict=True))


def observe(graph: onnx.ModelProto, model: Model) -> Seen:
    """Run the graph with two batches, and with the longest text where some constant grows.

    Raises:
        UsageError: it has branches or loops, or a constant grows in a way that cannot be fed.
    """
    inside = sorted({node.op_type for node in graph.graph.node if node.op_type in INSIDE})
    if inside:
        raise UsageError(f"paddlelite: no form for {', '.join(inside)} here; deploy for onnxruntime instead")
    constants, varying = _constant(graph, model)
    longest = model.spec.preprocess.max_length if model.spec.preprocess else 0
    short, middle = max(2, min(5, longest - 2)), max(3, min(11, longest - 1))
    runs = [_run(graph, _batch(model.spec, count, length), ()) for count, length in ((2, short), (3, middle))]
    values: dict[str, Array] = {name: runs[0][name] for name in constants}
    growing = {name for name in varying if not _same(runs[0][name], runs[1][name])}
    values |= {name: runs[0][name] for name in varying - growing}
    held = {constant.name: numpy_helper.to_array(constant) for constant in graph.graph.initializer}
    nodes = tuple(
        node for node in graph.graph.node if not all(name in values or name in growing for name in node.output)
    )
    read = {name for node in nodes for name in (node.input[:1] if node.op_type in RESHAPES else node.input)} & growing
    fed = {}
    if read:
        if not longest:
            raise UsageError(f"paddlelite: {sorted(read)[0]} depends on the shape of the input; "
                             "deploy for onnxruntime instead")  # fmt: skip
        whole = _run(graph, _batch(model.spec, 1, longest), read)
        sizes = {BATCH: (2, 3, 1), LENGTH: (short, middle, longest)}
        fed = {name: _fed(name, (runs[0][name], runs[1][name], whole[name]), sizes) for name in sorted(read)}
    return Seen(
        nodes=nodes, constants=held | values, fed=fed,
        shapes={name: (array.shape, runs[1][name].shape) for name, array in runs[0].items()},
        dtypes={name: array.dtype.name for name, array in runs[0].items()},
    )  # fmt: skip


def _constant(graph: onnx.ModelProto, model: Model) -> tuple[set[str], set[str]]:
    """Names of values that hang on no input, and of those that hang on shapes alone.

    What reads a weight that is not stored as float32 is neither, and no weight is looked up by what grows: weights
    keep their stored form.
    """
    weights = {
        name for name, tensor in model.tensors.items() if isinstance(tensor, QuantizedTensor) or is_float(tensor)
    }
    stored = {name for name in weights if is_stored(model.tensors[name])}
    names = {one.name for one in graph.graph.initializer}
    known = {name for name in names if tensor_name(name) not in stored}
    of_shapes = set[str]()
    for node in graph.graph.node:
        read = [name for name in node.input if name]
        if node.op_type in SHAPES:
            of_shapes.update(node.output)
        elif all(name in known for name in read):
            known.update(node.output)
        elif all((name in known or name in of_shapes) and tensor_name(name) not in weights for name in read):
            of_shapes.update(node.output)
    return known - names, of_shapes


def _batch(spec: ModelSpec, count: int, length: int) -> Batch:
    """Ones of the shapes that the model takes; axes that are neither batch nor length as the model names them."""
    found = {}
    for tensor in spec.inputs:
        free = [axis for axis in tensor.shape if isinstance(axis, str)]
        sizes = {axis: (count if axis == BATCH else length or tensor.length + 32 * count) for axis in free}
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
        found[tensor.name] = np.full(shape, tensor.number or 1, tensor.dtype)
    return found


def _run(graph: onnx.ModelProto, batch: Batch, wanted: Sequence[str] | set[str]) -> dict[str, Array]:
    """Every value of the graph, or those that are wanted."""
    opened = onnx.ModelProto()
    opened.CopyFrom(graph)
    names = [name for node in graph.graph.node for name in node.output if name and (not wanted or name in wanted)]
    del opened.graph.output[:]
    opened.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(names, batch)
    except Exception as error:  # ONNX Runtime raises its own kinds
        raise UsageError(
            f"paddlelite: the graph does not run, so its shapes are not known: {first_line(error)}"
        ) from error
    return batch | dict(zip(names, values, strict=True))


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one, other))


def _fed(name: str, seen: tuple[Array, Array, Array], sizes: Mapping[str, tuple[int, int, int]]) -> Fed:
    axes = []
    for three in zip(*(array.shape for array in seen), strict=True):
        kind = FIXED if len(set(three)) == 1 else next((kind for kind, one in sizes.items() if one == three), None)
        if kind is None:
            raise UsageError(f"paddlelite: the shape of {name} hangs on the input's in a way that cannot be fed; "
                             "deploy for onnxruntime instead")  # fmt: skip
        axes.append(kind)
    found = Fed(whole=seen[2], axes=tuple(axes))
    for run, array in enumerate(seen[:2]):
        if not _same(array, part(found, sizes[BATCH][run], sizes[LENGTH][run])):
            raise UsageError(f"paddlelite: {name} is another constant for each length; "
                             "deploy for onnxruntime instead")  # fmt: skip
    return found
