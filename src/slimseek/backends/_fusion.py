"""The float graph with the contrib operators of ONNX Runtime: attention and GELU."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from onnx import helper, numpy_helper
from onnxscript.rewriter.ort_fusions import optimize_for_ort

from slimseek import plugins
from slimseek.backends._editor import merge_equal_
from slimseek.inputs.reader import reader
from slimseek.inputs.samples import examples
from slimseek.models._export import IR_VERSION
from slimseek.schema import Model

LARGEST_SINGLE_FILE = 2**31 - 1
SMALLEST_BESIDE = 1024
"""Bytes of a constant from which on it moves into a data file."""


def fused(model: Model) -> onnx.ModelProto:
    """The model's float graph after onnxscript's fusions for ONNX Runtime; the plain graph where they fail."""
    plain = plugins.load("models", model.spec.family)().to_onnx(model)
    _add_what_layers_share_first_(plain.graph)
    try:
        graph = _optimised(plain)
    except Exception:  # any graph that the rewriter does not expect runs unfused
        return plain
    graph.ir_version = min(graph.ir_version, IR_VERSION)
    return graph if _runs(graph, model) else plain


def _optimised(plain: onnx.ModelProto) -> onnx.ModelProto:
    """The graph by onnxscript's rules. Weights of products are unknown to them, so that none is joined with others."""
    whole = plain.graph
    weights = {node.input[1] for node in whole.node if node.op_type == "MatMul"} - {one.name for one in whole.input}
    held = [constant for constant in whole.initializer if constant.name in weights]
    inputs = [*whole.input, *(helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in held)]
    known = helper.make_model(
        helper.make_graph(
            whole.node, whole.name, inputs, whole.output, value_info=whole.value_info,
            initializer=[constant for constant in whole.initializer if constant.name not in weights],
        ),
        ir_version=plain.ir_version, opset_imports=plain.opset_import, functions=plain.functions,
    )  # fmt: skip
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = onnx_ir.to_proto(optimize_for_ort(onnx_ir.from_proto(known))[0])
    given = [one for one in graph.graph.input if one.name not in weights]
    del graph.graph.input[:]
    graph.graph.input.extend(given)
    graph.graph.initializer.extend(held)
    _split_bias_gelu(graph.graph)
    _split_skip_norm(graph.graph)
    _split_attention(graph.graph)
    return graph


def _runs(graph: onnx.ModelProto, model: Model) -> bool:
    """Whether ONNX Runtime computes the graph: a fused attention may give another rank than the Reshape it replaced.

    One that is too large for a single file is not tried.
    """
    if graph.ByteSize() > LARGEST_SINGLE_FILE:
        return True
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, reader(model.spec, model.files)(examples(model.spec)[:2]))
    except Exception:  # ONNX Runtime raises its own kinds for a graph that it cannot load or run
        return False
    return True


def _add_what_layers_share_first_(graph: onnx.GraphProto) -> None:
    """Scores + position bias + mask, in this order in every layer, as scores + (position bias + mask): that sum is the
    same in all of them, computed once, and a fused attention takes it.
    """
    made = {node.output[0]: node for node in graph.node}
    uses = Counter(name for node in graph.node for name in node.input)
    found: dict[tuple[str, str], list[tuple[onnx.NodeProto, onnx.NodeProto]]] = {}
    for node in graph.node:
        outer = made.get(node.input[0]) if node.op_type == "Softmax" else None
        inner = made.get(outer.input[0]) if outer is not None and outer.op_type == "Add" else None
        if outer is not None and inner is not None and inner.op_type == "Add" and uses[inner.output[0]] == 1:
            found.setdefault((inner.input[1], outer.input[1]), []).append((inner, outer))
    for (bias, mask), layers in found.items():
        if len(layers) < 2:
            continue
        first, shared = layers[0][0], f"{bias}.{mask}"
        for inner, outer in layers:
            outer.input[:] = [inner.input[0], shared]
        first.input[:], first.output[:] = [bias, mask], [shared]
        for inner, _ in layers[1:]:
            graph.node.remove(inner)


