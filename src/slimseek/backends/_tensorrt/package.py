"""What stands beside a TensorRT package's graph: the shapes that engines are built for, and what was built of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import onnx
from onnx import TensorProto

from slimseek.schema import Model, ModelSpec, QuantizedTensor, QuantSpec, TensorSpec
from slimseek.value import Value

MOST_ROWS = 32
"""Rows of a batch that an engine takes at once; what runs it cuts larger batches."""
USUAL_TOKENS, USUAL_TOKENS_OF_A_QUERY = 128, 16
Precision = Literal["int8", "fp16", "float32"]


class Shapes(Value, frozen=True):
    """Shapes of one input: the smallest, the usual, which an engine is tuned for, and the largest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Stored(Value, frozen=True):
    """A weight of the artifact: its shape, and how its integers are to be read."""

    shape: tuple[int, ...]
    spec: QuantSpec


class Settings(Value, frozen=True):
    """The content of ``tensorrt.json``.

    Attributes:
        precision: the least precision that products run in.
        profiles: shapes of each input, for one item and for batches of them.
        checked_with: library and version that parsed the graph and built an engine of it, which did not run; empty
            where neither could be done.
        built_for: compute capabilities that the engine was built for.
        engine_bytes: of that engine, which is not in the package.
        refused: by compute capability, why there is none for others.
        weights: the quantized weights, for those who read the integers back.
    """

    precision: Precision
    profiles: tuple[dict[str, Shapes], ...]
    checked_with: dict[str, str]
    built_for: tuple[str, ...]
    engine_bytes: int
    refused: dict[str, str]
    weights: Mapping[str, Stored]


def profiles(spec: ModelSpec) -> tuple[dict[str, Shapes], ...]:
    """Shapes of each input for one item, tuned for a query, and for two items and more, tuned for documents."""
    return (
        {tensor.name: _shapes(tensor, spec, (1, 1, 1), USUAL_TOKENS_OF_A_QUERY) for tensor in spec.inputs},
        {tensor.name: _shapes(tensor, spec, (2, MOST_ROWS, MOST_ROWS), USUAL_TOKENS) for tensor in spec.inputs},
    )


def precision(graph: onnx.ModelProto) -> Precision:
    """The least precision of its products: int8 where inputs are rounded, fp16 where they are cast."""
    if any(node.op_type == "QuantizeLinear" for node in graph.graph.node):
        return "int8"
    values = {constant.name for constant in graph.graph.initializer}
    casts = (node for node in graph.graph.node if node.op_type == "Cast" and node.input[0] not in values)
    halves = any(attribute.i == TensorProto.FLOAT16 for node in casts for attribute in node.attribute)
    return "fp16" if halves else "float32"


def weights(model: Model) -> dict[str, Stored]:
    """The quantized weights by name."""
    return {name: Stored(shape=tensor.shape, spec=tensor.spec)
            for name, tensor in model.tensors.items() if isinstance(tensor, QuantizedTensor)}  # fmt: skip


def _shapes(tensor: TensorSpec, spec: ModelSpec, rows: tuple[int, int, int], usual: int) -> Shapes:
    longest = tensor.length if spec.preprocess is None else spec.preprocess.max_length
    free = (1, min(usual, longest), longest)
    found = [
        tuple(axis if isinstance(axis, int) else (rows if axis == "batch" else free)[step] for axis in tensor.shape)
        for step in range(3)
    ]
    return Shapes(min=found[0], opt=found[1], max=found[2])
