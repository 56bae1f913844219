"""What the families of ONNX files share: running the graph, showing layers' inputs, writing it back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from slimseek import plugins
from slimseek.bases import Family
from slimseek.errors import UsageError
from slimseek.inputs.reader import reader
from slimseek.inputs.samples import examples
from slimseek.inputs.suffixes import PREPROCESSOR
from slimseek.integers import dense, expanded
from slimseek.models._array import picture_settings, sound_settings
from slimseek.models._onnx import factors as graph_factors
from slimseek.models._onnx import features as graph_features
from slimseek.models._onnx.graph import (
    FILE,
    GRAPH,
    LARGEST_SINGLE_FILE,
    OUTPUT,
    SMOOTHED,
    _graph,
    _graphs,
    _is_convolution,
    _is_quantized,
    _linear_axis,
    _quantizing_operators,
    _raised,
    _round_inputs_,
    _session,
    _slimmed,
)
from slimseek.models._onnx.rounding import convolutions, round_convolutions_
from slimseek.schema import OUTPUT_RANGE, Array, Batch, Encode, Function, Layer, Model, QuantizedTensor, Tensor

if TYPE_CHECKING:
    from torch import nn

ITEMS_COMPARED = 3
LARGEST_DIFFERENCE = 1e-3
"""Of an element of the vector, as a share of the largest where that is above 1."""


class OnnxFamily(Family):
    """The graph is kept without its weights in ``files["graph.onnx"]``; a tensor is named as its initializer was.

    Weights inside the branches of an If or Loop are tensors like all others; only their inputs are never rounded,
    since no calibration sees them. A graph that is quantized already runs and is measured, and has no layers.
    """

    def run(self, model: Model, threads: int) -> Encode:
        """ONNX Runtime in float32 on the dequantized weights; inputs of layers are rounded where the model says so."""
        rounded = {name for name in model.activations if not name.endswith(OUTPUT_RANGE)}
        # A smoothed weight gets a second name, since what is no rounded layer reads it without its smoothing.
        stored = {
            name + SMOOTHED if name in model.smoothing else name: expanded(model.tensors[name]) for name in rounded
        }
        weights = dense(model) | stored
        graph = _graph(model)
        if model.activations:
            graph = _raised(graph, weights)
            round_convolutions_(graph, model.activations)
            _round_inputs_(graph, weights, model.activations, model.smoothing)
        compute = _session(graph, weights, threads)

        def encode(batch: Batch) -> Array:
            return compute(batch)[0]

        return encode

    def computed(self, model: Model, threads: int) -> Mapping[str, Function]:
        """Of a network that gives scores of tokens: ``model`` alone."""
        if model.spec.output != "transcript":
            return super().computed(model, threads)
        run = self.run(model, threads)
        return {"model": lambda batch: {OUTPUT: run(batch)}}

    def observe(self, model: Model, batches: Iterable[Batch], visit: Callable[[str, Array], None]) -> None:
        """Show every layer's input, padding left out: float32 [tokens, width] for a linear layer, divided by its
        smoothing, [n, channels, ...] for a convolution, whose result after its activation is shown as ``NAME#output``.
        """
        graph = _graph(model)
        weights = dense(model)
        linear = [node for node in graph.graph.node if _linear_axis(node, weights) is not None]
        flat = [(node.input[1], node.input[0]) for node in linear if node.input[0] not in weights]
        pictures = [
            pair
            for convolution in convolutions(graph.graph, weights)
            for pair in ((convolution.weight, convolution.input), (convolution.weight + OUTPUT_RANGE, convolution.end))
        ]
        shown = list(dict.fromkeys(source for _, source in (*flat, *pictures)))
        inputs = {value.name for value in graph.graph.input}
        del graph.graph.output[:]
        graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown if name not in inputs)
        compute = _session(graph, weights, threads=0)
        for batch in batches:
            names = [name for name in shown if name not in inputs]
            # Layers may read nothing but what is given.
            values = dict(batch) | dict(zip(names, compute(batch) if names else [], strict=True))
            for weight, source in flat:
                tokens, smoothing = _tokens(values[source], batch), model.smoothing.get(weight)
                visit(weight, tokens if smoothing is None else tokens / smoothing.reshape(-1))
            for weight, source in pictures:
                visit(weight, values[source])

    def quantized_by(self, model: Model) -> tuple[str, ...]:
        """Operators of the graph that compute on integers; or its integer weights, where no layer has others."""
        plain = {
            tensor.dtype.name
            for tensor in model.tensors.values()
            if not isinstance(tensor, QuantizedTensor) and tensor.dtype.kind in "iu"
        }
        return tuple(_quantizing_operators(_graph(model).graph)) or (() if model.layers else tuple(sorted(plain)))

    def readers(self, model: Model) -> Mapping[str, str]:
        """The operator of the graph; those of a runtime with their domain, such as ``com.microsoft.Attention``."""
        nodes = [node for inner in _graphs(_graph(model).graph) for node in inner.node]
        return {
            name: f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            for node in nodes
            for name in node.input
            if name in model.tensors
        }

    def trainable(self, model: Model) -> nn.Module:
        """The graph in PyTorch, its weights under their tensors' names, statistics of batch norms frozen.

        It has been compared with ONNX Runtime on a few items: what trains is what will run. Raises UsageError for an
        operator that has no counterpart there, branches and loops among them, by name, and where they differ.
        """
        graph, weights = _graph(model), dense(model)
        network: nn.Module = plugins.require("slimseek.models._torch.graph").GraphNetwork(graph, weights)
        read = reader(model.spec, model.files)
        compute = _session(graph, weights, threads=0)
        torch = plugins.require("torch")
        for item in examples(model.spec)[:ITEMS_COMPARED]:
            batch = read([item, item])
            expected = compute(batch)[0]
            with torch.no_grad():
                found = network(**{name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
            largest = float(np.abs(found - expected).max()) if found.shape == expected.shape else math.inf
            if not largest <= LARGEST_DIFFERENCE * max(1.0, float(np.abs(expected).max())):
                raise UsageError(
                    f"this network gives other vectors in PyTorch than in ONNX Runtime (largest difference "
                    f"{largest:.3g}), so it cannot be trained here"
                )
        return network

    def to_onnx(self, model: Model) -> Any:
        """The graph with its weights, tidied by onnxslim; raised to the opset that integers, bf16 and fp8 need.

        A graph whose opset is too old and cannot be raised raises UsageError.
        """
        graph, weights = _graph(model), dense(model)
        stored = model.tensors.values()
        if any(isinstance(tensor, QuantizedTensor) or tensor.dtype.name == "bfloat16" for tensor in stored):
            graph = _raised(graph, weights)
        graph.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
        return graph if _is_quantized(graph.graph) else _slimmed(graph, model.layers)

    def parts(self, model: Model) -> tuple[Any, Mapping[str, Array]]:
        """The graph as it is kept, and its weights beside it."""
        return _graph(model), dense(model)

    def resized(self, model: Model, graph: Any, tensors: Mapping[str, Tensor]) -> Model:
        """The model with that graph in the place of its own; weights that no node reads any more leave."""
        read = {name for inner in _graphs(graph.graph) for node in inner.node for name in node.input}
        return dataclasses.replace(
            model,
            files=dict(model.files) | {GRAPH: graph.SerializeToString(deterministic=True)},
            tensors={name: tensor for name, tensor in tensors.items() if name in read},
            layers=tuple(layer for layer in model.layers if layer.weight in read),
        )

    def factorable(self, model: Model) -> tuple[Layer, ...]:
        """Linear layers, and convolutions that are not in groups, outside of branches."""
        return graph_factors.factorable(model)

    def factored(self, model: Model, factors: Mapping[str, tuple[Array, Array]]) -> Model:
        """Two operators in the place of one. Of a convolution the first has its window and fewer channels, the second
        a window of one point.
        """
        return graph_factors.factored(model, factors)

    def projected(self, model: Model, matrix: Array) -> Model:
        """By a product behind the vector, which is brought to length one again where it was."""
        return graph_factors.projected(model, matrix)

    def feature_layers(self, model: Model) -> tuple[Layer, ...]:
        """The linear layers that read the one input, where nothing else does."""
        return graph_features.first_layers(model)

    def with_features(
        self, model: Model, kept: int, tensors: Mapping[str, Tensor], added: Mapping[str, Array]
    ) -> Model:
        """The graph for rows of ``kept`` features; the first layers' results get the vectors ``added``, by weight."""
        return graph_features.narrowed(model, kept, tensors, added)

    def save(self, model: Model, folder: Path) -> None:
        """``model.onnx`` in float32, which reduces its features itself, and the small files beside it, among them how
        a picture becomes pixels, or a recording what the network takes.
        """
        if model.spec.picture:
            how = picture_settings.settings_of(model.spec.picture, grey=1 in model.spec.inputs[0].shape[1::2])
            (folder / PREPROCESSOR).write_bytes(how)
        if model.spec.sound:
            (folder / PREPROCESSOR).write_bytes(sound_settings.settings_of(model.spec.sound))
        for name, content in model.files.items():
            if name != GRAPH:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        graph = self.to_onnx(dataclasses.replace(model, tensors=dense(model), smoothing={}))
        if model.spec.features:
            graph_features.put_before_(graph.graph, model.spec.features)
        onnx.save(graph, folder / FILE, save_as_external_data=graph.ByteSize() > LARGEST_SINGLE_FILE)

    def macs(self, model: Model, length: int) -> int:
        """Weights of linear and convolution layers times ``length``, each as often as the graph uses it.

        Products of two activations (attention scores and their use) are not counted.
        """
        return length * sum(
            math.prod(model.tensors[node.input[1]].shape)
            for inner in _graphs(_graph(model).graph)
            for node in inner.node
            if _linear_axis(node, model.tensors) is not None or _is_convolution(node, model.tensors)
        )


def _tokens(value: Array, batch: Batch) -> Array:
    """Rows [tokens, width]; those of padding left out."""
    mask = batch.get("attention_mask")
    if mask is not None and value.ndim > 2 and value.shape[:2] == mask.shape:
        kept: Array = value[mask > 0]
        return kept
    return value.reshape(-1, value.shape[-1])