def _split_attention(graph: onnx.GraphProto) -> None:
    """Attention as its three products and MultiHeadAttention: each weight keeps the name of its tensor."""
    made = {node.output[0]: node for node in graph.node}
    constants = {constant.name: constant for constant in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    joined: set[str] = set()
    for node in graph.node:
        weights = made.get(node.input[1]) if node.op_type == "Attention" else None
        remembers = any(node.input[4:5])
        if remembers or weights is None or weights.op_type != "Concat" or node.input[2] not in constants:
            nodes.append(node)
            continue
        widths = [constants[weight].dims[1] for weight in weights.input]
        biases = np.split(numpy_helper.to_array(constants[node.input[2]]), np.cumsum(widths)[:-1])
        inputs = []
        for weight, bias in zip(weights.input, biases, strict=True):
            product, added, name = (f"{node.output[0]}.{weight}.{end}" for end in ("product", "biased", "bias"))
            graph.initializer.append(numpy_helper.from_array(bias, name))
            nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], name=f"node_{product}"))
            nodes.append(helper.make_node("Add", [product, name], [added], name=f"node_{added}"))
            inputs.append(added)
        found = helper.make_node("MultiHeadAttention", [*inputs, "", *node.input[3:4], *node.input[5:6]], node.output,
                                 name=node.name, domain=node.domain)  # fmt: skip
        found.attribute.extend(one for one in node.attribute if one.name in ("num_heads", "scale"))
        nodes.append(found)
        joined.add(weights.output[0])
    read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.output[0] not in joined - read)


def _split_bias_gelu(graph: onnx.GraphProto) -> None:
    """BiasGelu as Add and Gelu: an eight-bit product takes the bias; after a float product the runtime joins them."""
    nodes = []
    for node in graph.node:
        if node.op_type != "BiasGelu":
            nodes.append(node)
            continue
        added = f"{node.output[0]}.biased"
        nodes.append(helper.make_node("Add", node.input, [added], name=f"node_{added}"))
        nodes.append(helper.make_node("Gelu", [added], node.output, name=node.name, domain=node.domain))
    del graph.node[:]
    graph.node.extend(nodes)


def _split_skip_norm(graph: onnx.GraphProto) -> None:
    """SkipLayerNormalization as Add of the bias, which a product takes, Sum and LayerNormalization: together they take
    less time than the one, whose kernel is not vectorised. An Add in the place of Sum the runtime would join again.
    """
    nodes, read = [], {name for node in graph.node for name in node.input}
    for node in graph.node:
        if node.op_type != "SkipLayerNormalization" or not read.isdisjoint(filter(None, node.output[1:3])):
            nodes.append(node)
            continue
        value, skip, weight, *more = node.input
        if any(more[1:]):
            added = f"{node.output[0]}.biased"
            nodes.append(helper.make_node("Add", [value, more[1]], [added], name=f"node_{added}"))
            value = added
        total = next(filter(None, node.output[3:]), f"{node.output[0]}.sum")
        nodes.append(helper.make_node("Sum", [value, skip], [total], name=f"node_{total}"))
        norm = helper.make_node(
            "LayerNormalization", [total, weight, *more[:1]], node.output[:1], name=node.name, axis=-1
        )
        norm.attribute.extend(one for one in node.attribute if one.name == "epsilon")
        nodes.append(norm)
    del graph.node[:]
    graph.node.extend(nodes)


def write(graph: onnx.ModelProto, path: Path) -> None:
    """One file, with a data file beside it only above the 2 GB that one file can hold; equal constants are stored
    once.
    """
    merge_equal_(graph.graph)
    if graph.ByteSize() > LARGEST_SINGLE_FILE:
        for constant in graph.graph.initializer:
            if len(constant.raw_data) >= SMALLEST_BESIDE:
                onnx.external_data_helper.set_external_data(constant, f"{path.name}.data")
    onnx.save(graph, path)
