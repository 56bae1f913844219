"""Operators of ONNX over PyTorch's tensors: arithmetic, comparisons, activations, reductions, products.

A function takes a node's inputs in order and its attributes as keywords; a default is that of ONNX. ``opset`` is
given to those that ask for it, because what they compute has changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from slimseek.errors import UsageError

Operator = Callable[..., Any]


def each(function: Operator) -> Operator:
    """A function of two tensors, taken over any number of them."""
    return lambda *inputs: reduce(function, inputs)


def allow(what: str, value: object, *allowed: object) -> None:
    """Raise UsageError for an attribute's value that is not computed here."""
    if value not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise UsageError(f"{what} is {value!r}; in training {listed} is allowed")


def integers(given: Tensor | Sequence[int] | None) -> list[int]:
    """Whole numbers from an input or an attribute; none for ``None``."""
    if given is None:
        return []
    return [int(number) for number in (given.flatten().tolist() if isinstance(given, Tensor) else given)]


# ---------------------------------------------------------------- arithmetic


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


def _pow(base: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(base, exponent).to(base.dtype)


def _mean(*inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs) / len(inputs)


def _cumsum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    place = int(axis)
    x = x.flip(place) if reverse else x
    sums = x.cumsum(place) - x if exclusive else x.cumsum(place)
    return sums.flip(place) if reverse else sums


def _clip(
    x: Tensor, low: Tensor | None = None, high: Tensor | None = None, /, *,
    min: float = -math.inf, max: float = math.inf,
) -> Tensor:  # fmt: skip
    if low is None and high is None:
        return x.clamp(min, max)
    return x.clamp(low, high)


# ---------------------------------------------------------------- activations


def _leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return functional.leaky_relu(x, alpha)


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.elu(x, alpha)


def _celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return functional.celu(x, alpha)


def _selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return gamma * functional.elu(x, alpha)


def _thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return functional.gelu(x, approximate=approximate)


def _swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def _softmax_like(function: Operator) -> Operator:
    def softmax(x: Tensor, *, axis: int | None = None, opset: int) -> Tensor:
        if opset >= 13:
            return function(x, -1 if axis is None else axis)
        rows = _matrix(x, 1 if axis is None else axis)  # old opsets took all axes from this one on together
        return function(rows, 1).reshape(x.shape)

    return softmax


def _matrix(x: Tensor, axis: int) -> Tensor:
    """[product of the axes before, product of the others]."""
    place = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:place]), -1)


# ---------------------------------------------------------------- reductions


def _reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Operator:
    """``function`` gets the axes, all of them where none are given, and whether they stay with the length one."""

    def reduced(
        x: Tensor, given: Tensor | None = None, /, *,
        axes: Sequence[int] = (), keepdims: int = 1, noop_with_empty_axes: int = 0,
    ) -> Tensor:  # fmt: skip
        places = tuple(integers(given if given is not None else axes))
        if not places and noop_with_empty_axes:
            return x
        return function(x, places or tuple(range(x.ndim)), bool(keepdims))

    return reduced


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _norm(order: int) -> Callable[[Tensor, tuple[int, ...], bool], Tensor]:
    return lambda x, axes, keep: torch.linalg.vector_norm(x, order, axes, keepdim=keep)


def _arg(function: Operator) -> Operator:
    def arg(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
        if select_last_index:
            found: Tensor = x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=bool(keepdims))
            return found
        return function(x, axis, keepdim=bool(keepdims))

    return arg


def _top_k(
    x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:  # fmt: skip
    values, places = torch.topk(x, int(k), axis, bool(largest), bool(sorted))
    return values, places


# ---------------------------------------------------------------- products


def _gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *,
    alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0,
) -> Tensor:  # fmt: skip
    product = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return product if c is None else product + beta * c


def _einsum(*inputs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *inputs)


OPERATORS: dict[str, Operator] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "Atan": torch.atan,
    "Ceil": torch.ceil,
    "Celu": _celu,
    "Clip": _clip,
    "Cos": torch.cos,
    "CumSum": _cumsum,
    "Div": _div,
    "Einsum": _einsum,
    "Elu": _elu,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": functional.hardswish,
    "IsInf": torch.isinf,
    "IsNaN": torch.isnan,
    "LeakyRelu": _leaky_relu,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "LogSoftmax": _softmax_like(torch.log_softmax),
    "MatMul": torch.matmul,
    "Max": each(torch.maximum),
    "Mean": _mean,
    "Min": each(torch.minimum),
    "Mish": functional.mish,
    "Mod": _mod,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": torch.reciprocal,
    "ReduceL1": _reduction(_norm(1)),
    "ReduceL2": _reduction(_norm(2)),
    "ReduceLogSum": _reduction(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keep, dtype=x.dtype)),
    "Relu": torch.relu,
    "Round": torch.round,
    "Selu": _selu,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softmax": _softmax_like(torch.softmax),
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Sum": each(torch.add),
    "Swish": _swish,
    "Tanh": torch.tanh,
    "ThresholdedRelu": _thresholded_relu,
    "TopK": _top_k,
    "Where": torch.where,
    "Xor": torch.logical_xor,
}
"""Operators by their names in ONNX."""
