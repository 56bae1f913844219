"""PyTorch to ONNX: one graph with dynamic batch and length, whose initializers carry the tensors' names."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxslim
import torch
from onnx import numpy_helper

from slimseek.errors import UsageError, first_line
from slimseek.schema import Array, ModelSpec

OPSET = 21
IR_VERSION = 10
OUTPUT = "vector"


def export(
    network: torch.nn.Module, example: Mapping[str, torch.Tensor], spec: ModelSpec, tensors: Mapping[str, Array]
) -> onnx.ModelProto:
    """Export a network whose inputs are [batch, sequence] and whose output is [batch, dim].

    Args:
        network: in evaluation mode, weights loaded.
        example: inputs of a batch and length above one, so that no axis is taken for a constant.
        spec: for the longest sequence.
        tensors: dense weights by name, to name the initializers.

    Raises:
        UsageError: PyTorch cannot trace the network.
    """
    assert spec.preprocess is not None
    batch = torch.export.Dim("batch", min=1, max=65536)
    sequence = torch.export.Dim("sequence", min=2, max=spec.preprocess.max_length)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                network,
                args=(),
                kwargs=dict(example),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(example),
                output_names=[OUTPUT],
                dynamic_shapes={name: {0: batch, 1: sequence} for name in example},
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter raises many kinds, for whatever it cannot trace
            raise UsageError(
                f"PyTorch cannot export this model to ONNX, so no runtime can take it: {first_line(error)}"
            ) from error
        assert program is not None
        model = onnxslim.slim(program.model_proto)
    model.ir_version = min(model.ir_version, IR_VERSION)
    name_initializers(model, tensors)
    return model


def name_initializers(model: onnx.ModelProto, tensors: Mapping[str, Array]) -> None:
    """Give each initializer the name of the tensor whose values it holds, transposed or not.

    Exporters rename weights and transpose those of linear layers; the values are what can be relied on. A second
    initializer of the same tensor is called ``NAME#2``.
    """
    known: dict[tuple[tuple[int, ...], bytes], str] = {}
    for name, array in tensors.items():
        if array.dtype == np.float32 and array.ndim and array.size > 1:
            known.setdefault(_key(array), name)
            if array.ndim == 2:
                known.setdefault(_key(array.T), name)
    renamed: dict[str, str] = {}
    taken: dict[str, int] = {}
    for initializer in model.graph.initializer:
        if initializer.data_type != onnx.TensorProto.FLOAT:
            continue
        tensor = known.get(_key(numpy_helper.to_array(initializer)))
        if tensor is not None:
            taken[tensor] = taken.get(tensor, 0) + 1
            renamed[initializer.name] = tensor if taken[tensor] == 1 else f"{tensor}#{taken[tensor]}"
            initializer.name = renamed[initializer.name]
    for node in model.graph.node:
        _rename(node, renamed)


def _rename(node: Any, renamed: Mapping[str, str]) -> None:
    for position, name in enumerate(node.input):
        if name in renamed:
            node.input[position] = renamed[name]


def _key(array: Array) -> tuple[tuple[int, ...], bytes]:
    return array.shape, hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()
