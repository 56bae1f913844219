"""Weights that share values: places in a code book at their true width, looked up by standard operators.

Runtimes fold the look-up of a whole weight when they load the graph. A table stays at one byte a place: only the rows
that are looked up become floats.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from slimseek.backends._editor import Editor, scale_constant
from slimseek.backends._expansion import numbers, of_channels, packed
from slimseek.integers import matrix
from slimseek.schema import QuantizedTensor


def shared_values(editor: Editor, name: str, tensor: QuantizedTensor, transposed: bool) -> str:
    """Name of the float32 value in the tensor's shape, or ``transposed``; a constant once the graph is loaded."""
    axis, shape = (tensor.spec.axis if tensor.spec.granularity == "channel" else 0), tensor.shape
    places = _places(editor, name, tensor, TensorProto.INT32)
    codebook, books, entries = _codebook(editor, name, tensor)
    if books > 1:
        first = editor.constant(f"slim_books_{books}_{entries}", np.arange(books, dtype=np.int32)[:, None] * entries)
        places = editor.node("Add", [places, first])
    values = editor.node("Gather", [codebook, places])
    values = editor.node("Reshape", [values, numbers(editor, shape[axis], *shape[:axis], *shape[axis + 1 :])])
    order = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
    return editor.node("Transpose", [values], perm=order[::-1] if transposed else order)


def shared_rows(editor: Editor, name: str, tensor: QuantizedTensor, indices: str, output: str) -> bool:
    """Look up rows of a table [rows, width]; whether it could, which takes a code book for all or for each row."""
    if len(tensor.shape) != 2 or (tensor.spec.granularity == "channel" and tensor.spec.axis != 0):
        return False
    codebook, books, entries = _codebook(editor, name, tensor)
    places = editor.node("Gather", [_places(editor, name, tensor, TensorProto.UINT8), indices])
    places = editor.node("Cast", [places], to=TensorProto.INT32)
    if books > 1:
        size = editor.constant(f"slim_entries_{entries}", np.array(entries, np.int32))
        first = editor.node("Mul", [editor.node("Cast", [indices], to=TensorProto.INT32), size])
        places = editor.node("Add", [places, editor.node("Unsqueeze", [first, numbers(editor, -1)])])
    editor.node("Gather", [codebook, places], output)
    return True


def _places(editor: Editor, name: str, tensor: QuantizedTensor, kind: int) -> str:
    """The places [channels, values], the tensor's own rows where one code book is for all; of an ONNX integer type."""
    bits, whole = tensor.spec.bits, tensor.spec.granularity == "tensor"
    rows = tensor.integers.reshape(len(tensor.integers), -1) if whole else matrix(tensor)
    label = "places" if whole else of_channels("places", tensor)
    stored = packed(editor, f"{name}.{label}", rows, bits, signed=False)
    if bits < 8:  # not every runtime casts four bits to any type
        stored = editor.node("Cast", [stored], to=TensorProto.UINT8)
    return stored if kind == TensorProto.UINT8 else editor.node("Cast", [stored], to=kind)


def _codebook(editor: Editor, name: str, tensor: QuantizedTensor) -> tuple[str, int, int]:
    """The code books one behind the other as float32, how many they are, and the entries of one."""
    assert tensor.codebook is not None
    stored = scale_constant(editor, f"{name}.codebook", tensor.codebook.reshape(-1))
    return stored, len(tensor.codebook), tensor.codebook.shape[1]
