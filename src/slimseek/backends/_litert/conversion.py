"""From a float graph in ONNX and a model's integers to a LiteRT graph: the values on the way.

Pictures run with their channels last, which is what LiteRT's kernels take; a value is brought into the other order
only where something asks for it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from slimseek.backends._litert.file import Grid, Shape, Writer
from slimseek.backends._litert.folding import Sized
from slimseek.errors import UsageError
from slimseek.schema import Array, Model

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""The order of axes that brings channels last, and first again."""
KINDS = {"int64": "int32", "float64": "float32", "uint32": "int32"}
LARGEST_INTEGER = 2**31 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """A node of the float graph: its operator, names of its values (empty for one left out), and its attributes."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: dict[str, Any]


class DependsOnBatch(UsageError):
    """A constant of the graph depends on how many items are in the batch, so that it runs one by one."""


class Conversion:
    """A LiteRT graph under construction, and where each value of the ONNX graph stands in it.

    Attributes:
        write: the file.
        model: whose integers go in.
        nodes: of the graph at its small size, in order.
        readers: nodes that read each value.
        outputs: names of the graph's results.
        stored: what :func:`slimseek.backends._litert.weights.read` needs to read each tensor's integers.
    """

    def __init__(self, graph: onnx.ModelProto, model: Model, small: Sized, large: Sized) -> None:
        self.model, self.small, self.large = model, small, large
        self.nodes = [_node(node) for node in small.nodes]
        self.readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.graph.output}
        free = Counter(axis for name, shape in small.shapes.items() for axis, other in
                       zip(shape, large.shapes.get(name, shape), strict=False) if axis != other)  # fmt: skip
        self.write = Writer(free=min(free, default=1))
        self.stored: dict[str, dict[str, Any]] = {}
        self.inputs: dict[str, int] = {}
        self.done: set[str] = set()
        self._plain: dict[str, int] = {}
        self._pictures: dict[str, int] = {}
        self._integers: dict[str, tuple[int, bool]] = {}
        known = {tensor.name for tensor in graph.graph.initializer}
        for value in graph.graph.input:
            if value.name not in known:
                self._input(value)

    def _input(self, value: Any) -> None:
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        index = self.write.tensor(self.dims(value.name), KINDS.get(kind, kind), name=value.name)
        self.inputs[value.name] = self._plain[value.name] = index

    def dims(self, name: str) -> Shape:
        """The shape of a value in ONNX's order, -1 for the free axis."""
        if name not in self.small.shapes or name not in self.large.shapes:
            raise UsageError(f"LiteRT takes no value of an unknown shape ({name}); deploy for onnxruntime instead")
        pairs = zip(self.small.shapes[name], self.large.shapes[name], strict=True)
        return tuple(axis if axis == other else -1 for axis, other in pairs)

    def kind(self, index: int) -> str:
        """The type of a tensor of the file."""
        return self.write.kinds[index]

    def known(self, name: str) -> Array | None:
        """A constant that is the same at every size, else ``None``; weights of the model are constants too."""
        small, large = self.small.constants.get(name), self.large.constants.get(name)
        if small is None or large is None or small.shape != large.shape or not np.array_equal(small, large):
            return None
        return small

    def is_constant(self, name: str) -> bool:
        """Whether no input changes the value."""
        return name in self.small.constants

    def is_picture(self, name: str) -> bool:
        """Whether the value stands with its channels last."""
        return name in self._pictures or (name in self._integers and self._integers[name][1])

    def integers(self, name: str) -> int | None:
        """The int8 tensor of a rounded value, in the order that :meth:`is_picture` tells; ``None`` for others."""
        return self._integers[name][0] if name in self._integers else None

    def value(self, name: str) -> int:
        """The tensor of a value in ONNX's order."""
        if name in self._plain:
            return self._plain[name]
        if name in self._integers and not self._integers[name][1]:
            found = self.write.operator("DEQUANTIZE", [self._integers[name][0]], self.dims(name))
        elif self.is_picture(name):
            found = self._ordered(self.picture(name), FIRST, self.dims(name))
        elif name in self.small.constants:
            found = self._constant(name)
        else:
            raise UsageError(f"LiteRT takes no graph that reads {name} before it is computed")
        self._plain[name] = found
        return found

    def picture(self, name: str) -> int:
        """The tensor of a value [n, channels, height, width] with its channels last."""
        shape = self.dims(name)
        last = tuple(shape[axis] for axis in LAST)
        if name not in self._pictures and name in self._integers and self._integers[name][1]:
            self._pictures[name] = self.write.operator("DEQUANTIZE", [self._integers[name][0]], last)
        if name not in self._pictures:
            self._pictures[name] = self._ordered(self.value(name), LAST, last)
        return self._pictures[name]

    def beside(self, name: str) -> int:
        """A value that is broadcast over pictures: a constant gets its axes in their order."""
        known = self.known(name)
        if known is None:
            return self.picture(name)
        if known.ndim == 0 or known.size == 1:
            return self.constant(known.reshape([1] * known.ndim))
        return self.constant(known.reshape([1] * (4 - known.ndim) + list(known.shape)).transpose(LAST))

    def give(self, name: str, index: int, *, picture: bool = False) -> None:
        """Say where a value stands."""
        (self._pictures if picture else self._plain)[name] = index

    def give_integers(self, name: str, index: int, *, picture: bool) -> None:
        """Say where a rounded value's int8 tensor stands."""
        self._integers[name] = index, picture

    def constant(self, array: Array) -> int:
        """A constant of the nearest type that LiteRT's kernels compute with."""
        if array.dtype.name in KINDS:
            limits = (-LARGEST_INTEGER, LARGEST_INTEGER)
            array = (np.clip(array, *limits) if array.dtype.kind in "iu" else array).astype(KINDS[array.dtype.name])
        return self.write.constant(array)

    def numbers(self, *values: int) -> int:
        """An int32 constant [n], such as a shape."""
        return self.write.constant(np.array(values, np.int32))

    def reshaped(self, index: int, shape: Shape) -> int:
        """The tensor in another shape; at most one axis may be free."""
        if shape == self.write.shapes[index]:
            return index
        if sum(axis < 0 for axis in shape) > 1:
            raise UsageError("LiteRT takes no Reshape to a shape with two free axes; deploy for onnxruntime instead")
        target = self.numbers(*shape) if shape else self.write.constant(np.zeros(0, np.int32))
        return self.write.operator("RESHAPE", [index, target], shape, self.kind(index), grid=self.write.grids[index])

    def transposed(self, index: int, order: tuple[int, ...]) -> int:
        """The tensor with its axes in this order."""
        shape = self.write.shapes[index]
        return self.write.operator("TRANSPOSE", [index, self.numbers(*order)], tuple(shape[axis] for axis in order),
                                   self.kind(index), grid=self.write.grids[index])  # fmt: skip

    def quantized(self, index: int, scale: float, zero_point: int) -> int:
        """A float tensor rounded to int8; ``zero_point`` is that of unsigned integers."""
        grid = Grid((scale,), (zero_point - 128,))
        return self.write.operator("QUANTIZE", [index], self.write.shapes[index], "int8", grid=grid)

    def cast(self, index: int, kind: str) -> int:
        """The tensor in another type."""
        kind = KINDS.get(kind, kind)
        if self.kind(index) == kind:
            return index
        return self.write.operator("CAST", [index], self.write.shapes[index], kind)

    def positions(self) -> int:
        """Int32 [free axis]: 0, 1, 2, ...

        Raises:
            DependsOnBatch: the free axis is that of the batch.
        """
        for name, index in self.inputs.items():
            shape = self.dims(name)
            if shape[0] != 1 or -1 not in shape:
                continue
            axis = shape.index(-1)
            others = tuple(other for other in range(len(shape)) if other != axis)
            equal = self.write.operator("EQUAL", [index, index], shape, "bool")
            ones = self.cast(equal, "int32")
            settings = ("ReducerOptions", {"keepDims": False})
            row = self.write.operator("REDUCE_MAX", [ones, self.numbers(*others)], (-1,), "int32", settings=settings)
            zero = self.write.constant(np.array(0, np.int32))
            return self.write.operator("CUMSUM", [row, zero], (-1,), "int32",
                                       settings=("CumsumOptions", {"exclusive": True}))  # fmt: skip
        raise DependsOnBatch("a constant depends on how many items are in the batch")

    def _ordered(self, index: int, order: tuple[int, ...], shape: Shape) -> int:
        """Transposed; a mere reshape where all but one of the moved axes are of length one."""
        if sum(axis != 1 for axis in shape[1:]) <= 1 and sum(axis < 0 for axis in shape) <= 1:
            return self.reshaped(index, shape)
        return self.transposed(index, order)

    def _constant(self, name: str) -> int:
        small, large = self.small.constants[name], self.large.constants[name]
        if self.known(name) is not None:
            return self.constant(small)
        if small.ndim != large.ndim or not np.array_equal(large[tuple(map(slice, small.shape))], small):
            raise UsageError(f"LiteRT takes no constant that depends on the length of a text in its own way ({name}); "
                             f"deploy for onnxruntime instead")  # fmt: skip
        shape = self.dims(name)
        found = self.constant(large)
        for axis in (number for number, size in enumerate(shape) if size < 0):
            done = tuple(size if number <= axis else large.shape[number] for number, size in enumerate(shape))
            found = self.write.operator("GATHER", [found, self.positions()], done, self.kind(found),
                                        settings=("GatherOptions", {"axis": axis}))  # fmt: skip
        return found


def _node(node: Any) -> Node:
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return Node(kind=node.op_type, inputs=tuple(node.input), outputs=tuple(node.output), settings=settings)
