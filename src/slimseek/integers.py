"""The arithmetic of integers and eight-bit floats: rounding a tensor, reading it back, packing at the true width.

All functions are pure, over numpy arrays. A tensor is seen as a matrix [channels, values]: the axis of channels
first, the rest flattened; a channel is cut into groups, the last of which may be shorter.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeGuard

import ml_dtypes
import msgspec
import numpy as np

from slimseek import hollow, sparse
from slimseek.errors import UsageError
from slimseek.schema import Array, Float8, Model, QuantizedTensor, QuantSpec, Tensor, is_float

MIN_NORMAL_FLOAT16 = 6.2e-5
SHRINKS = np.linspace(1.0, 0.4, 31, dtype=np.float32)
SEARCHED_AT_ONCE = 2**20
Scaling = Literal["max", "mse"]
FLOAT8: dict[Float8, type] = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
LARGEST_FLOAT8: dict[Float8, float] = {"e4m3": 448.0, "e5m2": 57344.0}


def quantize(values: Array, spec: QuantSpec, scaling: Scaling = "max") -> QuantizedTensor:
    """Round to the nearest level: integer = round(value / scale) + zero_point.

    Symmetric: scale = max|w| / (2^(bits-1) - 1), integers in [-(2^(bits-1) - 1), 2^(bits-1) - 1].
    Asymmetric: the range [min(w, 0), max(w, 0)] on 2^bits levels, so that 0.0 is exact.
    Eight-bit floats: scale = max|w| / the largest finite number (448 for e4m3, 57344 for e5m2); the nearest, ties to
    even, is stored, and what lies outside saturates.
    Scales of groups are float16 where every one is a normal float16 number, and rounding uses the stored scale.

    Args:
        values: float array of any shape with at least one axis.
        spec: bits, granularity and axis.
        scaling: ``max`` as above; ``mse`` shrinks each range to the share, from 1 down to 0.4, whose values
            then lie nearest by mean squared error: the few largest are clipped, the rest get finer steps.

    Raises:
        UsageError: a value is NaN or infinite.
    """
    with np.errstate(over="ignore"):
        wide = np.asarray(values, np.float32)
    if not np.isfinite(wide).all():
        raise UsageError("the tensor holds NaN or infinite values and cannot be quantized")
    blocks = _blocks(wide, spec)
    scale, zero_point = _grid(blocks, spec, np.float32(1))
    if scaling == "mse":
        scale, zero_point = _best_grid(blocks, spec)
    integers = to_integers(blocks, scale, zero_point, spec)
    return QuantizedTensor(
        spec=spec, integers=_unblocks(integers, values.shape, spec), scale=scale, zero_point=zero_point
    )


def dequantize(tensor: Tensor) -> Array:
    """The float32 values that the integers stand for; a float tensor comes back as float32, others unchanged."""
    if not isinstance(tensor, QuantizedTensor):
        return tensor.astype(np.float32) if is_float(tensor) else tensor
    if tensor.codebook is not None:
        return _looked_up(tensor, tensor.codebook.astype(np.float32))
    blocks = from_integers(_blocks(tensor.integers, tensor.spec), tensor.scale, tensor.zero_point)
    return _unblocks(blocks, tensor.shape, tensor.spec)


def is_finite(tensor: Tensor) -> bool:
    """Whether no stored number is NaN or infinite: values, or scales, code books and the codes of eight-bit floats."""
    if not isinstance(tensor, QuantizedTensor):
        return bool(np.isfinite(tensor).all())
    if tensor.codebook is not None:
        return bool(np.isfinite(tensor.codebook).all())
    return bool(np.isfinite(tensor.scale).all() and (not tensor.spec.float8 or np.isfinite(tensor.integers).all()))


def check_finite(model: Model, done: str) -> None:
    """Refuse a model with NaN or infinite weights, which no step can read anything from.

    Args:
        model: any.
        done: what would be done to it, such as ``trained``.

    Raises:
        UsageError: the text names the first such tensor.
    """
    for name, tensor in model.tensors.items():
        if not is_finite(tensor):
            raise UsageError(f"the tensor {name} holds NaN or infinite values; the model cannot be {done}")


def eight_bit_scale(tensor: QuantizedTensor, least: Array | float = 0.0) -> Array:
    """Scale [channels] of the eight-bit grid that a tensor of fewer bits, or of groups, expands to for arithmetic.

    It is at least ``least`` [channels], and 1 where both are zero.
    """
    others = tuple(axis for axis in range(len(tensor.shape)) if axis != tensor.spec.axis)
    scale = np.maximum(np.abs(dequantize(tensor)).max(axis=others) / 127, least)
    return np.where(scale > 0, scale, 1).astype(np.float32)


def unsmoothed(model: Model, name: str) -> Array:
    """The float32 values of a tensor as the network computes with them: dequantized, smoothing undone."""
    stored = dequantize(model.tensors[name])
    return stored / model.smoothing[name] if name in model.smoothing else stored


def dense(model: Model) -> dict[str, Array]:
    """The values of every tensor by name, as :func:`unsmoothed` gives them; integer buffers as they are. A tied name
    has the same array as the tensor that it stands for.
    """
    found = {name: unsmoothed(model, name) for name in model.tensors}
    return found | {name: found[own] for name, own in model.tied.items()}


def is_integer(tensor: Tensor) -> TypeGuard[QuantizedTensor]:
    """Whether the tensor is stored as integers with scales: not as plain numbers, eight-bit floats, or places in a
    code book.
    """
    return isinstance(tensor, QuantizedTensor) and not tensor.spec.float8 and tensor.codebook is None


def is_shared(tensor: Tensor) -> TypeGuard[QuantizedTensor]:
    """Whether the tensor is stored as places in a code book."""
    return isinstance(tensor, QuantizedTensor) and tensor.codebook is not None


def is_eight_bit(tensor: QuantizedTensor) -> bool:
    """Whether the integers themselves are what eight-bit arithmetic computes with."""
    return is_integer(tensor) and tensor.spec.bits == 8 and tensor.spec.granularity != "group"


def expanded(tensor: Tensor) -> Array:
    """The float32 values that eight-bit arithmetic computes with, at most half a step of its grid from the tensor's."""
    steps, scale = eight_bit_steps(tensor)
    values: Array = steps * scale
    return values


