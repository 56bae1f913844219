"""Where the integers of an artifact lie in a ``.pte`` file: constants there have no names, but digests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from slimseek.backends._executorch.forms import changed
from slimseek.backends._executorch.layers import IntegerLinear, IntegerTable
from slimseek.backends._executorch.program import blobs, digest
from slimseek.errors import ArtifactError
from slimseek.schema import Array, Model, QuantizedTensor
from slimseek.value import Value

Layout = Literal["bytes", "nibbles", "kernel", "depthwise"]


class Stored(Value, frozen=True):
    """A weight in the file.

    Attributes:
        name: its tensor's.
        layout: ``bytes`` and ``nibbles`` of its channels' rows; ``kernel`` and ``depthwise`` of a convolution, channels
            last.
        shape: of the tensor.
        axis: of its channels.
        middle: what is taken away from the stored numbers to give the artifact's integers.
        unsigned: whether these are unsigned.
        digest: sha256 of the bytes.
        scale: that of the scales, float32 one a channel, where the weight was rounded again; empty for the artifact's
            own integers.
    """

    name: str
    layout: Layout
    shape: tuple[int, ...]
    axis: int
    middle: int
    unsigned: bool
    digest: str
    scale: str = ""


def described(kept: Mapping[str, Any], before: Model, after: Model) -> tuple[Stored, ...]:
    """Where the weights that a network keeps as integers will lie.

    Args:
        kept: weight name to its module.
        before: the artifact.
        after: it in the runtime's forms.
    """
    return tuple(_described(name, module, before, after) for name, module in kept.items())


def _described(name: str, module: Any, before: Model, after: Model) -> Stored:
    tensor: Any = after.tensors[name]
    own = changed(before.tensors[name], tensor) or getattr(module, "again", False)
    layout, content, middle = _content(module, tensor)
    scale = digest(module.scale.numpy().astype(np.float32).tobytes()) if own else ""
    return Stored(
        name=name, layout=layout, shape=tensor.shape, axis=tensor.spec.axis, middle=middle,
        unsigned=tensor.zero_point is not None, digest=digest(content), scale=scale,
    )  # fmt: skip


def _content(module: Any, tensor: QuantizedTensor) -> tuple[Layout, bytes, int]:
    """How a module's integers are laid out, their bytes, and what is taken away to give the artifact's."""
    if isinstance(module, IntegerTable):
        return "nibbles" if module.packed else "bytes", module.rows.numpy().tobytes(), int(module.middle)
    if isinstance(module, IntegerLinear):
        middle = -(2 ** (tensor.spec.bits - 1)) if tensor.zero_point is not None else 0
        if module.bits == 8:
            return "bytes", module.integers.numpy().tobytes(), middle
        return "nibbles", _four_bits(module.integers.numpy()), 8 + middle
    kernel = module.integers
    if _is_depthwise(kernel.shape):
        return "depthwise", kernel.movedim(0, -1).contiguous().numpy().tobytes(), 0
    return "kernel", kernel.movedim(1, -1).contiguous().numpy().tobytes(), 0


def _is_depthwise(shape: Sequence[int]) -> bool:
    return shape[1] == 1


def _four_bits(rows: Array) -> bytes:
    """As XNNPACK has them: 8 higher, rows of odd length filled up, the first one low."""
    codes = (np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).astype(np.int16) + 8).astype(np.uint8)
    return (codes[:, ::2] | (codes[:, 1::2] << 4)).tobytes()


def integers(content: bytes, stored: Sequence[Stored]) -> dict[str, Array]:
    """The integers in the bytes of a file as :meth:`Backend.stored` gives them.

    Raises:
        ArtifactError: the file lacks one.
    """
    sizes = {one.digest: _bytes(one) for one in stored} | {
        one.scale: 4 * one.shape[one.axis] for one in stored if one.scale
    }
    found = blobs(content, sizes)
    missing = next((one.name for one in stored if one.digest not in found), None)
    if missing is not None:
        raise ArtifactError(f"the file does not hold {missing}; it is broken")
    return {one.name: _unpacked(one, found) for one in stored}


def _bytes(one: Stored) -> int:
    count = one.shape[one.axis]
    width = math.prod(one.shape) // max(count, 1)
    return count * (-(-width // 2) if one.layout == "nibbles" else width)


def _unpacked(one: Stored, found: Mapping[str, bytes]) -> Array:
    count = one.shape[one.axis]
    channels_first = (count, *one.shape[: one.axis], *one.shape[one.axis + 1 :])
    raw = np.frombuffer(found[one.digest], np.uint8)
    if one.layout == "nibbles":
        rows = raw.reshape(count, -1)
        codes = np.stack((rows & 15, rows >> 4), -1).reshape(count, -1)[:, : math.prod(channels_first[1:])]
        signed = codes.astype(np.int16)
    else:
        signed = raw.view(np.uint8 if one.unsigned and not one.middle else np.int8).astype(np.int16)
    if one.layout == "kernel":
        values = np.moveaxis(signed.reshape(one.shape[0], *one.shape[2:], one.shape[1]), -1, 1)
    elif one.layout == "depthwise":
        values = np.moveaxis(signed.reshape(*one.shape[1:], one.shape[0]), -1, 0)
    else:
        values = np.moveaxis(signed.reshape(channels_first), 0, one.axis)
    values = values - one.middle
    if not one.scale:
        return np.ascontiguousarray(values.astype(np.uint8 if one.unsigned else np.int8))
    scale = np.frombuffer(found[one.scale], np.float32)
    shape = [-1 if axis == one.axis else 1 for axis in range(len(one.shape))]
    result: Array = values.astype(np.float32) * scale.reshape(shape)
    return result
