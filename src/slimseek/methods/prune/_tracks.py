"""Which places along a value's axes go together.

A value of a graph carries tracks. A track is an int64 array of unit numbers with as many axes as the value: what lies
at a place goes when the unit of that number goes. Along every axis where the numbers are the same, it has the size 1.
A value may have several tracks, each along axes of its own: a weight has one for its outputs and one for its inputs.
An axis that no track varies along cannot shrink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from slimseek.schema import Array

WHOLE = "nothing of it would be left"
STAYS = 0
"""The unit of places that have no other, such as padding."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph as pruning sees it: its shape in the sample that was run, and its tracks."""

    shape: tuple[int, ...]
    tracks: tuple[Array, ...] = ()


class Bonds:
    """Units that were found to go together, as a union-find, and why some of them must stay."""

    def __init__(self) -> None:
        self._parents = np.zeros(1, np.int64)
        self._reasons = {STAYS: "joined to what stays"}
        self.changes = 0
        """Grows with everything that is learnt."""

    def fresh(self, count: int) -> Array:
        """Numbers [count] of units that are alone so far."""
        numbers = np.arange(len(self._parents), len(self._parents) + count)
        self._parents = np.concatenate([self._parents, numbers])
        return numbers

    def roots(self, units: Array) -> Array:
        """The same number for all that go together, in the shape of ``units``."""
        while True:
            above = self._parents[units]
            if np.array_equal(above, units):
                return above
            units = above

    def join(self, left: Array, right: Array) -> None:
        """Units at the same place of two arrays, broadcast against each other, go together."""
        pairs = np.stack([part.reshape(-1) for part in np.broadcast_arrays(self.roots(left), self.roots(right))], 1)
        for one, other in np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0):
            first, second = sorted((int(self.roots(one)), int(self.roots(other))))
            if first != second:
                self._parents[second] = first
                reason = self._reasons.pop(second, None)
                if reason is not None:
                    self._reasons.setdefault(first, reason)
                self.changes += 1

    def pin(self, units: Array, reason: str) -> None:
        """These stay."""
        for unit in np.unique(self.roots(units)).tolist():
            if unit not in self._reasons:
                self._reasons[unit] = reason
                self.changes += 1

    def reason(self, unit: int) -> str | None:
        """Why a root stays; ``None`` where it may go."""
        return self._reasons.get(unit)


def axes(track: Array) -> frozenset[int]:
    """The axes along which it varies."""
    return frozenset(axis for axis, size in enumerate(track.shape) if size > 1)


def extent(value: Value) -> frozenset[int]:
    """The axes along which a value has more than one place."""
    return frozenset(axis for axis, size in enumerate(value.shape) if size > 1)


def tidied(bonds: Bonds, tracks: Iterable[Array]) -> tuple[Array, ...]:
    """Tracks in roots, of size 1 wherever they do not vary, at most one along the same axes.

    A track that has become one single unit is gone, and the unit stays: with it the value would be empty.
    """
    found: dict[frozenset[int], Array] = {}
    for track in tracks:
        short = _short(bonds.roots(track))
        if not axes(short):
            bonds.pin(short, WHOLE)
        elif axes(short) in found:
            bonds.join(found[axes(short)], short)
        else:
            found[axes(short)] = short
    if any(not np.array_equal(bonds.roots(track), track) for track in found.values()):
        return tidied(bonds, found.values())
    return tuple(found.values())


def moved(bonds: Bonds, value: Value, shape: tuple[int, ...], move: Callable[[Array], Array]) -> Value:
    """What becomes of a value whose places an operator moves, each track spread over the whole value first."""
    return Value(shape, tidied(bonds, [move(np.broadcast_to(track, value.shape)) for track in value.tracks]))


def narrowed(bonds: Bonds, track: Array, keep: frozenset[int], reason: str) -> tuple[Array, ...]:
    """The track with everything tied that lies along other axes than these; none is left where it has none of them,
    and its units stay.
    """
    if not axes(track) & keep:
        bonds.pin(track, reason)
        return ()
    first = track[tuple(slice(None) if axis in keep else slice(0, 1) for axis in range(track.ndim))]
    bonds.join(track, first)
    return tidied(bonds, [first])


