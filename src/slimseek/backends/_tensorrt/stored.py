"""The weights of a TensorRT package, read back out of its graph."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from slimseek.backends._tensorrt.package import Stored
from slimseek.schema import Array

SUFFIXES = ("", ".T")


def stored(graph: onnx.ModelProto, weights: Mapping[str, Stored]) -> dict[str, Array]:
    """The artifact's integers by name, int8 or uint8 in its orientation; eight-bit floats as the float32 they mean."""
    constants = {constant.name: constant for constant in graph.graph.initializer}
    found = {}
    for name, one in weights.items():
        for suffix in SUFFIXES:
            integers = constants.get(f"{name}.integers{suffix}")
            if integers is not None:
                values = numpy_helper.to_array(integers).astype(np.int16)
                found[name] = _as_in_the_artifact(values.T if suffix else values, one)
            codes = constants.get(f"{name}.float8{suffix}", constants.get(f"{name}.float16{suffix}"))
            if codes is not None:
                scale = numpy_helper.to_array(constants[f"{name}.scale{suffix}"])
                found[name] = _floats(numpy_helper.to_array(codes), scale, one, transposed=bool(suffix))
    return found


def _as_in_the_artifact(values: Array, one: Stored) -> Array:
    """Without what filled groups up, in the artifact's shape, and unsigned again where it is."""
    spec, shape = one.spec, one.shape
    signed = spec.symmetric and not spec.entries
    if spec.entries:
        values = np.moveaxis(values, 0, spec.axis if spec.granularity == "channel" else 0)
    elif values.ndim != len(shape):  # a kernel in groups, which stands there as a matrix
        moved = (shape[spec.axis], *shape[: spec.axis], *shape[spec.axis + 1 :])
        values = np.moveaxis(values[:, : math.prod(moved[1:])].reshape(moved), 0, spec.axis)
    values = values[tuple(slice(size) for size in shape)]
    return values.astype(np.int8) if signed else (values + 2 ** (spec.bits - 1)).astype(np.uint8)


def _floats(codes: Array, scale: Array, one: Stored, transposed: bool) -> Array:
    axis = 1 - one.spec.axis if transposed else one.spec.axis
    if scale.ndim == 1 and scale.size > 1:
        scale = scale.reshape([-1 if place == axis else 1 for place in range(codes.ndim)])
    values: Array = codes.astype(np.float32) * scale.astype(np.float32)
    return values.T if transposed else values
