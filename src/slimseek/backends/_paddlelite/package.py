"""What a package for Paddle Lite must know beside its ``model.nb``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slimseek.schema import Array
from slimseek.value import Value

BATCH, LENGTH, FIXED = "batch", "length", ""
MIDDLE = 128
"""What stands for 0 in a table whose integers are signed in the artifact."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fed:
    """A constant that grows with the batch or the length: for one row of the longest text, and what each axis is."""

    whole: Array
    axes: tuple[str, ...]


class Kept(Value, frozen=True, omit_defaults=True):
    """Where a tensor stands in ``model.nb``.

    Attributes:
        parameter: its name there.
        axis: of its outputs in the artifact.
        transposed: whether it stands transposed.
        exact: whether these are the artifact's own integers.
        beside: of a table: the parameters of its zero points (empty where all are 128) and its scales, [rows, 1].
        signed: of a table: whether its integers lie around 128 here and around 0 in the artifact.
    """

    parameter: str
    axis: int
    transposed: bool = False
    exact: bool = True
    beside: tuple[str, str] | None = None
    signed: bool = True


class Settings(Value, frozen=True):
    """Content of ``paddlelite.json``.

    Attributes:
        dim: width of the vectors.
        longest: text in tokens; 0 for a model that takes no texts.
        fed: axes of the constants in ``model.fed.npz``: ``batch``, ``length`` or empty.
        tensors: where tensors of few bits stand, by name.
        not_executed: files that were written and never run.
        no_arm: why there is no file for arm; empty where there is one.
    """

    dim: int
    longest: int
    fed: dict[str, tuple[str, ...]]
    tensors: dict[str, Kept]
    not_executed: tuple[str, ...] = ()
    no_arm: str = ""


def part(fed: Fed, count: int, length: int) -> Array:
    """The constant for a batch of ``count`` rows of ``length`` tokens."""
    whole = fed.whole[tuple(slice(length) if axis == LENGTH else slice(None) for axis in fed.axes)]
    shape = [count if axis == BATCH else size for axis, size in zip(fed.axes, whole.shape, strict=True)]
    return np.ascontiguousarray(np.broadcast_to(whole, shape))


def tensor(kept: Kept, parameters: Mapping[str, Array], scales: Mapping[str, Array]) -> Array:
    """A tensor out of the parameters of a file: the artifact's integers, or float32 values where it has others."""
    integers = parameters[kept.parameter]
    if kept.beside is not None:
        zero = parameters[kept.beside[0]] if kept.beside[0] else MIDDLE
        if not kept.exact:
            values: Array = (integers.astype(np.float32) - zero) * parameters[kept.beside[1]]
            return values
        return (integers.astype(np.int16) - MIDDLE).astype(np.int8) if kept.signed else integers
    integers = integers.T if kept.transposed else integers
    if kept.exact:
        return integers
    shape = [-1 if axis == kept.axis else 1 for axis in range(integers.ndim)]
    found: Array = integers.astype(np.float32) * scales[kept.parameter].reshape(shape)
    return found
