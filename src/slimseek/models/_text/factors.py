"""Linear layers of a transformer that have become two: a narrow one without a bias, then one with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from slimseek.schema import Array, Layer, Model, QuantizedTensor, Tensor

WEIGHT = ".weight"
FIRST, SECOND = ".0", ".1"


class TwoFactors(nn.Sequential):
    """x to B (A x) + b in the place of a linear layer; it shows the widths of the layer whose place it takes."""

    def __init__(self, inputs: int, rank: int, outputs: int, bias: bool) -> None:
        super().__init__(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=bias))

    @property
    def in_features(self) -> int:
        """Width of what it takes."""
        first: Any = self[0]
        return int(first.weight.shape[1])

    @property
    def out_features(self) -> int:
        """Width of what it gives."""
        return int(self.weight.shape[0])

    @property
    def weight(self) -> torch.Tensor:
        """B; some architectures look at the dtype of a layer's weight."""
        second: Any = self[1]
        found: torch.Tensor = second.weight
        return found


def whole(layers: Iterable[Layer]) -> list[Layer]:
    """The layers that are no factors."""
    known = tuple(layers)
    names = {layer.name for layer in known}
    stems = {name.removesuffix(FIRST) for name in names if name.endswith(FIRST)}
    stems = {stem for stem in stems if f"{stem}{SECOND}" in names and stem not in names}
    factors = {f"{stem}{end}" for stem in stems for end in (FIRST, SECOND)}
    return [layer for layer in known if layer.name not in factors]


def factored(model: Model, factors: Mapping[str, tuple[Array, Array]]) -> Model:
    """The model in which linear layers have become two, in the dtype of what they replace.

    Args:
        model: float, neither smoothed nor rounded.
        factors: float32 B [outputs, rank] and A [rank, inputs] by the name of the weight.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        stem, _, part = name.rpartition(".")
        if name in factors:
            assert not isinstance(tensor, QuantizedTensor)
            second, first = factors[name]
            tensors[f"{stem}{FIRST}{WEIGHT}"] = np.ascontiguousarray(first.astype(tensor.dtype))
            tensors[f"{stem}{SECOND}{WEIGHT}"] = np.ascontiguousarray(second.astype(tensor.dtype))
        else:
            tensors[f"{stem}{SECOND}.{part}" if f"{stem}{WEIGHT}" in factors else name] = tensor
    layers: list[Layer] = []
    for layer in model.layers:
        layers += _halves(layer) if layer.weight in factors else [layer]
    return dataclasses.replace(model, tensors=tensors, layers=tuple(layers))


def factor_(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put two factors in the place of every linear layer whose tensors are named so."""
    for name, module in list(network.named_modules()):
        inner = tensors.get(f"{name}{FIRST}{WEIGHT}")
        outer = tensors.get(f"{name}{SECOND}{WEIGHT}")
        if inner is None or outer is None or not isinstance(getattr(module, "weight", None), nn.Parameter):
            continue
        parent, _, key = name.rpartition(".")
        bias = f"{name}{SECOND}.bias" in tensors
        outputs, rank = outer.shape
        setattr(network.get_submodule(parent), key, TwoFactors(inner.shape[1], rank, outputs, bias))


def _halves(layer: Layer) -> list[Layer]:
    first, second = f"{layer.name}{FIRST}", f"{layer.name}{SECOND}"
    bias = f"{second}.bias" if isinstance(layer.bias, str) else msgspec.UNSET
    return [
        Layer(name=first, kind="linear", weight=f"{first}{WEIGHT}"),
        Layer(name=second, kind="linear", weight=f"{second}{WEIGHT}", bias=bias),
    ]
