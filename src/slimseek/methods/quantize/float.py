"""Weights as 16-bit floats."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from slimseek.errors import NoEffect, UsageError
from slimseek.schema import Array, Model, QuantizedTensor, Samples, Step


class Float(Step, frozen=True, kw_only=True):
    """Store float weights in half precision (IEEE 754 binary16): half the bytes, 11 significant bits.

    A tensor that half precision cannot hold (a finite value becomes infinite, or more than one weight in a thousand
    becomes zero) stays float32, and is named in the notes. Integer buffers are not touched.

    Attributes:
        format: ``fp16``.
    """

    format: Literal["fp16"] = "fp16"

    def apply(self, model: Model, samples: Samples) -> Model:
        """Convert every float32 tensor that fits."""
        tensors = dict(model.tensors)
        for name, tensor in model.tensors.items():
            if not isinstance(tensor, QuantizedTensor) and tensor.dtype == np.float32:
                if not np.isfinite(tensor).all():
                    raise UsageError(f"the tensor {name} holds NaN or infinite values and cannot be converted")
                if _fits(tensor):
                    tensors[name] = tensor.astype(np.float16)
        if all(tensors[name] is model.tensors[name] for name in tensors):
            raise NoEffect("quantize.float: the model has no float32 tensor that half precision can hold")
        return dataclasses.replace(model, tensors=tensors)

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """Tensors left in float32."""
        kept = [
            name
            for name, tensor in after.tensors.items()
            if not isinstance(tensor, QuantizedTensor) and tensor.dtype == np.float32
        ]
        return (f"kept in float32: {', '.join(kept)}",) if kept else ()


def _fits(tensor: Array) -> bool:
    with np.errstate(over="ignore", under="ignore"):
        half = tensor.astype(np.float16)
    vanished = int(((half == 0) & (tensor != 0)).sum())
    return bool(np.isfinite(half).all()) and vanished * 1000 <= tensor.size
