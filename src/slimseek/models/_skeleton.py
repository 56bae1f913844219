"""Graphs without their weights: models of one structure export to one graph, so that only the first is traced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import numpy_helper

from slimseek.schema import Array, Model

TABLE_ROWS = "vocab_size"


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A graph whose weights were taken out.

    Attributes:
        graph: its initializers hold nothing where they are named in ``turned``.
        turned: initializer to the tensor whose values it has, and whether transposed.
    """

    graph: onnx.ModelProto
    turned: Mapping[str, tuple[str, bool]]


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
    graph = onnx.ModelProto()
    graph.CopyFrom(skeleton.graph)
    for initializer in graph.graph.initializer:
        if initializer.name in skeleton.turned:
            name, transposed = skeleton.turned[initializer.name]
            values = tensors[name].T if transposed else tensors[name]
            initializer.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), initializer.name))
    return graph


def _settings(content: bytes) -> Any:
    found = json.loads(content)
    return {key: value for key, value in found.items() if key != TABLE_ROWS} if isinstance(found, dict) else found
