"""What a graph's reader tidies, so that every weight is a named tensor of the main graph, as its user sees it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from slimseek.models._onnx.graph import (
    Weights,
    _graphs,
    _is_weight,
    _rename_,
    _replace_nodes_,
    _settings,
    _tensors,
    _uses,
    _Writer,
)
from slimseek.schema import Array

NORM_INPUTS = 5
OTHER_FLOATS = (TensorProto.FLOAT16, TensorProto.DOUBLE)
EPSILON = 1e-5


def _make_constants_initializers_(model: onnx.ModelProto) -> None:
    """Constant nodes become initializers of the main graph, and so do the tensors of the branches of an If or Loop.

    A branch sees the values of the graph around it, so a weight that moves out keeps its meaning; its name gets a
    number where two branches call different tensors alike. ``#`` leaves the names, since lowering gives it a meaning.
    """
    write = _Writer(model)
    graph = model.graph
    for inner in _graphs(graph):
        _take_constants_(inner)
    for inner in list(_graphs(graph))[1:]:
        results = {value.name for value in inner.output}
        moved = [tensor for tensor in inner.initializer if tensor.name not in results]
        for tensor in moved:
            name = write.fresh(tensor.name)
            _rename_(inner, {tensor.name: name})
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = name
        kept = [tensor for tensor in inner.initializer if tensor.name in results]
        del inner.initializer[:]
        inner.initializer.extend(kept)
    _rename_(graph, {name: name.replace("#", "_") for name in [item.name for item in graph.initializer] if "#" in name})


def _take_constants_(graph: onnx.GraphProto) -> None:
    """Constant nodes of a graph become its initializers; those in its branches stay."""
    nodes = []
    for node in graph.node:
        tensor = _constant(node)
        if tensor is None:
            nodes.append(node)
        else:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = node.output[0]
    _replace_nodes_(graph, nodes)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant, in whichever of its ways it is written; ``None`` for strings and sparse ones."""
    if node.op_type != "Constant":
        return None
    [(name, value)] = _settings(node).items()
    if name == "value":
        tensor: onnx.TensorProto = value
        return tensor
    dtype = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return numpy_helper.from_array(np.array(value, dtype[name])) if name in dtype else None


def _make_single_precision_(graph: onnx.GraphProto) -> None:
    """A graph of float16 or float64 computes in float32 from here on; weights in float16 are still stored so."""
    for inner in _graphs(graph):
        for value in (*inner.input, *inner.output, *inner.value_info):
            if value.type.tensor_type.elem_type in OTHER_FLOATS:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in inner.node:
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i in OTHER_FLOATS:
                    attribute.i = TensorProto.FLOAT
    for tensor in _tensors(graph):
        if tensor.data_type in OTHER_FLOATS:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _skip_identities_(graph: onnx.GraphProto) -> None:
    """What reads an Identity reads its input; one that gives an output of its graph stays."""
    for inner in _graphs(graph):
        ends = {value.name for value in inner.output}
        same = {
            node.output[0]: node.input[0]
            for node in inner.node
            if node.op_type == "Identity" and node.output[0] not in ends
        }
        _replace_nodes_(inner, [node for node in inner.node if not node.output or node.output[0] not in same])
        for name, source in same.items():
            while source in same:  # a chain
                source = same[source]  # noqa: PLW2901
            same[name] = source
        _rename_(inner, same)


def _fold_norms_(graph: onnx.GraphProto, weights: Weights) -> None:
    """Batch norms, and factors and summands for each channel, go into the layer before them: a convolution or a Gemm
    whose result nothing else reads.

    y = (W x + b - mean) * gain / sqrt(variance + epsilon) + shift is the same layer with other weights.
    """
    uses = Counter(name for node in graph.node for name in _uses(node))
    uses.update(value.name for value in graph.output)
    made = {node.output[0]: node for node in graph.node if node.output}
    nodes = []
    for node in graph.node:
        source = next((name for name in node.input if name in made), "")
        layer = made.get(source)
        if layer is None or uses[source] != 1 or not _fold_norm_(layer, node, source, uses, graph, weights):
            nodes.append(node)
            continue
        layer.output[0] = node.output[0]
        made[node.output[0]] = layer
    _replace_nodes_(graph, nodes)


def _fold_norm_(
    layer: onnx.NodeProto, node: onnx.NodeProto, source: str, uses: Counter[str], graph: onnx.GraphProto,
    weights: Weights,
) -> bool:  # fmt: skip
    """Whether the layer took the node in."""
    settings = _settings(layer)
    plain = layer.op_type == "Conv" or (
        layer.op_type == "Gemm" and settings.get("transB", 0) and settings.get("alpha", 1.0) == 1.0
        and settings.get("beta", 1.0) == 1.0
    )  # fmt: skip
    weight = weights.get(layer.input[1]) if plain else None
    if weight is None or uses[layer.input[1]] != 1 or not _is_weight(weight):
        return False
    given = layer.input[2] if len(layer.input) > 2 else ""
    bias = _values(given, graph, weights) if given else np.zeros(len(weight), np.float32)
    change = _change(node, source, (1, len(weight), *[1] * (weight.ndim - 2)), graph, weights)
    if bias is None or bias.shape not in ((len(weight),), (1, len(weight))) or change is None:
        return False
    factor, shift = change
    weights[layer.input[1]] = (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
    name = f"{layer.input[1]}.folded_bias"
    for unused in (given, *(name for name in node.input if name != source)):
        if uses[unused] == 1:
            weights.pop(unused, None)
    weights[name] = (bias.reshape(-1) * factor + shift).astype(np.float32)
    uses[name] = 1
    del layer.input[2:]
    layer.input.append(name)
    return True


def _change(
    node: onnx.NodeProto, source: str, shape: tuple[int, ...], graph: onnx.GraphProto, weights: Weights
) -> tuple[Array, Array] | None:
    """The factor and the summand [channels] by which a node changes ``source``; ``None`` for any other node."""
    channels = shape[1]
    others = [_values(name, graph, weights) for name in node.input if name != source]
    numbers = [values.astype(np.float64) for values in others if values is not None]
    if node.op_type == "BatchNormalization" and node.input[0] == source and len(numbers) == NORM_INPUTS - 1:
        gain, shift, mean, variance = numbers
        factor = gain / np.sqrt(variance + _settings(node).get("epsilon", EPSILON))
        return factor, shift - mean * factor
    kinds = ("Add", "Mul", "Sub", "Div") if node.input[0] == source else ("Add", "Mul")
    if node.domain or len(others) != 1 or not numbers or node.op_type not in kinds:
        return None
    [number] = numbers
    fits = number.ndim <= len(shape) and np.broadcast_shapes(number.shape, shape) == shape
    if not fits or (node.op_type == "Div" and not number.all()):
        return None
    number = np.broadcast_to(number, shape).reshape(channels)
    one, none = np.ones(channels), np.zeros(channels)
    if node.op_type in ("Add", "Sub"):
        return one, number if node.op_type == "Add" else -number
    return (number if node.op_type == "Mul" else 1 / number), none


def _values(name: str, graph: onnx.GraphProto, weights: Weights) -> Array | None:
    """A constant's numbers, wherever they are kept."""
    if name in weights:
        return weights[name]
    return next((numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == name), None)
