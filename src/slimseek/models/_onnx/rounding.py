"""Rounding of the values around convolutions: marks of QuantizeLinear and DequantizeLinear on the graph's values.

A value that is rounded is rounded for all that read it, so that runtimes can compute sums, pools and the next
convolution on integers too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from slimseek.models._onnx.graph import _is_convolution, _uses
from slimseek.schema import OUTPUT_RANGE, ActivationQuant, Tensor

ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution in the graph: names of its weight, its input, and its result after the activation behind it."""

    weight: str
    input: str
    end: str


def convolutions(graph: onnx.GraphProto, tensors: Mapping[str, Tensor]) -> Iterator[Convolution]:
    """Those of the main graph whose weight is one of the tensors and whose input is computed."""
    uses = Counter(name for node in graph.node for name in _uses(node))
    uses.update(value.name for value in graph.output)
    readers = {name: node for node in graph.node for name in node.input}
    for node in graph.node:
        if not _is_convolution(node, tensors) or node.input[0] in tensors:
            continue
        end = node.output[0]
        reader = readers.get(end)
        if reader is not None and uses[end] == 1 and reader.op_type in ACTIVATIONS:
            end = reader.output[0]
        yield Convolution(weight=node.input[1], input=node.input[0], end=end)


def round_convolutions_(model: onnx.ModelProto, activations: Mapping[str, ActivationQuant]) -> None:
    """Mark the inputs and results of the convolutions that have a range."""
    graph = model.graph
    known = {name.removesuffix(OUTPUT_RANGE): np.zeros((1, 1, 1), np.float32) for name in activations}
    found = list(convolutions(graph, known))
    values = {one.end: activations[one.weight + OUTPUT_RANGE]
              for one in found if one.weight + OUTPUT_RANGE in activations}  # fmt: skip
    values |= {one.input: activations[one.weight] for one in found if one.weight in activations}
    outputs = {value.name for value in graph.output}
    values = {name: how for name, how in values.items() if name not in outputs}
    marked: dict[str, str] = {}
    nodes = [mark for value in graph.input if value.name in values
             for mark in _mark(graph, value.name, values[value.name], marked)]  # fmt: skip
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = marked.get(name, name)
        nodes.append(node)
        for name in node.output:
            if name in values:
                nodes += _mark(graph, name, values[name], marked)
    del graph.node[:]
    graph.node.extend(nodes)


def _mark(
    graph: onnx.GraphProto, name: str, how: ActivationQuant, marked: dict[str, str]
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The two nodes that round a value; what reads it from here on reads the second one's output."""
    limits = [f"{name}.rounding_scale", f"{name}.rounding_zero_point"]
    graph.initializer.append(numpy_helper.from_array(np.float32(how.scale), limits[0]))
    graph.initializer.append(numpy_helper.from_array(np.uint8(how.zero_point), limits[1]))
    marked[name] = f"{name}.rounded"
    return (
        helper.make_node("QuantizeLinear", [name, *limits], [f"{name}.integers"], name=f"{name}.quantize"),
        helper.make_node("DequantizeLinear", [f"{name}.integers", *limits], [marked[name]], name=f"{name}.dequantize"),
    )
