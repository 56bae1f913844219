"""Graphs without their weights: models of one structure export to one graph, so that only the first is traced."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper

from slimseek.models._export import export
from slimseek.models._onnx.graph import LARGEST_SINGLE_FILE
from slimseek.schema import Array, Model

TABLE_ROWS = "vocab_size"
_known: dict[str, Skeleton] = {}
"""Of every structure that was exported: some hundred kilobytes each."""


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A graph whose weights were taken out.

    Attributes:
        graph: its initializers hold nothing where they are named in ``turned``.
        turned: initializer to the tensor whose values it has, and whether transposed.
    """

    graph: onnx.ModelProto
    turned: Mapping[str, tuple[str, bool]]


def graph(
    network: Any, batch: Mapping[str, torch.Tensor], model: Model, tensors: Mapping[str, Array], unused: Set[str]
) -> onnx.ModelProto:
    """The graph of a text encoder: filled from the skeleton of its structure where that computes what the network
    does, else traced by PyTorch's exporter.

    Args:
        network: in evaluation mode, weights loaded.
        batch: of more than one text and token.
        model: what the network was made of.
        tensors: its dense weights by name.
        unused: names of those that the vector does not need.
    """
    needed = {name: array for name, array in tensors.items() if name not in unused}
    own = structure(model, tensors)
    known = _known.get(own)
    if known is not None and sum(array.nbytes for array in tensors.values()) < LARGEST_SINGLE_FILE:
        found = filled(known, needed)
        if _computes(found, network, batch):
            return found
    found = export(network, batch, model.spec, tensors)
    made = emptied(found, needed)
    if made is not None:
        _known[own] = made
    return found


def structure(model: Model, tensors: Mapping[str, Array]) -> str:
    """What the graph of a text encoder hangs on: its specification, settings and shapes, but for the number of tokens,
    which no node knows.
    """
    table = model.spec.token_table
    settings = {
        name: _settings(content) for name, content in model.files.items()
        if name.endswith("config.json") or name == "modules.json"
    }  # fmt: skip
    shapes = {name: list(array.shape[name == table :]) for name, array in tensors.items()}
    spec = msgspec.to_builtins(model.spec)
    spec["preprocess"]["pad_id"] = 0
    return json.dumps([spec, settings, shapes, dict(model.tied)], sort_keys=True)


def emptied(graph: onnx.ModelProto, tensors: Mapping[str, Array]) -> Skeleton | None:
    """The skeleton of a graph whose initializers carry the names of tensors (``NAME#2`` for a second one); ``None``
    where one that it holds cannot be found there: the exporter merged it with an equal one, or computed with it.

    Args:
        graph: kept as it is.
        tensors: those that the network needs, float32, by name.
    """
    bare, turned = onnx.ModelProto(), {}
    bare.CopyFrom(graph)
    for initializer in bare.graph.initializer:
        name = initializer.name.partition("#")[0]
        if name in tensors:
            values = numpy_helper.to_array(initializer)
            same = values.shape == tensors[name].shape and np.array_equal(values, tensors[name])
            turned[initializer.name] = (name, not same)
            initializer.ClearField("raw_data")
    found = {name for name, _ in turned.values()}
    return Skeleton(bare, turned) if found == set(tensors) else None


def filled(skeleton: Skeleton, tensors: Mapping[str, Array]) -> onnx.ModelProto:
    """The graph of another model of the same structure."""
    made = onnx.ModelProto()
    made.CopyFrom(skeleton.graph)
    for initializer in made.graph.initializer:
        if initializer.name in skeleton.turned:
            name, transposed = skeleton.turned[initializer.name]
            values = tensors[name].T if transposed else tensors[name]
            initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), initializer.name))
    return made


def _computes(found: onnx.ModelProto, network: Any, batch: Mapping[str, torch.Tensor]) -> bool:
    """Whether a graph that was not traced from this network gives what the network gives."""
    session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    vectors = session.run(None, {name: value.numpy() for name, value in batch.items()})[0]
    with torch.inference_mode():
        return bool(np.allclose(vectors, network(**batch).numpy(), atol=1e-5))


def _settings(content: bytes) -> Any:
    found = json.loads(content)
    return {key: value for key, value in found.items() if key != TABLE_ROWS} if isinstance(found, dict) else found
