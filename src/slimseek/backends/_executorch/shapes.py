"""Shapes of an ONNX graph as Python's numbers, so that PyTorch's exporter sees where a free length goes.

In the graph a shape is an int64 tensor like any other. Here a vector of whole numbers is a tuple and a single one an
int, either of which may hold the exporter's symbols.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LARGEST = 16
"""Whole numbers that a constant may have to be one of Python's."""
SHAPES = {
    "ConstantOfShape": (0,), "Expand": (1,), "OneHot": (1,), "Pad": (1, 3), "ReduceL1": (1,), "ReduceL2": (1,),
    "ReduceLogSum": (1,), "ReduceLogSumExp": (1,), "ReduceMax": (1,), "ReduceMean": (1,), "ReduceMin": (1,),
    "ReduceProd": (1,), "ReduceSum": (1,), "ReduceSumSquare": (1,), "Reshape": (1,), "Resize": (3,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "Unsqueeze": (1,), "CumSum": (1,),
    "TopK": (1,),
}  # fmt: skip
"""Operators to the inputs that are whole numbers and no values."""
Numbers = int | tuple[Any, ...]


def numbers(tensor: Tensor) -> Numbers | None:
    """A constant as Python's numbers; ``None`` where it is no small vector of integers."""
    if tensor.dtype not in (torch.int32, torch.int64) or tensor.ndim > 1 or tensor.numel() > LARGEST:
        return None
    return tuple(tensor.tolist()) if tensor.ndim else int(tensor)


def is_numbers(value: object) -> bool:
    """Whether a value is a number or numbers of a shape."""
    return isinstance(value, int | tuple | torch.SymInt)


def as_tuple(value: Any) -> Any:
    """One number as a tuple of one."""
    return value if not is_numbers(value) or isinstance(value, tuple) else (value,)


def as_tensor(value: Any) -> Tensor:
    """Numbers as the int64 tensor that other operators take."""
    if isinstance(value, tuple):
        parts = [as_tensor(one) for one in value]
        return torch.stack(parts) if parts else torch.zeros(0, dtype=torch.int64)
    return torch.scalar_tensor(value, dtype=torch.int64)


def _each(function: Callable[[Any, Any], Any]) -> Callable[..., Numbers]:
    def computed(a: Any, b: Any) -> Numbers:
        if not isinstance(a, tuple) and not isinstance(b, tuple):
            return function(a, b)
        left, right = as_tuple(a), as_tuple(b)
        count = max(len(left), len(right))
        left, right = (side * count if len(side) == 1 else side for side in (left, right))
        return tuple(function(*pair) for pair in zip(left, right, strict=True))

    return computed


def _gather(x: Any, places: Any, *, axis: int = 0) -> Numbers:
    return tuple(x[place] for place in places) if isinstance(places, tuple) else x[places]


def _slice(x: Any, start: Any, stop: Any, axes: Any = (0,), step: Any = (1,)) -> Numbers:
    return tuple(x[as_tuple(start)[0] : as_tuple(stop)[0] : as_tuple(step)[0]])


def _where(chosen: Any, a: Any, b: Any) -> Numbers:
    sides = [as_tuple(side) for side in (chosen, a, b)]
    count = max(map(len, sides))
    sides = [side * count if len(side) == 1 else side for side in sides]
    return tuple(one if yes else other for yes, one, other in zip(*sides, strict=True))


def _squeeze(x: Any, *unused: Any, axes: Any = ()) -> Numbers:
    return x[0] if isinstance(x, tuple) and len(x) == 1 else x


OPERATORS: dict[str, Callable[..., Numbers]] = {
    "Add": _each(operator.add),
    "Cast": lambda x, *, to: x,
    "Concat": lambda *parts, axis=0: sum((as_tuple(part) for part in parts), ()),
    "Div": _each(operator.floordiv),
    "Equal": _each(operator.eq),
    "Gather": _gather,
    "Identity": lambda x: x,
    "Max": _each(max),
    "Min": _each(min),
    "Mul": _each(operator.mul),
    "ReduceProd": lambda x, *unused, axes=(), keepdims=1, noop_with_empty_axes=0: (
        (math.prod(as_tuple(x)),) if keepdims else math.prod(as_tuple(x))
    ),
    "Reshape": lambda x, shape, *, allowzero=0: as_tuple(x) if as_tuple(shape) else _squeeze(x),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _each(operator.sub),
    "Unsqueeze": lambda x, *unused, axes=(): as_tuple(x),
    "Where": _where,
}
"""Operators over numbers alone."""
