"""Weights that share values: each becomes a place in a small code book."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import numpy as np

from slimseek import integers
from slimseek import outline as outlines
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.importance._inputs import mean_squares
from slimseek.methods.simplify._codebook import share
from slimseek.progress import track
from slimseek.schema import Array, Layer, LayerKind, Model, QuantizedTensor, QuantSpec, Samples

KINDS: tuple[LayerKind, ...] = ("linear", "embedding", "convolution", "recurrent")
LEAST_WEIGHT = 1e-3
"""Of the mean square of a layer's inputs: inputs that calibration never saw still count so much."""


class Share(Step, frozen=True, kw_only=True):
    """Give the weights of a layer at most 2^bits different values, found by k-means; each weight is stored as its place
    in the list of them, the code book.

    The squared error sum_ij a_j (w_ij - w'_ij)^2 is made small, with a_j = E[x_j^2] of the input that the weight meets
    on calibration texts where those are seen, else 1. A layer that has no more values than the code book keeps them
    exactly. In a pruned layer 0 is an entry of its own, so that the zeros stay.

    Its outline has 2^bits different values in every layer that becomes smaller so, as float32.

    Attributes:
        bits: 1 to 8; a place takes so many bits on disk.
        granularity: one code book for the ``tensor``, or one for each ``channel`` (an output channel, a row of a
            table).
        weighted: whether the size of inputs on calibration texts counts; one run over them.
        layers: kinds of layers.
        skip: layers whose name contains one of these stay as they are.
    """

    bounds: ClassVar[bool] = True

    bits: int = 4
    granularity: Literal["tensor", "channel"] = "tensor"
    weighted: bool = True
    layers: tuple[LayerKind, ...] = KINDS
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise UsageError(f"simplify.share: bits is {self.bits}; 1 to 8 are allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Cluster the float weights of the chosen layers; those that would not become smaller stay as they are."""
        chosen = self._chosen(model)
        _check_finite(model, chosen)
        meets = mean_squares(model, samples.calibration, chosen) if self.weighted and samples.calibration else {}
        tensors = dict(model.tensors)
        with track("simplify.share: layers", len(chosen)) as advance:
            for name, layer in chosen.items():
                shared = self._shared(model, layer, meets)
                if integers.stored_bytes(shared) < integers.stored_bytes(model.tensors[name]):
                    tensors[name] = shared
                advance(1)
        if all(tensors[name] is model.tensors[name] for name in chosen):
            raise NoEffect("simplify.share: no layer would become smaller; take fewer bits, or granularity tensor")
        return dataclasses.replace(model, tensors=tensors)

    def outline(self, model: Model, samples: Samples) -> Model:
        """Full code books."""
        tensors = dict(model.tensors)
        for name, layer in self._chosen(model).items():
            spec = QuantSpec(bits=self.bits, granularity=self.granularity, axis=layer.axis, entries=2**self.bits)
            shared = outlines.quantized(tensors[name].shape, spec)
            if integers.stored_bytes(shared) < integers.stored_bytes(tensors[name]):
                tensors[name] = shared
        return dataclasses.replace(model, tensors=tensors)

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """How many layers share values, what noise that is, and which were left as they are."""
        chosen = self._chosen(before)
        kept = [layer.name for name, layer in chosen.items() if not integers.is_shared(after.tensors[name])]
        signal = noise = 0.0
        for name in chosen:
            weight = integers.dequantize(before.tensors[name]).astype(np.float64)
            signal += float(np.square(weight).sum())
            noise += float(np.square(integers.dequantize(after.tensors[name]) - weight).sum())
        ratio = f"{10 * np.log10(signal / noise):.1f} dB" if signal and noise else "no noise"
        notes = [f"{len(chosen) - len(kept)} layers share at most {2**self.bits} values a {self.granularity}: {ratio}"]
        if kept:
            notes.append(f"left as they are, since they would not become smaller: {', '.join(kept)}")
        return tuple(notes)

    def _chosen(self, model: Model) -> dict[str, Layer]:
        """The float layers by the name of their weight."""
        found: dict[str, Layer] = {}
        for layer in model.layers:
            tensor = model.tensors[layer.weight]
            named = layer.kind in self.layers and not any(part in layer.name for part in self.skip)
            if not named or isinstance(tensor, QuantizedTensor) or not tensor.size:
                continue
            found.setdefault(layer.weight, layer)
        if not found:
            raise NoEffect(f"simplify.share: none of {len(model.layers)} layers is a float layer of {self.layers}")
        return found

    def _shared(self, model: Model, layer: Layer, meets: Mapping[str, Array]) -> QuantizedTensor:
        tensor = model.tensors[layer.weight]
        assert not isinstance(tensor, QuantizedTensor)
        weights = np.ones(tensor.shape, np.float32)
        inputs = tensor.ndim - 1 if layer.kind == "recurrent" else 1 - layer.axis
        if layer.weight in meets and tensor.shape[inputs] == len(meets[layer.weight]):
            squares = meets[layer.weight]
            shape = [-1 if axis == inputs else 1 for axis in range(tensor.ndim)]
            weights = weights * np.maximum(squares, LEAST_WEIGHT * squares.mean()).reshape(shape).astype(np.float32)
        return share(tensor, weights, self.bits, self.granularity, layer.axis)


def _check_finite(model: Model, names: Iterable[str]) -> None:
    for name in names:
        if not integers.is_finite(model.tensors[name]):
            raise UsageError(f"the tensor {name} holds NaN or infinite values and cannot be clustered")
