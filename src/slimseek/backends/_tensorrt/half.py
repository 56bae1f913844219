"""Products of float16 weights in float16, which is what tensor cores are for; all between them stays float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from slimseek.inputs.reader import reader
from slimseek.inputs.samples import examples
from slimseek.schema import Model

PRODUCTS = ("MatMul", "Gemm", "Conv")
ITEMS = 8
MARGIN = 8
LARGEST = 65504 / MARGIN
"""Values that float16 is trusted with: an eighth of its largest number, since other items may have larger ones."""


def halved(graph: onnx.ModelProto, model: Model) -> onnx.ModelProto:
    """The graph with those products in float16 whose weight is stored so.

    Left in float32 are products whose inputs or results come near the largest float16 number in the built-in
    examples: beyond it they would become infinite.
    """
    constants = {constant.name for constant in graph.graph.initializer if constant.data_type == TensorProto.FLOAT16}
    widened = {node.output[0]: node.input[0] for node in graph.graph.node
               if node.op_type == "Cast" and node.input[0] in constants}  # fmt: skip
    found = [node for node in graph.graph.node if node.op_type in PRODUCTS and node.input[1] in widened]
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    if not found:
        return result
    small = {node.output[0] for node in found} - _wide(graph, found, model)
    nodes: list[Any] = []
    for node in result.graph.node:
        nodes += _in_half(node, widened) if node.output[0] in small else [node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def _in_half(node: Any, widened: dict[str, str]) -> list[Any]:
    """The product of float16 values, and a Cast of its result."""
    output, casts = node.output[0], []
    for position, name in enumerate(node.input):
        if position == 1:
            node.input[1] = widened[name]
        elif name:
            node.input[position] = f"{output}.half_{position}"
            casts.append(helper.make_node("Cast", [name], [node.input[position]], to=TensorProto.FLOAT16))
    node.output[0] = f"{output}.half"
    return [*casts, node, helper.make_node("Cast", [node.output[0]], [output], to=TensorProto.FLOAT)]


def _wide(graph: onnx.ModelProto, products: list[Any], model: Model) -> set[str]:
    """Results of the products that float16 cannot be trusted with; all of them where the examples do not run."""
    watched = sorted({name for node in products for name in (node.input[0], node.output[0])})
    try:
        largest = dict(zip(watched, _largest(graph, watched, model), strict=True))
    except Exception:  # ONNX Runtime raises its own kinds for a graph that it cannot load or run
        return {node.output[0] for node in products}
    return {node.output[0] for node in products
            if not max(largest[node.input[0]], largest[node.output[0]]) <= LARGEST}  # fmt: skip


def _largest(graph: onnx.ModelProto, watched: list[str], model: Model) -> list[float]:
    """The largest absolute number that each value has in built-in examples."""
    wider = onnx.ModelProto()
    wider.CopyFrom(graph)
    for number, name in enumerate(watched):
        wider.graph.node.append(helper.make_node("Abs", [name], [f"slim_abs_{number}"]))
        wider.graph.node.append(
            helper.make_node("ReduceMax", [f"slim_abs_{number}"], [f"slim_max_{number}"], keepdims=0)
        )
        wider.graph.output.append(helper.make_tensor_value_info(f"slim_max_{number}", TensorProto.FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(wider.SerializeToString(), options, providers=["CPUExecutionProvider"])
    read = reader(model.spec, model.files)
    names = [f"slim_max_{number}" for number in range(len(watched))]
    found = [session.run(names, read([item])) for item in examples(model.spec)[:ITEMS]]
    return [float(number) for number in np.max(found, axis=0)]
