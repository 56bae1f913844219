"""Outliers of activations smoothed into the weights that read them (SmoothQuant)."""

from __future__ import annotations

import dataclasses

import numpy as np

from slimseek import integers, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs.reader import reader
from slimseek.schema import Array, Layer, Model, QuantizedTensor, Samples, Step

BATCH = 8
LARGEST_FACTOR = 256.0
SMALLEST_WEIGHT = 1e-5
"""Of a layer's largest weight: what an input whose weights are all smaller counts as."""


class Smooth(Step, frozen=True, kw_only=True):
    """Divide each input of a linear layer by a factor and multiply its weights by it: y = (x / s) (s W)^T.

    The function stays the same, but channels of the input whose values are much larger than the rest no longer force
    coarse steps on all: s_j = max|x_j|^alpha / max|W_j|^(1 - alpha), from calibration texts (Xiao et al., SmoothQuant,
    2022). Layers that read the same input, such as query, key and value, share their factors, with the maximum over
    all their weights. Factors are brought to a geometric mean of one and rounded to powers of two from 1/256 to 256,
    so that multiplying and dividing by them loses nothing; an input that is always zero on calibration texts has the
    factor 1.

    Attributes:
        alpha: 0 to 1: how much of the difficulty moves from the inputs to the weights.
        skip: layers whose name contains one of these stay as they are.
    """

    alpha: float = 0.8
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"quantize.smooth: alpha is {self.alpha}; 0 to 1 is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Find the factors of every linear layer with float weights, and multiply these; smoothed layers stay."""
        layers = self._chosen(model)
        largest = _largest_inputs(model, samples, {layer.weight for layer in layers})
        # What reads one input has seen the same maxima to the last bit; layers that merely look so may share as well.
        shared: dict[bytes, list[Layer]] = {}
        for layer in layers:
            if layer.weight in largest:
                shared.setdefault(largest[layer.weight].tobytes(), []).append(layer)
        if not shared:
            raise NoEffect("quantize.smooth: calibration texts reach no linear layer that is not smoothed")
        tensors, smoothing = dict(model.tensors), dict(model.smoothing)
        for group in shared.values():
            weights = [np.abs(integers.dequantize(tensors[layer.weight])).max(layer.axis) for layer in group]
            found = factors(largest[group[0].weight], np.max(weights, axis=0), self.alpha)
            for layer in group:
                smoothing[layer.weight] = np.expand_dims(found, layer.axis)
                stored = tensors[layer.weight]
                assert not isinstance(stored, QuantizedTensor)
                tensors[layer.weight] = (integers.dequantize(stored) * smoothing[layer.weight]).astype(stored.dtype)
        return dataclasses.replace(model, tensors=tensors, smoothing=smoothing)

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """How many layers and inputs, and the least and greatest factor."""
        new = [after.smoothing[name] for name in after.smoothing if name not in before.smoothing]
        inputs = len({found.tobytes() for found in new})
        least, greatest = min(float(found.min()) for found in new), max(float(found.max()) for found in new)
        return (f"{len(new)} layers smoothed, which read {inputs} inputs; factors from {least:.3g} to {greatest:.3g}",)

    def _chosen(self, model: Model) -> list[Layer]:
        layers = [
            layer for layer in model.layers
            if layer.kind == "linear" and not any(part in layer.name for part in self.skip)
        ]  # fmt: skip
        for layer in layers:
            tensor = model.tensors[layer.weight]
            if isinstance(tensor, QuantizedTensor):
                raise UsageError(f"quantize.smooth: the weight {layer.weight} is quantized; smooth before quantizing")
            if not np.isfinite(tensor).all():
                raise UsageError(f"the tensor {layer.weight} holds NaN or infinite values and cannot be smoothed")
        layers = [layer for layer in layers if layer.weight not in model.smoothing]
        if not layers:
            raise NoEffect("quantize.smooth: the model has no linear layer that is not smoothed")
        return layers


def factors(inputs: Array, weights: Array, alpha: float) -> Array:
    """The factors s, float32 [inputs], by which a layer's inputs are divided: powers of two.

    Args:
        inputs: float [inputs], largest absolute value of each input.
        weights: float [inputs], largest absolute weight that each input meets.
        alpha: 0 to 1.
    """
    live = inputs > 0
    if not live.any() or not weights.any():
        return np.ones(len(inputs), np.float32)
    floor = np.maximum(weights, weights.max() * SMALLEST_WEIGHT)[live].astype(np.float64)
    logarithm = np.zeros(len(inputs))
    logarithm[live] = alpha * np.log2(inputs[live]) - (1 - alpha) * np.log2(floor)
    logarithm[live] -= logarithm[live].mean()
    limit = np.log2(LARGEST_FACTOR)
    found: Array = np.exp2(np.rint(logarithm).clip(-limit, limit)).astype(np.float32)
    return found


def _largest_inputs(model: Model, samples: Samples, weights: set[str]) -> dict[str, Array]:
    """For each weight whose layer calibration reaches, the largest absolute value of each input, float32 [inputs]."""
    if not samples.calibration:
        raise UsageError("quantize.smooth: the calibration sample is empty; the collection has no texts")
    seen: dict[str, Array] = {}

    def visit(name: str, values: Array) -> None:
        if name in weights and len(values):
            largest = np.abs(values).max(0)
            if not np.isfinite(largest).all():
                raise UsageError(f"the input of {name} is NaN or infinite on calibration texts")
            seen[name] = np.maximum(seen.get(name, 0.0), largest)

    read = reader(model.spec, model.files)
    texts = sorted(samples.calibration, key=len)
    batches = [read(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
    plugins.load("models", model.spec.family)().observe(model, batches, visit)
    return seen
