"""Factors that move outliers from a layer's inputs to its weights, and what they gain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slimseek.schema import Array

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
WORTH_IT = 0.5
"""Of the error without factors: what must not be exceeded, since a runtime may have to divide with every query."""
SMALL = 0.002
"""Of the power of a layer's results: error that is left alone."""
LEVELS = 255
LARGEST_FACTOR = 256.0
SMALLEST_WEIGHT = 1e-5
"""Of a layer's largest weight: what an input whose weights are all smaller counts as."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """What a layer's inputs are like on calibration texts.

    Attributes:
        largest: float32 [inputs], largest absolute value of each input.
        squares: float64 [inputs], mean square of each input.
    """

    largest: Array
    squares: Array


def best_factors(inputs: Inputs, weight: Array) -> Array | None:
    """Those whose ``alpha`` has the least expected error; ``None`` where without any that is small, or not halved.

    Args:
        inputs: of one layer, or of all that read the same input.
        weight: float [outputs, inputs], the rows of all these layers.
    """
    largest = np.abs(weight).max(0)
    found = [factors(inputs.largest, largest, alpha) for alpha in ALPHAS]
    errors = [expected_error(inputs, weight, factor) for factor in found]
    best = int(np.argmin(errors))
    plain = expected_error(inputs, weight, np.ones_like(largest))
    power = float(np.square(weight).sum(0, dtype=np.float64) @ inputs.squares)
    return found[best] if plain > SMALL * power and errors[best] <= WORTH_IT * plain else None


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


def expected_error(inputs: Inputs, weight: Array, factor: Array) -> float:
    """Sum over outputs of the mean squared error of y = (x / s) (s W)^T with both sides rounded to eight bits.

    Rounding by steps of d adds noise of d^2 / 12 to each value, independent of the rest: one step for all inputs,
    one for each row of weights.

    Args:
        inputs: what x is like.
        weight: W, float [outputs, inputs].
        factor: s, float [inputs].
    """
    scaled = weight * factor
    input_step = 2 * (inputs.largest / factor).max() / LEVELS
    weight_steps = 2 * np.abs(scaled).max(1) / LEVELS
    from_inputs = input_step**2 * np.square(scaled).sum(dtype=np.float64)
    from_weights = np.square(weight_steps).sum(dtype=np.float64) * (inputs.squares / np.square(factor)).sum()
    return float(from_inputs + from_weights) / 12
