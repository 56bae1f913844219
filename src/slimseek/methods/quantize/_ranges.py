"""Streaming statistics of values: a histogram that widens as it sees more, in memory that does not grow."""

from __future__ import annotations

import numpy as np

from slimseek.schema import Array

BINS = 2**16
LEVELS = 256
LEFT_OUT = 1e-5
CANDIDATES = 60
THRESHOLDS = 128
MOST_CLIPPED = 0.01
NOT_SEEN = 1e-4


class Histogram:
    """Counts of values in 65,536 bins over the range seen so far; the range doubles around zero when it is left."""

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
        """The range (low, high) that is cut into 255 steps, by ``minmax``, ``percentile``, ``mse`` or ``entropy``."""
        if estimator == "minmax":
            return self.low, self.high
        if estimator == "percentile":
            return self._percentile()
        return self._least_error() if estimator == "mse" else self._least_divergence()

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

    def _least_divergence(self) -> tuple[float, float]:
        """The range that loses least information: the least Kullback-Leibler divergence of the values from what the
        integers tell of them, out of 128 thresholds between 256 bins and the whole that clip at most one per cent.

        Migacz, 8-bit Inference with TensorRT, 2017; there the thresholds are those of absolute values, here each
        side of zero also ends where its values do, so that one-sided inputs keep all levels.
        """
        middle, width = BINS // 2, 2 * self._limit / BINS
        counts = self._counts.copy()
        counts[middle] = min(counts[middle], counts[middle + 1])  # zeros, which every range holds exactly
        seen = np.flatnonzero(self._counts)
        best, chosen = np.inf, (self.low, self.high)
        thresholds = np.unique(np.geomspace(LEVELS // 2, middle, THRESHOLDS).astype(int))
        for threshold in thresholds[::-1].tolist():
            first = min(max(int(seen[0]), middle - threshold), middle)
            end = max(min(int(seen[-1]) + 1, middle + threshold), middle)
            if end - first < LEVELS or counts[first:end].sum() < (1 - MOST_CLIPPED) * counts.sum():
                break
            low, high = max(self.low, -threshold * width), min(self.high, threshold * width)
            centres = (np.arange(first, end) + 0.5) * width - self._limit
            step = (max(high, 0.0) - min(low, 0.0)) / (LEVELS - 1)
            levels = np.clip(np.rint((centres - min(low, 0.0)) / step), 0, LEVELS - 1).astype(int)
            divergence = _divergence(counts, first, end, levels)
            if divergence < best:
                best, chosen = divergence, (low, high)
        return chosen


def _divergence(counts: Array, first: int, end: int, levels: Array) -> float:
    """Kullback-Leibler divergence sum p log(p / q) of a range [first, end) of bins, in nats.

    p: the bins of the range, with all that lies outside in the outermost two. q: the bins of the range alone, merged
    into levels, and each level spread evenly over those of its bins where p is not zero.
    """
    inside = counts[first:end].astype(np.float64)
    reference = inside.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[end:].sum()
    occupied = reference > 0
    spread = np.bincount(levels, inside) / np.maximum(np.bincount(levels, occupied), 1)
    # Where only clipped values lie, q would be zero.
    told = np.maximum(spread[levels][occupied] / inside.sum(), NOT_SEEN / counts.sum())
    share = reference[occupied] / reference.sum()
    return float((share * np.log(share / told)).sum())
