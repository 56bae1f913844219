"""One choice for each part, so that the sum of errors is least under a size: the multiple-choice knapsack, exactly."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np

from slimseek.schema import Array

ROUNDING = 1e-9


def allocate(sizes: Array, errors: Array, most: int) -> Array:
    """The choice of each part, int64 [parts], with the least sum of errors among those whose sizes fit together.

    A dynamic programme over the parts: of all choices for the first parts, only those stay that no other beats in
    both size and error, and that could still lead to the best. What could is judged by Lagrange's bound: with any
    price of a byte, the rest costs at least the sum of its parts' least error + price * size.

    Args:
        sizes: int64 [parts, choices], bytes.
        errors: float64 [parts, choices], 0 or more.
        most: bytes that all parts may take; the smallest choices must fit.
    """
    # Ascending sizes, so that of equal costs the smaller choice comes first.
    order = np.lexsort((errors, sizes))
    sizes, errors = np.take_along_axis(sizes, order, 1), np.take_along_axis(errors, order, 1)
    assert sizes[:, 0].sum() <= most
    price = _price(sizes, errors, most)
    first = (errors + price * sizes).argmin(1)
    known = np.take_along_axis(errors, first[:, None], 1).sum()
    limit = (known + price * most) * (1 + ROUNDING)
    smallest_rest = sizes[:, 0].sum() - sizes[:, 0].cumsum()
    least = (errors + price * sizes).min(1)
    least_rest = least.sum() - least.cumsum()

    size, error = np.zeros(1, np.int64), np.zeros(1)
    fronts = []
    for part in range(len(sizes)):
        size, error = np.add.outer(size, sizes[part]).ravel(), np.add.outer(error, errors[part]).ravel()
        fits = size + smallest_rest[part] <= most
        kept = np.flatnonzero(fits & (error + price * size + least_rest[part] <= limit))
        kept = kept[np.lexsort((error[kept], size[kept]))]
        before = np.concatenate([[np.inf], np.minimum.accumulate(error[kept])[:-1]])
        kept = kept[error[kept] < before]
        fronts.append(kept)
        size, error = size[kept], error[kept]
    state, chosen = len(error) - 1, np.zeros(len(sizes), np.int64)
    for part in reversed(range(len(sizes))):
        state, chosen[part] = divmod(int(fronts[part][state]), sizes.shape[1])
    return np.take_along_axis(order, chosen[:, None], 1)[:, 0]


def _price(sizes: Array, errors: Array, most: int) -> float:
    """The least price of a byte at which the choices of least error + price * size fit together."""
    saved, gained = sizes[:, None, :] - sizes[:, :, None], errors[:, :, None] - errors[:, None, :]
    worth = (saved > 0) & (gained > 0)
    slopes = np.unique(gained[worth] / saved[worth])
    # Above every slope each part takes its smallest choice, which fits.
    prices = [0.0, *slopes.tolist(), 2 * float(slopes.max(initial=0))]

    def fits(price: float) -> bool:
        chosen = (errors + price * sizes).argmin(1)
        return bool(np.take_along_axis(sizes, chosen[:, None], 1).sum() <= most)

    return prices[bisect_left(prices, True, hi=len(prices) - 1, key=fits)]
