"""Weights as Paddle Lite stores them: 8 or 16 bits with a scale for each output, widened when a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slimseek.backends._paddlelite.package import MIDDLE
from slimseek.integers import dequantize, is_integer
from slimseek.schema import Array, QuantizedTensor, Tensor

LARGEST = {8: 127, 16: 32767}


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """Integers in the tensor's shape: value = integer * scale of its output.

    Attributes:
        integers: int8 or int16.
        scale: float32 [outputs].
        exact: whether they are the artifact's own: values always are where these have a scale for each output, but a
            zero point is taken off.
    """

    integers: Array
    scale: Array
    exact: bool

    @property
    def bits(self) -> int:
        """8 or 16."""
        return 8 * self.integers.dtype.itemsize


def stored(tensor: Tensor, axis: int, divisor: Array | None = None) -> Stored:
    """A weight on a grid that the runtime has: the artifact's where it is one, else at most half a step away.

    Args:
        tensor: integers of any form, or floats of 16 or 8 bits, code books too: these get 16 bits.
        axis: of the outputs, which have a scale each.
        divisor: what the values are divided by (smoothing that nothing else undoes), or ``None``.
    """
    own = _own(tensor, axis) if divisor is None else None
    if own is not None:
        return own
    bits = 8 if is_integer(tensor) else 16
    values = dequantize(tensor) if divisor is None else dequantize(tensor) / divisor
    rows = np.abs(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)).max(1, initial=0)
    scale = np.where(rows > 0, rows / LARGEST[bits], 1).astype(np.float32)
    integers = np.rint(values / _along(scale, axis, values.ndim))
    return Stored(integers=integers.astype(f"int{bits}"), scale=scale, exact=False)


def values(integers: Array, scale: Array, axis: int) -> Array:
    """The float32 values of integers with a scale for each output."""
    found: Array = integers.astype(np.float32) * _along(scale, axis, integers.ndim)
    return found


def _own(tensor: Tensor, axis: int) -> Stored | None:
    """The tensor's integers, where they have a scale for each output, or one for all, and fit into eight bits."""
    if not is_integer(tensor) or tensor.spec.granularity == "group":
        return None
    if tensor.spec.granularity == "channel" and tensor.spec.axis != axis:
        return None
    integers = tensor.integers.astype(np.int16)
    if tensor.zero_point is not None:
        zero = tensor.zero_point.astype(np.int16).reshape(-1)
        integers = integers - (_along(zero, tensor.spec.axis, integers.ndim) if zero.size > 1 else zero[0])
    if integers.size and (integers.min() < -127 or integers.max() > 127):
        return None
    scale = np.broadcast_to(tensor.scale.astype(np.float32).reshape(-1), (tensor.shape[axis],))
    own = tensor.zero_point is None
    return Stored(integers=integers.astype(np.int8), scale=np.ascontiguousarray(scale), exact=own)


def table(tensor: QuantizedTensor) -> tuple[Array, Array, Array]:
    """The rows of a table of integers as uint8, their zero points uint8 [rows, 1] and scales float32 [rows, 1]: the
    artifact's own (signed ones around 128), or those of a grid for each row.
    """
    rows = len(tensor.integers)

    def each(numbers: Array, kind: str) -> Array:
        return np.ascontiguousarray(np.broadcast_to(numbers.reshape(-1, 1), (rows, 1))).astype(kind)

    if tensor.spec.granularity != "group" and tensor.spec.axis == 0 and tensor.zero_point is not None:
        return tensor.integers, each(tensor.zero_point, "uint8"), each(tensor.scale, "float32")
    weight = stored(tensor, 0)
    shifted = (weight.integers.astype(np.int16) + MIDDLE).astype(np.uint8)
    return shifted, np.full((rows, 1), MIDDLE, np.uint8), each(weight.scale, "float32")


def _along(numbers: Array, axis: int, count: int) -> Array:
    return numbers.reshape([-1 if place == axis else 1 for place in range(count)])
