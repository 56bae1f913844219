"""What a runtime's graph takes for a tensor: a few of its channels are lowered, and bytes grow in a line with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slimseek import hollow, integers, plugins
from slimseek import outline as outlines
from slimseek.errors import UsageError
from slimseek.schema import (
    OUTPUT_RANGE,
    ActivationQuant,
    Array,
    LayerKind,
    Model,
    ModelSpec,
    QuantizedTensor,
    QuantSpec,
    Tensor,
)

FEW, MORE = 24, 48
"""Channels that are lowered; multiples of eight, so that integers of every width fill whole bytes."""
SHARED = ("slim_", "input_scale", "input_zero_point")
"""What the names of constants begin with that several layers use."""
BIAS = "bias"
NEAREST = "onnxruntime"
"""Whose graphs stand for those of a runtime that takes none in ONNX, until a package of it is written."""
SPEC = ModelSpec(
    family="transformer", modality="text", output="embedding", inputs=(), dim=1, normalised=True, preprocess=None
)


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """All that the bytes of a tensor in a graph hang on, but the number of its channels.

    Attributes:
        target: the backend.
        kind: of the layer; ``None`` for a tensor that is no layer's weight.
        rest: the tensor's shape without the axis of channels.
        axis: of channels.
        dtype: name of the dtype, of integers too.
        spec: of a quantized tensor.
        scale: name of the dtype of its scales or code book.
        mode: how the layer's input is rounded, ``None`` for a float input.
        smoothed: whether the layer's input is divided by factors.
        bias: whether something is added to the result.
        letters: of the tensor's name, which many nodes repeat.
        uses: how many layers have the tensor.
    """

    target: str
    kind: LayerKind | None
    rest: tuple[int, ...]
    axis: int
    dtype: str
    spec: QuantSpec | None
    scale: str
    mode: Literal["static", "dynamic"] | None
    smoothed: bool
    bias: bool
    letters: int
    uses: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """Bytes of a tensor and of the nodes around it, beyond those of the nodes that read it as float32.

    Attributes:
        fixed: bytes whatever the number of channels.
        each: bytes of a channel.
        merged: bytes of a channel of constants that all layers with as many channels share where they are large.
        shared: bytes of the constants that all layers share, by their name.
    """

    fixed: float
    each: float
    merged: float
    shared: Mapping[str, int]


def form(name: str, model: Model, target: str) -> Form:
    """The form of one of the model's tensors."""
    tensor = model.tensors[name]
    layers = [layer for layer in model.layers if layer.weight == name]
    layer = layers[0] if layers else None
    axis, how = 0 if layer is None else layer.axis, model.activations.get(name)
    spec, dtype, scale = None, "", ""
    if isinstance(tensor, QuantizedTensor):
        spec, axis, dtype = tensor.spec, tensor.spec.axis, tensor.integers.dtype.name
        scale = (tensor.scale if tensor.codebook is None else tensor.codebook).dtype.name
    else:
        dtype = tensor.dtype.name
    return Form(
        target=target, kind=None if layer is None else layer.kind, axis=axis, dtype=dtype, spec=spec, scale=scale,
        rest=tensor.shape[:axis] + tensor.shape[axis + 1 :], mode=None if how is None or spec is None else how.mode,
        smoothed=name in model.smoothing, bias=layer is not None and isinstance(layer.bias, str), letters=len(name),
        uses=max(1, len(layers)),
    )  # fmt: skip


@lru_cache(maxsize=4096)
def line(given: Form) -> Line:
    """The bytes of tensors of this form, by their channels."""
    few, more = (_lowered(given, channels) for channels in (FEW, MORE))
    each, merged = ((high - low) / (MORE - FEW) for low, high in zip(few.values, more.values, strict=True))
    return Line(fixed=few.values[0] + few.heads - FEW * each, each=each, merged=merged, shared=few.shared)


@dataclass(frozen=True, kw_only=True)
class _Lowered:
    """Bytes in the graph of one layer.

    Attributes:
        values: of the values of constants, its own and those that may be merged.
        heads: of nodes, and of all that constants have beside values, less those of the float graph.
        shared: of shared constants, by name.
    """

    values: tuple[int, int]
    heads: int
    shared: Mapping[str, int]


