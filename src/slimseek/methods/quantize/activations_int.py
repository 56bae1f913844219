"""Inputs of linear layers as eight-bit integers, so that the products are integer arithmetic."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from slimseek import choose
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.inputs.batches import batches, check_inputs
from slimseek.integers import is_integer
from slimseek.methods.quantize._ranges import Histogram
from slimseek.schema import OUTPUT_RANGE, ActivationQuant, Array, Model, Samples

KINDS = {"static": ("linear", "convolution"), "dynamic": ("linear",)}
Estimator = Literal["minmax", "percentile", "mse", "entropy"]


class ActivationsInt(Step, frozen=True, kw_only=True):
    """Round the input of every linear layer and convolution whose weights are integers, and convolutions' results.

    ``static``: one range a layer, from calibration texts: scale = (high - low) / 255, zero_point = round(-low / scale).
    ``dynamic``, for linear layers: a scale for each row (token) at run time, scale = max|x| / 127, so that no text's
    vector depends on its neighbours in the batch.

    Attributes:
        mode: ``static`` or ``dynamic``.
        estimator: how the static range is read from the values seen: their least and greatest (``minmax``), the
            range that leaves out one value in 100,000 (``percentile``), the range with the least mean squared
            rounding error (``mse``), or the one that keeps most of what the values tell, by Kullback-Leibler
            divergence (``entropy``).
        skip: layers whose name contains one of these keep float inputs.
    """

    mode: Literal["static", "dynamic"] = "static"
    estimator: Estimator = "minmax"
    skip: tuple[str, ...] = ()

    def apply(self, model: Model, samples: Samples) -> Model:
        """Calibrate, or mark, the layers."""
        weights = self._chosen(model)
        if self.mode == "dynamic":
            found = {name: ActivationQuant(mode="dynamic") for name in weights}
        else:
            found = self._calibrate(model, samples, set(weights))
        if found == dict(model.activations):
            raise NoEffect("quantize.activations_int: the inputs are rounded in just this way already")
        return dataclasses.replace(model, activations=found)

    def outline(self, model: Model, samples: Samples) -> Model:
        """Every layer's input is rounded, static ones in a range not worth reading."""
        how = ActivationQuant(mode=self.mode, scale=1.0 if self.mode == "static" else 0.0)
        weights = self._chosen(model)
        if self.mode == "static":
            kernels = {layer.weight for layer in model.layers if layer.kind == "convolution"}
            weights += [f"{name}{OUTPUT_RANGE}" for name in weights if name in kernels]
        return dataclasses.replace(model, activations=dict.fromkeys(weights, how))

    def _chosen(self, model: Model) -> list[str]:
        """The weights whose inputs are to be rounded."""
        weights = [
            layer.weight
            for layer in model.layers
            if layer.kind in KINDS[self.mode]
            and is_integer(model.tensors[layer.weight])
            and not any(part in layer.name for part in self.skip)
        ]
        if not weights:
            raise NoEffect(
                f"quantize.activations_int: no {' or '.join(KINDS[self.mode])} layer has integer weights; quantize "
                f"weights first"
            )
        return weights

    def _calibrate(self, model: Model, samples: Samples, weights: set[str]) -> dict[str, ActivationQuant]:
        if not samples.calibration:
            raise UsageError("quantize.activations_int: the calibration sample is empty; the collection has no texts")
        seen: dict[str, Histogram] = {}

        def visit(name: str, values: Array) -> None:
            if name.removesuffix(OUTPUT_RANGE) in weights:
                check_inputs(name, values)
                seen.setdefault(name, Histogram()).add(values)

        plain = dataclasses.replace(model, activations={})
        choose.family(model).observe(plain, batches(model, samples.calibration), visit)
        # A layer that no text reaches keeps a float input, as does one that the vector does not use (a pooler).
        return {name: _quant(name, *histogram.range(self.estimator)) for name, histogram in sorted(seen.items())}


def _quant(name: str, low: float, high: float) -> ActivationQuant:
    low, high = min(low, 0.0), max(high, 0.0)
    if high == low:
        raise UsageError(f"the input of {name} is constant zero on calibration texts; skip this layer")
    scale = float(np.float32((high - low) / 255))
    return ActivationQuant(mode="static", scale=scale, zero_point=int(np.clip(np.rint(-low / scale), 0, 255)))
