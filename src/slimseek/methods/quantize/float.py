"""Weights as floats of 16 or 8 bits."""

from __future__ import annotations

import dataclasses
from typing import Literal

import ml_dtypes
import msgspec
import numpy as np

from slimseek import hollow, integers
from slimseek import outline as outlines
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.methods.quantize._notes import left_float
from slimseek.schema import Array, Model, QuantizedTensor, QuantSpec, Samples, Tensor, is_float

HALVES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
LARGEST_LOSS = 1e-6
"""Share of a tensor's sum of squares that may round to zero."""


class Float(Step, frozen=True, kw_only=True):
    """Round weights to the nearest float of 16 or 8 bits, ties to even.

    ``fp16`` (IEEE 754 binary16; 11 significant bits, up to 65504) and ``bf16`` (8 significant bits, the range of
    float32) convert every float32 tensor, biases and norms included. ``e4m3`` (4 significant bits, up to 448) and
    ``e5m2`` (3 bits, up to 57344) convert the weights of layers: value = code * scale, with scale = max|w| / largest
    number of the format, so that the values fill its range and none lies outside. Biases, norms and what else belongs
    to no layer keep their type. Integer buffers are never touched.

    A tensor that the format cannot hold stays as it is, and the notes name it: one with a value that would become
    infinite, or where what would round to zero carries more than a millionth of its sum of squares.

    Attributes:
        format: ``fp16``, ``bf16``, ``e4m3`` or ``e5m2``.
        granularity: what shares a scale in ``e4m3`` and ``e5m2``: the ``tensor``, or a ``channel`` (an output
            channel, a row of a table). 16 bits need no scale.
    """

    format: Literal["fp16", "bf16", "e4m3", "e5m2"] = "fp16"
    granularity: Literal["tensor", "channel"] = "channel"

    def apply(self, model: Model, samples: Samples) -> Model:
        """Convert every tensor that the format can hold."""
        tensors = dict(model.tensors)
        for name, (tensor, axis) in self._meant(model).items():
            if not np.isfinite(tensor).all():
                raise UsageError(f"the tensor {name} holds NaN or infinite values and cannot be converted")
            narrow = self._narrow(tensor, axis)
            if not _fault(tensor, narrow):
                tensors[name] = narrow
        if all(tensors[name] is model.tensors[name] for name in tensors):
            raise NoEffect(f"quantize.float: the model has no wider float tensor that {self.format} can hold")
        return dataclasses.replace(model, tensors=tensors)

    def outline(self, model: Model, samples: Samples) -> Model:
        """As if the format could hold every tensor: nearly all that are trained it can."""
        meant = self._meant(model)
        if not meant:
            raise NoEffect(f"quantize.float: the model has no wider float tensor that {self.format} can hold")
        empty = {
            name: hollow.array(tensor.shape, HALVES[self.format]) if self.format in HALVES
            else outlines.quantized(tensor.shape, self._spec(axis))
            for name, (tensor, axis) in meant.items()
        }  # fmt: skip
        return dataclasses.replace(model, tensors=dict(model.tensors) | empty)

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """How many tensors stayed as they were, why, their names; and large ones of no layer."""
        meant = self._meant(before)
        kept: dict[str, list[str]] = {}
        for name, (tensor, axis) in meant.items():
            if after.tensors[name] is tensor:
                kept.setdefault(_fault(tensor, self._narrow(tensor, axis)), []).append(name)
        reasons = (
            f"{len(names)} of {len(meant)} tensors kept, as {self.format} would make them {why}: {', '.join(names)}"
            for why, names in sorted(kept.items())
        )
        return (*reasons, *(() if self.format in HALVES else left_float(after)))

    def _meant(self, model: Model) -> dict[str, tuple[Array, int]]:
        """The tensors to convert by name, with the axis of their channels, which only scales need."""
        arrays = {name: tensor for name, tensor in model.tensors.items() if not isinstance(tensor, QuantizedTensor)}
        if self.format in HALVES:
            return {name: (array, 0) for name, array in arrays.items() if array.dtype == np.float32}
        axes = {layer.weight: layer.axis for layer in model.layers}
        return {name: (array, axes[name]) for name, array in arrays.items() if name in axes and is_float(array)}

    def _narrow(self, tensor: Array, axis: int) -> Tensor:
        if self.format not in HALVES:
            return integers.quantize(tensor, self._spec(axis))
        with np.errstate(over="ignore", under="ignore"):
            half: Array = tensor.astype(HALVES[self.format])
        return half

    def _spec(self, axis: int) -> QuantSpec:
        """Of eight-bit floats."""
        float8 = self.format if self.format in ("e4m3", "e5m2") else msgspec.UNSET
        return QuantSpec(bits=8, granularity=self.granularity, axis=axis, float8=float8)


def _fault(tensor: Array, narrow: Tensor) -> str:
    """What the narrow form would make of the tensor, ``infinite`` or ``zero``; empty where it can hold it."""
    with np.errstate(over="ignore"):
        values = integers.dequantize(narrow)
    if not np.isfinite(values).all():
        return "infinite"
    squares = np.square(tensor.astype(np.float64))
    return "zero" if squares[values == 0].sum() > LARGEST_LOSS * squares.sum() else ""
