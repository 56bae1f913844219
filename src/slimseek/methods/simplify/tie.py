"""Blocks of a transformer that use the same tensors: as deep as before, stored once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from slimseek import hollow, integers
from slimseek.bases import Step
from slimseek.errors import NoEffect, UsageError
from slimseek.methods import _blocks as blocks
from slimseek.schema import Array, Layer, Model, QuantizedTensor, Samples, Tensor, is_float

EVERY = 2


class Tie(Step, frozen=True, kw_only=True):
    """Let groups of blocks use the same tensors, as ALBERT does with all of them (Lan et al., 2020).

    The depth and the time of an item stay; bytes fall. What is left gives other vectors than before, until a step such
    as ``distil.embedding`` trains it; a tensor that is tied stays so in training, and in all later steps.

    Attributes:
        groups: numbers of the blocks of each group, from 0; blocks that no group names keep tensors of their own.
        every: instead: so many neighbours are a group, the last of which may be smaller; 2 where ``groups`` is not
            given either.
        by: the shared tensor is the ``mean`` of the blocks', or that of the ``first`` that the group names.
    """

    groups: tuple[tuple[int, ...], ...] | None = None
    every: int | None = None
    by: Literal["mean", "first"] = "mean"

    def __post_init__(self) -> None:
        if self.every is not None and self.groups is not None:
            raise UsageError(f"simplify.tie: every is {self.every} and groups is given; one of them is allowed")
        if self.every is not None and self.every < 1:
            raise UsageError(f"simplify.tie: every is {self.every}; 1 or more is allowed")
        named = [number for group in self.groups or () for number in group]
        if len(set(named)) < len(named):
            raise UsageError(f"simplify.tie: groups is {self._shown}; each block once is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Put one tensor in the place of those of each group."""
        if model.spec.family != "transformer":
            raise UsageError(
                f"simplify.tie: blocks are known of the family transformer; this model is of {model.spec.family}"
            )
        groups = self._found(blocks.depth(model))
        if not groups:
            raise NoEffect("simplify.tie: no group has two blocks")
        if any(isinstance(tensor, QuantizedTensor) for tensor in model.tensors.values()):
            raise UsageError("simplify.tie: the model is quantized; tie before quantizing")
        if model.activations or model.smoothing:
            raise UsageError("simplify.tie: the model is smoothed or rounds its inputs; tie before that")
        integers.check_finite(model, "tied")
        start = blocks.prefix(model, blocks.depth(model))
        tied = _ties(model, start, groups)
        if model.tied:
            if dict(model.tied) == tied:
                raise NoEffect("simplify.tie: these blocks use the same tensors already")
            raise UsageError("simplify.tie: other blocks of the model are tied already; name all groups in one step")
        return self._tied(model, start, groups, tied)

    def outline(self, model: Model, samples: Samples) -> Model:
        """The same: tensors but leave, and means are cheap."""
        return hollow.model(self.apply(model, samples), model)

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """Which blocks are one, and how many weights that leaves."""
        groups = ", ".join(" = ".join(map(str, group)) for group in self._found(blocks.depth(before)))
        what = "their mean" if self.by == "mean" else "those of the first"
        return (
            f"blocks that use the same tensors, {what}: {groups}",
            f"{before.parameters:,} -> {after.parameters:,} weights; until they are trained (distil.embedding) the "
            f"vectors are others",
        )

    @property
    def _shown(self) -> list[list[int]]:
        return [list(group) for group in self.groups or ()]

    def _found(self, depth: int) -> tuple[tuple[int, ...], ...]:
        """The groups of two blocks or more of a model with so many."""
        if self.groups is None:
            step = EVERY if self.every is None else self.every
            found = [tuple(range(first, min(first + step, depth))) for first in range(0, depth, step)]
        else:
            found = list(self.groups)
        if any(not 0 <= number < depth for group in found for number in group):
            raise UsageError(f"simplify.tie: groups is {self._shown}; blocks 0 to {depth - 1} are there")
        return tuple(group for group in found if len(group) > 1)

    def _tied(self, model: Model, start: str, groups: Sequence[tuple[int, ...]], tied: dict[str, str]) -> Model:
        content = blocks.contents(model, start)
        tensors: dict[str, Tensor] = {name: tensor for name, tensor in model.tensors.items() if name not in tied}
        for group in groups:
            for rest in content[group[0]]:
                members = [tensor for number in group for tensor in [content[number][rest]]
                           if not isinstance(tensor, QuantizedTensor)]  # fmt: skip
                averages = self.by == "mean" and is_float(members[0])
                tensors[f"{start}.{min(group)}.{rest}"] = _mean(members) if averages else members[0]
        layers = tuple(_renamed(layer, tied) for layer in model.layers)
        return dataclasses.replace(model, tensors=tensors, layers=layers, tied=tied)


def _ties(model: Model, start: str, groups: Sequence[tuple[int, ...]]) -> dict[str, str]:
    """The name of each tensor that leaves to that of the one in its place, which is the lowest block's."""
    kinds = {
        number: {rest: (tensor.shape, str(getattr(tensor, "dtype", ""))) for rest, tensor in block.items()}.items()
        for number, block in blocks.contents(model, start).items()
    }
    tied: dict[str, str] = {}
    for group in groups:
        own, *others = sorted(group)
        for number in others:
            mine, wanted = kinds[number], kinds[own]
            if mine != wanted:
                name = min(dict(mine ^ wanted))
                raise UsageError(f"simplify.tie: the blocks {own} and {number} differ in {name}; only alike are tied")
            tied |= {f"{start}.{number}.{rest}": f"{start}.{own}.{rest}" for rest, _ in mine}
    return tied


def _mean(members: Sequence[Array]) -> Array:
    """In float64, given in the dtype of the members."""
    total = sum(member.astype(np.float64) for member in members)
    return np.asarray(total / len(members)).astype(members[0].dtype)


def _renamed(layer: Layer, tied: dict[str, str]) -> Layer:
    bias = tied.get(layer.bias, layer.bias) if isinstance(layer.bias, str) else layer.bias
    return msgspec.structs.replace(layer, weight=tied.get(layer.weight, layer.weight), bias=bias)
