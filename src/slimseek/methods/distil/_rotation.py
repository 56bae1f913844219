"""Vectors of one width brought to another so that inner products stay as they are, as far as they can."""

from __future__ import annotations

import numpy as np

from slimseek.methods._principal import leading
from slimseek.schema import Array


def rotation(vectors: Array, width: int) -> Array:
    """The orthonormal columns that keep most of the vectors' squared length.

    Args:
        vectors: float [n, dim].
        width: columns wanted; from ``dim`` on nothing is turned, and further columns are zero.

    Returns:
        Float32 [dim, width], the columns that keep most first.
    """
    dim = vectors.shape[1]
    if width >= dim:
        return np.eye(dim, width, dtype=np.float32)
    return np.ascontiguousarray(leading(vectors, width)[0].T)


def towards(vectors: Array, others: Array) -> Array:
    """The rotation or reflection that brings vectors nearest to others, the orthogonal R of least |vectors R - others|
    (Schoenemann, A Generalized Solution of the Orthogonal Procrustes Problem, 1966).

    Inner products do not change by it. A student that starts near its target keeps what it knows already.

    Args:
        vectors: float [n, dim].
        others: of the same items, float [n, dim].

    Returns:
        Float32 [dim, dim].
    """
    left, _, right = np.linalg.svd(np.asarray(vectors, np.float64).T @ np.asarray(others, np.float64))
    return np.ascontiguousarray(left @ right, np.float32)


def turned(vectors: Array, columns: Array, normalised: bool) -> Array:
    """Float32 [n, dim] times [dim, width]; brought to length one again where they shall be ``normalised``."""
    result = np.asarray(vectors, np.float32) @ columns
    if normalised:
        result = result / np.maximum(np.linalg.norm(result, axis=1, keepdims=True), 1e-12)
    return result.astype(np.float32)


def ridge(inputs: Array, outputs: Array, share: float = 1e-3) -> Array:
    """The map W of least |inputs W - outputs|^2 + penalty |W|^2, float32 [inputs' width, outputs' width].

    Vectors behind a layer norm lie in a hyperplane; without the penalty, a ``share`` of the mean squared length of a
    column, the coefficients of such a map have no bound.
    """
    given = np.asarray(inputs, np.float64)
    moments = given.T @ given
    penalty = share * np.trace(moments) / len(moments) + 1e-12
    solved = np.linalg.solve(moments + penalty * np.eye(len(moments)), given.T @ np.asarray(outputs, np.float64))
    return solved.astype(np.float32)