def eight_bit_steps(tensor: Tensor) -> tuple[Array, Array]:
    """What eight-bit arithmetic multiplies with: whole numbers as float32 in the tensor's shape, and the scale that
    belongs to each, of a shape that goes along; a tensor that is not quantized has its own values, and scale 1.
    """
    values = dequantize(tensor)
    if not isinstance(tensor, QuantizedTensor):
        return values, np.ones([1] * values.ndim, np.float32)
    shape = [1] * values.ndim
    shape[tensor.spec.axis] = -1
    if is_eight_bit(tensor):
        scale = tensor.scale.astype(np.float32)
        zero_point = 0 if tensor.zero_point is None else tensor.zero_point.astype(np.float32).reshape(shape)
        steps: Array = tensor.integers.astype(np.float32) - zero_point
        return steps, scale.reshape(shape)
    scale = eight_bit_scale(tensor).reshape(shape)
    return np.rint(values / scale), scale


def take_rows(tensor: Tensor, rows: Array) -> Tensor:
    """The chosen rows (axis 0) of a tensor, its integers and scales as they are.

    Raises:
        UsageError: scales are shared across rows.
    """
    if not isinstance(tensor, QuantizedTensor):
        chosen: Array = tensor[rows]
        return chosen
    if tensor.spec.axis != 0 and tensor.spec.granularity == "group":
        raise UsageError("rows of a tensor whose groups run across them cannot be taken; cut before quantizing")
    if tensor.spec.axis != 0 or tensor.spec.granularity == "tensor":
        return dataclasses.replace(tensor, integers=tensor.integers[rows])
    if tensor.codebook is not None:
        return dataclasses.replace(tensor, integers=tensor.integers[rows], codebook=tensor.codebook[rows])
    zero_point = None if tensor.zero_point is None else tensor.zero_point[rows]
    return QuantizedTensor(
        spec=tensor.spec, integers=tensor.integers[rows], scale=tensor.scale[rows], zero_point=zero_point
    )


