"""What ExecuTorch's kernels take: each weight of an artifact in one of those forms, or refused.

XNNPACK, which ExecuTorch computes with on a CPU, has products of float or row-wise rounded inputs with signed weights
of eight or four bits, one scale a channel, or four bits in groups of a multiple of 32, and with weights of 16 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from slimseek.backends._editor import Editor
from slimseek.backends._lowering import Linear, lower
from slimseek.errors import UsageError
from slimseek.integers import dequantize, is_integer, quantize
from slimseek.schema import Array, Model, QuantizedTensor, QuantSpec, Tensor

DOMAIN = "slimseek"
LINEAR, TABLE = "Linear", "Table"
BLOCK = 32
"""Groups of four-bit weights have a multiple of so many values in XNNPACK."""
WORTH_KEEPING = 4096
"""Values of a weight from which on it is a defect to store it as float32 in the place of its integers."""
OTHER_TARGET = "deploy for onnxruntime instead"


def taken(model: Model) -> Model:
    """The model with every weight in a form that the runtime has: what differs is rounded again to eight bits a
    channel, bfloat16 becomes float16.
    """
    kinds = {layer.weight: layer.kind for layer in model.layers}
    tensors = {
        name: _taken(tensor, kinds.get(name, ""), name in model.activations) for name, tensor in model.tensors.items()
    }
    return dataclasses.replace(model, tensors=tensors)


def changed(before: Tensor, after: Tensor) -> bool:
    """Whether a weight was rounded again."""
    return isinstance(before, QuantizedTensor) and before is not after


def _taken(tensor: Tensor, kind: str, rounded: bool) -> Tensor:
    if not isinstance(tensor, QuantizedTensor):
        return _half(tensor) if tensor.dtype.name == "bfloat16" else tensor
    spec = tensor.spec
    if is_integer(tensor):
        whole = spec.granularity != "group"
        if kind == "linear" and len(tensor.shape) == 2 and (whole or (rounded and has_groups(tensor))):
            return tensor
        if kind == "embedding" and spec.axis == 0:
            return tensor
        if whole and spec.bits == 8 and spec.symmetric:
            return tensor
    return quantize(dequantize(tensor), QuantSpec(bits=8, granularity="channel", axis=spec.axis))


def has_groups(tensor: QuantizedTensor) -> bool:
    """Whether XNNPACK's four-bit groups hold these."""
    size = tensor.spec.group_size or 0
    width = tensor.integers.size // max(tensor.shape[tensor.spec.axis], 1)
    return size > 0 and tensor.spec.bits <= 4 and size % BLOCK == 0 and width % size == 0


def _half(tensor: Array) -> Array:
    wide = tensor.astype(np.float32)
    return wide.astype(np.float16) if not wide.size or np.abs(wide).max() < 6e4 else wide


def lowered(graph: onnx.ModelProto, model: Model) -> onnx.ModelProto:
    """The float graph with nodes of our own for linear layers and tables of integers, which name their weight.

    Args:
        graph: as ``Family.to_onnx`` gives it for ``model``.
        model: as :func:`taken` gives it.
    """
    check_convolutions(graph, model)
    return lower(graph, model, _linear, _table)


def _linear(editor: Editor, layer: Linear) -> None:
    inputs = [layer.input, *([layer.bias] if layer.bias else [])]
    editor.node(LINEAR, inputs, layer.output, DOMAIN, weight=layer.name, rounded=int(layer.activation is not None))


def _table(editor: Editor, name: str, table: QuantizedTensor, indices: str, output: str) -> bool:
    if table.spec.axis != 0:
        return False
    editor.node(TABLE, [indices], output, DOMAIN, weight=name)
    return True


def check_convolutions(graph: onnx.ModelProto, model: Model) -> None:
    """Refuse convolutions of small weights and float inputs, which neither XNNPACK nor the portable kernels have.

    Raises:
        UsageError: names the first.
    """
    for node in graph.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose"):
            continue
        tensor = model.tensors.get(node.input[1])
        small = isinstance(tensor, QuantizedTensor) or (tensor is not None and tensor.dtype == np.float16)
        if small and node.input[1] not in model.activations:
            raise UsageError(
                f"{node.input[1]}: ExecuTorch has convolutions of float32 weights, or of eight-bit weights and rounded "
                f"inputs; round them by quantize.activations_int (mode static), or {OTHER_TARGET}"
            )


def check_reached(graph: onnx.ModelProto, model: Model, used: Mapping[str, Any]) -> None:
    """Refuse integers that the graph would only use after they became float32 constants.

    Args:
        graph: the float graph.
        model: the integers.
        used: by name, the weights that kernels take as integers.

    Raises:
        UsageError: names the first.
    """
    named = {tensor.name.partition("#")[0] for tensor in graph.graph.initializer}
    for name, tensor in model.tensors.items():
        if isinstance(tensor, QuantizedTensor) and name in named - set(used) and tensor.integers.size >= WORTH_KEEPING:
            raise UsageError(
                f"{name}: ExecuTorch has no kernel that computes with the integers of this weight (it has them for "
                f"linear layers, convolutions and tables); skip it, or {OTHER_TARGET}"
            )
