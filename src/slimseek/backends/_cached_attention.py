"""Attention written in standard operators as one operator of ONNX Runtime, keys and values of earlier tokens included.

MultiHeadAttention does not hold the scores of all places at once, takes rows as the projections leave them, and puts
new keys and values behind the earlier ones by itself.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import numpy_helper

from slimseek.backends._editor import Editor, finish

TO_HEADS = [0, 2, 1, 3]


class _Values:
    """Who makes a value, and what constants hold."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.made = {output: node for node in graph.node for output in node.output}
        self.constants = {constant.name: constant for constant in graph.initializer}
        self.inputs = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
                       for value in graph.input}  # fmt: skip

    def source(self, name: str, kind: str) -> Any:
        """The node of this kind that makes a value, or ``None``."""
        node = self.made.get(name)
        return node if node is not None and node.op_type == kind else None

    def rows(self, name: str) -> tuple[str, int] | None:
        """The rows [batch, n, width] that a value has cut into heads, and how many heads; ``None`` where it has not."""
        turned = self.source(name, "Transpose")
        if turned is None or list(turned.attribute[0].ints) != TO_HEADS:
            return None
        apart = self.source(turned.input[0], "Reshape")
        if apart is None or apart.input[1] not in self.constants:
            return None
        shape = numpy_helper.to_array(self.constants[apart.input[1]]).tolist()
        return (apart.input[0], shape[2]) if len(shape) == 4 and shape[:2] == [0, 0] else None


def joined(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with each attention that is written as transformers are: scaled queries, keys, softmax, values.

    Keys and values may be projections, inputs of the graph with a fixed number of places, or an input and projections
    behind it, which must also be outputs of the graph under a mask that hides what comes later.
    """
    values, editor = _Values(graph.graph), Editor(graph.graph)
    outputs = {value.name for value in graph.graph.output}
    written: set[str] = set()
    for node in graph.graph.node:
        if node.op_type == "Reshape" and not written.intersection(node.output):
            found = _attention(node, values, outputs)
            if found is not None:
                inputs, names, settings = found
                _write(editor, inputs, names, settings)
                written.update(names)
                continue
        editor.nodes.append(node)
    # A node that an attention has taken the place of still stands before it; what it gave is given anew behind it.
    editor.nodes = [node for node in editor.nodes if _is_new(node) or not written.intersection(node.output)]
    return finish(graph, editor)


def _is_new(node: Any) -> bool:
    return bool(node.op_type == "MultiHeadAttention")


def _write(editor: Editor, inputs: list[str], names: list[str], settings: dict[str, Any]) -> None:
    name = f"node_{names[0]}"
    node = onnx.helper.make_node("MultiHeadAttention", inputs, names, name=name, domain="com.microsoft", **settings)
    editor.nodes.append(node)


def _attention(
    last: Any, values: _Values, outputs: set[str]
) -> tuple[list[str], list[str], dict[str, Any]] | None:  # fmt: skip
    """Inputs, outputs and settings of the operator that computes what this Reshape gives; ``None`` where none does."""
    turned = values.source(last.input[0], "Transpose")
    product = turned and values.source(turned.input[0], "MatMul")
    softmax = product and values.source(product.input[0], "Softmax")
    if not softmax:
        return None
    masked = values.source(softmax.input[0], "Add")
    scores = values.source(masked.input[0] if masked else softmax.input[0], "MatMul")
    keys = scores and values.source(scores.input[1], "Transpose")
    queries = scores and values.rows(scores.input[0])
    scaled = queries and values.source(queries[0], "Mul")
    if not keys or not scaled or scaled.input[1] not in values.constants:
        return None
    scale = numpy_helper.to_array(values.constants[scaled.input[1]])
    settings = {"num_heads": queries[1], "scale": float(scale), "unidirectional": int(masked is not None)}
    found = [_read(name, values, outputs) for name in (keys.input[0], product.input[1])]
    if any(one is None for one in found) or (masked is not None) != all(one and one[1] for one in found):
        return None
    (key, past_key), (value, past_value) = found[0] or ("", ""), found[1] or ("", "")
    if not past_key:
        return [scaled.input[0], key, value], [last.output[0]], settings
    inputs = [scaled.input[0], key, value, "", "", "", past_key, past_value]
    return inputs, [last.output[0], keys.input[0], product.input[1]], settings


def _read(name: str, values: _Values, outputs: set[str]) -> tuple[str, str] | None:
    """New rows, or an input that holds heads, and the input that stands before them (``""`` for none)."""
    if name in values.inputs:
        return name, ""
    plain = values.rows(name)
    if plain is not None:
        return plain[0], ""
    whole = values.source(name, "Concat")
    new = values.rows(whole.input[1]) if whole is not None and len(whole.input) == 2 else None
    return (new[0], whole.input[0]) if new and name in outputs and whole.input[0] in values.inputs else None