def scale_shape(shape: tuple[int, ...], spec: QuantSpec) -> tuple[int, int]:
    """Shape [channels, groups] of the scales of a tensor.

    Raises:
        UsageError: no tensor of this shape can be stored so: bits, axis or group size are out of range, or eight-bit
            floats have other than eight bits, groups or a zero point, or there is a code book.
    """
    if spec.entries is not msgspec.UNSET:
        raise UsageError(f"{spec}: a code book takes no scales")
    grouped = spec.granularity == "group"
    if spec.float8 and (spec.bits != 8 or grouped or not spec.symmetric):
        raise UsageError(f"{spec}: eight-bit floats take 8 bits and a symmetric scale a tensor or channel")
    size = spec.group_size or 0
    if not 2 <= spec.bits <= 8 or not 0 <= spec.axis < len(shape) or min(shape) < 0 or grouped != (size >= 2):
        raise UsageError(f"{spec} does not fit a tensor of shape {list(shape)}")
    if spec.granularity == "tensor":
        return 1, 1
    values = int(np.prod(shape)) // max(shape[spec.axis], 1)
    return shape[spec.axis], -(-values // size) if grouped else 1


def codebook_shape(shape: tuple[int, ...], spec: QuantSpec) -> tuple[int, int]:
    """Shape [channels, entries] of the code book of a tensor; one channel for granularity ``tensor``.

    Raises:
        UsageError: no tensor of this shape can be stored so: bits, axis or entries are out of range, or there are
            groups, a zero point or eight-bit floats as well.
    """
    entries = spec.entries or 0
    plain = spec.symmetric and not spec.float8 and spec.granularity != "group"
    fits = 1 <= spec.bits <= 8 and 1 <= entries <= 2**spec.bits and 0 <= spec.axis < len(shape) and min(shape) >= 0
    if not plain or not fits:
        raise UsageError(f"{spec} does not fit a tensor of shape {list(shape)}")
    return (shape[spec.axis] if spec.granularity == "channel" else 1), entries


def matrix(tensor: QuantizedTensor) -> Array:
    """The integers as [channels, values], channels first."""
    return np.moveaxis(tensor.integers, tensor.spec.axis, 0).reshape(tensor.shape[tensor.spec.axis], -1)


def pack(integers: Array, bits: int) -> Array:
    """Integers of ``bits`` bits, flattened, least significant bit first, as uint8 of ceil(n * bits / 8) bytes.

    Signed integers are stored in two's complement of that width.
    """
    if bits == 8:
        return np.ascontiguousarray(integers).reshape(-1).view(np.uint8).copy()
    unsigned = np.ascontiguousarray(integers).reshape(-1).view(np.uint8)
    planes = (unsigned[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack(packed: Array, bits: int, shape: tuple[int, ...], signed: bool) -> Array:
    """The inverse of :func:`pack`, int8 or uint8 of ``shape``.

    Raises:
        UsageError: the bytes are not those of ``shape``.
    """
    count = int(np.prod(shape))
    if packed.size != (count * bits + 7) // 8:
        raise UsageError(f"{packed.size} packed bytes cannot hold {count} integers of {bits} bits")
    result: Array
    if bits == 8:
        result = packed.view(np.int8 if signed else np.uint8)
        return result.reshape(shape)
    planes = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    result = (planes << np.arange(bits, dtype=np.uint8)).sum(1, dtype=np.uint8)
    if signed:
        shift = 8 - bits
        result = (result << shift).view(np.int8) >> shift
    return result.reshape(shape)


def stored_bytes(tensor: Tensor) -> int:
    """Bytes that the tensor takes on disk: integers at their true width, scales and zero points included, a mask where
    it has many zeros.
    """
    places = sparse_places(tensor)
    if not isinstance(tensor, QuantizedTensor):
        if places is None:
            return int(tensor.nbytes)
        return sparse.stored_bytes(places.size, int(np.count_nonzero(places)), 8 * tensor.dtype.itemsize)
    zero_points = 0 if tensor.zero_point is None else (tensor.zero_point.size * tensor.spec.bits + 7) // 8
    rest = int(tensor.scale.nbytes) + zero_points if tensor.codebook is None else int(tensor.codebook.nbytes)
    if places is None:
        return (tensor.integers.size * tensor.spec.bits + 7) // 8 + rest
    return sparse.stored_bytes(places.size, int(np.count_nonzero(places)), tensor.spec.bits) + rest


def sparse_places(tensor: Tensor) -> Array | None:
    """Bool [n]: the places that do not stand for 0.0 (those whose integer is not 0, where there is a code book), where
    storing them alone pays; ``None`` where it does not.
    """
    if hollow.is_hollow(tensor.integers if isinstance(tensor, QuantizedTensor) else tensor):
        return None
    if isinstance(tensor, QuantizedTensor):
        empty = integers_of_zero(tensor.shape, tensor.spec, tensor.zero_point)
        places, bits = sparse.occupied(tensor.integers.view(np.uint8) ^ empty), tensor.spec.bits
    elif is_float(tensor):
        places, bits = sparse.occupied(tensor), 8 * tensor.dtype.itemsize
    else:
        return None
    return places if sparse.pays(places.size, int(np.count_nonzero(places)), bits) else None


def integers_of_zero(shape: tuple[int, ...], spec: QuantSpec, zero_point: Array | None) -> Array:
    """Uint8 of ``shape``: the integers, or codes of eight-bit floats, that stand for 0.0."""
    zeros = np.zeros(shape, np.uint8)
    return zeros if zero_point is None else _unblocks(_blocks(zeros, spec) + zero_point[..., None], shape, spec)


def to_integers(blocks: Array, scale: Array, zero_point: Array | None, spec: QuantSpec) -> Array:
    """Values [..., n] as they are stored: the nearest on the grid of their ``scale`` and ``zero_point`` [...]."""
    if spec.float8:
        # A cast alone would make NaN (e4m3) or infinity (e5m2) of what lies outside.
        inside = np.clip(blocks / _divisor(scale)[..., None], -_largest(spec), _largest(spec))
        codes: Array = inside.astype(FLOAT8[spec.float8])
        return codes
    steps = np.rint(blocks / _divisor(scale)[..., None])
    if zero_point is None:
        signed: Array = np.clip(steps, -_largest(spec), _largest(spec)).astype(np.int8)
        return signed
    unsigned: Array = np.clip(steps + zero_point[..., None], 0, 2**spec.bits - 1).astype(np.uint8)
    return unsigned


def from_integers(integers: Array, scale: Array, zero_point: Array | None) -> Array:
    """The float32 values that integers [..., n] stand for, by their ``scale`` and ``zero_point`` [...]."""
    steps = integers.astype(np.float32)
    if zero_point is not None:
        steps -= zero_point[..., None].astype(np.float32)
    result: Array = steps * scale[..., None].astype(np.float32)
    return result


def _grid(blocks: Array, spec: QuantSpec, shrink: Array | np.float32) -> tuple[Array, Array | None]:
    """Scales and zero points [channels, groups] that cover ``shrink`` times the range of each block."""
    if spec.symmetric:
        return _storable(np.abs(blocks).max(-1) * shrink / _largest(spec), spec), None
    levels = 2**spec.bits - 1
    low = np.minimum(blocks.min(-1), 0).astype(np.float64) * shrink
    scale = _storable((np.maximum(blocks.max(-1), 0) * shrink - low) / levels, spec)
    return scale, np.clip(np.rint(-low / _divisor(scale)), 0, levels).astype(np.uint8)


def _best_grid(blocks: Array, spec: QuantSpec) -> tuple[Array, Array | None]:
    """The grid with the least squared error for each block, out of those of ``SHRINKS``; in parts, to bound memory."""
    rows = max(1, SEARCHED_AT_ONCE // max(blocks[0].size, 1))
    chosen = np.ones(blocks.shape[:2], np.float32)
    for start in range(0, len(blocks), rows):
        part = blocks[start : start + rows]
        least = np.full(part.shape[:2], np.inf, np.float32)
        for shrink in SHRINKS:
            scale, zero_point = _grid(part, spec, shrink)
            difference = from_integers(to_integers(part, scale, zero_point, spec), scale, zero_point) - part
            error = np.einsum("cgv,cgv->cg", difference, difference)
            better = error < least
            least[better] = error[better]
            chosen[start : start + rows][better] = shrink
    return _grid(blocks, spec, chosen)


def _largest(spec: QuantSpec) -> float:
    """The largest number of a symmetric spec."""
    return LARGEST_FLOAT8[spec.float8] if spec.float8 else 2 ** (spec.bits - 1) - 1


def _storable(scale: Array, spec: QuantSpec) -> Array:
    """Scales in the type they are stored in; an all-zero block gets scale 0 and integers 0."""
    positive = scale[scale > 0]
    small = spec.granularity == "group" and positive.size and positive.min() >= MIN_NORMAL_FLOAT16
    return scale.astype(np.float16 if small and positive.max() < 6e4 else np.float32)


def _divisor(scale: Array) -> Array:
    wide = scale.astype(np.float32)
    return np.where(wide > 0, wide, np.float32(1))


def _blocks(values: Array, spec: QuantSpec) -> Array:
    """[channels, groups, values of a group]; a short last group is filled with zeros."""
    if spec.granularity == "tensor":
        return values.reshape(1, 1, -1)
    rows = np.moveaxis(values, spec.axis, 0).reshape(values.shape[spec.axis], -1)
    if spec.granularity == "channel":
        return rows[:, None, :]
    assert spec.group_size is not None
    padding = -rows.shape[1] % spec.group_size
    rows = np.pad(rows, ((0, 0), (0, padding)))
    return rows.reshape(rows.shape[0], -1, spec.group_size)


def _looked_up(tensor: QuantizedTensor, codebook: Array) -> Array:
    """The entries that the integers name, float32 of the tensor's shape."""
    rows = _blocks(tensor.integers, tensor.spec)[:, 0]
    values = np.stack([book[places] for book, places in zip(codebook, rows, strict=True)]) if len(rows) else rows
    return _unblocks(values.astype(np.float32, copy=False), tensor.shape, tensor.spec)


def _unblocks(blocks: Array, shape: tuple[int, ...], spec: QuantSpec) -> Array:
    if spec.granularity == "tensor":
        return blocks.reshape(shape)
    moved = (shape[spec.axis], *shape[: spec.axis], *shape[spec.axis + 1 :])
    values = int(np.prod(moved[1:]))
    return np.ascontiguousarray(
        np.moveaxis(blocks.reshape(shape[spec.axis], -1)[:, :values].reshape(moved), 0, spec.axis)
    )
