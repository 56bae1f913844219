"""k-means in one dimension (Lloyd, 1982) over sorted values: a cluster is a stretch of them, and its sums are two
look-ups in running totals, so that a round costs k searches and not n distances. Many rows are clustered at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from slimseek.schema import Array

ROUNDS = 100
CLOSE = 1e-5
"""Share of the squared error by which a round must still lower it."""
AT_ONCE = 2**21
"""Values of the rows that are clustered together; a longer row is clustered alone."""
BINS = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Sorted:
    """Rows in ascending order, with what the sums over a stretch of a row are read from.

    Attributes:
        values: float64 [rows, n], each row ascending, not all of it equal.
        mass, moment, square: running sums of weight, weight * value and weight * value^2, float64 [rows, n + 1].
        keys: float64 [rows * n]: place in the row's range, 0 to 1, plus twice the row's number; ascending throughout.
    """

    values: Array
    mass: Array
    moment: Array
    square: Array
    keys: Array

    @staticmethod
    def of(values: Array, weights: Array) -> Sorted:
        """From ascending rows and their weights, float64 [rows, n]."""

        def running(terms: Array) -> Array:
            return np.pad(np.cumsum(terms, axis=1), ((0, 0), (1, 0)))

        low, high = values[:, :1], values[:, -1:]
        keys = (values - low) / (high - low) + 2 * np.arange(len(values))[:, None]
        moment = weights * values
        return Sorted(values=values, mass=running(weights), moment=running(moment),
                      square=running(moment * values), keys=keys.reshape(-1))  # fmt: skip

    def ends(self, limits: Array) -> Array:
        """How many values of a row are at most each of its limits, int64 [rows, limits]."""
        low, high = self.values[:, :1], self.values[:, -1:]
        rows, n = self.values.shape
        wanted = np.clip((limits - low) / (high - low), -0.5, 1.25) + 2 * np.arange(rows)[:, None]
        found: Array = np.searchsorted(self.keys, wanted.reshape(-1), side="right").reshape(limits.shape)
        return found - n * np.arange(rows)[:, None]

    def stretches(self, centres: Array) -> Array:
        """Where the values nearest to each of the ascending centres begin and end, int64 [rows, centres + 1]."""
        inner = self.ends((centres[:, 1:] + centres[:, :-1]) / 2)
        return np.pad(inner, ((0, 0), (1, 1)), constant_values=((0, 0), (0, self.values.shape[1])))

    def sums(self, stretches: Array) -> tuple[Array, Array, Array]:
        """Sums of weight, weight * value and weight * value^2 in each stretch."""
        return tuple(np.diff(np.take_along_axis(total, stretches, 1), axis=1)
                     for total in (self.mass, self.moment, self.square))  # type: ignore[return-value]  # fmt: skip


def cluster(rows: Array, weights: Array, entries: int) -> Array:
    """The values that each row's values may take, so that the weighted squared error is (locally) least.

    A row of no more different values than entries keeps them all, whatever their weights; books are filled up with
    their greatest value. Of two beginnings, even steps over the range and steps by the cube root of the density, the
    better end is taken.

    Args:
        rows: finite float32 [rows, n], n at least 1.
        weights: float32 [rows, n], 0 or more.
        entries: values a row, at least 1.

    Returns:
        Code books, float32 [rows, entries], each ascending.
    """
    books = np.empty((len(rows), entries), np.float32)
    step = max(1, AT_ONCE // rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        books[part] = _cluster(rows[part], weights[part], entries)
    return books


def nearest(rows: Array, books: Array) -> Array:
    """The place of the nearest entry for each value of rows [rows, n]: uint8; books [rows, entries] ascend."""
    wide = books.astype(np.float64)
    limits = (wide[:, 1:] + wide[:, :-1]) / 2
    return np.stack([np.searchsorted(limit, row).astype(np.uint8) for limit, row in zip(limits, rows, strict=True)])


def _cluster(rows: Array, weights: Array, entries: int) -> Array:
    order = np.argsort(rows, axis=1, kind="stable")
    ascending = np.take_along_axis(rows, order, 1)
    number = np.pad(np.cumsum(ascending[:, 1:] != ascending[:, :-1], axis=1), ((0, 0), (1, 0)))
    few = number[:, -1] < entries
    books = np.repeat(ascending[:, -1:], entries, axis=1)
    for row in np.flatnonzero(few):
        books[row, number[row]] = ascending[row]
    many = np.flatnonzero(~few)
    if len(many):
        of_values = np.take_along_axis(weights, order, 1)[many].astype(np.float64)
        books[many] = _lloyd(Sorted.of(ascending[many].astype(np.float64), of_values), entries)
    return books


def _lloyd(data: Sorted, entries: int) -> Array:
    """The better of two ends, float64 [rows, entries]."""
    even, dense = (_rounds(data, start) for start in (_even(data, entries), _by_density(data, entries)))
    better = even[1] < dense[1]
    chosen: Array = np.where(better[:, None], even[0], dense[0])
    return chosen


def _even(data: Sorted, entries: int) -> Array:
    """Centres at even steps over the range (the beginning that Han et al. found best)."""
    low, high = data.values[:, :1], data.values[:, -1:]
    return low + (high - low) * (np.arange(entries) + 0.5) / entries


def _by_density(data: Sorted, entries: int) -> Array:
    """Centres as dense as the cube root of the values' density, which is best for many (Panter and Dite, 1951)."""
    bins = min(BINS, max(16, data.values.shape[1] // 8))
    low, high = data.values[:, :1], data.values[:, -1:]
    edges = low + (high - low) * np.arange(bins + 1) / bins
    stretches = data.ends(edges[:, 1:])
    stretches[:, -1] = data.values.shape[1]
    mass = data.sums(np.pad(stretches, ((0, 0), (1, 0))))[0]
    total = np.pad(np.cumsum(np.cbrt(np.maximum(mass, 0)), axis=1), ((0, 0), (1, 0)))
    total += np.linspace(0, 1e-9, bins + 1) * total[:, -1:]
    shares = (np.arange(entries) + 0.5) / entries
    return np.stack([np.interp(shares * ends[-1], ends, edge) for ends, edge in zip(total, edges, strict=True)])


def _rounds(data: Sorted, centres: Array) -> tuple[Array, Array]:
    """The centres when rounds lower the squared error no more, and that error, float64 [rows]."""
    error = np.full(len(centres), np.inf)
    for _ in range(ROUNDS):
        stretches = data.stretches(centres)
        mass, moment, square = data.sums(stretches)
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.where(mass > 0, moment / mass, centres)
            spread = np.where(mass > 0, square - moment * means, 0.0)
        # Sums are differences of running totals: rounding may put a mean a little outside of its stretch.
        first = np.take_along_axis(data.values, np.minimum(stretches[:, :-1], data.values.shape[1] - 1), 1)
        last = np.take_along_axis(data.values, np.maximum(stretches[:, 1:] - 1, 0), 1)
        means = np.where(mass > 0, np.clip(means, first, last), means)
        empty = mass <= 0
        for row in np.flatnonzero(empty.any(axis=1)):
            _refill_(means[row], empty[row], spread[row], last[row])
        found = np.maximum(spread, 0).sum(axis=1)
        done = bool((found >= error * (1 - CLOSE)).all() and not empty.any())
        centres, error = np.sort(means, axis=1), found
        if done:
            break
    return centres, error


def _refill_(means: Array, empty: Any, spread: Array, last: Array) -> None:
    """Empty clusters begin anew at the far ends of those with the greatest error."""
    worst = np.argsort(-np.where(empty, -1.0, spread))
    for place, source in zip(np.flatnonzero(empty), worst, strict=False):
        means[place] = last[source]
