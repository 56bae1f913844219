"""Operators of ONNX over PyTorch's tensors: convolutions, pools, norms, resizing; [batch, channels, space ...]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from slimseek.errors import UsageError
from slimseek.models._torch.arithmetic import Operator, allow, integers

CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
MAXIMA = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
MEANS = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
AUTO_PADS = ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


@dataclass(frozen=True)
class Window:
    """A window that slides over space, one number for each axis.

    Attributes:
        size: values that it covers.
        stride: step from place to place.
        dilation: distance of neighbouring values.
        before: padding at the start.
        after: padding at the end, with what rounding up of the number of places needs in ``beyond``.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    beyond: tuple[int, ...]

    @property
    def padding(self) -> list[int]:
        """Both ends of each axis as ``functional.pad`` takes them, the last axis first."""
        ends = zip(self.before, self.after, self.beyond, strict=True)
        return [side for before, after, more in reversed(list(ends)) for side in (before, after + more)]

    @property
    def padded(self) -> bool:
        """Whether any end has padding."""
        return any(self.padding)


def _window(
    space: Sequence[int], size: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    pads: Sequence[int], auto_pad: str, ceil_mode: int = 0,
) -> Window:  # fmt: skip
    """The window on inputs of these lengths, what the attributes leave open filled in."""
    allow("auto_pad", auto_pad, *AUTO_PADS)
    rank = len(size)
    stride, dilation = tuple(strides) or (1,) * rank, tuple(dilations) or (1,) * rank
    covered = [(one - 1) * far + 1 for one, far in zip(size, dilation, strict=True)]
    given = list(pads) if pads and auto_pad == "NOTSET" else [0] * (2 * rank)
    before, after = given[:rank], given[rank:]
    if auto_pad.startswith("SAME"):
        rows = zip(space, covered, stride, strict=True)
        total = [max((-(-length // step) - 1) * step + cover - length, 0) for length, cover, step in rows]
        small, large = [one // 2 for one in total], [one - one // 2 for one in total]
        before, after = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    beyond = [0] * rank
    for axis in range(rank) if ceil_mode else ():
        length = space[axis] + before[axis] + after[axis]
        places = -(-(length - covered[axis]) // stride[axis]) + 1
        if (places - 1) * stride[axis] >= space[axis] + before[axis]:
            places -= 1  # a window that would begin behind the values
        beyond[axis] = max((places - 1) * stride[axis] + covered[axis] - length, 0)
    return Window(tuple(size), stride, dilation, tuple(before), tuple(after), tuple(beyond))


# ---------------------------------------------------------------- convolutions


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    auto_pad: str = "NOTSET", dilations: Sequence[int] = (), group: int = 1, kernel_shape: Sequence[int] = (),
    pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    window = _window(x.shape[2:], weight.shape[2:], strides, dilations, pads, auto_pad)
    function, padding = CONVOLUTIONS[x.ndim - 3], window.before
    if window.before != window.after:
        x, padding = functional.pad(x, window.padding), (0,) * len(padding)
    return function(x, weight, bias, window.stride, padding, window.dilation, group)


def _conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *,
    auto_pad: str = "NOTSET", dilations: Sequence[int] = (), group: int = 1, kernel_shape: Sequence[int] = (),
    output_padding: Sequence[int] = (), output_shape: Sequence[int] = (), pads: Sequence[int] = (),
    strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    allow("ConvTranspose: auto_pad", auto_pad, *AUTO_PADS)
    rank = x.ndim - 2
    stride, dilation, more = (tuple(one) or (1,) * rank for one in (strides, dilations, output_padding or (0,) * rank))
    whole = TRANSPOSED[rank - 1](x, weight, None, stride, 0, 0, group, dilation)
    ends = list(pads) if pads and auto_pad == "NOTSET" else [0] * (2 * rank)
    wanted = list(output_shape)[-rank:] if output_shape else []
    if not wanted and auto_pad.startswith("SAME"):
        wanted = [length * step for length, step in zip(x.shape[2:], stride, strict=True)]
    for axis, length in enumerate(wanted):
        total = max(whole.shape[2 + axis] + more[axis] - length, 0)
        small, large = total // 2, total - total // 2
        ends[axis], ends[rank + axis] = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    # A negative padding cuts; what is added behind has no value but the bias.
    sides = [side for axis in reversed(range(rank)) for side in (-ends[axis], more[axis] - ends[rank + axis])]
    result = functional.pad(whole, sides)
    return result if bias is None else result + bias.reshape(-1, *(1,) * rank)


# ---------------------------------------------------------------- pools


def _max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Sequence[int] = (), pads: Sequence[int] = (), storage_order: int = 0, strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    window = _window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if window.padded:
        x = functional.pad(x, window.padding, value=-math.inf)
    return MAXIMA[x.ndim - 3](x, window.size, window.stride, 0, window.dilation)


def _average_pool(
    x: Tensor, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
    dilations: Sequence[int] = (), pads: Sequence[int] = (), strides: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    allow("AveragePool: dilations", set(dilations), set(), {1})
    window = _window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    mean = MEANS[x.ndim - 3]
    if not window.padded:
        return mean(x, window.size, window.stride)
    # What lies beyond the padding never counts; the padding only where it is asked for.
    ends = list(zip(window.before, window.after, window.beyond, strict=True))
    kept = [length + before + after if count_include_pad else length
            for length, (before, after, _) in zip(x.shape[2:], ends, strict=True)]  # fmt: skip
    sides = [(0, more) if count_include_pad else (before, after + more) for before, after, more in ends]
    counted = functional.pad(x.new_ones((1, 1, *kept)), [side for pair in reversed(sides) for side in pair])
    sums = mean(functional.pad(x, window.padding), window.size, window.stride)
    return sums / mean(counted, window.size, window.stride)


def _over_space(function: Operator) -> Operator:
    return lambda x: function(x, tuple(range(2, x.ndim)), keepdim=True)


# ---------------------------------------------------------------- norms


def _batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *,
    epsilon: float = 1e-5, momentum: float = 0.9, spatial: int = 1, training_mode: int = 0,
) -> Tensor:  # fmt: skip
    allow("BatchNormalization: spatial", spatial, 1)
    allow("BatchNormalization: training_mode", training_mode, 0)
    return functional.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)


def _layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:  # fmt: skip
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, scale, bias, epsilon)
    result = functional.layer_norm(x, shape, None, None, epsilon) * scale
    return result if bias is None else result + bias


def _instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    # Each channel is a group of its own.
    return functional.group_norm(x, x.shape[1], scale, bias, epsilon)


def _group_norm(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1, opset: int
) -> Tensor:  # fmt: skip
    if opset < 21:  # a scale for each group; each channel since
        scale, bias = (one.repeat_interleave(x.shape[1] // num_groups) for one in (scale, bias))
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


def _rms_norm(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:  # fmt: skip
    return functional.rms_norm(x, x.shape[axis:], None, epsilon) * scale


def _lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    return functional.normalize(x, p, axis)


def _local_response(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    return functional.local_response_norm(x, size, alpha, beta, bias)


# ---------------------------------------------------------------- resizing


def _resize(
    x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None, *,
    antialias: int = 0, axes: Sequence[int] | None = None, coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75, exclude_outside: int = 0, extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch", mode: str = "nearest", nearest_mode: str = "round_prefer_floor",
    opset: int,
) -> Tensor:  # fmt: skip
    allow("Resize: antialias", antialias, 0)
    allow("Resize: keep_aspect_ratio_policy", keep_aspect_ratio_policy, "stretch")
    if opset < 11:  # with two inputs, and places computed without an offset
        scales, coordinate_transformation_mode, nearest_mode = roi, "asymmetric", "floor"
    places = integers(axes) or list(range(x.ndim))
    for number, place in enumerate(places):
        length = x.shape[place]
        if sizes is not None and sizes.numel():
            wanted = int(sizes[number])
            scale = np.float32(wanted) / np.float32(length)
        elif scales is not None:
            scale = np.float32(scales[number].item())
            wanted = math.floor(length * scale)
        else:
            raise UsageError("Resize has neither scales nor sizes")
        if wanted == length and scale == 1:
            continue
        at = _coordinates(wanted, length, scale, coordinate_transformation_mode)
        taps, shares = _taps(at, length, mode, nearest_mode, cubic_coeff_a, bool(exclude_outside))
        x = _mixed(x, place, taps, shares)
    return x


def _upsample(
    x: Tensor, given: Tensor | None = None, /, *, mode: str = "nearest", scales: Sequence[float] = ()
) -> Tensor:
    factors = torch.tensor(scales) if given is None else given
    return _resize(x, factors, mode=mode, opset=10)


def _coordinates(wanted: int, length: int, scale: np.float32, mode: str) -> np.ndarray:
    """Where in the input each place of the output lies: float32 [wanted], as runtimes round it."""
    out = np.arange(wanted, dtype=np.float32)
    if mode == "asymmetric":
        return out / scale
    if mode == "align_corners":
        return out * np.float32(length - 1) / np.float32(max(wanted - 1, 1))
    allow("Resize: coordinate_transformation_mode", mode, "half_pixel", "pytorch_half_pixel", "align_corners",
          "asymmetric")  # fmt: skip
    if mode == "pytorch_half_pixel" and wanted == 1:
        return np.zeros_like(out)
    return (out + np.float32(0.5)) / scale - np.float32(0.5)


def _taps(
    at: np.ndarray, length: int, mode: str, nearest: str, cubic: float, exclude: bool
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Places of the input that each place of the output is made of, and their shares: [wanted, taps] twice."""
    allow("Resize: mode", mode, "nearest", "linear", "cubic")
    if mode == "nearest":
        allow("Resize: nearest_mode", nearest, "round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        half = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(nearest, 0.0)
        places = (np.floor if nearest in ("floor", "round_prefer_ceil") else np.ceil)(at + np.float32(half))[:, None]
        return places.clip(0, length - 1).astype(np.int64), np.ones_like(places)
    reach = np.arange(2) if mode == "linear" else np.arange(-1, 3)
    places = np.floor(at)[:, None] + reach
    distance = np.abs(at[:, None] - places)
    if mode == "linear":
        shares = 1 - distance
    else:  # Keys, Cubic Convolution Interpolation for Digital Image Processing, 1981
        near = ((cubic + 2) * distance - (cubic + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * cubic - 4 * cubic
        shares = np.where(distance <= 1, near, far)
    if exclude:
        shares = np.where((places >= 0) & (places < length), shares, 0)
        shares = shares / shares.sum(1, keepdims=True)
    return places.clip(0, length - 1).astype(np.int64), shares


def _mixed(x: Tensor, axis: int, taps: np.ndarray, shares: np.ndarray) -> Tensor:
    """Sums of values along an axis, each with its share."""
    shape = [-1 if place == axis else 1 for place in range(x.ndim)]
    result: Tensor | None = None
    for places, weights in zip(taps.T, shares.T, strict=True):
        part = x.index_select(axis, torch.tensor(places, device=x.device))
        if not (weights == 1).all():
            part = part * torch.tensor(weights, dtype=x.dtype, device=x.device).reshape(shape)
        result = part if result is None else result + part
    assert result is not None
    return result


OPERATORS: dict[str, Operator] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _over_space(torch.mean),
    "GlobalMaxPool": _over_space(torch.amax),
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _local_response,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "MaxPool": _max_pool,
    "RMSNormalization": _rms_norm,
    "Resize": _resize,
    "Upsample": _upsample,
}
"""Operators by their names in ONNX."""
