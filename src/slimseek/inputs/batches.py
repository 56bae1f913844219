"""Items in batches of like width, for runs that look inside a model, and what such runs refuse to learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from slimseek.errors import UsageError
from slimseek.inputs.reader import reader
from slimseek.schema import Array, Batch, Model

BATCH = 8


def batches(model: Model, items: Sequence[str]) -> Iterator[Batch]:
    """Arrays of the items, at most eight together and the narrow ones first; those of different widths never meet."""
    read: Any = reader(model.spec, model.files)
    rows = sorted(read.rows(items), key=read.width)
    for width, alike in groupby(rows, key=read.width):
        found = list(alike)
        for start in range(0, len(found), BATCH):
            yield read.batch(found[start : start + BATCH], width)


def spread(items: Sequence[str], most: int) -> Sequence[str]:
    """At most so many of the items, evenly over their order: a sample's documents stand before its queries."""
    return items[:: max(1, -(-len(items) // most))]


def check_inputs(name: str, values: Array) -> None:
    """Refuse what a layer reads, or sums of it.

    Args:
        name: of the layer's weight.
        values: float, of any shape.

    Raises:
        UsageError: NaN or infinity; the text names the layer.
    """
    if not np.isfinite(values).all():
        raise UsageError(f"the input of {name} is NaN or infinite on calibration texts")
