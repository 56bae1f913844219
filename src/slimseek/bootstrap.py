"""What a mean over queries, and the change of one, is known to: intervals by weighing queries anew.

All functions are pure and take float64 arrays of the scores of n queries. Changes are resampled by the Bayesian
bootstrap (Rubin, The Annals of Statistics 9, 1981): each time every query gets a weight of its own, drawn from the
exponential distribution. A sample that holds none of the few queries which lose much says nothing of them, so that the
bound of a loss adds one more query like the worst: for scores that are lost or kept that is the exact bound of Clopper
and Pearson, and for bounded scores Gaffke's (Learned-Miller and Thomas, A new confidence interval for the mean of a
bounded random variable, 2019).
"""

from __future__ import annotations

import numpy as np

from slimseek.schema import Array

RESAMPLES = 10_000
RESAMPLES_IN_BLOCK = 500
FEWEST_CHANGED = 5
"""Below so many changed queries the worst of them is not known to be as bad as they get."""
RISK = 0.05
MOST_QUERIES = 10**9


def relative_change(before: Array, after: Array, axis: int = -1) -> Array:
    """(mean of after - mean of before) / mean of before; of a mean of 0 it is -1, 0 or 1 by the sign of the change."""
    mean = np.mean(before, axis=axis)
    return _relative(mean, np.mean(after, axis=axis))


def mean_interval(values: Array) -> tuple[float, float]:
    """Two-sided 95 % interval of the mean of values [n], by the percentile bootstrap."""
    if values.size < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    from scipy import stats  # loads for a second, which whoever serves a search need not wait for

    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=500, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(found.low), float(found.high)


def change_bounds(before: Array, after: Array) -> Array:
    """The interval of the relative change, and the bound of a loss, of queries that are paired.

    The bound is one-sided and counts one more query: of those given the one that lost most, or, where fewer than
    ``FEWEST_CHANGED`` changed at all, one of mean score that loses everything.

    Args:
        before: [..., n], the scores of n queries; several sets of queries at once have a row each.
        after: [..., n], of the same queries.

    Returns:
        [3, ...]: the low end of the two-sided 95 % interval, the one-sided 95 % lower bound, and the high end. With
        few queries the bound may lie below the interval, which is of the given queries alone.
    """
    worst_before, worst_after = worst(before, after)
    random = np.random.default_rng(0)
    plain, bounded = [], []
    for _ in range(0, RESAMPLES, RESAMPLES_IN_BLOCK):
        weights = random.standard_exponential((before.shape[-1] + 1, RESAMPLES_IN_BLOCK))
        sums = before @ weights[1:], after @ weights[1:]
        plain.append(_relative(*sums))
        added = (worst[..., None] * weights[0] for worst in (worst_before, worst_after))
        bounded.append(_relative(*(total + more for total, more in zip(sums, added, strict=True))))
    low, high = np.percentile(np.concatenate(plain, axis=-1), [2.5, 97.5], axis=-1)
    lower = np.percentile(np.concatenate(bounded, axis=-1), 100 * RISK, axis=-1)
    return np.stack([low, lower, high])


def point_bounds(before: Array, after: Array) -> Array:
    """The same of the difference before - after of an error rate, negative for a loss; its values are 0 or more.

    The recording that the bound adds is the one that lost most, or, where fewer than ``FEWEST_CHANGED`` changed, one
    of mean errors of which nothing is heard rightly any more (1).

    Args:
        before: [n], whose mean is the rate.
        after: [n], of the same recordings.

    Returns:
        [3]: the low end of the two-sided 95 % interval, the one-sided 95 % lower bound, and the high end.
    """
    gains = before - after
    few = int((gains != 0).sum()) < FEWEST_CHANGED
    worst_gain = min(float(before.mean()) - 1.0, float(gains.min())) if few else float(gains.min())
    weights = np.random.default_rng(0).standard_exponential((RESAMPLES, gains.size + 1))
    sums, totals = weights[:, 1:] @ gains, weights[:, 1:].sum(1)
    low, high = np.percentile(sums / totals, [2.5, 97.5])
    bounded = (sums + weights[:, 0] * worst_gain) / (totals + weights[:, 0])
    return np.array([low, np.percentile(bounded, 100 * RISK), high])


def worst(before: Array, after: Array) -> tuple[Array, Array]:
    """The scores before and after, [...], of the query that the bound adds to those of [..., n]."""
    place = np.argmin(after - before, axis=-1)[..., None]
    few = (before != after).sum(axis=-1) < FEWEST_CHANGED
    seen = (np.take_along_axis(scores, place, axis=-1)[..., 0] for scores in (before, after))
    unseen = (np.mean(before, axis=-1), np.zeros(few.shape))
    first, second = (np.where(few, one, other) for one, other in zip(unseen, seen, strict=True))
    return first, second


def fewest_queries(max_loss: float) -> int:
    """The queries among which a loss is seen at all, in 95 of 100 samples, if it is the share of queries lost whole."""
    if not 0 < max_loss < 1:
        return 2
    return max(2, int(np.ceil(np.log(RISK) / np.log1p(-max_loss))))


def least_loss(count: int) -> float:
    """The least loss that so many queries can exclude (see :func:`fewest_queries`)."""
    return float(1 - RISK ** (1 / count))


def queries_needed(before: Array, after: Array, lower: float, max_loss: float) -> int | None:
    """Queries for the one-sided bound to reach -max_loss, if mean and spread stayed as they are.

    ``None`` where the bound ``lower`` of these queries [n] reaches it already, or no number of queries would do.
    """
    count, mean = len(before), float(before.mean())
    margin = (float(relative_change(before, after)) + max_loss) * mean
    fewest = fewest_queries(max_loss)
    if (lower >= -max_loss and count >= fewest) or margin <= 0:
        return None
    kept = after - (1 - max_loss) * before
    size = float(np.sqrt(np.mean(kept**2)))
    changed = int((before != after).sum())
    found = _needed(margin, size, (1 - max_loss) * mean)
    if changed:
        enough = int(np.ceil(FEWEST_CHANGED * count / changed))
        found = min(found, max(_needed(margin, size, max(0.0, -float(kept.min()))), enough))
    return max(found, fewest, count + 1) if found < MOST_QUERIES else None


def queries_needed_in_points(before: Array, after: Array, lower: float, max_loss: float) -> int | None:
    """The same for the difference of an error rate: the distance of its bound shrinks by the root of n."""
    gain = float(before.mean() - after.mean())
    fewest = fewest_queries(max_loss)
    if (lower >= -max_loss and len(before) >= fewest) or gain <= -max_loss:
        return None
    grown = len(before) * ((gain - lower) / (gain + max_loss)) ** 2
    return max(int(np.ceil(grown)), fewest, len(before) + 1) if grown < MOST_QUERIES else None


def _needed(margin: float, size: float, loss: float) -> int:
    """The least n for which the sum of n weighted terms of that mean and root mean square, less a weighted loss, is
    below 0 with a probability of at most ``RISK``.
    """
    from scipy import stats

    def risk(count: int) -> float:
        spread = size * np.sqrt(count)
        if loss <= 0.01 * spread:
            return float(stats.norm.sf((count * margin - loss) / spread))
        return float(stats.exponnorm.sf(0, loss / spread, loc=-count * margin, scale=spread))

    low, high = 1, 2
    while high < MOST_QUERIES and risk(high) > RISK:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if risk(middle) > RISK else (low, middle)
    return high


def _relative(before: Array, after: Array) -> Array:
    change = after - before
    relative = np.array(np.sign(change))
    np.divide(change, before, out=relative, where=before != 0)
    return relative
