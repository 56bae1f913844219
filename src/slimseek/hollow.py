"""Tensors that hold nothing worth reading: the shape, dtype and bytes of real ones, without their memory.

A plan's size is known from them before anything is computed (see :meth:`slimseek.bases.Step.outline`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from slimseek.schema import Array, Model, QuantizedTensor, Tensor


def array(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of ones that takes one number's memory; its ``nbytes`` are those of a real one. It cannot be written."""
    hollow: Array = np.broadcast_to(np.ones((), dtype), shape)
    return hollow


def is_hollow(values: Array) -> bool:
    """Whether an array of more than one number is one number throughout, kept once."""
    return values.size > 1 and not any(values.strides)


def tensor(given: Tensor) -> Tensor:
    """The same form with nothing worth reading in it."""
    if not isinstance(given, QuantizedTensor):
        return array(given.shape, given.dtype)
    parts: dict[str, Any] = {
        field.name: array(part.shape, part.dtype)
        for field in dataclasses.fields(given)
        if isinstance(part := getattr(given, field.name), np.ndarray)
    }
    return dataclasses.replace(given, **parts)


def model(changed: Model, before: Model) -> Model:
    """The changed model, with hollow tensors in the place of those that the model before does not have."""
    known = {id(one) for one in before.tensors.values()}
    tensors = {name: one if id(one) in known else tensor(one) for name, one in changed.tensors.items()}
    return dataclasses.replace(changed, tensors=tensors)
