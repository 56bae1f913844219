"""One operator for an attention whose three projections share a rounded input: ONNX Runtime's QAttention.

It multiplies once instead of three times and reads the padding mask as it stands, so short queries pay for fewer
operators. The projections' integers stay separate constants; they are joined when the runtime loads the graph.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto

from slimseek.backends._editor import Editor, finish

PRODUCT = "MatMulIntegerToFloat"
SURELY_MASKED = -1e4
"""An addition to the scores of at most this much hides a token as QAttention's own mask does."""


def join_projections(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Replace each MultiHeadAttention over three static int8 products of one input, under a padding mask.

    Args:
        graph: lowered for ONNX Runtime. Attention with any other mask or position bias stays as it is.
    """
    editor = Editor(graph.graph)
    made = {output: node for node in graph.graph.node for output in node.output}
    for node in graph.graph.node:
        products = _products(node, made)
        mask = _padding_mask(node, made, editor) if products else None
        if not products or mask is None:
            editor.nodes.append(node)
            continue
        _write(editor, node, products, mask)
    return finish(graph, editor)


def _products(attention: Any, made: dict[str, Any]) -> list[Any]:
    """The products that make query, key and value, where they can be joined; else nothing."""
    settings = {attribute.name for attribute in attention.attribute}
    if attention.op_type != "MultiHeadAttention" or settings != {"num_heads"} or any(attention.input[3:5]):
        return []
    products = [made.get(name) for name in attention.input[:3]]
    if len(products) < 3 or any(node is None or node.op_type != PRODUCT or len(node.input) < 7 for node in products):
        return []
    shared = {(node.input[0], node.input[2], node.input[4]) for node in products}  # type: ignore[union-attr]
    return products if len(shared) == 1 else []


def _padding_mask(attention: Any, made: dict[str, Any], editor: Editor) -> str | None:
    """The graph's input of ones and zeros [batch, sequence] behind the scores' bias: (1 - mask) * very negative."""
    if len(attention.input) < 6:
        return None
    node = made.get(attention.input[5])
    if node is not None and node.op_type == "Expand":
        node = made.get(node.input[0])
    if node is None or node.op_type != "Mul" or not _is_at_most(editor, node.input[1], SURELY_MASKED):
        return None
    node = made.get(node.input[0])
    if node is None or node.op_type != "Unsqueeze":
        return None
    node = made.get(node.input[0])
    if node is None or node.op_type != "Sub" or not _is_at_most(editor, node.input[0], 1.0):
        return None
    node = made.get(node.input[1])
    return node.input[0] if node is not None and node.op_type == "Cast" and node.input[0] not in made else None


def _is_at_most(editor: Editor, name: str, limit: float) -> bool:
    constant = editor.constants.get(name)
    return constant is not None and bool((onnx.numpy_helper.to_array(constant) <= limit).all())


def _write(editor: Editor, attention: Any, products: list[Any], mask: str) -> None:
    def joined(position: int, axis: int) -> str:
        return editor.node("Concat", [node.input[position] for node in products], axis=axis)

    [heads] = [attribute.i for attribute in attention.attribute]
    first = products[0]
    inputs = [
        first.input[0],
        joined(1, 1),
        joined(6, 0),
        first.input[2],
        joined(3, 0),
        editor.node("Cast", [mask], to=TensorProto.INT32),
        first.input[4],
        joined(5, 0),
    ]
    editor.contrib("QAttention", inputs, attention.output[0], num_heads=heads)
