"""What calibration tells of a layer's input: its mean, and its second moment (the Hessian of the layer's error)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from slimseek import choose
from slimseek.inputs.batches import batches, check_inputs
from slimseek.schema import Array, Layer, Model, Samples

BYTES_AT_ONCE = 2**28
BYTES_WAITING = 2**27
"""Inputs that wait to be multiplied. Threads of NumPy's products and of the network's runtime spin a while for more
work, each on the other's core: MiniLM's pass took 40 s with a product after every layer, and takes 22 s with many of
them in a row."""


@dataclass(kw_only=True, eq=False)
class Moments:
    """Sums over the rows (tokens) of a layer's input.

    Attributes:
        count: rows seen.
        total: sum of x, float64 [inputs].
        squares: sum of x x^T, float32 [inputs, inputs].
    """

    count: int
    total: Array
    squares: Array

    @property
    def mean(self) -> Array:
        """E[x], float64 [inputs]."""
        mean: Array = self.total / self.count
        return mean

    def second(self, centred: bool) -> Array:
        """E[x x^T], or the covariance, float64 [inputs, inputs]."""
        second: Array = self.squares / np.float64(self.count)
        return second - np.outer(self.mean, self.mean) if centred else second


def observe(model: Model, samples: Samples, layers: Sequence[Layer]) -> dict[str, Moments]:
    """Moments of the inputs of these layers by weight, in one pass; those that no text reaches, and convolutions that
    read more than one place at a time, are missing.

    Memory is that of the sums, whatever the number of texts.

    Raises:
        UsageError: an input is NaN or infinite.
    """
    widths = {
        layer.weight: math.prod(model.tensors[layer.weight].shape) // model.tensors[layer.weight].shape[layer.axis]
        for layer in layers
    }
    seen: dict[str, Moments] = {}
    waiting: list[tuple[str, Array]] = []
    waits = 0

    def visit(name: str, values: Array) -> None:
        nonlocal waits
        rows = values if values.ndim == 2 else np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])
        if name not in widths or not len(rows) or rows.shape[1] != widths[name]:
            return
        waiting.append((name, rows.copy()))  # the network may write over its own
        waits += rows.nbytes
        if waits > BYTES_WAITING:
            _add(seen, waiting)
            waits = 0

    plain = dataclasses.replace(model, activations={})
    choose.family(model).observe(plain, batches(model, samples.calibration), visit)
    _add(seen, waiting)
    for name, moments in seen.items():
        check_inputs(name, moments.squares)
    return seen


def _add(seen: dict[str, Moments], waiting: list[tuple[str, Array]]) -> None:
    """Take the rows that wait into the sums of their layers."""
    with np.errstate(over="ignore", invalid="ignore"):
        for name, rows in waiting:
            total, squares = rows.sum(0, dtype=np.float64), rows.T @ rows
            if name in seen:
                seen[name].count += len(rows)
                seen[name].total += total
                seen[name].squares += squares
            else:
                seen[name] = Moments(count=len(rows), total=total, squares=squares)
    waiting.clear()


def portions(model: Model, layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """The layers in their order, in parts whose second moments take at most 256 MiB together, or of one layer."""
    part: list[Layer] = []
    taken = 0
    for layer in layers:
        inputs = model.tensors[layer.weight].shape[1 - layer.axis]
        if part and taken + 4 * inputs**2 > BYTES_AT_ONCE:
            yield part
            part, taken = [], 0
        part.append(layer)
        taken += 4 * inputs**2
    if part:
        yield part
