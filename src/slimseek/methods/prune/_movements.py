"""Operators that only move places, cut them off or put them together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from slimseek.methods.prune._calls import Call
from slimseek.methods.prune._tracks import STAYS, Bonds, Value, axes, fixed, matched, moved, narrowed, tidied
from slimseek.schema import Array


def reshape(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """All that keeps the order of places: Reshape, Flatten, Squeeze, Unsqueeze."""
    shape = call.shapes[0]
    return [moved(bonds, values[0], shape, lambda track: track.reshape(shape))]


def expand(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Repeated along axes of size 1."""
    shape = call.shapes[0]
    return [moved(bonds, values[0], shape, lambda track: np.broadcast_to(track, shape))]


def tile(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Repeated as a whole."""
    return [moved(bonds, values[0], call.shapes[0], lambda track: np.tile(track, call.integers[1].tolist()))]


def transpose(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Axes in another order."""
    order = call.settings.get("perm")
    return [moved(bonds, values[0], call.shapes[0], lambda track: np.transpose(track, order))]


def depth_to_space(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Channels become places of a picture, in either order (a pixel shuffle)."""
    size = call.settings["blocksize"]
    rows, channels, *picture = values[0].shape
    depth = channels // size**2
    by_block = call.settings.get("mode", b"DCR") == b"DCR"
    split = (rows, size, size, depth, *picture) if by_block else (rows, depth, size, size, *picture)
    order = (0, 3, 4, 1, 5, 2) if by_block else (0, 1, 4, 2, 5, 3)
    return [moved(bonds, values[0], call.shapes[0],
                  lambda track: track.reshape(split).transpose(order).reshape(call.shapes[0]))]  # fmt: skip


def space_to_depth(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Places of a picture become channels."""
    size = call.settings["blocksize"]
    rows, channels, height, width = values[0].shape
    split = (rows, channels, height // size, size, width // size, size)
    return [moved(bonds, values[0], call.shapes[0],
                  lambda track: track.reshape(split).transpose(0, 3, 5, 1, 2, 4).reshape(call.shapes[0]))]  # fmt: skip


def split(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Cut along an axis."""
    axis = call.settings.get("axis", 0) % len(values[0].shape)
    ends = np.cumsum([0, *(shape[axis] for shape in call.shapes)])
    pieces = [range(low, high) for low, high in pairwise(ends.tolist())]
    return [moved(bonds, values[0], shape, partial(np.take, indices=piece, axis=axis))
            for shape, piece in zip(call.shapes, pieces, strict=True)]  # fmt: skip


def slices(call: Call, shape: tuple[int, ...]) -> dict[int, slice]:
    """What a Slice takes along each axis that it names."""
    starts, ends = call.argument(1, "starts") or [], call.argument(2, "ends") or []
    named = call.argument(3, "axes") or list(range(len(starts)))
    steps = call.argument(4, "steps") or [1] * len(starts)
    found = {}
    for axis, start, end, step in zip(named, starts, ends, steps, strict=True):
        size = shape[axis]
        low, high = (one + size if one < 0 else one for one in (start, end))
        stop: int | None = min(max(high, -1), size)
        found[axis % len(shape)] = slice(min(max(low, 0), size), None if step < 0 and stop == -1 else stop, step)
    return found


def cut(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Slice; with steps other than 1 it holds what it goes over."""
    taken = slices(call, values[0].shape)
    held = [axis for axis, one in taken.items() if one.step != 1]
    value = fixed(bonds, values[0], held, f"taken in steps by Slice {call.name}")
    places = tuple(taken.get(axis, slice(None)) for axis in range(len(value.shape)))
    return [moved(bonds, value, call.shapes[0], lambda track: track[places])]


def gather(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """Taken by constant numbers; a look-up by other numbers holds the rows of the table."""
    table = values[0]
    axis = call.settings.get("axis", 0) % len(table.shape)
    if 1 in call.constant:
        numbers = call.integers[1]
        return [moved(bonds, table, call.shapes[0], lambda track: np.take(track, numbers, axis))]
    held = fixed(bonds, table, [axis], f"looked up by Gather {call.name}")
    inner = (1,) * (len(call.shapes[0]) - len(table.shape) + 1)
    tracks = [track.reshape(track.shape[:axis] + inner + track.shape[axis + 1 :]) for track in held.tracks]
    return [Value(call.shapes[0], tuple(tracks))]


def concat(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """One behind the other along an axis; all else is as if they were computed place by place."""
    shape = call.shapes[0]
    axis = call.settings["axis"] % len(shape)
    reason = f"joined to what cannot shrink by Concat {call.name}"
    common = set.intersection(*({axes(track) for track in value.tracks} for value in values))
    beside, ahead = [], []
    for value in values:
        tracks = [kept for track in value.tracks for kept in _along_concat(bonds, track, axis, common, reason)]
        tracks = list(tidied(bonds, tracks))
        thin = tuple(1 if place == axis else size for place, size in enumerate(value.shape))
        beside.append(Value(thin, tuple(track for track in tracks if axis not in axes(track))))
        ahead.append({axes(track): track for track in tracks if axis in axes(track)})
    found = list(matched(bonds, beside, tuple(1 if place == axis else size for place, size in enumerate(shape)),
                         reason).tracks)  # fmt: skip
    for lie in dict.fromkeys(lie for tracks in ahead for lie in tracks):
        parts = [_part(value, tracks.get(lie), lie, axis) for value, tracks in zip(values, ahead, strict=True)]
        found.append(np.concatenate(parts, axis))
    return [Value(shape, tidied(bonds, found))]


def _along_concat(bonds: Bonds, track: Array, axis: int, common: set[frozenset[int]], reason: str) -> tuple[Array, ...]:
    """The track, narrowed to the axis of the concatenation where it varies along others that not all have."""
    if axis not in axes(track) or axes(track) in common:
        return (track,)
    return narrowed(bonds, track, frozenset([axis]), reason)


def _part(value: Value, track: Array | None, lie: frozenset[int], axis: int) -> Array:
    """The piece of a concatenated track that comes from one value; units that stay where it has none."""
    shape = [value.shape[place] if place == axis or place in lie else 1 for place in range(len(value.shape))]
    if track is None:
        return np.full(shape, STAYS)
    return np.broadcast_to(track, shape)


def pad(bonds: Bonds, call: Call, values: Sequence[Value]) -> Sequence[Value]:
    """What is put around a value stays."""
    value, rank = values[0], len(values[0].shape)
    amounts = call.argument(1, "pads") or [0] * 2 * rank
    named = [axis % rank for axis in call.argument(3, "axes") or range(rank)]
    before = {axis: (amounts[place], amounts[place + len(named)]) for place, axis in enumerate(named)}
    if call.settings.get("mode", b"constant") != b"constant" or min(amounts) < 0:
        value = fixed(bonds, value, [axis for axis in named if any(before[axis])], f"padded by Pad {call.name}")
    tracks = [
        np.pad(track, [before.get(axis, (0, 0)) if axis in axes(track) else (0, 0) for axis in range(rank)],
               constant_values=STAYS)
        for track in value.tracks
    ]  # fmt: skip
    return [Value(call.shapes[0], tidied(bonds, tracks))]
