"""What an ONNX graph gains: layers that have become two, one after the other, and a map behind its vector."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from onnx import TensorProto, helper

from slimseek.models._onnx.graph import (
    GRAPH,
    OUTPUT,
    _graph,
    _graphs,
    _is_convolution,
    _linear_axis,
    _rename_,
    _replace_nodes_,
    _settings,
    _uses,
    _Writer,
)
from slimseek.schema import Array, Layer, Model, QuantizedTensor, Tensor

FIRST, SECOND = ".0", ".1"
PROJECTION = "projection"
TINY = np.float32(1e-12)
WINDOW = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")


def factorable(model: Model) -> tuple[Layer, ...]:
    """Linear layers and convolutions of one group whose weight nothing else reads, and which are no factors."""
    inner = list(_graphs(_graph(model).graph))
    readers: dict[str, list[Any]] = {}
    for graph in inner:
        for node in graph.node:
            for name in _uses(node) & set(model.tensors):
                readers.setdefault(name, []).append(node)
    outer = {id(node) for node in inner[0].node}
    return tuple(
        layer
        for layer in model.layers
        if layer.kind in ("linear", "convolution")
        and layer.weight in readers
        and not _is_factor(layer.weight, model.tensors)
        and all(id(node) in outer and _is_plain(node, layer.weight, model.tensors) for node in readers[layer.weight])
    )


def factored(model: Model, factors: Mapping[str, tuple[Array, Array]]) -> Model:
    """The model in which layers have become two, in the dtype of what they replace.

    Args:
        model: float, neither smoothed nor rounded.
        factors: float32 B [outputs, rank] and A [rank, inputs] by the name of the weight.
    """
    graph = _graph(model)
    write = _Writer(graph)
    nodes = list(graph.graph.node)
    _replace_nodes_(graph.graph, [])
    for node in nodes:
        if len(node.input) > 1 and node.input[1] in factors:
            _write_two_(write, node)
        else:
            graph.graph.node.append(node)
    tensors: dict[str, Tensor] = {}
    axes = {layer.weight: layer.axis for layer in model.layers}
    for name, tensor in model.tensors.items():
        tensors |= _halves(name, tensor, factors[name], axes[name]) if name in factors else {name: tensor}
    layers: list[Layer] = []
    for layer in model.layers:
        layers += _two(layer) if layer.weight in factors else [layer]
    files = dict(model.files) | {GRAPH: graph.SerializeToString(deterministic=True)}
    return dataclasses.replace(model, files=files, tensors=tensors, layers=tuple(layers))


def projected(model: Model, matrix: Array) -> Model:
    """The model whose vectors are multiplied by ``matrix``, float32 [dim after, dim before]."""
    graph = _graph(model)
    write = _Writer(graph)
    names = (PROJECTION if number == 1 else f"{PROJECTION}{number}" for number in itertools.count(1))
    name = next(name for name in names if f"{name}.weight" not in model.tensors)
    source = write.fresh(OUTPUT)
    _rename_(graph.graph, {OUTPUT: source})
    if model.spec.normalised:
        value = write.node("MatMul", [source, f"{name}.weight"])
        norm = write.node("Max", [write.reduce("ReduceL2", value, -1, keepdims=1), write.constant(TINY)])
        write.node("Div", [value, norm], OUTPUT)
    else:
        write.node("MatMul", [source, f"{name}.weight"], OUTPUT)
    del graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ("batch", len(matrix))))
    return dataclasses.replace(
        model,
        spec=msgspec.structs.replace(model.spec, dim=len(matrix)),
        files=dict(model.files) | {GRAPH: graph.SerializeToString(deterministic=True)},
        tensors=dict(model.tensors) | {f"{name}.weight": np.ascontiguousarray(matrix.T, np.float32)},
        layers=(*model.layers, Layer(name=name, kind="linear", weight=f"{name}.weight", axis=1)),
    )


def _is_factor(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether another tensor is the other half."""
    other = {FIRST: SECOND, SECOND: FIRST}.get(name[-2:])
    return other is not None and name[:-2] + other in tensors


def _is_plain(node: Any, weight: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the node multiplies its input with that weight and does no more."""
    if len(node.input) < 2 or node.input[1] != weight or list(node.input).count(weight) != 1:
        return False
    if _linear_axis(node, tensors) is not None:
        return True
    return _is_convolution(node, tensors) and _settings(node).get("group", 1) == 1


def _write_two_(write: _Writer, node: Any) -> None:
    """The node as two, the second with its bias and its output."""
    weight = node.input[1]
    kept = {name: value for name, value in _settings(node).items() if node.op_type != "Conv" or name in WINDOW}
    first = {name: value for name, value in kept.items() if name not in ("alpha", "beta")}
    middle = write.node(node.op_type, [node.input[0], weight + FIRST], **first)
    last = write.copy(node)
    last.input[0], last.input[1] = middle, weight + SECOND
    if node.op_type == "Conv":
        places = len(kept.get("kernel_shape", ()))
        del last.attribute[:]
        last.attribute.extend([helper.make_attribute("kernel_shape", [1] * places)] if places else [])


def _halves(name: str, tensor: Tensor, factors: tuple[Array, Array], axis: int) -> dict[str, Tensor]:
    """Both factors in the layout of the weight that they replace."""
    assert not isinstance(tensor, QuantizedTensor)
    second, first = (np.ascontiguousarray(factor.astype(tensor.dtype)) for factor in factors)
    if len(tensor.shape) > 2:
        first = first.reshape(-1, *tensor.shape[1:])
        second = second.reshape(*second.shape, *[1] * (len(tensor.shape) - 2))
    elif axis == 1:
        first, second = (np.ascontiguousarray(factor.T) for factor in (first, second))
    return {name + FIRST: first, name + SECOND: second}


def _two(layer: Layer) -> list[Layer]:
    change = msgspec.structs.replace
    return [
        change(layer, name=layer.name + FIRST, weight=layer.weight + FIRST, bias=msgspec.UNSET),
        change(layer, name=layer.name + SECOND, weight=layer.weight + SECOND),
    ]
