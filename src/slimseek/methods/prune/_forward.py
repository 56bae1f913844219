"""Whether a model without some units gives what it gives with zeros in their place; what does not is left whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimseek.choose import family
from slimseek.errors import UsageError
from slimseek.inputs.reader import reader
from slimseek.inputs.samples import examples
from slimseek.methods.prune._structure import Structure, masked, without
from slimseek.methods.prune._units import UnitGroup
from slimseek.progress import say
from slimseek.schema import Batch, Model, Samples
from slimseek.timing import default_threads

COUNTS = (1, 3, 2)
"""Items in each of the three batches: one of narrow items, one of those in the middle, one of wide ones."""
TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Pruned:
    """A model without units.

    Attributes:
        model: what is left.
        chosen: the units that are gone.
        refused: names of groups that were left whole, and why.
    """

    model: Model
    chosen: frozenset[int]
    refused: Mapping[str, str]


def pruned(whole: Structure, chosen: Collection[int], groups: Sequence[UnitGroup], samples: Samples) -> Pruned:
    """Remove units and run the result at three shapes; a layer that does not compute what it did is rolled back.

    Args:
        whole: the model with its units.
        chosen: the units to remove.
        groups: the groups that they are of.
        samples: for items to run.
    """
    batches = three_batches(whole.model, samples)
    wanted = frozenset(chosen)
    found, fault = _tried(whole, wanted, batches)
    if found is not None:
        return Pruned(found, wanted, {})
    kept: frozenset[int] = frozenset()
    model, refused = whole.model, {}
    for group in groups:
        part = wanted & frozenset(group.units.tolist())
        found, fault = _tried(whole, kept | part, batches) if part else (None, "")
        if found is not None:
            kept, model = kept | part, found
        elif part:
            refused[group.name] = fault
            say(f"{group.name} is left whole: {fault}")
    return Pruned(model, kept, refused)


def three_batches(model: Model, samples: Samples) -> list[Batch]:
    """Calibration items, or random ones where there are none, in three batches of different shape."""
    read: Any = reader(model.spec, model.files)
    rows = sorted(read.rows(tuple(samples.calibration)[:64] or examples(model.spec)), key=read.width)
    starts = (0, len(rows) // 2, max(0, len(rows) - COUNTS[-1]))
    found = []
    for start, count in zip(starts, COUNTS, strict=True):
        width = read.width(rows[start])
        found.append(read.batch([row for row in rows[start:] if read.width(row) == width][:count], width))
    return found


def _tried(whole: Structure, chosen: frozenset[int], batches: Sequence[Batch]) -> tuple[Model | None, str]:
    """The model without the units, or why it is not what it should be."""
    threads = default_threads()
    try:
        model = without(whole, chosen)
        compute = family(model).run(model, threads)
        results = [compute(batch) for batch in batches]
    except UsageError as error:
        return None, str(error)
    except Exception as error:  # runtimes raise their own kinds for shapes that do not fit
        return None, (str(error).strip().splitlines() or [type(error).__name__])[0]
    zeros = masked(whole, chosen)
    reference = family(zeros).run(zeros, threads)
    for batch, result in zip(batches, results, strict=True):
        expected = reference(batch)
        off = float(np.abs(result - expected).max()) if result.shape == expected.shape else np.inf
        if not off <= TOLERANCE * max(1e-6, float(np.abs(expected).max())):
            shape = " x ".join(map(str, next(iter(batch.values())).shape))
            return None, f"at {shape} its vectors are off by {off:.2g} from those with zeros in place"
    return model, ""
