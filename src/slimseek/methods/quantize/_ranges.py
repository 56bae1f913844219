"""Streaming statistics of values: a histogram that widens as it sees more, in memory that does not grow."""

from __future__ import annotations

import numpy as np

from slimseek.schema import Array

BINS = 4096
LEFT_OUT = 1e-5
CANDIDATES = 60


class Histogram:
    """Counts of values in 4,096 bins over the range seen so far; the range doubles around zero when it is left."""

    def __init__(self) -> None:
        self.low = np.inf
        self.high = -np.inf
        self._limit = 0.0
        self._counts = np.zeros(BINS, np.int64)

    def add(self, values: Array) -> None:
        """Count finite values of any shape."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        largest = max(-self.low, self.high, 1e-30)
        if self._limit == 0.0:
            self._limit = largest
        while largest > self._limit:
            self._widen()
        self._counts += np.histogram(values, BINS, (-self._limit, self._limit))[0]

    def range(self, estimator: str) -> tuple[float, float]:
        """The range (low, high) that is cut into 255 steps, by ``minmax``, ``percentile`` or ``mse``."""
        if estimator == "minmax":
            return self.low, self.high
        if estimator == "percentile":
            return self._percentile()
        return self._least_error()

    def _widen(self) -> None:
        """Twice the range: neighbouring bins merge into the middle half."""
        merged = self._counts.reshape(-1, 2).sum(1)
        self._counts = np.zeros(BINS, np.int64)
        self._counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
        self._limit *= 2

    def _percentile(self) -> tuple[float, float]:
        share = np.cumsum(self._counts) / self._counts.sum()
        edges = np.linspace(-self._limit, self._limit, BINS + 1)
        low = edges[np.searchsorted(share, LEFT_OUT)]
        high = edges[min(int(np.searchsorted(share, 1 - LEFT_OUT)) + 1, BINS)]
        return max(self.low, float(low)), min(self.high, float(high))

    def _least_error(self) -> tuple[float, float]:
        """The shrunken range, out of 60 between a tenth and the whole, whose rounding error is least."""
        centres = (np.arange(BINS) + 0.5) / BINS * 2 * self._limit - self._limit
        best, chosen = np.inf, (self.low, self.high)
        for shrink in np.linspace(0.1, 1.0, CANDIDATES):
            low, high = min(self.low * shrink, 0.0), max(self.high * shrink, 0.0)
            step = (high - low) / 255
            if step <= 0:
                continue
            rounded = np.clip(np.rint((centres - low) / step), 0, 255) * step + low
            error = float((self._counts * (centres - rounded) ** 2).sum())
            if error < best:
                best, chosen = error, (low, high)
        return chosen
