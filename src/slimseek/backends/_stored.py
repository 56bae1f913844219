"""What a package in ONNX stores: integers read back from its file, by their tensors' names.

Lowering names every constant after its tensor and its form: ``NAME.integers`` as they are, ``NAME.blocks`` cut into
groups, ``NAME.table`` for rows that are looked up, ``NAME.places`` in a code book. ``.T`` behind it is for a matrix
that stands transposed, a number for the axis of channels where that is not the first. What is packed into planes of
bits, or spread from a mask, is unpacked as the runtime does it: the constant part of the graph is computed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from slimseek.schema import Array

FORM = re.compile(r"(?P<name>.+)\.(?P<form>integers|blocks|table|places|float8_e4m3fn|float8_e5m2)"
                  r"(?:\.(?P<axis>\d))?(?P<transposed>\.T)?")  # fmt: skip
FOUR_BITS = {ml_dtypes.int4: np.int8, ml_dtypes.uint4: np.uint8}


def stored(path: Path) -> dict[str, Array]:
    """Integers, or places in code books, of a graph's weights by their tensor's name, int8 or uint8 in the tensor's
    own orientation; eight-bit floats as the float32 values that they stand for.

    Signed integers may stand unsigned around 128 (see :mod:`slimseek.backends._saturation`). Of tensors that are equal
    in every byte one is stored, under the name of the first.
    """
    constants = _Constants(onnx.load(path))
    found = {}
    for constant in constants.names:
        form = FORM.fullmatch(constant)
        if form is None:
            continue
        read = {"integers": _plain, "blocks": _blocks, "table": _table, "places": _places}.get(form["form"], _floats)
        axis = int(form["axis"] or 0)
        values = read(constants, constant, axis)
        found[form["name"]] = np.ascontiguousarray(values.T if form["transposed"] else values)
    return found


class _Constants:
    """The part of a graph that hangs on no input.

    Attributes:
        names: of its values.
        made: node by the name of its output.
        readers: nodes by the name of a value that they read.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._initializers = {one.name: one for one in graph.initializer}
        self._versions = {"opset_imports": list(model.opset_import), "ir_version": model.ir_version}
        self.names = list(self._initializers)
        self.made: dict[str, Any] = {}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        known = {"", *self._initializers}
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
            self.made |= dict.fromkeys(node.output, node)
            if node.input and known.issuperset(node.input):
                known.update(node.output)
                self.names += node.output
        self._constant = known

    def value(self, name: str) -> Array:
        """What the constant part gives for a name; four bits as eight."""
        if name in self._initializers:
            array: Array = numpy_helper.to_array(self._initializers[name])
            return array.astype(FOUR_BITS.get(array.dtype.type, array.dtype))
        nodes: dict[str, Any] = {}
        used: dict[str, Any] = {}
        wanted = [name]
        while wanted:
            at = wanted.pop()
            if at in self._initializers:
                used[at] = self._initializers[at]
            elif at and at not in nodes:
                nodes[at] = self.made[at]
                wanted += nodes[at].input
        ordered = [node for output, node in self.made.items() if output in nodes]
        result = helper.make_empty_tensor_value_info(name)
        graph = helper.make_graph(ordered, "constants", [], [result], list(used.values()))
        whole = helper.make_model(graph, **self._versions)
        session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
        computed: Array = session.run(None, {})[0]
        return computed

    def after(self, name: str, last: str = "") -> list[Any]:
        """The nodes that a value runs through, one behind the other, up to the first that is no constant, or up to the
        first of the kind ``last``, which is among them.
        """
        paths = []
        for node in (node for node in self.readers[name] if node.output[0] in self._constant):
            path = [node] if node.op_type == last else [node, *self.after(node.output[0], last)]
            if not last or path[-1].op_type == last:
                return path
            paths.append(path)
        return paths[0] if paths else []


def _plain(constants: _Constants, name: str, _: int) -> Array:
    """As they stand, without what fills up the last group of DequantizeLinear."""
    values = constants.value(name)
    cut = next((node for node in constants.after(name)[1:] if node.op_type == "Slice"), None)
    return values if cut is None else _sliced(constants, cut, values)


def _blocks(constants: _Constants, name: str, axis: int) -> Array:
    """Blocks [channels, groups, group size] are what meets the scale, zero points added again."""
    path = constants.after(name, "Transpose")
    scaled = [node for node in path if node.op_type == "Mul"][-1]
    steps = constants.made[scaled.input[0]]
    less = constants.made[steps.input[1]] if steps.op_type == "Where" else steps
    blocks, signed = constants.value(scaled.input[0]), True
    if less.op_type == "Sub":
        blocks, signed = blocks + constants.value(less.input[1]), False
    return _of_channels(constants, path, blocks.astype(np.int8 if signed else np.uint8), axis)


def _places(constants: _Constants, name: str, axis: int) -> Array:
    """Places [channels, values] are what the code book is asked for, less the place of the channel's own book."""
    path = constants.after(name, "Transpose")
    if path[-1].op_type != "Transpose":  # rows that are looked up
        return _unpacked(constants, name).astype(np.uint8)
    asked = [node for node in path if node.op_type == "Gather"][-1].input[1]
    made = constants.made[asked]
    places = constants.value(made.input[0] if made.op_type == "Add" else asked)
    return _of_channels(constants, path, places.astype(np.uint8), axis)


def _of_channels(constants: _Constants, path: list[Any], rows: Array, axis: int) -> Array:
    """Rows [channels, ...] in the tensor's shape, without what fills up the last group."""
    reshape = [node for node in path if node.op_type == "Reshape"][-1]
    channels, *rest = constants.value(reshape.input[1]).tolist()
    rows = rows.reshape(channels, -1)[:, : int(np.prod(rest))]
    result: Array = np.moveaxis(rows.reshape(channels, *rest), 0, axis)
    return result


def _table(constants: _Constants, name: str, _: int) -> Array:
    """Rows as they are looked up, without what fills up the last group."""
    rows = _unpacked(constants, name)
    rows, signed = rows.reshape(len(rows), -1), True
    path = constants.after(name)
    reading = constants.readers[path[-1].output[0] if path else name]
    for kind in ("Gather", "Cast", "Sub", "Mul", "Reshape", "Slice"):
        same = [node for node in reading if node.op_type == kind]
        signed = signed and not (kind == "Sub" and same)
        if kind == "Slice" and same:
            rows = _sliced(constants, same[0], rows)
        reading = [node for one in same for node in constants.readers[one.output[0]]] if same else reading
    return rows.astype(np.int8 if signed else np.uint8)


def _unpacked(constants: _Constants, name: str) -> Array:
    """The last constant that a value becomes."""
    path = constants.after(name)
    return constants.value(path[-1].output[0] if path else name)


def _floats(constants: _Constants, name: str, _: int) -> Array:
    """Eight-bit floats times their scale, which is what the last constant behind them is."""
    path = constants.after(name, "Mul")
    return constants.value(path[-1].output[0])


def _sliced(constants: _Constants, cut: Any, values: Array) -> Array:
    """An array cut as a Slice node of one axis does it."""
    start, stop, axis = (int(constants.value(name)[0]) for name in cut.input[1:4])
    return np.take(values, range(start, stop), axis)
