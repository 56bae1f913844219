"""What a graph's reader tidies, so that every weight is a named tensor of the main graph, as its user sees it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from slimseek.models._graph import (
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
EPSILON = 1e-5


def _make_constants_initializers_(model: onnx.ModelProto) -> None:
    """Constant nodes become initializers of the main graph, and so do the tensors of the branches of an If or Loop.

    A branch sees the values of the graph around it, so a weight that moves out keeps its meaning; its name gets a
    number where two branches call different tensors alike. ``#`` leaves the names, since lowering gives it a meaning.
    """
    write = _Writer(model)
    graph = model.graph
    for inner in _graphs(graph):
        nodes = []
        for node in inner.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                inner.initializer.add().CopyFrom(node.attribute[0].t)
                inner.initializer[-1].name = node.output[0]
            else:
                nodes.append(node)
        _replace_nodes_(inner, nodes)
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


def _make_single_precision_(graph: onnx.GraphProto) -> None:
    """A float16 graph computes in float32 from here on; its weights are still stored in float16."""
    for inner in _graphs(graph):
        for value in (*inner.input, *inner.output, *inner.value_info):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in inner.node:
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                    attribute.i = TensorProto.FLOAT
    for tensor in _tensors(graph):
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _fold_(graph: onnx.GraphProto, weights: Weights) -> None:
    """Weights behind Identity, Cast to float or Transpose are stored as the nodes that use them see them.

    A Transpose stays where the weight has other uses too (a token table that is also an output layer).
    """
    uses = Counter(name for node in graph.node for name in _uses(node))
    renamed: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        source = node.input[0] if node.input else ""
        name = renamed.get(source, source)
        settings = _settings(node)
        same = node.op_type == "Identity" or (node.op_type == "Cast" and settings["to"] == TensorProto.FLOAT)
        turned = node.op_type == "Transpose" and name == source and uses[name] == 1
        if (same or turned) and _is_weight(weights.get(name)):
            renamed[node.output[0]] = name
            if turned:
                weights[name] = np.ascontiguousarray(weights[name].transpose(settings.get("perm")))
        else:
            nodes.append(node)
    _replace_nodes_(graph, nodes)
    _rename_(graph, renamed)


def _fold_norms_(graph: onnx.GraphProto, weights: Weights) -> None:
    """Batch norms go into the convolution or linear layer before them, where nothing else reads its result.

    y = (W x + b - mean) * gain / sqrt(variance + epsilon) + shift is the same layer with other weights.
    """
    uses = Counter(name for node in graph.node for name in _uses(node))
    uses.update(value.name for value in graph.output)
    made = {node.output[0]: node for node in graph.node}
    nodes = []
    for node in graph.node:
        layer = made.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        norm = [_values(name, graph, weights) for name in node.input[1:NORM_INPUTS]]
        if layer is None or uses[layer.output[0]] != 1 or any(values is None for values in norm):
            nodes.append(node)
            continue
        if not _fold_norm_(layer, node, norm, uses, graph, weights):  # type: ignore[arg-type]
            nodes.append(node)
            continue
        layer.output[0] = node.output[0]
    _replace_nodes_(graph, nodes)


def _fold_norm_(
    layer: onnx.NodeProto, norm: onnx.NodeProto, values: list[Array], uses: Counter[str], graph: onnx.GraphProto,
    weights: Weights,
) -> bool:  # fmt: skip
    """Whether the layer took the norm in."""
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
    if bias is None:
        return False
    gain, shift, mean, variance = (value.astype(np.float64) for value in values)
    factor = gain / np.sqrt(variance + _settings(norm).get("epsilon", EPSILON))
    weights[layer.input[1]] = (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
    name = f"{layer.input[1]}.folded_bias"
    weights[name] = ((bias - mean) * factor + shift).astype(np.float32)
    for unused in (given, *norm.input[1:NORM_INPUTS]):
        if uses[unused] == 1:
            weights.pop(unused, None)
    del layer.input[2:]
    layer.input.append(name)
    return True


def _values(name: str, graph: onnx.GraphProto, weights: Weights) -> Array | None:
    """A constant's numbers, wherever they are kept."""
    if name in weights:
        return weights[name]
    return next((numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == name), None)
