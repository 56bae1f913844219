"""Weights as integers of bits that are chosen layer by layer, under a size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from slimseek import choose, integers
from slimseek import outline as outlines
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.evaluate import cosines
from slimseek.importance._inputs import mean_squares
from slimseek.inputs.batches import spread
from slimseek.inputs.reader import reader
from slimseek.methods.quantize._allocation import allocate
from slimseek.methods.quantize._outline import rounded
from slimseek.progress import track
from slimseek.recipe import byte_size
from slimseek.schema import Array, Granularity, Layer, Model, QuantizedTensor, QuantSpec, Samples, Tensor, is_float
from slimseek.timing import default_threads

COUNTED_AT_ONCE = 1024
COMPARED = 64


class Mixed(Step, frozen=True, kw_only=True):
    """Give each layer as many bits as the search needs there: the least summed sensitivity under a size, exactly.

    ``sqnr``: a layer's sensitivity is the noise of its output by its signal, both taken from the input's second
    moment on calibration texts: sum_ij E[x_j^2] (W_q - W)_ij^2 / sum_ij E[x_j^2] W_ij^2. A row of the token table
    counts as often as the texts use its token; a layer whose input is not seen counts all its weights alike.
    ``vectors``: it is the mean of 1 - cosine between the model's vectors of calibration items and those with this
    layer alone quantized: one run of the model for each layer and number of bits.

    Its outline gives bits by size alone, until no smaller choice of bits takes more bytes than are allowed.

    Attributes:
        size: most bytes of all weights as they are stored: ``10MB``, or a share of their float32 bytes such as 0.12.
        bits: what a layer may get, each 2 to 8.
        granularity: what shares a scale: ``tensor``, ``channel`` or ``group``.
        group_size: values of a channel that share a scale when the granularity is ``group``.
        symmetric: signed integers without a zero point.
        measure: ``sqnr``, or ``vectors``, which is slower.
    """

    bounds: ClassVar[bool] = True

    size: float | str = 0.15
    bits: tuple[int, ...] = (3, 4, 6, 8)
    granularity: Granularity = "group"
    group_size: int = 64
    symmetric: bool = False
    measure: Literal["sqnr", "vectors"] = "sqnr"

    def __post_init__(self) -> None:
        byte_size(self.size, 1)
        if not self.bits or not all(2 <= bits <= 8 for bits in self.bits):
            raise UsageError(f"quantize.mixed: bits are {list(self.bits)}; one or more of 2 to 8 are allowed")
        if self.granularity == "group" and self.group_size < 2:
            raise UsageError(f"quantize.mixed: group_size is {self.group_size}; 2 or more is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Measure every float layer at all bits, choose, and quantize; weights quantized before stay as they are."""
        tensors = dict(model.tensors)
        layers, taken, most = self._asked(model)
        for name in layers:
            if not np.isfinite(integers.dequantize(tensors[name])).all():
                raise UsageError(f"the tensor {name} holds NaN or infinite values and cannot be quantized")
        sizes, errors = self._measured(model, samples, list(layers.values()))
        rest = taken - sum(integers.stored_bytes(tensors[name]) for name in layers)
        self._check_reachable(rest + int(sizes.min(1).sum()), most)
        chosen = allocate(sizes, errors, most - rest)
        for name, choice in zip(layers, chosen, strict=True):
            tensors[name] = self._quantized(model, layers[name], self.bits[choice])
        error = errors[np.arange(len(layers)), chosen].sum()
        said = f"{self.measure}: a summed sensitivity of {error:.3g} predicted, in {most:,} bytes allowed"
        return dataclasses.replace(model, tensors=tensors, said=(said,))

    def outline(self, model: Model, samples: Samples) -> Model:
        """At least the bytes of any choice that the size allows."""
        layers, taken, most = self._asked(model)
        left = most - taken + sum(integers.stored_bytes(model.tensors[name]) for name in layers)
        specs = [{name: self._spec(layer, bits) for name, layer in layers.items()} for bits in sorted(set(self.bits))]
        sizes = [{name: integers.stored_bytes(outlines.quantized(model.tensors[name].shape, spec))
                  for name, spec in one.items()} for one in specs]  # fmt: skip
        self._check_reachable(most - left + sum(sizes[0].values()), most)
        chosen = _filled(sizes, left)
        return rounded(model, {name: specs[choice][name] for name, choice in chosen.items()})

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """Layers by bits, and the predicted error."""
        given = [
            tensor.spec.bits
            for name, tensor in after.tensors.items()
            if isinstance(tensor, QuantizedTensor) and not isinstance(before.tensors[name], QuantizedTensor)
        ]
        counts = ", ".join(f"{bits} bits for {given.count(bits)}" for bits in sorted(set(given)))
        return (f"layers: {counts}", *after.said)

    def _asked(self, model: Model) -> tuple[dict[str, Layer], int, int]:
        """The float layers by their weight, the bytes of all tensors now, and those that are allowed."""
        layers = {layer.weight: layer for layer in model.layers
                  if not isinstance(model.tensors[layer.weight], QuantizedTensor)}  # fmt: skip
        taken = sum(integers.stored_bytes(tensor) for tensor in model.tensors.values())
        most = byte_size(self.size, sum(_float_bytes(tensor) for tensor in model.tensors.values()))
        if not layers or taken <= most:
            why = f"the weights take {taken:,} bytes, within {most:,}" if layers else "no layer has float weights"
            raise NoEffect(f"quantize.mixed: {why}")
        return layers, taken, most

    def _check_reachable(self, smallest: int, most: int) -> None:
        if smallest > most:
            raise UsageError(
                f"quantize.mixed: size {self.size} is {most:,} bytes, and with {min(self.bits)} bits for every layer "
                f"the weights still take {smallest:,}; allow at least that, fewer bits, or larger groups"
            )

    def _measured(self, model: Model, samples: Samples, layers: Sequence[Layer]) -> tuple[Array, Array]:
        """Bytes int64 [layers, bits] and sensitivity float64 [layers, bits]."""
        if not samples.calibration:
            raise UsageError("quantize.mixed: the calibration sample is empty; the collection has no texts")
        sensitivity = _output_noise(model, samples) if self.measure == "sqnr" else _vector_change(model, samples)
        sizes, errors = np.zeros((len(layers), len(self.bits)), np.int64), np.zeros((len(layers), len(self.bits)))
        with track("quantize.mixed: layers", len(layers)) as advance:
            for row, layer in enumerate(layers):
                for column, bits in enumerate(self.bits):
                    tensor = self._quantized(model, layer, bits)
                    sizes[row, column] = integers.stored_bytes(tensor)
                    errors[row, column] = sensitivity(layer, tensor)
                advance(1)
        return sizes, errors

    def _quantized(self, model: Model, layer: Layer, bits: int) -> QuantizedTensor:
        return integers.quantize(integers.dequantize(model.tensors[layer.weight]), self._spec(layer, bits), "mse")

    def _spec(self, layer: Layer, bits: int) -> QuantSpec:
        group_size = self.group_size if self.granularity == "group" else None
        return QuantSpec(
            bits=bits, granularity=self.granularity, group_size=group_size, symmetric=self.symmetric, axis=layer.axis
        )


