"""What steps that zero single weights have in common: which weights, how important each is, what they leave to say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from slimseek import integers
from slimseek.errors import NoEffect, UsageError
from slimseek.importance._inputs import mean_squares
from slimseek.schema import Array, Layer, LayerKind, Model, QuantizedTensor, Samples

Importance = Literal["magnitude", "activation"]
DEFAULT_KINDS: tuple[LayerKind, ...] = ("linear", "convolution", "recurrent")
ZERO = -1.0
"""Score of a weight that is zero already: it goes before any other."""


def chosen(model: Model, kinds: tuple[LayerKind, ...], skip: tuple[str, ...], method: str) -> dict[str, Layer]:
    """The layers to prune, by the name of their weight; a weight that several layers share comes once.

    Raises:
        UsageError: one is quantized, or a tensor of the model is not finite; NoEffect where there is none.
    """
    integers.check_finite(model, "pruned")
    found: dict[str, Layer] = {}
    for layer in model.layers:
        if layer.kind not in kinds or any(part in layer.name for part in skip):
            continue
        if isinstance(model.tensors[layer.weight], QuantizedTensor):
            raise UsageError(f"{method}: the weight {layer.weight} is quantized; prune before quantizing")
        if model.tensors[layer.weight].shape:
            found.setdefault(layer.weight, layer)
    if not found:
        raise NoEffect(f"{method}: none of {len(model.layers)} layers is of {list(kinds)}")
    return found


def inputs_last(values: Array, layer: Layer) -> Array:
    """A view of a weight as [outputs, ..., inputs]: what meets one output stands together, along the last axis the
    inputs that it is multiplied by.
    """
    inputs = values.ndim - 1 if layer.kind == "recurrent" else 1 - layer.axis
    return np.moveaxis(values, (layer.axis, inputs), (0, -1)) if values.ndim > 1 else values[None]


def norms_of_inputs(
    model: Model, layers: Mapping[str, Layer], importance: Importance, samples: Samples, method: str
) -> dict[str, Array] | None:
    """Root mean square of each input channel, float64 [inputs], of the layers that calibration sees; ``None`` where the
    importance is ``magnitude``.

    Raises:
        UsageError: there is no calibration text, or an input is NaN or infinite.
    """
    if importance == "magnitude":
        return None
    if not samples.calibration:
        raise UsageError(f"{method}: the calibration sample is empty; the collection has no texts")
    squares = mean_squares(model, samples.calibration, layers)
    return {name: np.sqrt(mean) for name, mean in squares.items()}


def scores(model: Model, layers: Mapping[str, Layer], norms: Mapping[str, Array] | None) -> Iterator[tuple[str, Array]]:
    """Each weight's name and the importance of its values, float [outputs, ..., inputs].

    |w_ij| sqrt(mean x_j^2) over calibration texts (Sun et al., Wanda, 2023) where the root is given, |w| where it is
    not: by ``magnitude``, and of tables and recurrent layers, whose inputs calibration does not see. A zero scores -1.
    """
    norms = norms or {}
    for name, layer in layers.items():
        # A weight is compared as the network has it, and beside its input as it is stored: both without smoothing.
        values = integers.dequantize(model.tensors[name]) if name in norms else integers.unsmoothed(model, name)
        found = inputs_last(np.abs(values), layer)
        if name in norms:
            found = found * _beside(norms[name], found)
        yield name, np.where(inputs_last(values, layer) == 0, ZERO, found)


def zeroed(
    model: Model, layers: Mapping[str, Layer], masks: Mapping[str, Array],
    norms: Mapping[str, Array] | None, method: str,
) -> Model:  # fmt: skip
    """The model with zeros where the masks, bool [outputs, ..., inputs], are set; it says which layers were compared
    without norms of their inputs where there were to be some.

    Raises:
        NoEffect: all of these are zero already.
    """
    tensors = dict(model.tensors)
    for name, mask in masks.items():
        stored = tensors[name]
        assert not isinstance(stored, QuantizedTensor)
        changed = stored.copy()
        inputs_last(changed, layers[name])[mask] = 0
        if np.any(changed != stored):
            tensors[name] = changed
    if all(tensors[name] is model.tensors[name] for name in masks):
        raise NoEffect(f"{method}: all that would become zero is zero already")
    unseen = [name for name in layers if name not in norms] if norms is not None else []
    said = f"compared by magnitude, as calibration does not see their inputs: {', '.join(unseen)}"
    return dataclasses.replace(model, tensors=tensors, said=(said,) if unseen else ())


def least(found: Array, count: int) -> Array:
    """Bool of the array's shape: its ``count`` lowest values; of equal ones those that come first."""
    flat = found.reshape(-1)
    if not 0 < count < flat.size:
        return np.full(found.shape, count > 0)
    limit = np.partition(flat, count - 1)[count - 1]
    lowest = flat < limit
    equal = np.flatnonzero(flat == limit)
    lowest[equal[: count - np.count_nonzero(lowest)]] = True
    return lowest.reshape(found.shape)


def zeros(model: Model, names: Mapping[str, Layer]) -> dict[str, int]:
    """How many zeros each of these weights holds."""
    arrays = {name: model.tensors[name] for name in names}
    return {
        name: int(array.size - np.count_nonzero(array))
        for name, array in arrays.items()
        if not isinstance(array, QuantizedTensor)
    }


def size_notes(before: Model, after: Model, layers: Mapping[str, Layer], asked: str) -> tuple[str, ...]:
    """Zeros asked and reached, true bytes, what a runtime gains; and layers that calibration did not see."""
    count = sum(int(np.prod(before.tensors[name].shape)) for name in layers)
    reached = zeros(after, layers)
    shares = [reached[name] / np.prod(before.tensors[name].shape) for name in layers]
    old, new = (
        sum(integers.stored_bytes(tensor) for tensor in model.tensors.values()) for model in (before, after)
    )  # fmt: skip
    total = sum(reached.values())
    return (
        f"zeros: {asked} of {count:,} weights in {len(layers)} layers asked, {total:,} reached ({total / count:.1%}; "
        f"{min(shares):.1%} to {max(shares):.1%} of a layer)",
        f"the weights take {new:,} bytes in the artifact instead of {old:,}; a runtime computes with them as dense "
        f"ones, so it is not faster and takes no less memory",
        *after.said,
    )


def _beside(norms: Array, found: Array) -> Array:
    """The norms [inputs] in a shape that meets scores [outputs, ..., inputs], or [outputs, ..., inputs of a group]."""
    groups = norms.size // found.shape[-1]
    rows = np.repeat(norms.reshape(groups, -1), found.shape[0] // groups, axis=0) if groups > 1 else norms[None]
    return rows.reshape(len(rows), *[1] * (found.ndim - 2), -1)
