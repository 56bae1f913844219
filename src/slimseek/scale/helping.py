"""A teacher's vectors within a trial, with the help of workers that have nothing else to do.

Ray Data would wait for cores of its own, and within a search the workers hold them all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from slimseek import plugins
from slimseek.schema import Array, Model
from slimseek.training import teacher as teachers


def asked_together(others: Sequence[Any], teacher: Model, items: Sequence[str]) -> Array:
    """What a teacher gives for items, in the parts in which one machine would compute them.

    A worker that is lost costs nothing but its help: a part that is long in coming is computed here meanwhile.

    Args:
        others: Ray's actors with the methods ``free`` and ``teach`` of :class:`slimseek.scale.trials.Worker`. A busy
            one answers the former when its work is done, and helps with what is left then.
        teacher: the model.
        items: texts, or paths of arrays that lead to the same files everywhere.

    Returns:
        Float32 [n, dim]; bit for bit what one machine gives, where processors and threads are of one kind.
    """
    ray, encoder = plugins.require("ray"), teachers.encoder(teacher)
    vectors = np.empty((len(items), teacher.spec.dim), np.float32)
    starts = deque(range(0, len(items), teachers.PART))
    missing = set(starts)
    others = others if len(starts) > 1 else ()
    sent = ray.put(teacher) if others else None
    asked: dict[Any, tuple[Any, int | None]] = {other.free.remote(): (other, None) for other in others}
    while missing:
        for reference in ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []:
            other, start = asked.pop(reference)
            try:
                found = ray.get(reference)
            except ray.exceptions.RayError:  # lost, or it refuses; what is wrong with an item is told here too
                continue
            if start is not None:
                vectors[start : start + teachers.PART] = found
                missing.discard(start)
            if starts:
                start = starts.pop()
                asked[other.teach.remote(sent, items[start : start + teachers.PART])] = other, start
        start = starts.popleft() if starts else min(missing, default=None)
        if start is not None:
            vectors[start : start + teachers.PART] = encoder.documents(items[start : start + teachers.PART])
            missing.discard(start)
    return vectors