def _lowered(given: Form, channels: int) -> _Lowered:
    name = "w" * given.letters
    tensor = _tensor(given, channels)
    rounded = [name, f"{name}{OUTPUT_RANGE}"] if given.kind == "convolution" else [name]
    how = ActivationQuant(mode=given.mode, scale=0.0123456789) if given.mode else None
    factors = np.full([1 if axis == given.axis else size for axis, size in enumerate(tensor.shape)], 2.0, np.float32)
    model = Model(
        spec=SPEC, files={}, tensors={name: tensor}, layers=(), activations=dict.fromkeys(rounded, how) if how else {},
        smoothing={name: factors} if given.smoothed else {},
    )  # fmt: skip
    graph = _graph(given, name, integers.unsmoothed(model, name), channels)
    heads = -sum(_length(node) for node in graph.graph.node)
    lowered = _by_runtime(graph, model, given.target)
    own, merged, shared = 0, 0, {}
    for constant in lowered.initializer:
        if constant.name.startswith(SHARED):
            shared[constant.name] = _length(constant)
            continue
        if constant.name == BIAS:
            continue
        values = len(constant.raw_data)
        heads += _length(constant) - values
        if _is_alike(constant.name, given):
            merged += values
        else:
            own += values
    heads += sum(_length(node) for node in lowered.node)
    return _Lowered(values=(own, merged), heads=heads, shared=shared)


def _by_runtime(graph: onnx.ModelProto, model: Model, target: str) -> onnx.GraphProto:
    """The graph that a runtime takes; for one that takes none in ONNX, that of ONNX Runtime is the nearest guess."""
    try:
        return plugins.load("backends", target)().lowered(graph, model).graph
    except UsageError:
        return plugins.load("backends", NEAREST)().lowered(graph, model).graph


def _tensor(given: Form, channels: int) -> Tensor:
    """One of this form whose values are no zeros, which would be left out."""
    shape = (*given.rest[: given.axis], channels, *given.rest[given.axis :])
    if given.spec is None:
        return hollow.array(shape, given.dtype)
    found = outlines.quantized(shape, given.spec)
    if found.codebook is not None:
        return dataclasses.replace(found, codebook=found.codebook.astype(given.scale))
    zero_point = None if found.zero_point is None else np.zeros_like(found.zero_point)
    return dataclasses.replace(found, scale=found.scale.astype(given.scale), zero_point=zero_point)


def _graph(given: Form, name: str, values: Array, channels: int) -> onnx.ModelProto:
    """What computes the layer in float32: its weight under its name, read as networks read it."""
    kind = given.kind if values.ndim == 2 or given.kind == "convolution" else None
    bias = [BIAS] if given.bias else []
    match kind:
        case "linear":
            values = values.T if given.axis == 0 else values
            nodes = []
            for number in map(str, range(given.uses)):
                ends = [f"product_{number}"] if bias else [f"y_{number}"]
                nodes.append(helper.make_node("MatMul", [f"x_{number}", name], ends))
                nodes += [helper.make_node("Add", [*ends, BIAS], [f"y_{number}"])] if bias else []
        case "embedding":
            nodes = [helper.make_node("Gather", [name, "x_0"], ["y_0"])]
        case "convolution":
            nodes = [helper.make_node("Conv", ["x_0", name, *bias], ["y_0"])]
        case _:
            nodes, bias = [helper.make_node("Add", ["x_0", name], ["y_0"])], []
    constants = [numpy_helper.from_array(np.ascontiguousarray(values), name)]
    constants += [numpy_helper.from_array(np.ones(channels, np.float32), BIAS)] if bias else []
    free = {name for node in nodes for name in (*node.input, *node.output)}
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sorted(free)
                        if name.startswith(start)] for start in ("x_", "y_"))  # fmt: skip
    return helper.make_model(helper.make_graph(nodes, "layer", inputs, outputs, constants))


def _is_alike(constant: str, given: Form) -> bool:
    """Whether the values of a constant are the same in all layers of a form: zero points that are zero, or 128."""
    symmetric = given.spec is not None and given.spec.symmetric
    return constant.endswith(".int8_zero_point") or (symmetric and constant.endswith(".zero_point"))


def _length(part: Any) -> int:
    """Bytes of a node or constant in a file: itself, its length and its tag."""
    size = int(part.ByteSize())
    return size + 1 + max(1, -(-size.bit_length() // 7))
