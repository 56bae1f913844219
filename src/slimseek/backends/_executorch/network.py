"""An ONNX graph with an artifact's integers in it as a PyTorch network that PyTorch's exporter can trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from slimseek.backends._executorch import shapes
from slimseek.backends._executorch.forms import DOMAIN, LINEAR, OTHER_TARGET, TABLE
from slimseek.backends._executorch.layers import (
    MARKS,
    FloatLinear,
    HalfLinear,
    HalfTable,
    IntegerLinear,
    IntegerTable,
    Kernel,
)
from slimseek.errors import UsageError, first_line
from slimseek.models._onnx.graph import _opset, _settings
from slimseek.models._torch.graph import OPERATORS, SEVERAL, _keywords, _plain, _title
from slimseek.schema import Array, Model

WIDENED = "DequantizeLinear"
COARSER = ".int8_scale"
"""What the scale of a kernel is called that was rounded to a grid of eight bits of its own."""
FOLDABLE = 256
"""Values of a constant of 16 bits up to which it is widened when the package is written."""


@dataclass(frozen=True, eq=False)
class _Step:
    """A node that is computed with every query."""

    title: str
    kind: str
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, Any]


class Network(nn.Module):
    """Takes the graph's inputs in order and gives its first output.

    Attributes:
        kept: weight name to the module that holds its integers, for those that have one.
    """

    def __init__(self, graph: onnx.ModelProto, model: Model) -> None:
        """A graph as ``forms.lowered`` gives it; what depends on constants alone is computed here.

        Raises:
            UsageError: an operator that PyTorch has not, by name.
        """
        super().__init__()
        self._opset = _opset(graph)
        self._inputs = tuple(value.name for value in graph.graph.input)
        self._output = graph.graph.output[0].name
        self.layers = nn.ModuleList()
        self.kept: dict[str, nn.Module] = {}
        self._constants: dict[str, Any] = {
            tensor.name: torch.from_numpy(_array(tensor).copy()) for tensor in graph.graph.initializer
        }
        self._halves: dict[str, Tensor] = {}
        self._origin = {name: name for name in self._constants}
        self._steps = _apart([step for node in graph.graph.node for step in self._read(node, model)], self._output)
        self._hold_constants()

    def forward(self, *inputs: Tensor) -> Tensor:
        """The graph's inputs to its first output."""
        values: dict[str, Any] = {"": None, **dict(zip(self._inputs, inputs, strict=True))}
        for step in self._steps:
            given = [values[name] if name in values else self._constant(name) for name in step.inputs]
            found = _computed(step, given)
            values.update(zip(step.outputs, found if step.kind in SEVERAL else (found,), strict=False))
        result: Tensor = values[self._output]
        return result

    def _constant(self, name: str) -> Any:
        if name in self._numbers:
            return self._numbers[name]
        return getattr(self, self._held[name])

    def _hold_constants(self) -> None:
        """Constants that are read: small whole numbers as Python's own, others as buffers."""
        read = {name for step in self._steps for name in step.inputs}
        self._numbers: dict[str, Any] = {}
        self._held: dict[str, str] = {}
        for name in sorted(read):
            if name in self._halves:
                self._constants[name] = self._halves[name].to(torch.float32)
            if name not in self._constants:
                continue
            small = shapes.numbers(self._constants[name])
            if small is not None:
                self._numbers[name] = small
            else:
                self._held[name] = f"constant_{len(self._held)}"
                self.register_buffer(self._held[name], self._constants[name].contiguous(), persistent=False)
        self._constants, self._halves = {}, {}

    # ---------------------------------------------------------------- reading the nodes

    def _read(self, node: Any, model: Model) -> Iterator[_Step]:
        settings = {name: _plain(value) for name, value in _settings(node).items()}
        if node.domain == DOMAIN:
            yield self._of_integers(node, settings, model)
            return
        if node.op_type not in OPERATORS and node.op_type not in OWN:
            raise UsageError(f"ExecuTorch: {_title(node)} has no counterpart in PyTorch here; {OTHER_TARGET}")
        known = all(name in self._constants for name in node.input if name) and node.op_type != "Shape"
        if known and node.op_type == "Cast" and self._is_half(node):
            self._halves[node.output[0]] = self._constants[node.input[0]]
            return
        special = self._special(node, settings)
        if special is not None:
            yield special
            return
        step = self._step(node, settings)
        if known and node.op_type not in ("Shape", *SEVERAL):
            places = shapes.SHAPES.get(node.op_type, ())
            given = [self._folded(name, number in places) for number, name in enumerate(node.input)]
            self._constants[node.output[0]] = _computed(step, given)
            return
        yield step

    def _folded(self, name: str, is_shape: bool) -> Any:
        value = self._constants.get(name)
        return shapes.numbers(value) if is_shape and value is not None else value

    def _is_half(self, node: Any) -> bool:
        stored = self._constants[node.input[0]]
        return stored.dtype == torch.float16 and stored.numel() > FOLDABLE and stored.ndim == 2

    def _step(self, node: Any, settings: dict[str, Any]) -> _Step:
        function = OWN.get(node.op_type) or OPERATORS[node.op_type]
        allowed = _keywords(OPERATORS[node.op_type]) if node.op_type in OPERATORS else set(settings)
        asked = {"opset": self._opset, "results": len(node.output)}
        given = settings | {name: value for name, value in asked.items() if name in allowed}
        unknown = sorted(given.keys() - allowed)
        if unknown and node.op_type not in OWN:
            raise UsageError(f"ExecuTorch: {_title(node)} has the attribute {', '.join(unknown)}; {OTHER_TARGET}")
        return _Step(_title(node), node.op_type, function, tuple(node.input), tuple(node.output), given)

    def _of_integers(self, node: Any, settings: dict[str, Any], model: Model) -> _Step:
        name = settings["weight"]
        tensor: Any = model.tensors[name]
        if node.op_type == TABLE:
            module: nn.Module = IntegerTable(tensor)
        else:
            assert node.op_type == LINEAR
            bias = self._constants[node.input[1]] if len(node.input) > 1 else None
            module = IntegerLinear(tensor, bias, bool(settings["rounded"]))
        self.kept[name] = module
        return self._of_module(module, node, node.input[:1])

    def _of_module(self, module: nn.Module, node: Any, inputs: Sequence[str]) -> _Step:
        self.layers.append(module)
        return _Step(_title(node), "", module, tuple(inputs), tuple(node.output), {})

    def _special(self, node: Any, settings: Mapping[str, Any]) -> _Step | None:
        """Products, look-ups and kernels whose weight is a constant, and roundings by a constant range."""
        kind, inputs = node.op_type, list(node.input)
        if kind == "MatMul" and inputs[0] not in self._constants:
            weight = self._matrix(inputs[1])
            return None if weight is None else self._of_module(_product(weight.T), node, inputs[:1])
        if kind == "Gather" and inputs[0] in self._halves and settings.get("axis", 0) == 0:
            return self._of_module(HalfTable(self._halves[inputs[0]]), node, inputs[1:])
        if kind == WIDENED and inputs[0] in self._constants:
            return self._kernel(node, settings)
        if kind in ("QuantizeLinear", WIDENED) and inputs[0] not in self._constants:
            return self._rounding(node)
        if kind == "Clip" and inputs[0] not in self._constants and set(inputs[1:]) <= {"", *self._constants}:
            return self._clip(node, settings)
        return None

    def _clip(self, node: Any, settings: Mapping[str, Any]) -> _Step:
        """Numbers instead of tensors as limits: XNNPACK joins these to the product before."""
        ends = [float(self._constants[name]) if name else None for name in (*node.input[1:], "", "")]
        least = settings.get("min", -torch.inf) if ends[0] is None else ends[0]
        most = settings.get("max", torch.inf) if ends[1] is None else ends[1]

        def clipped(x: Tensor) -> Tensor:
            both = least > -torch.inf and most < torch.inf and x.is_floating_point()
            return functional.hardtanh(x, least, most) if both else torch.clamp(x, least, most)

        return _Step(_title(node), "", clipped, (node.input[0],), tuple(node.output), {})

    def _matrix(self, name: str) -> Tensor | None:
        weight = self._halves.get(name, self._constants.get(name))
        return weight if weight is not None and weight.ndim == 2 and weight.is_floating_point() else None

    def _kernel(self, node: Any, settings: Mapping[str, Any]) -> _Step | None:
        """Integers of a convolution stay integers; those of its bias, which XNNPACK rounds alike, become floats."""
        integers, scale = (self._constants[name] for name in node.input[:2])
        if integers.dtype != torch.int8 or integers.ndim < 3:
            return None
        place = node.input[1]
        again = place.endswith(COARSER)
        module = Kernel(integers, scale, int(settings.get("axis", 1)), again)
        self.kept[place.removesuffix(COARSER if again else ".scale")] = module
        return self._of_module(module, node, ())

    def _rounding(self, node: Any) -> _Step:
        scale = float(self._constants[node.input[1]])
        zero = int(self._constants[node.input[2]]) - 128

        def rounded(x: Tensor) -> Tensor:
            return MARKS.quantize_per_tensor(x, scale, zero, -128, 127, torch.int8)

        def widened(x: Tensor) -> Tensor:
            return MARKS.dequantize_per_tensor(x, scale, zero, -128, 127, torch.int8)

        function = rounded if node.op_type == "QuantizeLinear" else widened
        return _Step(_title(node), node.op_type, function, (node.input[0],), tuple(node.output), {})


