"""Linear layers, tables and convolutions of an artifact's integers, in the operators that XNNPACK computes as one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers the operators
from torch.nn import functional

from slimseek.integers import matrix
from slimseek.schema import Array, QuantizedTensor

MARKS = torch.ops.quantized_decomposed


def rounded_rows(x: Tensor) -> Tensor:
    """The marks of a row-wise rounding to eight bits, which XNNPACK does in its own way: from the least to the most."""
    scale, zero = MARKS.choose_qparams_per_token_asymmetric(x, torch.int8)
    integers = MARKS.quantize_per_token(x, scale, zero, -128, 127, torch.int8)
    return MARKS.dequantize_per_token(integers, scale, zero, -128, 127, torch.int8, torch.float32)


class IntegerLinear(nn.Module):
    """x W^T + b of signed integers of four or eight bits, one scale a channel or group.

    Of unsigned integers half their range is taken away, which adds (sum of x) times (half - zero point) times scale:
    a product with one column for each group.
    """

    integers: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor | None
    correction: Tensor | None

    def __init__(self, tensor: QuantizedTensor, bias: Tensor | None, rounded: bool) -> None:
        """A weight whose channels are its outputs; ``rounded`` inputs get a range for each row."""
        super().__init__()
        spec, rows = tensor.spec, matrix(tensor)
        count, width = rows.shape
        self.bits = 4 if spec.bits <= 4 else 8
        self.group = spec.group_size if spec.granularity == "group" else None
        self.rounded = rounded
        scale = np.broadcast_to(tensor.scale.astype(np.float32), (count, tensor.scale.shape[1]))
        half = 0
        if tensor.zero_point is not None:
            half = 2 ** (spec.bits - 1)
            zero = np.broadcast_to(tensor.zero_point.astype(np.float32), scale.shape)
            _keep(self, "correction", scale * (half - zero))
        else:
            self.correction = None
        _keep(self, "integers", (rows.astype(np.int16) - half).astype(np.int8))
        _keep(self, "scale", scale if self.group else scale[:, 0])
        self.register_buffer("zero", torch.zeros(self.scale.shape, dtype=torch.int64), persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [.., inputs] to [.., outputs]."""
        least, most = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        if self.group:
            weight = MARKS.dequantize_per_channel_group(
                self.integers, self.scale, self.zero, least, most, torch.int8, self.group, torch.float32
            )
        else:
            weight = MARKS.dequantize_per_channel(self.integers, self.scale, self.zero, 0, least, most, torch.int8)
        # A product with float inputs takes no bias in XNNPACK.
        if self.rounded:
            y = functional.linear(rounded_rows(x), weight, self.bias)
        else:
            y = functional.linear(x, weight)
            y = y if self.bias is None else y + self.bias
        if self.correction is None:
            return y
        groups = self.correction.shape[1]
        sums = x.reshape(*x.shape[:-1], groups, self.width // groups).sum(-1)
        return y + functional.linear(sums, self.correction)


class HalfLinear(nn.Module):
    """x W^T of weights of 16 bits."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        """Float16 [outputs, inputs]."""
        super().__init__()
        self.register_buffer("weight", weight.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [.., inputs] to [.., outputs]."""
        return functional.linear(x, self.weight.to(torch.float32))


class FloatLinear(nn.Module):
    """x W^T of float32."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        """Float32 [outputs, inputs]."""
        super().__init__()
        self.register_buffer("weight", weight.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float32 [.., inputs] to [.., outputs]."""
        return functional.linear(x, self.weight)


class IntegerTable(nn.Module):
    """Rows of a table of integers: four bits two in a byte, others one; only what is looked up becomes floats."""

    rows: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, tensor: QuantizedTensor) -> None:
        """A table [rows, width] whose channels are its rows."""
        super().__init__()
        spec, rows = tensor.spec, matrix(tensor)
        self.packed, self.width = fits_nibbles(tensor), rows.shape[1]
        signed = tensor.zero_point is None
        _keep(self, "rows", nibbles(rows, signed) if self.packed else rows)
        self.middle = 8.0 if self.packed and signed else 0.0
        self.group = spec.group_size if spec.granularity == "group" else None
        _keep(self, "scale", tensor.scale)
        if tensor.zero_point is None:
            self.zero = None
        else:
            _keep(self, "zero", tensor.zero_point)

    def forward(self, indices: Tensor) -> Tensor:
        """Int64 [..] to float32 [.., width]."""
        values = functional.embedding(indices, self.rows).to(torch.float32)
        if self.packed:
            high = torch.floor(values * (1 / 16))
            values = torch.stack((values - high * 16, high), -1).flatten(-2)
        scale, zero = self._beside(self.scale, indices), self._beside(self.zero, indices)
        groups = self.scale.shape[1]
        if groups > 1:
            missing = -self.width % self.group
            values = functional.pad(values, (0, missing)).unflatten(-1, (groups, self.group))
            scale, zero = scale.unsqueeze(-1), None if zero is None else zero.unsqueeze(-1)
        values = values - self.middle if self.middle else values
        values = (values if zero is None else values - zero) * scale
        return values.flatten(-2)[..., : self.width] if groups > 1 else values

    def _beside(self, stored: Tensor | None, indices: Tensor) -> Any:
        """The numbers [.., groups] of the rows that are looked up; of granularity ``tensor`` the only ones."""
        if stored is None:
            return None
        found = functional.embedding(indices, stored) if len(stored) > 1 else stored.reshape(-1)
        return found.to(torch.float32)


class HalfTable(nn.Module):
    """Rows of a table of 16 bits."""

    rows: Tensor

    def __init__(self, table: Tensor) -> None:
        """Float16 [rows, width]."""
        super().__init__()
        self.register_buffer("rows", table.contiguous(), persistent=False)

    def forward(self, indices: Tensor) -> Tensor:
        """Int64 [..] to float32 [.., width]."""
        return functional.embedding(indices, self.rows).to(torch.float32)


class Kernel(nn.Module):
    """The kernel of a convolution from its integers, one scale a channel."""

    integers: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, integers: Tensor, scale: Tensor, axis: int, again: bool) -> None:
        """Int8 of any shape; scales float32 [channels] along ``axis``; whether they were rounded ``again``."""
        super().__init__()
        self.axis, self.again = axis, again
        self.register_buffer("integers", integers.contiguous(), persistent=False)
        scale = scale.reshape(-1).expand(integers.shape[axis]).contiguous()
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("zero", torch.zeros(scale.shape, dtype=torch.int64), persistent=False)

    def forward(self) -> Tensor:
        """The float32 kernel."""
        return MARKS.dequantize_per_channel(self.integers, self.scale, self.zero, self.axis, -127, 127, torch.int8)


def fits_nibbles(tensor: QuantizedTensor) -> bool:
    """Whether the rows of a table are stored two numbers in a byte."""
    return tensor.spec.bits <= 4 and matrix(tensor).shape[1] % 2 == 0


def nibbles(rows: Array, signed: bool) -> Array:
    """Four-bit integers [n, width] as uint8 [n, width / 2], the first one low; signed ones 8 higher."""
    codes = (rows.astype(np.int16) + (8 if signed else 0)).astype(np.uint8)
    packed: Array = codes[:, ::2] | (codes[:, 1::2] << 4)
    return packed


def _keep(module: nn.Module, name: str, array: Array) -> None:
    module.register_buffer(name, torch.from_numpy(np.array(array, order="C")), persistent=False)
