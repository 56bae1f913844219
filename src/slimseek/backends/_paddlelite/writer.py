"""The program under construction: operators, values, parameters, and how weights become the latter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from slimseek.backends._lowering import _biases, _is_stored, tensor_name
from slimseek.backends._paddlelite import weights
from slimseek.backends._paddlelite.format import SCALES, Attribute, Operator, Value
from slimseek.backends._paddlelite.graph import Seen
from slimseek.backends._paddlelite.package import Kept
from slimseek.errors import UsageError
from slimseek.integers import unsmoothed
from slimseek.schema import Array, Model, Tensor

QUANTIZED = "post_weight_channel_wise_abs_max"


class Writer:
    """Appends operators of Paddle for nodes of ONNX."""

    def __init__(self, graph: onnx.ModelProto, model: Model, seen: Seen) -> None:
        self.graph, self.model, self.seen = graph, model, seen
        self.initializers = {one.name: one for one in graph.graph.initializer}
        self.operators: list[Operator] = []
        self.values: dict[str, Value] = {}
        self.parameters: dict[str, Array] = {}
        self.widened: set[str] = set()
        self.kept: dict[str, Kept] = {}
        self.taken = 0
        self.outputs = {output.name for output in graph.graph.output}
        self.biases = _biases(graph.graph)

    # ------------------------------------------------------------ names and shapes

    def settings(self, node: Any) -> dict[str, Any]:
        """The attributes of a node, bytes as text."""
        found = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}

    def constant(self, name: str) -> Array | None:
        """The value of a constant; ``None`` for what is computed."""
        return self.seen.constants.get(name) if name else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a value, -1 where it changes."""
        return self.seen.shape(name)

    def rank(self, name: str) -> int:
        """Number of its axes."""
        return len(self.seen.shape(name))

    def dtype(self, name: str) -> str:
        """Numpy name of its dtype."""
        held = self.constant(name)
        return held.dtype.name if held is not None else self.seen.dtypes[name]

    # ------------------------------------------------------------ writing

    def parameter(self, name: str, array: Array) -> str:
        """A stored array, once for each name; numbers get one axis."""
        if name not in self.parameters:
            held = np.ascontiguousarray(array).reshape(array.shape or (1,))
            self.parameters[name] = held.astype(np.float32) if held.dtype in (np.float64, np.float16) else held
        return name

    def use(self, name: str) -> str:
        """The value under its name: what is computed as it is, a constant as a parameter."""
        if name in self.values or name in self.seen.fed or name not in self.seen.constants:
            return name
        own = tensor_name(name)
        tensor = self.model.tensors.get(own)
        if tensor is not None and _is_stored(tensor):
            return self._widened_value(name)
        return self.parameter(name, self.seen.constants[name])

    def write(self, kind: str, inputs: Mapping[str, Sequence[str]], output: str, shape: Sequence[int],
              dtype: str = "float32", /, *, parameter: str = "Out", extra: Sequence[str] = (),
              **attributes: Attribute) -> str:  # fmt: skip
        """Append an operator whose first output has this name; ``extra`` are outputs that nothing reads."""
        outputs = {parameter: [output]} | {name: [f"{output}.{name}"] for name in extra}
        for name in extra:
            self.values[f"{output}.{name}"] = Value(dtype="float32", shape=(-1,))
        self.values[output] = Value(dtype=dtype, shape=tuple(shape))
        self.operators.append(Operator(kind=kind, inputs=inputs, outputs=outputs, attributes=attributes))
        return output

    def node(self, kind: str, inputs: Mapping[str, Sequence[str]], output: str, /, **more: Any) -> str:
        """Append an operator whose output is a value of the graph."""
        return self.write(kind, inputs, output, self.shape(output), self.dtype(output), **more)

    def fresh(self, name: str) -> str:
        """A name for a value between."""
        self.taken += 1
        return f"{name}.slim{self.taken}"

    # ------------------------------------------------------------ weights

    def matrix(self, name: str, flipped: bool = False) -> tuple[str, dict[str, Attribute]]:
        """A constant as [inputs, outputs], and what the operator that reads it must say of it.

        Args:
            name: of the initializer.
            flipped: whether it stands as [outputs, inputs] in the graph.
        """
        own, tensor = self.weight_of(name)
        if tensor is None:
            if not flipped:
                return self.use(name), {}
            return self.parameter(f"{name}.T", self.seen.constants[name].T), {}
        axis = 0 if self._stands_transposed(name) != flipped else 1
        return self._widened(own, tensor, axis, transposed=axis == 0)

    def kernel(self, name: str) -> tuple[str, dict[str, Attribute]]:
        """The same of the kernel [outputs, ...] of a convolution."""
        own, tensor = self.weight_of(name)
        return (self.use(name), {}) if tensor is None else self._widened(own, tensor, 0, transposed=False)

    def columns(self, own: str) -> tuple[str, dict[str, Attribute]]:
        """A table [rows, columns] that is widened when a model is loaded, with a scale for each column."""
        parameter = f"{own}.columns"
        if parameter in self.widened:
            return parameter, {}
        kept = weights.stored(self.model.tensors[own], 1)
        self.parameter(parameter, kept.integers)
        self.kept[own] = Kept(parameter=parameter, axis=1, exact=False)
        self.widened.add(parameter)
        return parameter, widening(parameter, kept)

    def keep(self, own: str, kept: weights.Stored, axis: int, transposed: bool = False) -> str:
        """Store the integers of a tensor, whose outputs lie on ``axis``; the name of their parameter."""
        parameter = f"{own}.T" if transposed else own
        self.parameter(parameter, kept.integers.T if transposed else kept.integers)
        self.kept[own] = Kept(parameter=parameter, transposed=transposed, axis=axis, exact=kept.exact)
        return parameter

    def weight_of(self, name: str) -> tuple[str, Tensor | None]:
        """The tensor's name that an initializer holds, and the tensor where it is stored in another form."""
        own = tensor_name(name)
        tensor = self.model.tensors.get(own) if name in self.initializers else None
        return own, tensor if tensor is not None and _is_stored(tensor) else None

    def _widened(self, own: str, tensor: Tensor, axis: int, transposed: bool) -> tuple[str, dict[str, Attribute]]:
        """The library widens a parameter once: the first operator that reads it says so."""
        parameter = f"{own}.T" if transposed else own
        if parameter in self.widened:
            return parameter, {}
        kept = weights.stored(tensor, axis)
        self.keep(own, kept, axis, transposed)
        self.widened.add(parameter)
        return parameter, widening(parameter, kept)

    def _stands_transposed(self, name: str) -> bool:
        own, stands = tensor_name(name), tuple(self.initializers[name].dims)
        shape = self.model.tensors[own].shape
        if shape != stands or len(shape) != 2 or shape[0] != shape[1]:
            return shape != stands
        return not np.array_equal(numpy_helper.to_array(self.initializers[name]), unsmoothed(self.model, own))

    def _widened_value(self, name: str) -> str:
        """A stored tensor as float values, for an operator that knows no other form."""
        return self.parameter(f"{name}.values", numpy_helper.to_array(self.initializers[name]))

    def smoothed(self, name: str, source: str) -> str:
        """The input of a layer, divided by its smoothing."""
        factors = self.model.smoothing.get(tensor_name(name))
        if factors is None:
            return self.use(source)
        held = self.parameter(f"{tensor_name(name)}.factors", (1 / factors).reshape(-1).astype(np.float32))
        return self.write("elementwise_mul", {"X": [self.use(source)], "Y": [held]}, self.fresh(source),
                          self.shape(source), axis=-1)  # fmt: skip


def widening(parameter: str, kept: weights.Stored) -> dict[str, Attribute]:
    """The attributes by which the library widens a parameter to float32 when it loads a model."""
    return {"quantization_type": QUANTIZED, "quantize_weight_bits": kept.bits,
            parameter + SCALES: [float(number) for number in kept.scale]}  # fmt: skip


def refused(what: str) -> UsageError:
    """The error for what has no form here."""
    return UsageError(f"paddlelite: no form for {what}; deploy for onnxruntime instead")
