"""Small tools over ONNX graphs: running, rewriting, looking inside."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import onnxslim
from onnx import TensorProto, helper, numpy_helper, version_converter

from slimseek.errors import UsageError, first_line
from slimseek.integers import dequantize
from slimseek.models._text import files as text_files
from slimseek.schema import (
    ActivationQuant,
    Array,
    Batch,
    Layer,
    LayerKind,
    Model,
    QuantizedTensor,
    Tensor,
    TensorSpec,
    is_float,
)

GRAPH = "graph.onnx"
FILE = "model.onnx"
SUFFIX = ".onnx"
LFS = b"version https://git-lfs"
OUTPUT = "vector"
INPUTS = (*text_files.INPUTS, TensorSpec(name="token_type_ids", dtype="int64", shape=("batch", "sequence")))
IR_VERSION = 10
OPSET = 21  # the first whose DequantizeLinear takes groups and four bits
LARGEST_SINGLE_FILE = 2**31 - 1
LONGEST_TRIED = 512
VECTOR_NAMES = ("sentence_embedding", "vector", "embeddings")
TOKENS_NAMES = ("last_hidden_state", "token_embeddings")
NO_VECTOR = re.compile("pooler|logits", re.IGNORECASE)
SAMPLE = (2, 5)
QUANTIZED = ("uantize", "Integer", "QLinear", "QAttention", "QGemm", "QEmbed", "QOrdered", "NBits", "Bnb4", "FpQ4")
RECURRENT = ("LSTM", "GRU", "RNN")
ROW_STEP = 1 / 127
SMALLEST_ROW_STEP = 1e-14
SMOOTHED = "#smoothed"

Weights = dict[str, Array]


def _graph(model: Model) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.files[GRAPH])


def _dense(tensors: Mapping[str, Tensor]) -> Weights:
    return {name: dequantize(tensor) for name, tensor in tensors.items()}


def _session(graph: onnx.ModelProto, weights: Weights, threads: int) -> Callable[[Batch], list[Array]]:
    """The graph's outputs by ONNX Runtime; ``threads`` 0 takes all cores.

    The weights go beside the graph, not into it: a serialised graph must stay below 2 GB. Those that no node reads
    stay away, since the runtime misses them in its own graph.
    """
    read = {name for inner in _graphs(graph.graph) for node in inner.node for name in node.input}
    read |= {output.name for inner in _graphs(graph.graph) for output in inner.output}
    weights = {name: array for name, array in weights.items() if name in read}
    whole = onnx.ModelProto()
    whole.CopyFrom(graph)
    for name, array in weights.items():
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = whole.graph.initializer.add(name=name, dims=array.shape, data_type=dtype)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # marks of rounding stay float arithmetic
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    options.add_external_initializers(list(weights), values)
    session = onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def compute(batch: Batch) -> list[Array]:
        return session.run(None, batch)

    compute.weights = values  # type: ignore[attr-defined]  # the runtime does not own their memory
    return compute


def _sample(graph: onnx.GraphProto, rows: int, length: int) -> Batch:
    """Texts of the token 0, which every vocabulary has."""
    batch = {value.name: np.zeros((rows, length), np.int64) for value in graph.input}
    batch["attention_mask"] += 1
    return batch


def _raised(model: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """The graph in an opset that has the operators of integer arithmetic and the casts of narrow floats."""
    opset = _opset(model)
    if opset < OPSET:
        inputs = list(model.graph.input)
        # The converter wants to know every value; as inputs the weights need not be there.
        for name, array in weights.items():
            dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
            model.graph.input.append(helper.make_tensor_value_info(name, dtype, array.shape))
        try:
            with _silent():
                model = version_converter.convert_version(model, OPSET)
        except Exception as error:  # the converter raises RuntimeError and its own ConvertError
            raise UsageError(
                f"integers, bf16 and fp8 need opset {OPSET}; this graph has {opset}, and onnx cannot convert it "
                f"({first_line(error)}); export it again with opset {OPSET}"
            ) from error
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    model.ir_version = IR_VERSION
    return model


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing reaches standard error meanwhile: onnx's converter calls whatever a branch reads from outside invalid,
    and converts it rightly.
    """
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _slimmed(graph: onnx.ModelProto, layers: Sequence[Layer]) -> onnx.ModelProto:
    """What onnxslim makes of it; the graph itself where that fails or touches the weight of a layer, and where it has
    branches, since onnxslim renames what they read from outside.
    """
    if sum(1 for _ in _graphs(graph.graph)) > 1:
        return graph
    try:
        slim = onnxslim.slim(graph, skip_optimizations=["weight_tying"])
    except Exception:  # any graph that onnxslim does not expect stays as it is
        return graph
    before, after = ({tensor.name: tensor for tensor in one.graph.initializer} for one in (graph, slim))
    if any(layer.weight not in after or not _same(before[layer.weight], after[layer.weight]) for layer in layers):
        return graph
    slim.ir_version = min(slim.ir_version, IR_VERSION)
    return slim


