"""What a mean over queries, and the change of one, is known to: intervals by drawing queries again.

All functions are pure and take float64 arrays [..., n] of the scores of n queries.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from slimseek.schema import Array

RESAMPLES = 10_000


def relative_change(before: Array, after: Array, axis: int = -1) -> Array | float:
    """(mean of after - mean of before) / mean of before; of a mean of 0 it is -1, 0 or 1 by the sign of the change."""
    mean = np.mean(before, axis=axis)
    change = np.mean(after, axis=axis) - mean
    relative = np.divide(change, mean, out=np.where(change < 0, -1.0, np.where(change > 0, 1.0, 0.0)), where=mean != 0)
    return float(relative) if np.ndim(relative) == 0 else relative


def mean_interval(values: Array) -> tuple[float, float]:
    """Two-sided 95 % interval of the mean of values [n]."""
    if values.size < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=500, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def change_bounds(before: Array, after: Array) -> tuple[float, float, float]:
    """Two-sided 95 % interval and one-sided 95 % lower bound of the relative change, queries [n] drawn in pairs.

    Returns:
        The interval's low, the lower bound, the interval's high.
    """
    if len(before) < 2 or np.array_equal(before, after):
        relative = float(relative_change(before, after))
        return relative, relative, relative
    drawn = stats.bootstrap(
        (before, after), relative_change, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=500,
        method="percentile", rng=np.random.default_rng(0),
    ).bootstrap_distribution  # fmt: skip
    low, lower, high = np.percentile(drawn, [2.5, 5.0, 97.5])
    return float(low), float(lower), float(high)


def queries_needed(before: Array, after: Array, lower: float, max_loss: float) -> int | None:
    """Queries for the one-sided bound to reach -max_loss, if mean and spread stayed as they are.

    ``None`` where the bound ``lower`` reaches it already, or no number of queries would do.
    """
    relative = float(relative_change(before, after))
    margin = relative + max_loss
    if lower >= -max_loss or margin <= 0 or before.mean() == 0:
        return None
    spread = float(np.std((after - (1 + relative) * before) / before.mean(), ddof=1))
    return int(np.ceil((stats.norm.ppf(0.95) * spread / margin) ** 2))
