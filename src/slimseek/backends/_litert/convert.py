"""A model as a LiteRT file: the operators by name, and the axis that can be resized."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from slimseek.backends._litert import linear, operators, pictures, weights
from slimseek.backends._litert.conversion import Conversion, DependsOnBatch, Node
from slimseek.backends._litert.folding import Sized, sized
from slimseek.backends._lowering import tensor_name
from slimseek.backends._places import check_places
from slimseek.errors import UsageError
from slimseek.models._onnx.rounding import round_convolutions_
from slimseek.schema import Model

BATCH = "batch"
SMALL, LARGE = 3, 5
"""Two sizes of a free axis, neither of which means anything."""

MISSING = {"If", "Loop", "Scan", "LSTM", "GRU", "RNN"}
"""Operators that are refused before the graph is folded, which takes long and may stop at their shapes."""
OPERATORS: dict[str, Callable[[Conversion, Node], None]] = {
    **operators.OPERATORS, **linear.OPERATORS, **pictures.OPERATORS,
}  # fmt: skip


def convert(graph: onnx.ModelProto, model: Model) -> bytes:
    """The file: one graph with one free axis, the length of a text, or else the number of items.

    Raises:
        UsageError: LiteRT does not have an operator, or not in this form.
    """
    check_places(graph, model)
    round_convolutions_(graph, model.activations)
    _check_operators(graph)
    symbols = _symbols(graph)
    others = sorted({axis for name, axis in symbols if axis != _batch(symbols)})
    if len(others) > 1:
        raise UsageError(f"LiteRT takes inputs with one axis of any length; these have {', '.join(others)}; deploy for "
                         f"onnxruntime instead")  # fmt: skip
    batch = _batch(symbols)
    if not others:
        try:
            return _converted(graph, model, {batch: SMALL}, {batch: LARGE})
        except DependsOnBatch:
            return _converted(graph, model, {batch: 1}, {batch: 1})
    longest = model.spec.preprocess.max_length if model.spec.preprocess is not None else _length(model)
    small = min(SMALL, max(longest - 1, 1))
    return _converted(graph, model, {batch: 1, others[0]: small}, {batch: 1, others[0]: longest})


def _length(model: Model) -> int:
    return max(one.length for one in model.spec.inputs)


def _symbols(graph: onnx.ModelProto) -> list[tuple[str, str]]:
    """(input, symbolic axis) in order."""
    constants = {tensor.name for tensor in graph.graph.initializer}
    return [
        (value.name, axis.dim_param)
        for value in graph.graph.input
        if value.name not in constants
        for axis in value.type.tensor_type.shape.dim
        if not axis.HasField("dim_value")
    ]


def _batch(symbols: list[tuple[str, str]]) -> str:
    """The axis of the batch: the first symbolic one."""
    return symbols[0][1] if symbols else BATCH


def _check_operators(graph: onnx.ModelProto) -> None:
    unknown = {node.op_type for node in graph.graph.node} & MISSING
    if unknown:
        raise UsageError(f"LiteRT takes no {', '.join(sorted(unknown))} here; deploy for onnxruntime instead")


def _converted(graph: onnx.ModelProto, model: Model, small: Mapping[str, int], large: Mapping[str, int]) -> bytes:
    kept = {tensor.name for tensor in graph.graph.initializer if _is_weight(model, tensor.name)}
    c = conversion(graph, model, sized(graph, small, kept), sized(graph, large, kept))
    outputs = {value.name: c.value(value.name) for value in graph.graph.output[:1]}
    return c.write.finish(c.inputs, outputs, {weights.METADATA: weights.as_json(c.stored)})


def conversion(graph: onnx.ModelProto, model: Model, small: Sized, large: Sized) -> Conversion:
    """Every operator of the graph, written."""
    c = Conversion(graph, model, small, large)
    unknown = sorted({node.kind for node in c.nodes} - set(OPERATORS))
    if unknown:
        raise UsageError(f"LiteRT takes no {', '.join(unknown)} here; deploy for onnxruntime instead")
    for node in c.nodes:
        if node.outputs[0] not in c.done:
            OPERATORS[node.kind](c, node)
    return c


def _is_weight(model: Model, initializer: str) -> bool:
    tensor = model.tensors.get(tensor_name(initializer))
    return tensor is not None and (not hasattr(tensor, "dtype") or tensor.dtype.kind not in "iub")
