"""The first layers of an ONNX graph that takes rows of features, and a graph that takes narrower ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from slimseek.inputs.features import projection
from slimseek.models._onnx.graph import GRAPH, _graph, _graphs, _linear_axis, _replace_nodes_
from slimseek.preprocess import FeaturePreprocess
from slimseek.schema import Array, Layer, Model, Tensor

ADDED = ".features"


def first_layers(model: Model) -> tuple[Layer, ...]:
    """The linear layers that read the one input [batch, width]; empty where anything else reads it, or them."""
    inputs = model.spec.inputs
    if model.spec.preprocess is not None or len(inputs) != 1 or len(inputs[0].shape) != 2:
        return ()
    if inputs[0].dtype != "float32" or not isinstance(inputs[0].shape[1], int):
        return ()
    graphs = list(_graphs(_graph(model).graph))
    readers = [node for graph in graphs for node in graph.node if inputs[0].name in node.input]
    weights = [node.input[1] for node in readers if _linear_axis(node, model.tensors) is not None]
    uses = [name for graph in graphs for node in graph.node for name in node.input if name in weights]
    if not readers or len(weights) < len(readers) or len(uses) > len(readers) or len(set(weights)) < len(weights):
        return ()
    return tuple(layer for layer in model.layers if layer.weight in weights)


def narrowed(model: Model, kept: int, tensors: Mapping[str, Tensor], added: Mapping[str, Array]) -> Model:
    """The model whose input has ``kept`` columns; the first layers' results get the vectors ``added``, by weight."""
    graph = _graph(model)
    nodes: list[onnx.NodeProto] = []
    new: dict[str, Tensor] = dict(tensors)
    for node in graph.graph.node:
        nodes.append(node)
        if len(node.input) < 2 or node.input[1] not in added:
            continue
        name, output = node.input[1] + ADDED, node.output[0]
        node.output[0] = f"{output}{ADDED}"
        nodes.append(helper.make_node("Add", [node.output[0], name], [output], name=f"node_{name}"))
        new[name] = added[node.input[1]]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    _replace_nodes_(graph.graph, nodes)
    del graph.graph.value_info[:]
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = kept
    given = model.spec.inputs[0]
    spec = msgspec.structs.replace(model.spec, inputs=(msgspec.structs.replace(given, shape=(given.shape[0], kept)),))
    files = dict(model.files) | {GRAPH: graph.SerializeToString(deterministic=True)}
    return dataclasses.replace(model, spec=spec, files=files, tensors=new)


def put_before_(graph: onnx.GraphProto, features: FeaturePreprocess) -> None:
    """Let the graph take whole rows of features and reduce them itself."""
    given = graph.input[0]
    narrow = f"{given.name}{ADDED}"
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = narrow if name == given.name else name
    if features.columns:
        constants = {f"{narrow}.columns": np.array(features.columns, np.int64)}
        nodes = [helper.make_node("Gather", [given.name, f"{narrow}.columns"], [narrow], axis=1)]
    else:
        mean, components = projection(features)
        constants = {f"{narrow}.mean": mean, f"{narrow}.components": components}
        nodes = [
            helper.make_node("Sub", [given.name, f"{narrow}.mean"], [f"{narrow}.centred"]),
            helper.make_node("MatMul", [f"{narrow}.centred", f"{narrow}.components"], [narrow]),
        ]
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(array), name)
                             for name, array in constants.items())  # fmt: skip
    others = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*nodes, *others])
    given.type.tensor_type.shape.dim[1].dim_value = features.width
