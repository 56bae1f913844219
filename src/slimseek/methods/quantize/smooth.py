"""Outliers of activations smoothed into the weights that read them (SmoothQuant)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from slimseek import choose, hollow, integers
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs.batches import batches, check_inputs
from slimseek.methods.quantize._smoothing import Inputs, best_factors, factors
from slimseek.schema import Array, Layer, Model, QuantizedTensor, Samples, Tensor


class Smooth(Step, frozen=True, kw_only=True):
    """Divide each input of a linear layer by a factor and multiply its weights by it: y = (x / s) (s W)^T.

    The function stays the same, but channels of the input whose values are much larger than the rest no longer force
    coarse steps on all: s_j = max|x_j|^alpha / max|W_j|^(1 - alpha), from calibration texts (Xiao et al., SmoothQuant,
    2022). Layers that read the same input, such as query, key and value, share their factors, with the maximum over
    all their weights. Factors are brought to a geometric mean of one and rounded to powers of two from 1/256 to 256,
    so that multiplying and dividing by them loses nothing; an input that is always zero on calibration texts has the
    factor 1.

    Its outline has factors for every linear layer, also where none would be needed.

    Attributes:
        alpha: 0 to 1: how much of the difficulty moves from the inputs to the weights. ``None`` takes for each input
            the value with the least expected error of eight-bit products, and leaves an input alone where the error
            without factors is below 0.2 % of the products' power or would not be halved.
        skip: layers whose name contains one of these stay as they are.
    """

    bounds: ClassVar[bool] = True

    alpha: float | None = None
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise UsageError(f"quantize.smooth: alpha is {self.alpha}; 0 to 1 is allowed, or none at all")

    @property
    def as_needed(self) -> bool:
        """Where ``alpha`` is chosen here, that no layer needs factors is an answer too."""
        return self.alpha is None

    def apply(self, model: Model, samples: Samples) -> Model:
        """Find the factors of every linear layer with float weights, and multiply these; smoothed layers stay."""
        layers = self._chosen(model)
        for layer in layers:
            if not integers.is_finite(model.tensors[layer.weight]):
                raise UsageError(f"the tensor {layer.weight} holds NaN or infinite values and cannot be smoothed")
        seen = _inputs(model, samples, {layer.weight for layer in layers})
        # What reads one input has seen the same maxima to the last bit; layers that merely look so may share as well.
        shared: dict[bytes, list[Layer]] = {}
        for layer in layers:
            if layer.weight in seen:
                shared.setdefault(seen[layer.weight].largest.tobytes(), []).append(layer)
        if not shared:
            raise NoEffect("quantize.smooth: calibration texts reach no linear layer that is not smoothed")
        tensors, smoothing = dict(model.tensors), dict(model.smoothing)
        for group in shared.values():
            rows = np.concatenate([_rows(tensors[layer.weight], layer) for layer in group])
            found = self._factors(seen[group[0].weight], rows)
            if found is None:
                continue
            for layer in group:
                smoothing[layer.weight] = np.expand_dims(found, layer.axis)
                stored = tensors[layer.weight]
                assert not isinstance(stored, QuantizedTensor)
                tensors[layer.weight] = (integers.dequantize(stored) * smoothing[layer.weight]).astype(stored.dtype)
        if len(smoothing) == len(model.smoothing):
            raise NoEffect("quantize.smooth: no layer that is not smoothed needs factors")
        return dataclasses.replace(model, tensors=tensors, smoothing=smoothing)

    def outline(self, model: Model, samples: Samples) -> Model:
        """With factors that are not worth reading."""
        tensors, smoothing = dict(model.tensors), dict(model.smoothing)
        for layer in self._chosen(model):
            tensor = tensors[layer.weight]
            shape = tuple(1 if axis == layer.axis else size for axis, size in enumerate(tensor.shape))
            smoothing[layer.weight] = hollow.array(shape, np.float32)
            tensors[layer.weight] = hollow.tensor(tensor)
        return dataclasses.replace(model, tensors=tensors, smoothing=smoothing)

    def _factors(self, inputs: Inputs, rows: Array) -> Array | None:
        if self.alpha is None:
            return best_factors(inputs, rows)
        return factors(inputs.largest, np.abs(rows).max(0), self.alpha)

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """How many layers and inputs, and the least and greatest factor."""
        new = [after.smoothing[name] for name in after.smoothing if name not in before.smoothing]
        inputs = len({found.tobytes() for found in new})
        least, greatest = min(float(found.min()) for found in new), max(float(found.max()) for found in new)
        return (f"{len(new)} layers smoothed, which read {inputs} inputs; factors from {least:.3g} to {greatest:.3g}",)

    def _chosen(self, model: Model) -> list[Layer]:
        layers: dict[str, Layer] = {}
        for layer in model.layers:
            if layer.kind == "linear" and not any(part in layer.name for part in self.skip):
                layers.setdefault(layer.weight, layer)
        for layer in layers.values():
            tensor = model.tensors[layer.weight]
            if isinstance(tensor, QuantizedTensor):
                raise UsageError(f"quantize.smooth: the weight {layer.weight} is quantized; smooth before quantizing")
        found = [layer for layer in layers.values() if layer.weight not in model.smoothing]
        if not found:
            raise NoEffect("quantize.smooth: the model has no linear layer that is not smoothed")
        return found


def _rows(stored: Tensor, layer: Layer) -> Array:
    weight = integers.dequantize(stored)
    return weight if layer.axis == 0 else weight.T


def _inputs(model: Model, samples: Samples, weights: set[str]) -> dict[str, Inputs]:
    """What each input of the weights' layers is like, where calibration reaches them."""
    if not samples.calibration:
        raise UsageError("quantize.smooth: the calibration sample is empty; the collection has no texts")
    largest: dict[str, Array] = {}
    squares: dict[str, Array] = {}
    counts: dict[str, int] = {}

    def visit(name: str, values: Array) -> None:
        if name in weights and len(values):
            check_inputs(name, values)
            largest[name] = np.maximum(largest.get(name, 0.0), np.abs(values).max(0))
            squares[name] = squares.get(name, 0.0) + np.square(values).sum(0, dtype=np.float64)
            counts[name] = counts.get(name, 0) + len(values)

    choose.family(model).observe(model, batches(model, samples.calibration), visit)
    return {name: Inputs(largest=largest[name], squares=squares[name] / counts[name]) for name in largest}
