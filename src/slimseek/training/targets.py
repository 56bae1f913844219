"""Items with what a network should give for each of them: a target of any kind, or a teacher's vectors."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from slimseek.errors import UsageError
from slimseek.inputs.reader import reader
from slimseek.schema import Array, Model, ModelSpec
from slimseek.training import teacher
from slimseek.training.examples import Examples, Lazy, Target, different, parts, planned, taken
from slimseek.training.train import Training

HELD_OUT = 128
ROWS_IN_CHECK = 32


def examples(
    model: Model, items: Sequence[str], target: Callable[[Sequence[str]], Target], settings: Training
) -> Examples:
    """Batches of items of like length with their targets; a quarter of the items, at most 128, is held out.

    Items that the model reads alike, such as texts that differ in case or beyond ``max_tokens``, count once.

    Args:
        model: reads the items.
        items: texts, or paths of arrays; empty ones are left out.
        target: items to what the network should give for each, [n, ...], or several such arrays by name.
        settings: how many are needed, and the seed.

    Raises:
        UsageError: fewer than four items, or one that cannot be read.
    """
    read: Any = reader(shortened(model.spec, settings.max_tokens), model.files)
    generator = random.Random(settings.seed)
    chosen = [item for item in dict.fromkeys(items) if item]
    generator.shuffle(chosen)
    del chosen[HELD_OUT + settings.batches * settings.batch_size :]  # no need to read what is never used
    rows, chosen = different(read, chosen)
    held = min(HELD_OUT, len(rows) // 4)
    if held < 1:
        raise UsageError(f"{len(rows)} items are too few to train on; 4 are needed")
    targets = target(chosen)
    widths = [row.width for row in rows]

    def batches(chosen: Sequence[list[int]]) -> Lazy:
        return Lazy(len(chosen), lambda number: (
            read.batch([rows[position].read() for position in chosen[number]]), taken(targets, chosen[number])
        ))  # fmt: skip

    train = planned(range(held, len(rows)), widths, settings.batch_size, settings.batches, generator)
    return Examples(train=batches(train), held_out=batches(parts(range(held), widths, ROWS_IN_CHECK)))


def vectors_of(model: Model, max_tokens: int, cache: str = "") -> Callable[[Sequence[str]], Array]:
    """The vectors that a teacher gives: items to float32 [n, dim], texts cut to so many tokens by its own tokenizer.

    They are kept on disk, in the folder ``cache``: see :func:`slimseek.training.teacher.vectors`.
    """
    cut = dataclasses.replace(model, spec=shortened(model.spec, max_tokens))
    return lambda items: teacher.vectors(cut, items, cache)


def shortened(spec: ModelSpec, max_tokens: int) -> ModelSpec:
    """The specification of a model that cuts its texts to so many tokens, or where it cuts them already."""
    if spec.preprocess is None:
        return spec
    longest = min(spec.preprocess.max_length, max_tokens)
    return msgspec.structs.replace(spec, preprocess=msgspec.structs.replace(spec.preprocess, max_length=longest))
