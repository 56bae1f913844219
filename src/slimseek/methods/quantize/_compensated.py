"""Error-compensated rounding (GPTQ): each column's rounding error is made good by the columns not rounded yet."""

from __future__ import annotations

import dataclasses
from itertools import count

import msgspec
import numpy as np
from scipy.linalg import solve_triangular

from slimseek.integers import Scaling, dequantize, from_integers, quantize, to_integers
from slimseek.schema import Array, QuantizedTensor, QuantSpec
from slimseek.sparse import is_pruned

DAMPING = 0.01
COLUMNS_AT_ONCE = 128


def compensate(weight: Array, hessian: Array, spec: QuantSpec, scaling: Scaling = "mse") -> QuantizedTensor:
    """Round a linear layer's weight so that its outputs change little: a small sum of squares of (W - W_q) X.

    Inputs (columns) are rounded one after the other, the strongest first, and each error moves to the columns after
    it as the inverse of the Hessian says: with U the upper Cholesky factor of H^-1,
    W[:, j] -= (w_i - q_i) / U_ii * U_ij for all j > i. Scales are those of ``integers.quantize``, fixed beforehand, so
    that columns can come in any order. The order is greedy: an output channel that plain rounding serves better keeps
    that. Of a pruned weight the zeros stay zero, and what the columns before would have made of them moves on as an
    error too (Frantar and Alistarh, SparseGPT, 2023).

    Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2022.

    Args:
        weight: float array [outputs, inputs], or [inputs, outputs] where ``spec.axis`` is 1.
        hessian: float array [inputs, inputs], a multiple of X^T X for inputs X [n, inputs]. An input that is always
            zero is rounded to nearest.
        spec: bits, granularity and axis of output channels.
        scaling: how scales are found, as in ``integers.quantize``.
    """
    rows = np.asarray(np.moveaxis(weight, spec.axis, 0), np.float32)
    nearest = quantize(rows, msgspec.structs.replace(spec, axis=0), scaling)
    compensated = dataclasses.replace(nearest, integers=_in_order(rows, hessian, nearest))
    better = _output_error(rows, compensated, hessian) < _output_error(rows, nearest, hessian)
    integers = np.where(better[:, None], compensated.integers, nearest.integers)
    integers = np.ascontiguousarray(np.moveaxis(integers, 0, spec.axis))
    return QuantizedTensor(spec=spec, integers=integers, scale=nearest.scale, zero_point=nearest.zero_point)


def _in_order(rows: Array, hessian: Array, nearest: QuantizedTensor) -> Array:
    """The compensated integers of float32 [outputs, inputs], on the grid of ``nearest``."""
    order = np.argsort(-np.diag(hessian), kind="stable")
    factor = _inverse_factor(hessian[np.ix_(order, order)])
    columns = rows.T[order].astype(np.float64)  # [inputs, outputs]: a column is contiguous
    rounded = np.empty(columns.shape, nearest.integers.dtype)
    stays = (rows.T[order] != 0) | (not is_pruned(rows))
    groups = order // (nearest.spec.group_size or len(order))
    # Later columns get the errors of a whole block at once, by a matrix product.
    for start in range(0, len(columns), COLUMNS_AT_ONCE):
        end = min(start + COLUMNS_AT_ONCE, len(columns))
        errors = np.empty((end - start, columns.shape[1]))
        for i in range(start, end):
            scale = nearest.scale[:, groups[i]]
            zero_point = None if nearest.zero_point is None else nearest.zero_point[:, groups[i]]
            column = np.where(stays[i], columns[i], 0).astype(np.float32)
            integers = to_integers(column[:, None], scale, zero_point, nearest.spec)
            rounded[i] = integers[:, 0]
            errors[i - start] = (columns[i] - from_integers(integers, scale, zero_point)[:, 0]) / factor[i, i]
            columns[i + 1 : end] -= np.outer(factor[i, i + 1 : end], errors[i - start])
        columns[end:] -= factor[start:end, end:].T @ errors
    result = np.empty_like(rounded)
    result[order] = rounded
    return result.T


def _inverse_factor(hessian: Array) -> Array:
    """Upper triangular float64 U with U^T U = (H + damping)^-1; the damping rises tenfold until H is positive definite.

    H read backwards has a lower factor L, so H = R R^T with R, that is L read backwards, upper triangular; U = R^-1.
    """
    wide = hessian.astype(np.float64)
    mean = np.diag(wide).mean() or 1.0
    for power in count():
        damped = wide + np.eye(len(wide)) * DAMPING * 10.0**power * mean
        try:
            factor = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
            break
        except np.linalg.LinAlgError:
            continue
    inverse: Array = solve_triangular(factor, np.eye(len(wide)))
    return inverse


def _output_error(rows: Array, tensor: QuantizedTensor, hessian: Array) -> Array:
    """Float64 [outputs]: for each, e H e^T of the error e of its weights, its share of ||(W - W_q) X||^2."""
    error = dequantize(tensor).astype(np.float64) - rows
    return np.einsum("oi,oi->o", error @ hessian, error)
