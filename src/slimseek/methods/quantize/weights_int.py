"""Weights as integers of 2 to 8 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from slimseek import integers
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.methods._moments import Moments, observe, portions
from slimseek.methods.quantize._compensated import compensate
from slimseek.methods.quantize._notes import left_float, worst_layers
from slimseek.methods.quantize._outline import rounded
from slimseek.progress import track
from slimseek.schema import Granularity, Layer, LayerKind, Model, QuantizedTensor, QuantSpec, Samples, Tensor

KINDS: tuple[LayerKind, ...] = ("linear", "embedding", "convolution", "recurrent")


class WeightsInt(Step, frozen=True, kw_only=True):
    """Round weights to one of 2^bits levels; n bits take n bits on disk.

    scale = c max|w| / (2^(bits-1) - 1) for each tensor, channel or group; integer = round(w / scale). Asymmetric:
    the range from c min to c max on all 2^bits levels, with a zero point.

    With ``rounding: compensated`` or ``correct_bias``, linear layers are treated in the model's order by their inputs
    on calibration texts. Those inputs are taken after all other layers are rounded, in as few passes as keep their
    second moments within 256 MiB; each pass sees the layers of the passes before it rounded.

    Attributes:
        bits: 2 to 8.
        granularity: what shares a scale: ``tensor``, ``channel`` (an output channel, a row of a table) or ``group``.
        group_size: values of a channel that share a scale when the granularity is ``group``; a width that it does
            not divide ends in a shorter group.
        symmetric: signed integers without a zero point.
        scaling: ``mse`` finds the c of each scale, in [0.4, 1], with the least squared error; ``max``: c = 1.
        rounding: ``nearest`` level, or ``compensated`` (GPTQ): each weight of a linear layer makes good what rounding
            those before it did to the layer's outputs on calibration texts.
        correct_bias: add the mean change of a linear layer's outputs, E[x] (W - W_q)^T on calibration texts, to its
            bias; compensated rounding then minds only what the bias cannot mend, the deviations from the mean.
        layers: kinds of layers to quantize.
        skip: layers whose name contains one of these stay as they are.
    """

    bits: int = 8
    granularity: Granularity = "channel"
    group_size: int = 32
    symmetric: bool = True
    scaling: integers.Scaling = "mse"
    rounding: Literal["nearest", "compensated"] = "nearest"
    correct_bias: bool = False
    layers: tuple[LayerKind, ...] = KINDS
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(f"quantize.weights_int: bits is {self.bits}; 2 to 8 are allowed")
        if self.granularity == "group" and self.group_size < 2:
            raise UsageError(f"quantize.weights_int: group_size is {self.group_size}; 2 or more is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Quantize the float weights of the chosen layers; weights quantized before stay as they are."""
        chosen = self._chosen(model)
        for name in chosen:
            if not integers.is_finite(model.tensors[name]):
                raise UsageError(f"the tensor {name} holds NaN or infinite values and cannot be quantized")
        by_inputs = [
            layer
            for layer in chosen.values()
            if layer.kind == "linear" and (self.rounding == "compensated" or self.correct_bias)
        ]
        nearest = {name: self._nearest(model, layer) for name, layer in chosen.items() if layer not in by_inputs}
        changed = dataclasses.replace(model, tensors=dict(model.tensors) | nearest, said=())
        return self._calibrated(changed, by_inputs, samples, len(nearest)) if by_inputs else changed

    def outline(self, model: Model, samples: Samples) -> Model:
        """Every scale of a group as float16, which one of them may be too small for."""
        return rounded(model, {name: self._spec(layer) for name, layer in self._chosen(model).items()})

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """What was compensated and corrected, and what could not be; the worst layers, and large tensors left float."""
        return (*after.said, *worst_layers(before, after), *left_float(after))

    def _chosen(self, model: Model) -> dict[str, Layer]:
        """The float layers to quantize by the name of their weight."""
        chosen: dict[str, Layer] = {}
        for layer in model.layers:
            named = layer.kind in self.layers and not any(part in layer.name for part in self.skip)
            if named and not isinstance(model.tensors[layer.weight], QuantizedTensor):
                chosen.setdefault(layer.weight, layer)
        if not chosen:
            none = f"quantize.weights_int: none of {len(model.layers)} layers is a float layer of {self.layers}"
            raise NoEffect("; ".join([none, *left_float(model)]))
        return chosen

    def _calibrated(self, model: Model, layers: Sequence[Layer], samples: Samples, others: int) -> Model:
        """The model with these linear layers rounded by their inputs on calibration texts."""
        if not samples.calibration:
            raise UsageError("quantize.weights_int: the calibration sample is empty; the collection has no texts")
        reached: list[Layer] = []
        with track("quantize.weights_int: linear layers", len(layers)) as advance:
            for portion in portions(model, layers):
                seen = observe(model, samples, portion)
                tensors = dict(model.tensors)
                for layer in portion:
                    if layer.weight in seen:
                        tensors |= self._by_inputs(model, layer, seen.pop(layer.weight))
                        reached.append(layer)
                    else:
                        tensors[layer.weight] = self._nearest(model, layer)
                    advance(1)
                model = dataclasses.replace(model, tensors=tensors)
        said = self._summary(reached, len(layers) - len(reached), others, len(samples.calibration))
        return dataclasses.replace(model, said=said)

    def _by_inputs(self, model: Model, layer: Layer, moments: Moments) -> dict[str, Tensor]:
        """The layer's rounded weight and, where it has one and it is to be corrected, its bias."""
        weight = integers.dequantize(model.tensors[layer.weight])
        corrects = self.correct_bias and isinstance(layer.bias, str)
        if self.rounding == "compensated":
            rounded = compensate(weight, moments.second(centred=corrects), self._spec(layer), self.scaling)
        else:
            rounded = self._nearest(model, layer)
        if not self.correct_bias or not isinstance(layer.bias, str):
            return {layer.weight: rounded}
        bias = model.tensors[layer.bias]
        assert not isinstance(bias, QuantizedTensor)
        change = np.moveaxis(weight - integers.dequantize(rounded), layer.axis, 0) @ moments.mean
        return {layer.weight: rounded, layer.bias: (integers.dequantize(bias) + change).astype(bias.dtype)}

    def _summary(self, reached: Sequence[Layer], missed: int, others: int, texts: int) -> tuple[str, ...]:
        notes = []
        if self.rounding == "compensated":
            rest = [f"{others} other layers"] if others else []
            rest += [f"{missed} whose input calibration does not see"] if missed else []
            nearest = f"; to nearest: {', '.join(rest)}" if rest else ""
            notes.append(f"error-compensated: {len(reached)} linear layers, on {texts} calibration texts{nearest}")
        if self.correct_bias:
            corrected = sum(isinstance(layer.bias, str) for layer in reached)
            without = len(reached) - corrected
            rest = [f"{without} have none"] if without else []
            rest += [f"{missed} whose input is not seen"] if missed else []
            notes.append("; ".join([f"biases corrected: {corrected} linear layers", *rest]))
        return tuple(notes)

    def _nearest(self, model: Model, layer: Layer) -> QuantizedTensor:
        return integers.quantize(integers.dequantize(model.tensors[layer.weight]), self._spec(layer), self.scaling)

    def _spec(self, layer: Layer) -> QuantSpec:
        return QuantSpec(
            bits=self.bits,
            granularity=self.granularity,
            group_size=self.group_size if self.granularity == "group" else None,
            symmetric=self.symmetric,
            axis=layer.axis,
        )
