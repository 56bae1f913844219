"""Figures of what the operator pays: bytes shipped, latency, a fresh start, and the vectors of an index."""

from __future__ import annotations

import numpy as np

from slimseek import indexes, timing
from slimseek.encoder import Encoder
from slimseek.measurement import Measurement
from slimseek.recognise import Recogniser
from slimseek.schema import Array, Precision


def shipped(encoder: Encoder | Recogniser) -> tuple[Measurement, ...]:
    """Bytes that must be shipped: all of them, the weights, and the rest."""
    sizes = encoder.shipped
    return tuple(
        Measurement(name=name, value=float(value), unit="B", higher_is_better=False, n=1)
        for name, value in (
            ("size", sum(sizes.values())),
            ("size_weights", sizes["weights"]),
            ("size_rest", sizes["rest"]),
        )
    )


def latencies(seconds: Array) -> tuple[Measurement, ...]:
    """Percentiles in milliseconds of the seconds [calls] that single queries took."""
    return tuple(
        Measurement(
            name=f"latency_p{percent}",
            value=float(np.percentile(seconds, percent)) * 1000,
            unit="ms",
            higher_is_better=False,
            n=len(seconds),
        )
        for percent in (50, 95, 99)
    )


def fresh(source: str, threads: int) -> tuple[Measurement, ...]:
    """Cold start and peak memory of a new process that opens the MODEL; nothing for ``""``."""
    if not source:
        return ()
    start = timing.fresh_start(source, threads)
    return (
        Measurement(name="cold_start", value=start.seconds, unit="s", higher_is_better=False, n=1),
        Measurement(name="peak_memory", value=float(start.peak_memory_bytes), unit="B", higher_is_better=False, n=1),
    )


def index_cost(documents: int, dim: int, precision: Precision) -> tuple[Measurement, ...]:
    """Bytes of an exact index: in memory (``index_size``) and, where finer vectors rank its hits, on disk alone."""
    sizes = {
        "index_size": indexes.bytes_of(documents, dim, precision),
        "rescore_size": indexes.rescore_bytes_of(documents, dim, precision),
    }
    return tuple(
        Measurement(name=name, value=float(value), unit="B", higher_is_better=False, n=1)
        for name, value in sizes.items()
        if value
    )