def _apart(steps: Sequence[_Step], output: str) -> tuple[_Step, ...]:
    """Each reader of a rounded value widens it for itself: XNNPACK puts all readers of one widened value into one part
    of the program, which a residual connection would then leave and enter again.
    """
    widened = {step.outputs[0]: step for step in steps if step.kind == WIDENED}
    found: list[_Step] = []
    for number, step in enumerate(steps):
        own = {name: f"{name}#{number}" for name in step.inputs if name in widened}
        found += [dataclasses.replace(widened[name], outputs=(mine,)) for name, mine in own.items()]
        if step.kind != WIDENED or step.outputs[0] == output:
            found.append(dataclasses.replace(step, inputs=tuple(own.get(name, name) for name in step.inputs)))
    return tuple(found)


def _computed(step: _Step, given: Sequence[Any]) -> Any:
    """A node's result: numbers where all that it reads are numbers of shapes, else a tensor."""
    try:
        if step.kind == "Shape":
            return tuple(given[0].shape[step.settings.get("start", 0) : step.settings.get("end")])
        whole = [value for value in given if value is not None]
        if step.kind in shapes.OPERATORS and whole and all(map(shapes.is_numbers, whole)):
            return shapes.OPERATORS[step.kind](*given, **step.settings)
        places = shapes.SHAPES.get(step.kind, ())
        ready = [_ready(value, number in places) for number, value in enumerate(given)]
        return step.function(*ready, **step.settings)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UsageError(f"ExecuTorch: {step.title} cannot be written ({first_line(error)}); {OTHER_TARGET}") from error


