"""Operators that multiply by weights and sum: convolutions, linear layers, attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slimseek.methods.prune._calls import Call, held_entirely
from slimseek.methods.prune._tracks import (
    Bonds,
    Value,
    along,
    axes,
    fixed,
    matched,
    meet,
    narrowed,
    reshaped,
    tidied,
    units_along,
)
from slimseek.schema import Array


def matmul(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """MatMul is a product place by place over [..., i, j, k], summed over k: so weights and attention are alike."""
    left, right = values
    plain = len(left.shape) > 1, len(right.shape) > 1
    left = left if plain[0] else reshaped(left, (1, *left.shape))
    right = right if plain[1] else reshaped(right, (*right.shape, 1))
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    whole = (*batch, left.shape[-2], right.shape[-1], left.shape[-1])
    left = reshaped(left, (*left.shape[:-1], 1, left.shape[-1]))
    right = reshaped(_swapped(right), (*right.shape[:-2], 1, *right.shape[:-3:-1]))
    product = matched(bonds, [left, right], whole, call.reason)
    total = summed(bonds, product, [len(whole) - 1])
    return [reshaped(total, call.shapes[0])]


def _swapped(value: Value) -> Value:
    swap = tuple(np.swapaxes(track, -1, -2) for track in value.tracks)
    return Value((*value.shape[:-2], value.shape[-1], value.shape[-2]), swap)


def summed(bonds: Bonds, value: Value, over: Sequence[int]) -> Value:
    """The sum over axes, kept at size 1: a unit that lies along them alone adds nothing more; where it is a part of
    something longer, such as a place in a head, all places are tied.
    """
    gone = frozenset(over)
    tracks = [
        kept
        for track in value.tracks
        if axes(track) - gone
        for kept in (narrowed(bonds, track, axes(track) - gone, "") if axes(track) & gone else (track,))
    ]
    shape = tuple(1 if axis in gone else size for axis, size in enumerate(value.shape))
    return Value(shape, tidied(bonds, tracks))


def gemm(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Gemm: either side may be transposed, a bias added."""
    left, right = (
        _swapped(value) if call.settings.get(setting, 0) else value
        for value, setting in zip(values, ("transA", "transB"), strict=False)
    )
    product = matmul(bonds, call, [left, right])[0]
    return [matched(bonds, [product, *values[2:]], call.shapes[0], call.reason)]


def einsum(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Any product place by place over the letters of all operands, summed over those that the result lacks."""
    equation = call.settings["equation"].decode().replace(" ", "")
    given, arrow, result = equation.partition("->")
    operands = given.split(",")
    if "." in equation or not arrow or any(len(set(letters)) < len(letters) for letters in operands):
        return held_entirely(bonds, call, values)
    every = result + "".join(sorted(set("".join(operands)) - set(result)))
    spread = []
    for letters, value in zip(operands, values, strict=True):
        order = sorted(range(len(letters)), key=lambda place: every.index(letters[place]))
        sizes = {letters[place]: value.shape[place] for place in order}
        ordered = Value(tuple(sizes.values()), tuple(track.transpose(order) for track in value.tracks))
        spread.append(reshaped(ordered, tuple(sizes.get(letter, 1) for letter in every)))
    shape = np.broadcast_shapes(*(value.shape for value in spread))
    product = matched(bonds, spread, shape, call.reason)
    total = summed(bonds, product, range(len(result), len(every)))
    return [reshaped(total, call.shapes[0])]


def convolution(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Conv and ConvTranspose, in groups or not.

    In groups the places of each group go with the same places of all others, so that groups stay alike; a group with
    one input or one output (a depthwise convolution, with a multiplier or not) goes as a whole.
    """
    value = fixed(bonds, values[0], [axis for axis in range(len(values[0].shape)) if axis != 1], call.reason)
    weight = fixed(bonds, values[1], range(2, len(values[1].shape)), f"kernel of {call.kind} {call.name}")
    given, (first, second) = units_along(value, 1), (units_along(weight, axis) for axis in (0, 1))
    groups = call.settings.get("group", 1)
    channels = values[0].shape[1] // groups, call.shapes[0][1] // groups
    whole = groups > 1 and min(channels) == 1
    made: Array | None
    of_groups = tied(bonds, first, groups, within=whole)
    if whole:
        meet(bonds, tied(bonds, given, groups, within=True), of_groups, call.reason)
        meet(bonds, second, None, call.reason)
        made = None if of_groups is None else np.repeat(of_groups, channels[1])
    elif call.kind == "Conv":
        meet(bonds, given, None if second is None else np.tile(second, groups), call.reason)
        made = first
    else:
        meet(bonds, given, first, call.reason)
        made = None if second is None else np.tile(second, groups)
    for bias in values[2:]:
        if bias.shape:
            meet(bonds, units_along(bias, 0), made, call.reason)
    return [Value(call.shapes[0], tidied(bonds, along(made, 1, len(call.shapes[0]))))]


def tied(bonds: Bonds, units: Array | None, groups: int, within: bool) -> Array | None:
    """Channels of a group go together, or the same places of all groups; returns one unit for each group or place."""
    if units is None:
        return None
    table = units.reshape(groups, -1) if within else units.reshape(groups, -1).T
    bonds.join(table, table[:, :1])
    return bonds.roots(table[:, 0])
