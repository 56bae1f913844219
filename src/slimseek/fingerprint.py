"""Hashes: what tells one model from another, and an order of names that favours none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec
import numpy as np

from slimseek.schema import Model, QuantizedTensor, Tensor


def hashed(name: str) -> bytes:
    """The sha256 of a name: an order by it is the same everywhere, and favours none."""
    return hashlib.sha256(name.encode()).digest()


def fingerprint(model: Model) -> str:
    """The sha256 of all that a model computes with: its spec, files, tensors, rounding, smoothing and ties."""
    digest = hashlib.sha256()

    def put(name: str, content: bytes) -> None:
        digest.update(f"{name} {len(content)}\n".encode() + content)

    put("spec", msgspec.json.encode(model.spec))
    put("activations", msgspec.json.encode(dict(model.activations), order="deterministic"))
    for name in sorted(model.files):
        put(name, model.files[name])
    for name in sorted(model.tensors):
        _put(put, name, model.tensors[name])
    for name in sorted(model.smoothing):
        _put(put, f"smoothing {name}", model.smoothing[name])
    if model.tied:
        put("tied", msgspec.json.encode(dict(model.tied), order="deterministic"))
    return digest.hexdigest()


def _put(put: Callable[[str, bytes], None], name: str, tensor: Tensor) -> None:
    if isinstance(tensor, QuantizedTensor):
        put(name, msgspec.json.encode(tensor.spec))
        beside = (tensor.zero_point, tensor.codebook)
        arrays = [tensor.integers, tensor.scale, *(one for one in beside if one is not None)]
    else:
        arrays = [tensor]
    for array in arrays:
        put(f"{name} {array.dtype.name} {array.shape}", np.ascontiguousarray(array).tobytes())
