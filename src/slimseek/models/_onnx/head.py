"""The layer that makes a network of arrays a classifier, and the names of its classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from slimseek import reading
from slimseek.errors import UsageError
from slimseek.inputs.arrays import BATCH
from slimseek.integers import dense
from slimseek.models._onnx.graph import GRAPH, OUTPUT, _graph, _layers, _Writer
from slimseek.models._onnx.reading import _prune_
from slimseek.schema import Model

FILE = "classes.json"
SPREAD = 0.02


def classes(file: Path) -> tuple[str, ...]:
    """The names beside an ``.onnx`` file, in the order of its logits; none without that file.

    Raises:
        UsageError: it is not a list of two or more different names.
    """
    place = file.parent / FILE
    if not place.is_file():
        return ()
    try:
        names: tuple[str, ...] = reading.decoded(place.read_bytes(), tuple[str, ...])
    except msgspec.MsgspecError as error:
        raise UsageError(f"{place} is not a list of names: {error}") from error
    if len(set(names)) < max(2, len(names)):
        raise UsageError(f"{place} names {len(names)} classes, {len(set(names))} of them different; two or more, all "
                         f"different, are allowed")  # fmt: skip
    return names


def file_of(names: Sequence[str]) -> dict[str, bytes]:
    """The small file that holds the names; nothing without any."""
    return {FILE: msgspec.json.encode(names)} if names else {}


def added(model: Model, names: Sequence[str], seed: int) -> Model:
    """The model with a linear layer for these classes in the place of its normalisation."""
    graph = _graph(model)
    write = _Writer(graph)
    source = _before_normalisation_(graph.graph)
    weight, bias = write.fresh("classes.weight"), write.fresh("classes.bias")
    write.node("Add", [write.node("MatMul", [source, weight]), bias], OUTPUT)
    del graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, (BATCH, len(names))))
    values = np.random.default_rng(seed).normal(0, SPREAD, (model.spec.dim, len(names))).astype(np.float32)
    new = {weight: values, bias: np.zeros(len(names), np.float32)}
    needed = _prune_(graph.graph, dense(model) | new)
    tensors = {name: tensor for name, tensor in ({**model.tensors, **new}).items() if name in needed}
    [layer] = [layer for layer in _layers(graph.graph, dense(dataclasses.replace(model, tensors=tensors)))
               if layer.weight == weight]  # fmt: skip
    spec = msgspec.structs.replace(
        model.spec, output="class_logits", dim=len(names), normalised=False, classes=tuple(names)
    )
    files = {**model.files, GRAPH: graph.SerializeToString(deterministic=True), **file_of(names)}
    return dataclasses.replace(model, spec=spec, files=files, tensors=tensors, layers=(*model.layers, layer))


def _before_normalisation_(graph: onnx.GraphProto) -> str:
    """Take away the node that gives the vector; the name of what it was made from."""
    last = next(node for node in graph.node if OUTPUT in node.output)
    graph.node.remove(last)
    return str(last.input[0])
