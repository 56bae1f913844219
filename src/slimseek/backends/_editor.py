"""The graph under construction: constants and nodes are made once, and what nothing uses is left out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slimseek.schema import Array

MICROSOFT = "com.microsoft"
WORTH_MERGING = 256
"""Bytes of a constant below which a second one of the same content stays."""


class Editor:
    """The graph under construction: constants are made once a name, nodes once a meaning."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants: dict[str, Any] = {initializer.name: initializer for initializer in graph.initializer}
        self.nodes: list[Any] = []
        self._made: dict[tuple[Any, ...], str] = {}
        self._taken = {output for node in graph.node for output in node.output}

    def constant(self, name: str, array: Array) -> str:
        """An initializer with these values, once for each name."""
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def node(self, kind: str, inputs: list[str], output: str = "", domain: str = "", **attributes: Any) -> str:
        """Append a node and return its output; the same node without a given output is made only once."""
        key = (kind, tuple(inputs), tuple(sorted((name, str(value)) for name, value in attributes.items())))
        if not output and key in self._made:
            return self._made[key]
        result = output or self._fresh(kind)
        self.nodes.append(helper.make_node(kind, inputs, [result], domain=domain, **attributes))
        if not output:
            self._made[key] = result
        return result

    def contrib(self, kind: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Append a node of ONNX Runtime's own operators."""
        return self.node(kind, inputs, output, MICROSOFT, **attributes)

    def _fresh(self, kind: str) -> str:
        """A name that no value of the graph has, those that an earlier pass made included."""
        numbered = (f"slim_{kind}_{number}" for number in itertools.count(len(self.nodes)))
        name = next(name for name in numbered if name not in self._taken)
        self._taken.add(name)
        return name


def narrow(editor: Editor, name: str, integers: Array, bits: int, signed: bool) -> str:
    """An initializer of ONNX's narrowest type: four bits hold two to four, eight bits the rest."""
    if bits > 4:
        return editor.constant(name, integers)
    if name not in editor.constants:
        narrow = np.ascontiguousarray(integers).astype(ml_dtypes.int4 if signed else ml_dtypes.uint4)
        editor.constants[name] = numpy_helper.from_array(narrow, name)
    return name


def scale_constant(editor: Editor, name: str, scale: Array) -> str:
    stored = editor.constant(name, scale)
    return stored if scale.dtype == np.float32 else editor.node("Cast", [stored], to=TensorProto.FLOAT)


def finish(graph: onnx.ModelProto, editor: Editor) -> onnx.ModelProto:
    """The new model; nodes and constants that nothing uses are left out. Nodes are called by numbers: their names would
    repeat those of what they give, and without any ONNX Runtime gives the copies that it makes of two nodes one name.
    """
    used = {output.name for output in graph.graph.output}
    nodes = []
    for node in reversed(editor.nodes):
        if used.intersection(node.output):
            nodes.append(node)
            used.update(_inputs(node))
    lowered = onnx.ModelProto()
    lowered.CopyFrom(graph)
    del lowered.graph.node[:]
    del lowered.graph.initializer[:]
    del lowered.graph.value_info[:]
    lowered.graph.node.extend(reversed(nodes))
    lowered.graph.initializer.extend(value for name, value in editor.constants.items() if name in used)
    if MICROSOFT in {node.domain for node in nodes} - {opset.domain for opset in lowered.opset_import}:
        lowered.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    del lowered.metadata_props[:]
    for number, node in enumerate(lowered.graph.node):
        del node.metadata_props[:]
        node.ClearField("doc_string")
        node.name = str(number)
    return lowered


def merge_equal_(graph: onnx.GraphProto) -> None:
    """Let all nodes that read constants of the same type, shape and bytes read the first of them; others leave."""
    first: dict[tuple[Any, ...], str] = {}
    renamed: dict[str, str] = {}
    for constant in graph.initializer:
        if constant.ByteSize() < WORTH_MERGING:
            continue
        content = numpy_helper.to_array(constant).tobytes()
        key = (constant.data_type, tuple(constant.dims), hashlib.blake2b(content, digest_size=16).digest())
        kept = first.setdefault(key, constant.name)
        if kept != constant.name:
            renamed[constant.name] = kept
    if not renamed:
        return
    for node in graph.node:
        for reader in (node, *inner_nodes(node)):
            for position, name in enumerate(reader.input):
                reader.input[position] = renamed.get(name, name)
    kept_ones = [constant for constant in graph.initializer if constant.name not in renamed]
    del graph.initializer[:]
    graph.initializer.extend(kept_ones)


def _inputs(node: Any) -> Iterator[str]:
    """Names that a node reads, those inside the branches of an If or the body of a Loop included."""
    yield from node.input
    for inside in inner_nodes(node):
        yield from inside.input


def inner_nodes(node: Any) -> Iterator[Any]:
    """The nodes in the branches of an If or the body of a Loop, however deep."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inside in graph.node:
                yield inside
                yield from inner_nodes(inside)
