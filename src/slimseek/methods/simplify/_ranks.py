"""Matrices as products of two: the best factors of a rank, and how many ranks each layer gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from slimseek.schema import Array


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What a layer gives, by its principal directions.

    Attributes:
        directions: float64 [outputs, outputs], orthonormal columns, that with the most energy first.
        energies: float64 [outputs], the mean square of the output along each, falling, at least 0.
        inputs: width of what the layer takes.
    """

    directions: Array
    energies: Array
    inputs: int

    @property
    def outputs(self) -> int:
        """Width of what the layer gives."""
        return len(self.energies)

    @property
    def lost(self) -> Array:
        """Share of the energy that is lost with each rank from 0 to all, float64 [outputs + 1]."""
        total = self.energies.sum()
        kept = np.concatenate([[0.0], np.cumsum(self.energies)])
        lost: Array = np.maximum(1 - kept / total, 0) if total > 0 else np.zeros(len(kept))
        return lost

    def cost(self, rank: int) -> int:
        """Weights of both factors."""
        return rank * (self.inputs + self.outputs)

    def ranks(self, multiple_of: int) -> list[int]:
        """The ranks that a layer may get, rising: multiples whose factors are smaller than the layer."""
        most = (self.inputs * self.outputs - 1) // (self.inputs + self.outputs)
        return list(range(multiple_of, most + 1, multiple_of))


def spectrum(weight: Array, second: Array | None) -> Spectrum:
    """The principal directions of W x.

    The product of rank r that is nearest to W in E||(W - B A) x||^2 is U U^T W with the r leading eigenvectors U of
    E[W x (W x)^T] = W E[x x^T] W^T (Eckart and Young, 1936, for W E[x x^T]^(1/2)); no inverse is needed, so inputs
    that never vary do no harm.

    Args:
        weight: W, [outputs, inputs].
        second: E[x x^T], [inputs, inputs]; ``None`` takes all inputs as alike and independent.
    """
    wide = weight.astype(np.float64)
    energies, directions = np.linalg.eigh(wide @ wide.T if second is None else wide @ second @ wide.T)
    return Spectrum(
        directions=np.ascontiguousarray(directions[:, ::-1]),
        energies=np.maximum(energies[::-1], 0),
        inputs=weight.shape[1],
    )


def factors(weight: Array, found: Spectrum, rank: int) -> tuple[Array, Array]:
    """Float32 B [outputs, rank] and A [rank, inputs]; the spread of what runs between them is shared evenly, since
    its directions differ much in energy and would be rounded badly: B = U s^(1/2), A = s^(-1/2) U^T W with s the
    root mean square along each direction.
    """
    directions, sizes = found.directions[:, :rank], np.sqrt(found.energies[:rank])
    scale = np.sqrt(np.where(sizes > 1e-6 * max(float(sizes.max(initial=0)), 1e-30), sizes, 1.0))
    first = (directions.T @ weight.astype(np.float64)) / scale[:, None]
    return (directions * scale).astype(np.float32), first.astype(np.float32)


def by_energy(spectra: Mapping[str, Spectrum], energy: float, multiple_of: int) -> dict[str, int]:
    """The least allowed rank that keeps a share of each layer's energy; layers that have none are missing."""
    chosen = {}
    for name, found in spectra.items():
        enough = (rank for rank in found.ranks(multiple_of) if found.lost[rank] <= 1 - energy)
        rank = next(enough, None)
        if rank is not None:
            chosen[name] = rank
    return chosen


def by_parameters(spectra: Mapping[str, Spectrum], share: float, multiple_of: int) -> dict[str, int] | None:
    """The ranks with at most a share of the weights, by least loss of energy for each weight saved.

    Of each layer only the ranks on the lower hull of (weights, lost share) are looked at, the whole layer among them,
    so that the steps down from it cost more and more; the cheapest step of all layers goes first. ``None`` where the
    least ranks have more than the share.
    """
    whole = sum(found.inputs * found.outputs for found in spectra.values())
    steps = [step for name, found in spectra.items() for step in _steps(name, found, multiple_of)]
    left, chosen = whole, {}
    for _, name, rank, saved in sorted(steps, key=lambda step: step[0]):
        if left <= share * whole:
            break
        chosen[name] = rank
        left -= saved
    return chosen if left <= share * whole else None


def even(shapes: Mapping[str, tuple[int, ...]], share: float, multiple_of: int) -> dict[str, int]:
    """Ranks with about the same share of every layer's weights, and in all at least this share: they are rounded down,
    then raised in turn. Layers that stay whole are missing.

    Args:
        shapes: [outputs, inputs] by name.
        share: of the weights of all of them, 0 to 1.
        multiple_of: what ranks are multiples of.
    """
    found: dict[str, int] = {}
    left = 0
    for name, (outputs, inputs) in shapes.items():
        rank = int(share * outputs * inputs / (outputs + inputs)) // multiple_of * multiple_of
        if rank:
            found[name] = rank
        left += rank * (outputs + inputs) if rank else outputs * inputs
    wanted = share * sum(outputs * inputs for outputs, inputs in shapes.values())
    for name in list(found):
        outputs, inputs = shapes[name]
        if left >= wanted:
            break
        more = (found[name] + multiple_of) * (outputs + inputs)
        if more < outputs * inputs:
            left += multiple_of * (outputs + inputs)
            found[name] += multiple_of
        else:
            left += outputs * inputs - found.pop(name) * (outputs + inputs)
    return found


def _steps(name: str, found: Spectrum, multiple_of: int) -> Iterator[tuple[float, str, int, int]]:
    """(loss for each weight saved, name, rank, weights saved), from the whole layer down along the hull."""
    points = [(found.inputs * found.outputs, 0.0, 0)]
    points += [(found.cost(rank), float(found.lost[rank]), rank) for rank in reversed(found.ranks(multiple_of))]
    place = 0
    while place < len(points) - 1:
        size, loss, _ = points[place]
        slopes = [(after[1] - loss) / (size - after[0]) for after in points[place + 1 :]]
        # The last of equal slopes: one long step in the place of several.
        ahead = len(slopes) - 1 - int(np.argmin(slopes[::-1]))
        place += ahead + 1
        yield slopes[ahead], name, points[place][2], size - points[place][0]
