"""Error-compensated rounding (GPTQ): each column's rounding error is made good by the columns not rounded yet."""

from __future__ import annotations

from itertools import count

import msgspec
import numpy as np
from scipy.linalg import solve_triangular

from slimseek.integers import Scaling, dequantize, from_integers, quantize, to_integers
from slimseek.schema import Array, QuantizedTensor, QuantSpec

DAMPING = 0.01
COLUMNS_AT_ONCE = 128


def compensate(weight: Array, hessian: Array, spec: QuantSpec, scaling: Scaling = "mse") -> QuantizedTensor:
    """Round a linear layer's weight so that its outputs change least: least sum of squares of (W - W_q) X.

    Inputs (columns) are rounded one after the other, and each error moves to the columns after it as the inverse of
    the Hessian says: with U the upper Cholesky factor of H^-1, W[:, j:] -= (w_i - q_i) / U_ii * U[i, j:]. Scales of a
    tensor or of channels are those of ``integers.quantize``; those of a group are found when the group begins, from
    weights that carry the errors of the columns before. The order is greedy, so an output channel that plain rounding
    serves better keeps that.

    Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2022.

    Args:
        weight: float array [outputs, inputs], or [inputs, outputs] where ``spec.axis`` is 1.
        hessian: float array [inputs, inputs], a multiple of X^T X for inputs X [n, inputs]. An input that is always
            zero is rounded to nearest.
        spec: bits, granularity and axis of output channels.
        scaling: how scales are found, as in ``integers.quantize``.
    """
    rows = np.asarray(np.moveaxis(weight, spec.axis, 0), np.float32)
    by_row = msgspec.structs.replace(spec, axis=0)
    nearest = quantize(rows, by_row, scaling)
    compensated = _in_order(rows, _inverse_factor(hessian), nearest, scaling)
    better = _output_error(rows, compensated, hessian) < _output_error(rows, nearest, hessian)
    kept = _merged(better[:, None], compensated, nearest)
    integers = np.ascontiguousarray(np.moveaxis(kept.integers, 0, spec.axis))
    return QuantizedTensor(spec=spec, integers=integers, scale=kept.scale, zero_point=kept.zero_point)


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


def _in_order(rows: Array, factor: Array, nearest: QuantizedTensor, scaling: Scaling) -> QuantizedTensor:
    """The compensated integers of float32 [outputs, inputs]; scales as those of ``nearest``, unless of groups."""
    spec = nearest.spec
    size = spec.group_size if spec.granularity == "group" else None
    block = size * max(1, COLUMNS_AT_ONCE // size) if size else COLUMNS_AT_ONCE
    columns = rows.T.astype(np.float64)  # [inputs, outputs]: a column is contiguous
    integers = np.empty(columns.shape, nearest.integers.dtype)
    grids = [] if size else [(nearest.scale, nearest.zero_point)]
    for start in range(0, len(columns), block):
        end = min(start + block, len(columns))
        errors = np.empty((end - start, columns.shape[1]))
        for i in range(start, end):
            if size and i % size == 0:
                group = quantize(columns[i : i + size].T, spec, scaling)
                grids.append((group.scale, group.zero_point))
            scale, zero_point = grids[-1]
            value = columns[i].astype(np.float32)[:, None, None]
            integers[i] = to_integers(value, scale, zero_point, spec)[:, 0, 0]
            rounded = from_integers(integers[i][:, None, None], scale, zero_point)[:, 0, 0]
            errors[i - start] = (columns[i] - rounded) / factor[i, i]
            columns[i + 1 : end] -= np.outer(factor[i, i + 1 : end], errors[i - start])
        columns[end:] -= factor[start:end, end:].T @ errors
    scales, zero_points = zip(*grids, strict=True)
    return QuantizedTensor(
        spec=spec,
        integers=np.ascontiguousarray(integers.T),
        scale=np.concatenate(scales, 1),
        zero_point=None if spec.symmetric else np.concatenate(zero_points, 1),
    )


def _output_error(rows: Array, tensor: QuantizedTensor, hessian: Array) -> Array:
    """Float64 [outputs]: for each, e H e^T of the error e of its weights, its share of ||(W - W_q) X||^2."""
    error = dequantize(tensor).astype(np.float64) - rows
    return np.einsum("oi,oi->o", error @ hessian, error)


def _merged(chosen: Array, first: QuantizedTensor, second: QuantizedTensor) -> QuantizedTensor:
    """Rows of the first where ``chosen`` [outputs, 1], else of the second; both have one grid unless it is of groups."""
    scale, zero_point = first.scale, first.zero_point
    if first.spec.granularity == "group":
        scale = np.where(chosen, first.scale, second.scale)
        zero_point = None if zero_point is None else np.where(chosen, zero_point, second.zero_point)
    integers = np.where(chosen, first.integers, second.integers)
    return QuantizedTensor(spec=first.spec, integers=integers, scale=scale, zero_point=zero_point)