def _same(before: onnx.TensorProto, after: onnx.TensorProto) -> bool:
    return np.array_equal(numpy_helper.to_array(before), numpy_helper.to_array(after))


def _round_inputs_(
    model: onnx.ModelProto, weights: Weights, activations: Mapping[str, ActivationQuant], smoothing: Mapping[str, Array]
) -> None:
    """Put the rounding to eight bits before every linear layer that has one, after its smoothing where it has that."""
    write = _Writer(model)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if _linear_axis(node, weights) is not None and node.input[1] in activations:
            source, weight = node.input[0], node.input[1]
            if weight in smoothing:
                source = write.node("Mul", [source, write.constant(1 / smoothing[weight].reshape(-1))])
                node.input[1] = weight + SMOOTHED
            node.input[0] = _rounded(write, source, activations[weight])
        model.graph.node.append(node)


def _rounded(write: _Writer, value: str, activation: ActivationQuant) -> str:
    if activation.mode == "static":
        limits = [write.constant(np.float32(activation.scale)), write.constant(np.uint8(activation.zero_point))]
        return write.node("DequantizeLinear", [write.node("QuantizeLinear", [value, *limits]), *limits])
    largest = write.reduce("ReduceMax", write.node("Abs", [value]), -1, keepdims=1)
    step = write.node("Mul", [largest, write.constant(np.float32(ROW_STEP))])
    step = write.node("Max", [step, write.constant(np.float32(SMALLEST_ROW_STEP))])
    return write.node("Mul", [write.node("Round", [write.node("Div", [value, step])]), step])


class _Writer:
    """Appends nodes and constants to a graph under names that it does not have yet."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._opset = _opset(model)
        inner = list(_graphs(model.graph))
        nodes = [node for graph in inner for node in graph.node]
        self._taken = {name for node in nodes for name in (node.name, *node.input, *node.output)}
        self._taken |= {tensor.name for graph in inner for tensor in (*graph.initializer, *graph.input, *graph.output)}

    def fresh(self, name: str) -> str:
        """The name with the first number that makes it new."""
        number = 1
        while f"{name}.{number}" in self._taken:
            number += 1
        self._taken.add(f"{name}.{number}")
        return f"{name}.{number}"

    def node(self, kind: str, inputs: Sequence[str], output: str = "", **settings: Any) -> str:
        """Append a node and return its output."""
        name = self.fresh(f"slimseek.{kind}")
        self._graph.node.append(helper.make_node(kind, inputs, [output or name], name=name, **settings))
        return output or name

    def copy(self, node: Any) -> Any:
        """Append the same node once more and return it, to be changed."""
        self._graph.node.append(node)
        return self._graph.node[-1]

    def constant(self, value: Any) -> str:
        """Add an initializer and return its name."""
        name = self.fresh("slimseek.constant")
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def reduce(self, kind: str, value: str, axis: int, keepdims: int) -> str:
        """Append a reduction, whose axes are an attribute before opset 18 and an input since."""
        if self._opset < 18:
            return self.node(kind, [value], axes=[axis], keepdims=keepdims)
        return self.node(kind, [value, self.constant(np.array([axis], np.int64))], keepdims=keepdims)


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _replace_nodes_(graph: onnx.GraphProto, nodes: Sequence[Any]) -> None:
    del graph.node[:]
    graph.node.extend(nodes)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those in its nodes (branches of an If, body of a Loop), however deep."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor written in the graph: initializers and attributes."""
    for inner in _graphs(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                yield from ([attribute.t] if attribute.HasField("t") else [])
                yield from attribute.tensors


def _uses(node: Any) -> set[str]:
    """Names of the values that a node takes, those that its inner graphs take from outside among them."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            names.update(value.name for value in inner.output)
            for inside in inner.node:
                names |= _uses(inside)
    return names - {""}


def _settings(node: Any) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _rename_(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename values wherever they are made or used."""
    for inner in _graphs(graph):
        for tensor in (*inner.initializer, *inner.input, *inner.output, *inner.value_info):
            tensor.name = names.get(tensor.name, tensor.name)
        for node in inner.node:
            for places in (node.input, node.output):
                for position, name in enumerate(places):
                    if name in names:
                        places[position] = names[name]


def _linear_axis(node: Any, tensors: Mapping[str, Tensor]) -> int | None:
    """The axis of output channels of a linear layer's weight, ``None`` for any other node."""
    if node.op_type not in ("MatMul", "Gemm") or not _is_weight(tensors.get(node.input[1]), 2):
        return None
    settings = _settings(node)
    if node.op_type == "MatMul":
        return 1
    plain = settings.get("alpha", 1.0) == 1.0 and settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)
    return (0 if settings.get("transB", 0) else 1) if plain else None


