"""Any text encoder that is an ``.onnx`` file with a tokenizer beside it, whatever made it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from slimseek.integers import expanded
from slimseek.models import _text_files as text_files
from slimseek.models._graph import (
    FILE,
    GRAPH,
    INPUTS,
    LARGEST_SINGLE_FILE,
    LONGEST_TRIED,
    SUFFIX,
    _dense,
    _graph,
    _is_convolution,
    _is_quantized,
    _layers,
    _linear_axis,
    _raised,
    _round_inputs_,
    _session,
    _slimmed,
)
from slimseek.models._graph_reading import (
    _candidates,
    _dim,
    _end_in_vector_,
    _file,
    _files,
    _fold_,
    _make_constants_initializers_,
    _make_single_precision_,
    _preprocess,
    _prune_,
    _read,
    _take_inputs_,
    _take_weights_,
)
from slimseek.schema import (
    Array,
    Batch,
    Encode,
    Family,
    Model,
    ModelSpec,
    QuantizedTensor,
)


class OnnxGraph(Family):
    """The graph is kept without its weights in ``files["graph.onnx"]``; a tensor is named as its initializer was.

    Pooling and normalisation stand inside the graph, whose one output is the vector. Weights inside the branches of
    an If or Loop stay in the graph: they are no tensors, and nothing changes them. A graph that is quantized already
    runs and is measured, and has no layers.
    """

    def recognises(self, path: Path) -> bool:
        """An ``.onnx`` file, or a folder with one and without safetensors weights."""
        if path.is_dir():
            return not any(path.glob("*.safetensors")) and bool(_candidates(path))
        return path.is_file() and path.suffix.lower() == SUFFIX

    def open(self, path: Path) -> Model:
        """Read the graph, its data files, the tokenizer; run it at two lengths to know what it gives."""
        file = _file(path)
        model = _read(file)
        _take_inputs_(model.graph, file)
        _make_constants_initializers_(model.graph)
        weights = _take_weights_(model.graph, file)
        _make_single_precision_(model.graph)
        _fold_(model.graph, weights)
        home, files = _files(file)
        plan = text_files.plan(files, home)
        _end_in_vector_(model, weights, files, plan, file)
        weights = _prune_(model.graph, weights)
        preprocess = _preprocess(model.graph, weights, files)
        spec = ModelSpec(
            family="onnx_graph",
            modality="text",
            output="embedding",
            inputs=tuple(tensor for tensor in INPUTS if tensor.name in {value.name for value in model.graph.input}),
            dim=_dim(model, weights, min(preprocess.max_length, LONGEST_TRIED), file),
            normalised=plan.normalise,
            preprocess=preprocess,
        )
        files[GRAPH] = model.SerializeToString(deterministic=True)
        return Model(spec=spec, files=files, tensors=dict(weights), layers=_layers(model.graph, weights))

    def run(self, model: Model, threads: int) -> Encode:
        """ONNX Runtime in float32 on the dequantized weights; inputs of layers are rounded where the model says so."""
        weights = _dense(model.tensors) | {name: expanded(model.tensors[name]) for name in model.activations}
        graph = _graph(model)
        if model.activations:
            graph = _raised(graph, weights)
            _round_inputs_(graph, weights, model.activations)
        compute = _session(graph, weights, threads)

        def encode(batch: Batch) -> Array:
            return compute(batch)[0]

        return encode

    def observe(self, model: Model, batches: Iterable[Batch], visit: Callable[[str, Array], None]) -> None:
        """Show every layer's input, real tokens only, to ``visit(weight name, float32 [tokens, width])``."""
        graph = _graph(model)
        weights = _dense(model.tensors)
        linear = [node for node in graph.graph.node if _linear_axis(node, weights) is not None]
        pairs = [(node.input[1], node.input[0]) for node in linear if node.input[0] not in weights]
        shown = list(dict.fromkeys(source for _, source in pairs))
        del graph.graph.output[:]
        graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)
        compute = _session(graph, weights, threads=0)
        for batch in batches:
            values = dict(zip(shown, compute(batch), strict=True))
            mask = batch["attention_mask"]
            for weight, source in pairs:
                value = values[source]
                padded = value.ndim > 2 and value.shape[:2] == mask.shape
                visit(weight, value[mask > 0] if padded else value.reshape(-1, value.shape[-1]))

    def to_onnx(self, model: Model) -> Any:
        """The graph with its weights, tidied by onnxslim; raised to the opset that integers need where there are any.

        A graph whose opset is too old and cannot be raised raises UsageError.
        """
        graph, weights = _graph(model), _dense(model.tensors)
        if any(isinstance(tensor, QuantizedTensor) for tensor in model.tensors.values()):
            graph = _raised(graph, weights)
        graph.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
        return graph if _is_quantized(graph.graph) else _slimmed(graph, model.layers)

    def save(self, model: Model, folder: Path) -> None:
        """``model.onnx`` in float32, pooling inside, and the small files beside it."""
        for name, content in model.files.items():
            if name != GRAPH:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
        graph = self.to_onnx(dataclasses.replace(model, tensors=_dense(model.tensors)))
        onnx.save(graph, folder / FILE, save_as_external_data=graph.ByteSize() > LARGEST_SINGLE_FILE)

    def macs(self, model: Model, length: int) -> int:
        """Weights of linear and convolution layers times ``length``, each as often as the graph uses it.

        Products of two activations (attention scores and their use) are not counted, and neither is what stays in
        the branches of an If or Loop.
        """
        return length * sum(
            math.prod(model.tensors[node.input[1]].shape)
            for node in _graph(model).graph.node
            if _linear_axis(node, model.tensors) is not None or _is_convolution(node, model.tensors)
        )