def fixed(bonds: Bonds, value: Value, held: Iterable[int], reason: str) -> Value:
    """The value after it was settled that it keeps its size along the axes ``held``."""
    still = frozenset(held)
    tracks = [
        kept
        for track in value.tracks
        for kept in (narrowed(bonds, track, axes(track) - still, reason) if axes(track) & still else (track,))
    ]
    return Value(value.shape, tidied(bonds, tracks))


def reshaped(value: Value, shape: tuple[int, ...]) -> Value:
    """With axes of size 1 put in or left out: each track takes the sizes of the axes of ``shape`` in their order."""
    long = [axis for axis, size in enumerate(value.shape) if size > 1]
    places = [axis for axis, size in enumerate(shape) if size > 1]
    assert [value.shape[axis] for axis in long] == [shape[axis] for axis in places]
    tracks = []
    for track in value.tracks:
        size = dict(zip(places, (track.shape[axis] for axis in long), strict=True))
        tracks.append(track.reshape([size.get(axis, 1) for axis in range(len(shape))]))
    return Value(shape, tuple(tracks))


def matched(bonds: Bonds, values: Sequence[Value], shape: tuple[int, ...], reason: str) -> Value:
    """The result, of ``shape``, of operands that are broadcast against each other and computed place by place.

    Tracks along the same axes are joined. One that finds no partner in an operand that is as long there is narrowed
    to the axes for which it does, or which the other does not have; the first axis is preferred, which is that of the
    heads where they and their places come apart.
    """
    operands = [_aligned(value, len(shape)) for value in values]
    place = 0
    while place < len(operands):
        others = [*operands[:place], *operands[place + 1 :]]
        narrower = _fitted(bonds, operands[place], others, reason)
        if narrower is not None:
            operands[place] = narrower
        place = place + 1 if narrower is None else 0
    return Value(shape, tidied(bonds, [track for value in operands for track in value.tracks]))


def units_along(value: Value, axis: int) -> Array | None:
    """Unit numbers along an axis; ``None`` where no track varies along it alone."""
    for track in value.tracks:
        if axes(track) == {axis}:
            return track.reshape(-1)
    return None


def along(units: Array | None, axis: int, rank: int) -> tuple[Array, ...]:
    """Unit numbers as the tracks of a value of ``rank`` axes."""
    if units is None:
        return ()
    return (units.reshape([-1 if place == axis else 1 for place in range(rank)]),)


def meet(bonds: Bonds, left: Array | None, right: Array | None, reason: str) -> None:
    """Units at the same places of two axes go together; those that meet an axis that cannot shrink stay."""
    if left is not None and right is not None:
        bonds.join(left, right)
    elif left is not None:
        bonds.pin(left, reason)
    elif right is not None:
        bonds.pin(right, reason)


def _short(track: Array) -> Array:
    for axis in range(track.ndim):
        first = track.take([0], axis)
        if track.shape[axis] > 1 and (track == first).all():
            track = first
    return track


def _aligned(value: Value, rank: int) -> Value:
    before = (1,) * (rank - len(value.shape))
    return Value(before + value.shape, tuple(track.reshape(before + track.shape) for track in value.tracks))


def _fitted(bonds: Bonds, value: Value, others: Sequence[Value], reason: str) -> Value | None:
    """The value with its first track narrowed that does not fit the others; ``None`` where all fit."""
    for track in value.tracks:
        for other in others:
            shared = axes(track) & extent(other)
            theirs = [axes(one) for one in other.tracks]
            if not shared or any(one >= axes(track) for one in theirs):
                continue  # a partner that varies along more axes is narrowed in its turn
            choices = [axes(track) - shared, *(axes(track) & one for one in theirs)]
            keep = min((one for one in choices if one), key=min, default=frozenset())
            rest = [one for one in value.tracks if one is not track]
            return Value(value.shape, tidied(bonds, [*rest, *narrowed(bonds, track, keep, reason)]))
    return None