def _filled(sizes: Sequence[Mapping[str, int]], most: int) -> dict[str, int]:
    """A choice of bits for each layer that takes ``most`` bytes or little more, or the greatest: the largest layers
    first, one step after the other as long as it fits, and in the end the smallest step that does not.

    Args:
        sizes: bytes by layer, one mapping for each number of bits, ascending.
        most: what is allowed; the first choice of all layers fits.
    """
    chosen = dict.fromkeys(sizes[0], 0)
    taken = sum(sizes[0].values())
    missed: list[tuple[int, str]] = []
    for name in sorted(chosen, key=lambda name: -sizes[0][name]):
        while chosen[name] + 1 < len(sizes):
            step = sizes[chosen[name] + 1][name] - sizes[chosen[name]][name]
            if taken + step > most:
                missed.append((step, name))
                break
            chosen[name] += 1
            taken += step
    if missed:
        chosen[min(missed)[1]] += 1
    return chosen


def _output_noise(model: Model, samples: Samples) -> Callable[[Layer, QuantizedTensor], float]:
    """Noise of a layer's output by its signal, when its weight is replaced by the tensor."""
    moments = mean_squares(model, samples.calibration, {layer.weight for layer in model.layers})
    counts = _token_counts(model, samples)

    def noise(layer: Layer, tensor: QuantizedTensor) -> float:
        values = integers.dequantize(model.tensors[layer.weight])
        squares, errors = (_squares(array, layer.axis) for array in (values, integers.dequantize(tensor) - values))
        weights = np.ones((1, 1))
        if layer.weight in moments:
            weights = _by_input(moments[layer.weight], squares.shape)
        if layer.weight == model.spec.token_table:
            weights = counts[:, None]
        signal = float((squares * weights).sum())
        return float((errors * weights).sum()) / signal if signal else 0.0

    return noise


def _vector_change(model: Model, samples: Samples) -> Callable[[Layer, QuantizedTensor], float]:
    """Mean of 1 - cosine of the model's vectors, when a layer's weight is replaced by the tensor."""
    # Evenly spread, since the sample's documents stand before its queries.
    items = spread(samples.calibration, COMPARED)
    threads = default_threads()
    original = choose.encoder(model, "the original", threads).documents(items)

    def change(layer: Layer, tensor: QuantizedTensor) -> float:
        other = dataclasses.replace(model, tensors=dict(model.tensors) | {layer.weight: tensor})
        vectors = choose.encoder(other, f"{layer.name} in {tensor.spec.bits} bits", threads).documents(items)
        return max(0.0, float((1 - cosines(original, vectors)).mean()))

    return change


def _token_counts(model: Model, samples: Samples) -> Array:
    """How often the texts use each row of the token table, float64 [rows]; one is added, so that no row is free."""
    table = model.spec.token_table
    counts = np.ones(0 if table is None else model.tensors[table].shape[0])
    if table is not None:
        read = reader(model.spec, model.files)
        for start in range(0, len(samples.texts), COUNTED_AT_ONCE):
            for row in read.rows(samples.texts[start : start + COUNTED_AT_ONCE]):
                np.add.at(counts, np.asarray(row), 1)
    return counts


def _squares(values: Array, axis: int) -> Array:
    """Sums of squares float64 [outputs, inputs] of a weight, its kernel positions added."""
    rows = np.moveaxis(values, axis, 0)
    return np.square(rows, dtype=np.float64).reshape(*rows.shape[:2], -1).sum(-1)


def _by_input(moments: Array, shape: tuple[int, ...]) -> Array:
    """Second moments [inputs of all groups] as weights of ``shape`` [outputs, inputs of a group]."""
    groups = len(moments) // shape[1]
    return moments.reshape(groups, shape[1]).repeat(shape[0] // groups, axis=0)


def _float_bytes(tensor: Tensor) -> int:
    """Bytes of the tensor in float32, or of an integer buffer as it is."""
    if isinstance(tensor, QuantizedTensor) or is_float(tensor):
        return 4 * int(np.prod(tensor.shape))
    return int(tensor.nbytes)
