"""Items in batches of like width, for runs that look inside a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from slimseek.inputs.reader import reader
from slimseek.schema import Batch, Model

BATCH = 8


def batches(model: Model, items: Sequence[str]) -> Iterator[Batch]:
    """Arrays of the items, at most eight together and the narrow ones first; those of different widths never meet."""
    read: Any = reader(model.spec, model.files)
    rows = sorted(read.rows(items), key=read.width)
    for width, alike in groupby(rows, key=read.width):
        found = list(alike)
        for start in range(0, len(found), BATCH):
            yield read.batch(found[start : start + BATCH], width)
