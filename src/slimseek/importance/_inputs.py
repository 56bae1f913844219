"""How large the inputs of layers are on calibration items."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence

import numpy as np

from slimseek.choose import family
from slimseek.inputs.batches import batches, check_inputs
from slimseek.schema import Array, Model


def mean_squares(model: Model, items: Sequence[str], wanted: Container[str]) -> dict[str, Array]:
    """E[x_j^2] of each input channel, float64 [inputs], by the name of the layer's weight, in one pass.

    Args:
        model: run without rounding of its inputs.
        items: to run it on.
        wanted: names of weights; those whose input no item reaches, or is not seen, are missing from the answer.

    Raises:
        UsageError: an input is NaN or infinite.
    """
    squares: dict[str, Array] = {}
    counts: dict[str, int] = {}

    def visit(name: str, values: Array) -> None:
        if name in wanted and values.size:
            check_inputs(name, values)
            others = tuple(axis for axis in range(values.ndim) if axis != 1)
            squares[name] = squares.get(name, 0.0) + np.square(values, dtype=np.float64).sum(others)
            counts[name] = counts.get(name, 0) + values.size // values.shape[1]

    family(model).observe(dataclasses.replace(model, activations={}), batches(model, items), visit)
    return {name: total / counts[name] for name, total in squares.items()}
