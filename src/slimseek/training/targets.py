"""Items with what a network should give for each of them: a target of any kind, or a teacher's vectors."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from slimseek import choose, plugins
from slimseek.errors import UsageError
from slimseek.inputs.reader import reader
from slimseek.schema import Array, Model, ModelSpec
from slimseek.training import teacher
from slimseek.training.examples import Example, Examples, Lazy, Target, different, parts, planned, taken, viewed
from slimseek.training.train import Loss, Training

if TYPE_CHECKING:
    from torch import nn

HELD_OUT = 128
ROWS_IN_CHECK = 32


def examples(
    model: Model, items: Sequence[str], target: Callable[[Sequence[str]], Target], settings: Training
) -> Examples:
    """Batches of items of like length with their targets; a quarter of the items, at most 128, is held out.

    Items that the model reads alike, such as texts that differ in case or beyond ``max_tokens``, count once. Where
    views of pictures are asked for, blended by two, they stand in the place of what is trained on; the target stays
    that of the picture, which is none of theirs: see :func:`taught`.

    Args:
        model: reads the items.
        items: texts, or paths of arrays; empty ones are left out.
        target: items to what the network should give for each, [n, ...], or several such arrays by name.
        settings: how many are needed, and the seed.

    Raises:
        UsageError: fewer than four items, one that cannot be read, or views are asked for of what is no picture.
    """
    check_views(model.spec, settings)
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

    def batches(chosen: Sequence[list[int]], views: int) -> Lazy:
        def make(number: int) -> Example:
            some = [rows[position].read() for position in chosen[number]]
            return viewed(read, some, views, (settings.seed, number), mixed=True), taken(targets, chosen[number])

        return Lazy(len(chosen), make, heavy=views > 0)

    train = planned(range(held, len(rows)), widths, settings.batch_size, settings.batches, generator)
    held_out = parts(range(held), widths, ROWS_IN_CHECK)
    return Examples(train=batches(train, settings.views), held_out=batches(held_out, 0))


def taught(
    network: nn.Module, model: Model, teacher: Model, items: Sequence[str], settings: Training, loss: Loss, *,
    cache: str = "", columns: Array | None = None,
) -> tuple[nn.Module, Examples, Loss]:  # fmt: skip
    """What :func:`slimseek.training.train.fit` is given so that a network learns a teacher's vectors.

    The teacher is asked once for each item, and what it gives is kept. Of random views of pictures it is asked in each
    step, since what it gives of a picture is not what a view of it should give: both see the same crop, blended with
    another, and a patient student learns the function and not some of its values (Beyer et al., Knowledge distillation:
    A good teacher is patient and consistent, 2022).

    Args:
        network: of the model, to be trained.
        model: reads the items.
        teacher: gives vectors of the same width.
        items: texts, or paths of arrays.
        settings: how to train.
        loss: of the model's vectors and the teacher's.
        cache: the folder for the teacher's vectors, which views do not need.
        columns: float32 [the teacher's dim, the model's] to multiply them with; with views alone.

    Raises:
        UsageError: as :func:`examples`; with views, a teacher that takes pictures otherwise or cannot be run here.
    """
    if not settings.views:
        return network, examples(model, items, vectors_of(teacher, settings.max_tokens, cache), settings), loss
    found = examples(model, items, nothing, settings)
    _check_alike(model.spec, teacher.spec)
    modules, torch = plugins.require("slimseek.training.beside"), plugins.require("torch")
    turned = None if columns is None else torch.from_numpy(columns)
    asked = choose.family(teacher).trainable(teacher)
    brought = modules.Brought(asked, teacher.spec.inputs[0].name, turned, model.spec.normalised)
    learner = modules.Beside(network, brought)
    return learner, found, modules.of_both(loss)


def check_views(spec: ModelSpec, settings: Training) -> None:
    """UsageError where views are asked for of what is no picture."""
    if settings.views and not spec.picture:
        raise UsageError(f"views is {settings.views}, and the items of this model are no pictures; 0 is allowed")


def nothing(items: Sequence[str]) -> Array:
    """In the place of a target that is computed in the step, float32 [n, 1]."""
    return np.zeros((len(items), 1), np.float32)


def _check_alike(student: ModelSpec, teacher: ModelSpec) -> None:
    """That two models can be given the same views: they differ in nothing but the size of their pictures."""
    own, other = student.picture, teacher.picture
    if not (own and other) or msgspec.structs.replace(other, height=own.height, width=own.width, fit=own.fit,
                                                      crop_share=own.crop_share) != own:  # fmt: skip
        raise UsageError("views are asked for, and the teacher takes pictures of other numbers than the model; give "
                         "both the same preprocessor_config.json but for the size, or leave views at 0")  # fmt: skip


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
