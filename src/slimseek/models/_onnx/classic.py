"""Classic machine learning in a graph (domain ai.onnx.ml), brought to operators that every runtime has."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from slimseek.models._onnx.graph import _settings, _Writer

DOMAIN = "ai.onnx.ml"
TINY = np.float32(1e-30)
POST_TRANSFORMS = {b"NONE": "Identity", b"LOGISTIC": "Sigmoid", b"SOFTMAX": "Softmax"}
NORMS = {"L1": "ReduceL1", "L2": "ReduceL2"}


def _make_classic_standard_(model: onnx.ModelProto) -> None:
    """Scalers, normalizers, linear models become arithmetic; ZipMaps hand their table of numbers on.

    Whatever else is of this domain (trees, text, labels) stays; ONNX Runtime runs it.
    """
    graph = model.graph
    maps = {node.output[0] for node in graph.node if _is(node, "ZipMap")}
    for value in graph.output:
        if value.name in maps:
            value.type.CopyFrom(onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    if not any(node.domain == DOMAIN for node in graph.node):
        return
    write = _Writer(model)
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if not _write_standard(write, node):
            graph.node.append(node)


def _write_standard(write: _Writer, node: Any) -> bool:
    """Whether the node was written by standard operators."""
    settings = _settings(node)
    if _is(node, "ZipMap"):
        write.node("Identity", [node.input[0]], node.output[0])
    elif _is(node, "Scaler"):
        value = write.node("Cast", [node.input[0]], to=TensorProto.FLOAT)
        offset, scale = (write.constant(np.array(settings[name], np.float32)) for name in ("offset", "scale"))
        write.node("Mul", [write.node("Sub", [value, offset]), scale], node.output[0])
    elif _is(node, "Normalizer") and settings.get("norm", b"MAX").decode() in NORMS:
        norm = write.reduce(NORMS[settings["norm"].decode()], node.input[0], -1, keepdims=1)
        write.node("Div", [node.input[0], write.node("Max", [norm, write.constant(TINY)])], node.output[0])
    elif _is(node, "LinearRegressor") and settings.get("post_transform", b"NONE") == b"NONE":
        _write_gemm(write, node, settings, settings.get("targets", 1), node.output[0])
    else:
        return _write_classifier(write, node, settings)
    return True


def _write_classifier(write: _Writer, node: Any, settings: dict[str, Any]) -> bool:
    """Whether the node is a linear classifier with scores of its own for each class. Its labels stay with it, which
    leaves the graph when the vector does not need them.
    """
    classes = len(settings.get("classlabels_ints", ())) or len(settings.get("classlabels_strings", ()))
    after = POST_TRANSFORMS.get(settings.get("post_transform", b"NONE"))
    if not _is(node, "LinearClassifier") or len(settings.get("intercepts", ())) != classes or after is None:
        return False
    scores = _write_gemm(write, node, settings, classes)
    write.node(after, [scores], node.output[1], **({"axis": 1} if after == "Softmax" else {}))
    labels = write.copy(node)
    labels.output[1] = write.fresh(node.output[1])
    return True


def _write_gemm(write: _Writer, node: Any, settings: dict[str, Any], rows: int, output: str = "") -> str:
    weight = np.array(settings["coefficients"], np.float32).reshape(rows, -1)
    bias = np.array(settings.get("intercepts", [0.0] * rows), np.float32)
    value = write.node("Cast", [node.input[0]], to=TensorProto.FLOAT)
    return write.node("Gemm", [value, write.constant(weight), write.constant(bias)], output, transB=1)


def _is(node: Any, kind: str) -> bool:
    return bool(node.op_type == kind and node.domain == DOMAIN)
