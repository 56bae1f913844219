"""Weights as integers of 2 to 8 bits."""

from __future__ import annotations

import dataclasses

import numpy as np

from slimseek import integers
from slimseek.errors import NoEffect, UsageError
from slimseek.schema import Granularity, LayerKind, Model, QuantizedTensor, QuantSpec, Samples, Step

KINDS: tuple[LayerKind, ...] = ("linear", "embedding", "convolution", "recurrent")


class WeightsInt(Step, frozen=True, kw_only=True):
    """Round weights to the nearest of 2^bits levels; n bits take n bits on disk.

    scale = c max|w| / (2^(bits-1) - 1) for each tensor, channel or group; integer = round(w / scale). Asymmetric:
    the range from c min to c max on all 2^bits levels, with a zero point.

    Attributes:
        bits: 2 to 8.
        granularity: what shares a scale: ``tensor``, ``channel`` (an output channel, a row of a table) or ``group``.
        group_size: values of a channel that share a scale when the granularity is ``group``; a width that it does
            not divide ends in a shorter group.
        symmetric: signed integers without a zero point.
        scaling: ``mse`` finds the c of each scale, in [0.4, 1], with the least squared error; ``max``: c = 1.
        layers: kinds of layers to quantize.
        skip: layers whose name contains one of these stay as they are.
    """

    bits: int = 8
    granularity: Granularity = "channel"
    group_size: int = 32
    symmetric: bool = True
    scaling: integers.Scaling = "mse"
    layers: tuple[LayerKind, ...] = KINDS
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(f"quantize.weights_int: bits is {self.bits}; 2 to 8 are allowed")
        if self.granularity == "group" and self.group_size < 2:
            raise UsageError(f"quantize.weights_int: group_size is {self.group_size}; 2 or more is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Quantize the float weights of the chosen layers; weights quantized before stay as they are."""
        tensors = dict(model.tensors)
        for layer in model.layers:
            tensor = tensors[layer.weight]
            chosen = layer.kind in self.layers and not any(part in layer.name for part in self.skip)
            if not chosen or isinstance(tensor, QuantizedTensor):
                continue
            if not np.isfinite(tensor).all():
                raise UsageError(f"the tensor {layer.weight} holds NaN or infinite values and cannot be quantized")
            tensors[layer.weight] = integers.quantize(integers.dequantize(tensor), self._spec(layer.axis), self.scaling)
        if all(tensors[name] is model.tensors[name] for name in tensors):
            raise NoEffect(
                f"quantize.weights_int: none of {len(model.layers)} layers is a float layer of {self.layers}"
            )
        return dataclasses.replace(model, tensors=tensors)

    def _spec(self, axis: int) -> QuantSpec:
        return QuantSpec(
            bits=self.bits,
            granularity=self.granularity,
            group_size=self.group_size if self.granularity == "group" else None,
            symmetric=self.symmetric,
            axis=axis,
        )
