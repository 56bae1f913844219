"""The directions in which most of the vectors' squared length lies."""

from __future__ import annotations

import numpy as np

from slimseek.schema import Array


def leading(vectors: Array, dim: int) -> tuple[Array, float]:
    """The directions with the most energy, and the share of the energy that they hold: PCA without centring.

    Centring would move the origin, from which a search measures angles.

    Args:
        vectors: float [n, width].
        dim: how many, at most width.

    Returns:
        Float32 [dim, width], orthonormal rows, that with the most energy first, the largest element of each positive;
        the share, 0 to 1.
    """
    wide = vectors.astype(np.float64)
    energies, directions = np.linalg.eigh(wide.T @ wide)
    rows = directions[:, ::-1].T[:dim]
    largest = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1)
    kept = float(energies[::-1][:dim].sum() / energies.sum())
    return np.ascontiguousarray(rows * np.sign(largest), np.float32), kept
