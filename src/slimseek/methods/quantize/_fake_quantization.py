"""Rounding that gradients pass through: a layer's weight on its grid of integers while it is trained.

The step of each block is trained with the weight (Esser et al., Learned Step Size Quantization, 2020); rounding has
the gradient one (straight-through), clipping zero outside of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import parametrize

from slimseek.schema import QuantizedTensor

INSIDE = 0.49
"""Steps from a level within which a weight is surely rounded to it."""


class Grid(nn.Module):
    """A parametrization of a weight: forward gives what its integers stand for."""

    zero_point: torch.Tensor

    def __init__(self, start: QuantizedTensor) -> None:
        """With the steps and zero points of ``start``."""
        super().__init__()
        self.spec = start.spec
        self.shape = start.integers.shape
        self.stores_halves = start.scale.dtype.itemsize == 2
        self.step = nn.Parameter(torch.from_numpy(start.scale.astype("float32")))
        zero = start.zero_point if start.zero_point is not None else start.scale * 0
        self.register_buffer("zero_point", torch.from_numpy(zero.astype("float32")))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Float32 values of the weight's shape, each on one of at most 2^bits levels."""
        blocks, step = self._blocks(weight), self._stored_step()
        return self._unblocks(self._levels(blocks, step) * step)

    def quantized(self, weight: torch.Tensor) -> QuantizedTensor:
        """The integers that the trained weight has come to, with the trained steps."""
        with torch.no_grad():
            step = self._stored_step()
            levels = self._levels(self._blocks(weight), step)
            if not self.spec.symmetric:
                levels = levels + self.zero_point[..., None]
            kind = "int8" if self.spec.symmetric else "uint8"
            integers = self._unblocks(levels).round().numpy().astype(kind)
            scale = step[..., 0].numpy().astype("float16" if self.stores_halves else "float32")
            zero = None if self.spec.symmetric else self.zero_point.numpy().astype("uint8")
        return QuantizedTensor(spec=self.spec, integers=integers, scale=scale, zero_point=zero)

    def begun(self, weight: torch.Tensor, start: QuantizedTensor) -> torch.Tensor:
        """The weight, moved as little as it takes for its integers to be those of ``start``."""
        with torch.no_grad():
            blocks, step = self._blocks(weight), self._stored_step()
            wanted = self._blocks(torch.from_numpy(start.integers.astype("float32")))
            if not self.spec.symmetric:
                wanted = wanted - self.zero_point[..., None]
            inside = (blocks / step).clamp(wanted - INSIDE, wanted + INSIDE) * step
            return self._unblocks(torch.where(self._levels(blocks, step).round() == wanted, blocks, inside))

    def _levels(self, blocks: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Whole numbers around zero: integer - zero_point."""
        places = blocks / step
        whole = places + (places.round() - places).detach()
        if self.spec.symmetric:
            top = 2 ** (self.spec.bits - 1) - 1
            return whole.clamp(-top, top)
        zero = self.zero_point[..., None]
        return (whole + zero).clamp(0, 2**self.spec.bits - 1) - zero

    def _stored_step(self) -> torch.Tensor:
        """Positive steps [channels, groups, 1], rounded as they are stored."""
        step = self.step.abs().clamp(min=1e-6)
        if self.stores_halves:
            step = step + (step.half().float().clamp(min=1e-6) - step).detach()
        return step[..., None]

    def _blocks(self, weight: torch.Tensor) -> torch.Tensor:
        """[channels, groups, values], the last group filled up with zeros."""
        if self.spec.granularity == "tensor":
            return weight.reshape(1, 1, -1)
        rows = weight.movedim(self.spec.axis, 0).flatten(1)
        if self.spec.granularity == "channel":
            return rows[:, None]
        assert self.spec.group_size is not None
        padded = nn.functional.pad(rows, (0, -rows.shape[1] % self.spec.group_size))
        return padded.reshape(len(rows), -1, self.spec.group_size)

    def _unblocks(self, blocks: torch.Tensor) -> torch.Tensor:
        if self.spec.granularity == "tensor":
            return blocks.reshape(self.shape)
        axis = self.spec.axis
        moved = (self.shape[axis], *self.shape[:axis], *self.shape[axis + 1 :])
        values = blocks.flatten(1)[:, : math.prod(moved[1:])].reshape(moved)
        return values.movedim(0, axis).contiguous()


def fake_quantize(network: nn.Module, name: str, start: QuantizedTensor) -> Callable[[], QuantizedTensor]:
    """Put the weight that ``state_dict`` calls ``name`` on a trainable grid, in every module that has it, its integers
    those of ``start``; returns what reads off what has become of them.
    """
    parameter = network.state_dict(keep_vars=True)[name]
    places = [
        (module, attribute)
        for module in network.modules()
        for attribute, own in module.named_parameters(recurse=False)
        if own is parameter
    ]
    grid = Grid(start)
    parameter.data.copy_(grid.begun(parameter.data, start))
    for module, attribute in places:
        parametrize.register_parametrization(module, attribute, grid)
    module, attribute = places[0]
    trained = module.parametrizations[attribute].original  # type: ignore[union-attr, index]
    return lambda: grid.quantized(trained)


def freeze(network: nn.Module, name: str) -> None:
    """Leave the weight that ``state_dict`` calls ``name`` as it is."""
    network.state_dict(keep_vars=True)[name].requires_grad_(False)
