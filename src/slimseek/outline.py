"""Quantized tensors in outline: the shape, bits and bytes of real ones, without their memory."""

from __future__ import annotations

import numpy as np

from slimseek import hollow, integers
from slimseek.schema import QuantizedTensor, QuantSpec


def quantized(shape: tuple[int, ...], spec: QuantSpec) -> QuantizedTensor:
    """A tensor of this spec that takes no memory and holds nothing worth reading. Scales of groups are float16, as they
    are unless one of them is too small or too large for that; code books are float32.

    Raises:
        UsageError: no tensor of this shape can be stored so.
    """
    kind = integers.FLOAT8[spec.float8] if spec.float8 else np.int8 if spec.symmetric and not spec.entries else np.uint8
    codes = hollow.array(shape, kind)
    if spec.entries:
        codebook = hollow.array(integers.codebook_shape(shape, spec), np.float32)
        return QuantizedTensor(spec=spec, integers=codes, scale=np.ones((1, 1), np.float32), codebook=codebook)
    scales = integers.scale_shape(shape, spec)
    return QuantizedTensor(
        spec=spec,
        integers=codes,
        scale=hollow.array(scales, np.float16 if spec.granularity == "group" else np.float32),
        zero_point=None if spec.symmetric else hollow.array(scales, np.uint8),
    )