def _ready(value: Any, is_shape: bool) -> Any:
    if is_shape:
        return shapes.as_tuple(value)
    return shapes.as_tensor(value) if shapes.is_numbers(value) else value


def _product(weight: Tensor) -> nn.Module:
    return HalfLinear(weight) if weight.dtype == torch.float16 else FloatLinear(weight)


def _array(tensor: onnx.TensorProto) -> Array:
    return numpy_helper.to_array(tensor)


# ---------------------------------------------------------------- operators that the exporter or the runtime lacks


def _expand(x: Tensor, wanted: Sequence[Any]) -> Tensor:
    sizes = [1] * (x.ndim - len(wanted)) + list(wanted)
    lengths = [1] * (len(sizes) - x.ndim) + list(x.shape)
    return x.expand([
        length if isinstance(size, int) and size == 1 else size for size, length in zip(sizes, lengths, strict=True)
    ])  # fmt: skip


def _reshape(x: Tensor, wanted: Sequence[Any], *, allowzero: int = 0) -> Tensor:
    return x.reshape([
        x.shape[place] if isinstance(length, int) and length == 0 and not allowzero else length
        for place, length in enumerate(wanted)
    ])  # fmt: skip


def _slice(
    x: Tensor, first: Any = None, last: Any = None, along: Any = None, stride: Any = None, *,
    starts: Sequence[int] = (), ends: Sequence[int] = (), axes: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    begins, stops = first if first is not None else starts, last if last is not None else ends
    places = (along if along is not None else axes) or range(len(begins))
    for begin, stop, place, step in zip(begins, stops, places, stride or [1] * len(begins), strict=True):
        if isinstance(step, int) and step < 0:
            x = OPERATORS["Slice"](x, (begin,), (stop,), (place,), (step,))
        else:
            x = x[(slice(None),) * (place % x.ndim) + (slice(begin, stop, step),)]
    return x


def _gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    if axis == 0 and x.ndim == 2 and indices.ndim:
        return functional.embedding(indices.long(), x)
    return OPERATORS["Gather"](x, indices, axis=axis)


def _length(
    x: Tensor, places: Sequence[int] | None = None, /, *, axes: Sequence[int] = (), keepdims: int = 1, **_: int
) -> Tensor:
    squares = OPERATORS["ReduceSumSquare"](x, places, axes=axes, keepdims=keepdims)
    return torch.sqrt(squares)


def _quantize(x: Tensor, scale: Tensor, zero: Tensor, *, axis: int = 1) -> Tensor:
    limits = torch.iinfo(zero.dtype)
    steps = torch.round(x / _along(scale, x, axis)) + _along(zero, x, axis)
    return steps.clamp(limits.min, limits.max).to(zero.dtype)


def _dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int = 1) -> Tensor:
    steps = x.to(torch.float32) - (0 if zero is None else _along(zero, x, axis).to(torch.float32))
    return steps * _along(scale, x, axis)


def _along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """One number for each place along an axis, in a shape that goes along with ``x``."""
    return values.reshape([-1 if place == axis % x.ndim else 1 for place in range(x.ndim)]) if values.ndim else values


OWN: dict[str, Callable[..., Any]] = {
    WIDENED: _dequantize,
    "Expand": _expand,
    "Gather": _gather,
    "QuantizeLinear": _quantize,
    "ReduceL2": _length,
    "Reshape": _reshape,
    "Slice": _slice,
}
