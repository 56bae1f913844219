"""A graph at one size of its free axis: every shape known, and what no input changes computed.

Two sizes tell which constants and shapes depend on that axis, so that one LiteRT graph, which holds no arithmetic on
shapes, serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper, shape_inference

from slimseek.errors import UsageError
from slimseek.schema import Array

LARGEST_KNOWN = 4096
"""Values in a constant that shape inference is given; it only reads those of shapes and axes."""
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sized:
    """A graph at one size.

    Attributes:
        nodes: those that an input changes, in order.
        constants: initializers and computed constants by name.
        shapes: of every value that has one.
    """

    nodes: tuple[Any, ...]
    constants: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]


def sized(graph: onnx.ModelProto, sizes: Mapping[str, int], kept: Collection[str]) -> Sized:
    """The graph with its symbolic axes at these sizes.

    Args:
        graph: as ``Family.to_onnx`` gives it.
        sizes: of each symbolic axis, by its name.
        kept: weights, by the names of their initializers: nothing is computed from them.

    Raises:
        UsageError: a shape stays unknown, since it depends on the values of an input.
    """
    bare, constants = _bare(graph, sizes)
    while True:
        inferred = shape_inference.infer_shapes(bare, data_prop=True)
        shapes = _shapes(inferred.graph) | {name: array.shape for name, array in constants.items()}
        left, found = [], False
        for node in bare.graph.node:
            values = _evaluated(node, constants, shapes, kept, bare)
            if values is None:
                left.append(node)
                continue
            found = True
            for name, array in zip(node.output, values, strict=True):
                constants[name] = array
                _declare(bare.graph, name, array)
        del bare.graph.node[:]
        bare.graph.node.extend(left)
        if not found:
            break
    for node in left:
        for name in (*node.input, *node.output):
            if name and name not in shapes:
                raise UsageError(
                    f"LiteRT takes no {node.op_type} here: the shape of {name} depends on values; deploy for "
                    f"onnxruntime instead"
                )
    return Sized(nodes=tuple(left), constants=constants, shapes=shapes)


def _bare(graph: onnx.ModelProto, sizes: Mapping[str, int]) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The graph without its constants' values, those of shapes aside, and all constants."""
    bare = onnx.ModelProto(ir_version=graph.ir_version, opset_import=graph.opset_import)
    bare.graph.name = "sized"
    bare.graph.node.extend(graph.graph.node)
    bare.graph.output.extend(helper.make_empty_tensor_value_info(value.name) for value in graph.graph.output)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    for value in graph.graph.input:
        if value.name in constants:
            continue
        bare.graph.input.append(value)
        for axis in bare.graph.input[-1].type.tensor_type.shape.dim:
            if not axis.HasField("dim_value"):
                axis.dim_value = sizes.get(axis.dim_param, 1)
    for name, array in constants.items():
        _declare(bare.graph, name, array)
    return bare, constants


def _declare(graph: onnx.GraphProto, name: str, array: Array) -> None:
    if array.size <= LARGEST_KNOWN:
        graph.initializer.append(numpy_helper.from_array(array, name))
        return
    graph.input.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape))


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Those that are known in full."""
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        axes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
            found[value.name] = tuple(axis.dim_value for axis in axes)
    return found


def _evaluated(
    node: Any, constants: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], kept: Collection[str],
    graph: onnx.ModelProto,
) -> list[Array] | None:  # fmt: skip
    """What the node gives, where no input of the graph changes it."""
    if node.op_type in ("Shape", "Size") and node.input[0] in shapes:
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        shape = shapes[node.input[0]]
        if node.op_type == "Size":
            return [np.array(math.prod(shape), np.int64)]
        return [np.array(shape[settings.get("start", 0) : settings.get("end", len(shape))], np.int64)]
    known = all((not name) or (name in constants and name not in kept) for name in node.input)
    if not known or node.op_type in RANDOM or any(attribute.HasField("g") for attribute in node.attribute):
        return None
    return _computed(node, constants, graph)


def _computed(node: Any, constants: Mapping[str, Array], graph: onnx.ModelProto) -> list[Array]:
    """By ONNX Runtime, as a graph of this one node."""
    names = [name for name in dict.fromkeys(node.input) if name]
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(constants[name].dtype), constants[name].shape
        )
        for name in names
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    single = helper.make_model(
        helper.make_graph([node], "one", inputs, outputs),
        opset_imports=graph.opset_import,
        ir_version=graph.ir_version,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(single.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, {name: constants[name] for name in names})]
