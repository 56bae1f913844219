"""Any text encoder that is an ``.onnx`` file with a tokenizer beside it, whatever made it."""

from __future__ import annotations

from pathlib import Path

from slimseek.models._onnx.family import OnnxFamily
from slimseek.models._onnx.file import _candidates, _file, _read
from slimseek.models._onnx.graph import (
    GRAPH,
    INPUTS,
    LONGEST_TRIED,
    SUFFIX,
    _layers,
)
from slimseek.models._onnx.reading import (
    _dim,
    _end_in_vector_,
    _files,
    _preprocess,
    _prune_,
    _take_inputs_,
    _take_tidied_weights_,
)
from slimseek.models._text import files as text_files
from slimseek.schema import Model, ModelSpec


class OnnxGraph(OnnxFamily):
    """Pooling and normalisation stand inside the graph, whose one output is the vector."""

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
        weights = _take_tidied_weights_(model, file)
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
