"""Constants of many zeros as a mask and their values, spread by standard operators.

A bit of the mask is a place; the value in it has the number of bits set up to there. Runtimes compute this once, when
they load the graph, and then hold the dense constant. OpenVINO would keep a CumSum and compute it with every query:
sums within a block are products with a triangle of ones instead, and each block's first number is stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from slimseek import sparse
from slimseek.backends._editor import Editor, inner_nodes
from slimseek.schema import Array

BITS = {
    TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16, TensorProto.INT8: 8, TensorProto.UINT8: 8,
    TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT8E5M2: 8, TensorProto.INT4: 4, TensorProto.UINT4: 4,
}  # fmt: skip
WIDENED = {
    TensorProto.INT4: TensorProto.INT8, TensorProto.UINT4: TensorProto.UINT8,
    TensorProto.FLOAT8E4M3FN: TensorProto.FLOAT16, TensorProto.FLOAT8E5M2: TensorProto.FLOAT16,
}  # fmt: skip
"""Types that not every runtime looks up, and those that hold the same values."""
NODES = 12288
"""Bytes that must be saved beyond those of the nodes that spread a constant, and of the tables that all share."""
SHARED = "slim_"
"""What the names of constants begin with that are no weights, such as the tables that all masks share."""
BLOCK = 64
"""Bytes of a mask whose places are counted together; their first number takes four more."""


def thinned(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with constants of many zeros stored without them, to the last bit once it is loaded.

    Four bits stay as they are where something else than a Cast reads them: a runtime keeps those packed in memory,
    and spread they would take eight.
    """
    wide = _read_by_others(graph.graph)
    editor = Editor(graph.graph)
    for constant in graph.graph.initializer:
        if constant.data_type not in BITS or constant.name.startswith(SHARED):
            continue
        if constant.data_type in WIDENED and constant.name in wide:
            continue
        places = sparse.occupied(numpy_helper.to_array(constant))
        if pays(places, BITS[constant.data_type]):
            _spread(editor, editor.constants.pop(constant.name), places)
    if not editor.nodes:
        return graph
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    del result.graph.initializer[:], result.graph.node[:]
    result.graph.initializer.extend(editor.constants.values())
    result.graph.node.extend([*editor.nodes, *graph.graph.node])
    return result


def pays(places: Array, bits: int) -> bool:
    """Whether a graph with only the values in ``places``, bool [n], of so many bits each, is a tenth smaller there."""
    dense, thin = (places.size * bits + 7) // 8, sparse.stored_bytes(places.size, int(np.count_nonzero(places)), bits)
    return thin + NODES <= sparse.LARGEST_SHARE * dense


def numbered(editor: Editor, name: str, places: Array) -> str:
    """Int32 [n]: the number of the value in each place, from 1, and 0 in places that hold none."""
    stored = sparse.mask(places)
    blocks = np.pad(stored, (0, -len(stored) % BLOCK)).reshape(-1, BLOCK)
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    counts = bits.sum(1, dtype=np.int32)[blocks].sum(1)
    first = editor.constant(f"{name}.blocks_first", (np.cumsum(counts) - counts).astype(np.int32)[:, None])
    at = editor.node("Cast", [editor.constant(f"{name}.mask", blocks)], to=TensorProto.INT32)

    def of_bytes(table: Array, kind: int = TensorProto.INT32) -> str:
        return editor.node("Gather", [_constant(editor, table.astype(np.uint8), kind), at])

    triangle = _constant(editor, np.triu(np.ones((BLOCK, BLOCK), np.uint8), 1), TensorProto.FLOAT)
    before = editor.node("MatMul", [of_bytes(bits.sum(1), TensorProto.FLOAT), triangle])
    before = editor.node("Add", [editor.node("Cast", [before], to=TensorProto.INT32), first])
    before = editor.node("Unsqueeze", [before, _constant(editor, np.array([-1], np.int64))])
    numbers = editor.node("Add", [before, of_bytes(bits.cumsum(1))])
    numbers = editor.node("Mul", [numbers, of_bytes(bits)])
    numbers = editor.node("Reshape", [numbers, _constant(editor, np.array([-1], np.int64))])
    ends = (_constant(editor, np.array([end], np.int64)) for end in (0, places.size, 0))
    return editor.node("Slice", [numbers, *ends])


def _read_by_others(graph: onnx.GraphProto) -> set[str]:
    """Names of the values that a node other than a Cast reads, those inside of branches included."""

    def every() -> Iterable[Any]:
        for node in graph.node:
            yield node
            yield from inner_nodes(node)

    return {name for node in every() if node.op_type != "Cast" for name in node.input}


def _spread(editor: Editor, constant: onnx.TensorProto, places: Array) -> None:
    """Nodes whose last output has the constant's name and values."""
    name, shape = constant.name, tuple(constant.dims)
    held = numpy_helper.to_array(constant).reshape(-1)[places]
    values = editor.constant(f"{name}.values", np.concatenate([np.zeros(1, held.dtype), held]))
    if constant.data_type in WIDENED:
        values = editor.node("Cast", [values], to=WIDENED[constant.data_type])
    numbers = numbered(editor, name, places)
    numbers = editor.node("Reshape", [numbers, _constant(editor, np.array(shape, np.int64))])
    editor.node("Gather", [values, numbers], name)


def _constant(editor: Editor, array: Array, kind: int | None = None) -> str:
    """A constant named after its values, so that all masks share it; ``kind`` is the ONNX type to widen it to."""
    digest = hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()
    stored = editor.constant(f"{SHARED}{array.dtype.name}_{digest}", array)
    return stored if kind is None else editor.node("Cast", [stored], to=kind)
