"""Operators of ONNX over PyTorch's tensors: shapes, places, types; they move values and compute none.

Shapes are int64 tensors here too, as in the graph, so that batch and length may differ from call to call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import Tensor
from torch.nn import functional

from slimseek.errors import UsageError
from slimseek.models._torch.arithmetic import Operator, allow, integers

PAD_MODES = ("constant", "reflect", "edge", "wrap")


# ---------------------------------------------------------------- values


def dtype(kind: int) -> torch.dtype:
    """PyTorch's dtype of a number of ``TensorProto``; UsageError where it has none."""
    named = helper.tensor_dtype_to_np_dtype(kind).name if kind != TensorProto.BFLOAT16 else "bfloat16"
    found = getattr(torch, named, None)
    if not isinstance(found, torch.dtype):
        raise UsageError(f"values of the type {TensorProto.DataType.Name(kind)} cannot be trained with")
    return found


def _cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(dtype(to))


def _constant(
    *, value: Tensor | None = None, value_float: float | None = None, value_floats: Sequence[float] | None = None,
    value_int: int | None = None, value_ints: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    if value is not None:
        return value
    floats = value_float if value_float is not None else value_floats
    if floats is not None:
        return torch.tensor(floats, dtype=torch.float32)
    return torch.tensor(value_int if value_int is not None else value_ints, dtype=torch.int64)


def _constant_of_shape(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    one = torch.zeros(1) if value is None else value
    return one.reshape(-1)[0].to(shape.device).expand(integers(shape))


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    ends = start.item(), limit.item(), delta.item()
    return torch.arange(*ends, dtype=start.dtype, device=start.device)


def _dropout(x: Tensor, *unused: Tensor | None, ratio: float = 0.5, seed: int = 0) -> Tensor:
    return x


def _trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    place = 0 if k is None else int(k)
    return torch.triu(x, place) if upper else torch.tril(x, place)


# ---------------------------------------------------------------- shapes


def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


def _reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    wanted = integers(shape)
    if not allowzero:
        wanted = [x.shape[place] if length == 0 else length for place, length in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    place = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:place]), math.prod(x.shape[place:]))


def _transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(list(perm) if perm is not None else list(range(x.ndim))[::-1])


def _squeeze(x: Tensor, given: Tensor | None = None, /, *, axes: Sequence[int] | None = None) -> Tensor:
    places = given if given is not None else axes
    return x.squeeze() if places is None else x.squeeze(tuple(integers(places)))


def _unsqueeze(x: Tensor, given: Tensor | None = None, /, *, axes: Sequence[int] = ()) -> Tensor:
    places = integers(given if given is not None else axes)
    rank = x.ndim + len(places)
    for place in sorted(place % rank for place in places):
        x = x.unsqueeze(place)
    return x


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(integers(shape))))


def _tile(x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(integers(repeats))


def _concat(*inputs: Tensor, axis: int = 1) -> Tensor:
    return torch.cat(inputs, axis)


def _split(
    x: Tensor, given: Tensor | None = None, /, *,
    axis: int = 0, split: Sequence[int] = (), num_outputs: int = 0, results: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    sizes = integers(given if given is not None else split)
    # Without sizes all parts are alike, but for a last one that may be shorter.
    return x.split(sizes or -(-x.shape[axis] // results), axis)


def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    batch, channels, height, width = x.shape
    kept = channels // blocksize**2
    if mode == "DCR":
        parts = x.reshape(batch, blocksize, blocksize, kept, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(batch, kept, blocksize, blocksize, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(batch, kept, height * blocksize, width * blocksize)


def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // blocksize, width // blocksize)


def _pad(
    x: Tensor, given: Tensor | None = None, filling: Tensor | None = None, axes: Tensor | None = None, /, *,
    mode: str = "constant", pads: Sequence[int] = (), value: float = 0.0,
) -> Tensor:  # fmt: skip
    ends = integers(given if given is not None else pads)
    places = integers(axes) or list(range(len(ends) // 2))
    sides = [(0, 0)] * x.ndim
    for number, place in enumerate(places):
        sides[place] = ends[number], ends[number + len(places)]
    if mode == "constant":
        flat = [side for pair in reversed(sides) for side in pair]
        return functional.pad(x, flat, value=value if filling is None else filling.item())
    allow("Pad: mode", mode, *PAD_MODES)
    for place, (before, after) in enumerate(sides):
        x = x.index_select(place, _reached(x.shape[place], before, after, mode).to(x.device))
    return x


def _reached(length: int, before: int, after: int, mode: str) -> Tensor:
    """Places along an axis that are read once it is padded, or cut where a number is negative."""
    places = np.arange(-before, length + after)
    if mode == "edge":
        places = places.clip(0, length - 1)
    elif mode == "wrap":
        places = places % length
    else:
        turn = max(2 * (length - 1), 1)
        places = (length - 1) - np.abs((places % turn) - (length - 1))
    return torch.from_numpy(places)


# ---------------------------------------------------------------- places


def _slice(
    x: Tensor, first: Tensor | None = None, last: Tensor | None = None, along: Tensor | None = None,
    stride: Tensor | None = None, /, *, starts: Sequence[int] = (), ends: Sequence[int] = (), axes: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    begins, stops = integers(first if first is not None else starts), integers(last if last is not None else ends)
    places = integers(along if along is not None else axes) or list(range(len(begins)))
    for begin, stop, place, step in zip(begins, stops, places, integers(stride) or [1] * len(begins), strict=True):
        length = x.shape[place]
        chosen = range(length)[slice(begin, stop, step)]
        if step > 0:
            x = x.narrow(place, chosen.start, max(chosen.stop - chosen.start, 0))
            x = x if step == 1 else x[(slice(None),) * (place % x.ndim) + (slice(None, None, step),)]
        else:
            x = x.index_select(place, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    return x


def _positive(indices: Tensor, length: int) -> Tensor:
    return torch.where(indices < 0, indices + length, indices).long()


def _gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    place = axis % x.ndim
    found = x.index_select(place, _positive(indices, x.shape[place]).flatten())
    return found.reshape((*x.shape[:place], *indices.shape, *x.shape[place + 1 :]))


def _gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, _positive(indices, x.shape[axis]))


def _gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    allow("GatherND: batch_dims", batch_dims, 0)
    return x[tuple(_positive(part, length) for part, length in zip(indices.unbind(-1), x.shape, strict=False))]


def _scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    allow("ScatterND: reduction", reduction, "none", "add")
    places = tuple(_positive(part, length) for part, length in zip(indices.unbind(-1), x.shape, strict=False))
    return x.index_put(places, updates, accumulate=reduction == "add")


def _scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:  # fmt: skip
    allow("ScatterElements: reduction", reduction, "none", "add")
    places = _positive(indices, x.shape[axis])
    return x.scatter_add(axis, places, updates) if reduction == "add" else x.scatter(axis, places, updates)


def _one_hot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    count = int(depth)
    places = torch.arange(count, device=indices.device)
    hot = (_positive(indices, count)[..., None] == places).movedim(-1, axis)
    return torch.where(hot, values[1], values[0])


OPERATORS: dict[str, Operator] = {
    "Cast": _cast,
    "CastLike": lambda x, other: x.to(other.dtype),
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Identity": lambda x: x,
    "NonZero": lambda x: x.nonzero().T,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": lambda x: torch.tensor(x.numel(), dtype=torch.int64, device=x.device),
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
"""Operators by their names in ONNX."""
