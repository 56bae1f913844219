"""What a model is once weights are integers, before any is rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from slimseek import outline as outlines
from slimseek.schema import Model, QuantSpec, Tensor


def rounded(model: Model, specs: Mapping[str, QuantSpec]) -> Model:
    """The model with tensors in the form of these specs, by name, that hold nothing worth reading."""
    tensors: dict[str, Tensor] = dict(model.tensors)
    for name, spec in specs.items():
        tensors[name] = outlines.quantized(tensors[name].shape, spec)
    return dataclasses.replace(model, tensors=tensors)
