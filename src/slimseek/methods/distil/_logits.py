"""A network that gives class logits: as it is, or without the softmax and the division by the length at its end."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from slimseek import choose
from slimseek.errors import UsageError
from slimseek.schema import Model

SOFT = ("Softmax", "LogSoftmax")


def with_logits(model: Model) -> Model:
    """The model whose vectors are its logits; its tensors keep their names.

    A network that came as an ``.onnx`` file with arrays for inputs ends in the division of its output by the length.
    What stands before that are its logits, or, where that is a softmax, what the softmax reads.

    Raises:
        UsageError: the model gives embeddings.
    """
    if model.spec.output == "class_logits":
        return model
    if model.spec.family != "onnx_array" or model.spec.dim < 2:
        raise UsageError(
            f"distil.soft_label: a model of the family {model.spec.family} with {model.spec.dim} outputs gives no "
            f"class logits; distil.embedding takes any vectors"
        )
    family = choose.family(model)
    graph, _ = family.parts(model)
    [output] = graph.graph.output
    makers = {name: node for node in graph.graph.node for name in node.output}
    source = makers[output.name].input[0]  # of Div, the other input is the length
    if source in makers and makers[source].op_type in SOFT:
        source = makers[source].input[0]
    _end_in_(graph.graph, source, makers[output.name])
    spec = msgspec.structs.replace(model.spec, output="class_logits", normalised=False)
    return family.resized(dataclasses.replace(model, spec=spec), graph, model.tensors)


def _end_in_(graph: Any, source: str, last: Any) -> None:
    """Let the last node pass the source on; nodes that nothing reads any more leave."""
    last.op_type, last.input[:] = "Identity", [source]
    del last.attribute[:]
    nodes = list(graph.node)
    while True:
        read = {name for node in nodes for name in _reads(node)} | {value.name for value in graph.output}
        kept = [node for node in nodes if read & set(node.output)]
        if len(kept) == len(nodes):
            break
        nodes = kept
    kept_nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept_nodes)


def _reads(node: Any) -> set[str]:
    """What a node reads, in its branches too."""
    inner = [part for attribute in node.attribute for part in attribute.g.node]
    return {*node.input, *(name for part in inner for name in _reads(part))}
