"""The float graph with the contrib operators of ONNX Runtime: attention, skip layer norm, bias GELU."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import onnx_ir
import onnxruntime
from onnx import helper
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
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimised, _ = optimize_for_ort(onnx_ir.from_proto(plain))
        graph = onnx_ir.to_proto(optimised)
    except Exception:  # any graph that the rewriter does not expect runs unfused
        return plain
    graph.ir_version = min(graph.ir_version, IR_VERSION)
    _split_bias_gelu(graph.graph)
    return graph if _runs(graph, model) else plain


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