def _is_table(node: Any, tensors: Mapping[str, Tensor]) -> bool:
    return node.op_type == "Gather" and _is_weight(tensors.get(node.input[0]), 2) and not _settings(node).get("axis", 0)


def _is_convolution(node: Any, tensors: Mapping[str, Tensor]) -> bool:
    return node.op_type == "Conv" and _is_weight(tensors.get(node.input[1]))


def _transposed_convolution_axis(node: Any, tensors: Mapping[str, Tensor]) -> int | None:
    """The axis of a transposed convolution's channels, ``None`` for any other node.

    Outputs lie on axis 1 of the weight [in, out / groups, ...]. One in groups has them on both axes: there the
    inputs' axis is taken, each place of which belongs to one group, so that no two groups share a scale.
    """
    if node.op_type != "ConvTranspose" or not _is_weight(tensors.get(node.input[1])):
        return None
    return 1 if _settings(node).get("group", 1) == 1 else 0


def _is_weight(tensor: Tensor | None, axes: int | None = None) -> bool:
    if tensor is None or axes not in (None, len(tensor.shape)):
        return False
    return isinstance(tensor, QuantizedTensor) or is_float(tensor)


def _is_quantized(graph: onnx.GraphProto) -> bool:
    return bool(_quantizing_operators(graph))


def _quantizing_operators(graph: onnx.GraphProto) -> list[str]:
    """Operators that only a quantized graph has."""
    kinds = {node.op_type for inner in _graphs(graph) for node in inner.node}
    return sorted(kind for kind in kinds if any(mark in kind for mark in QUANTIZED))


def _layers(graph: onnx.GraphProto, weights: Weights) -> tuple[Layer, ...]:
    """Linear layers, tables, convolutions and recurrent weights; one for each weight, by its first use."""
    if _is_quantized(graph):
        return ()
    found: dict[str, Layer] = {}
    biases = _biases(graph, weights)
    for node in (node for inner in _graphs(graph) for node in inner.node):
        kind: LayerKind
        axis = _linear_axis(node, weights)
        if axis is not None:
            weight, kind = node.input[1], "linear"
        elif _is_table(node, weights):
            weight, kind, axis = node.input[0], "embedding", 0
        elif _is_convolution(node, weights):
            weight, kind, axis = node.input[1], "convolution", 0
        elif (axis := _transposed_convolution_axis(node, weights)) is not None:
            weight, kind = node.input[1], "convolution"
        elif node.op_type in RECURRENT:
            for weight in node.input[1:3]:  # of the input, and of the state
                if _is_weight(weights.get(weight), 3):
                    found.setdefault(weight, Layer(name=weight, kind="recurrent", weight=weight, axis=1))
            continue
        else:
            continue
        bias = biases.get(weight, msgspec.UNSET) if kind == "linear" else msgspec.UNSET
        found.setdefault(weight, Layer(name=node.name or weight, kind=kind, weight=weight, axis=axis, bias=bias))
    return tuple(found.values())


def _biases(graph: onnx.GraphProto, weights: Weights) -> dict[str, str]:
    """The bias of each linear weight where both are used once: the third input of a Gemm, or what an Add that alone
    takes the product adds to it.
    """
    nodes = list(graph.node)
    uses = Counter(name for inner in _graphs(graph) for node in inner.node for name in node.input)
    uses.update(value.name for inner in _graphs(graph) for value in inner.output)
    added = {name: node for node in nodes if node.op_type == "Add" for name in node.input}
    found = {}
    for node in nodes:
        axis = _linear_axis(node, weights)
        if axis is None or uses[node.input[1]] != 1:
            continue
        others = list(node.input[2:])
        if not others and uses[node.output[0]] == 1 and node.output[0] in added:
            others = [name for name in added[node.output[0]].input if name != node.output[0]]
        width = weights[node.input[1]].shape[axis]
        if others and uses[others[0]] == 1 and others[0] in weights and weights[others[0]].shape == (width,):
            found[node.input[1]] = others[0]
    return found
