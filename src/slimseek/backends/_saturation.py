"""Whether this CPU adds products of unsigned and signed eight-bit numbers exactly.

Without VNNI, x86 has one instruction for them that adds two products in sixteen bits: 2 * 255 * 127 does not fit, and
the sum is cut off at 32767. Unsigned weights around 128 take another path, which is exact.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import msgspec
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from slimseek.schema import Array, QuantizedTensor

WIDTH = 64
MIDDLE = 128


@cache
def saturates() -> bool:
    """Tried on the worst case: inputs of 255, weights of 127 and -127, through ONNX Runtime's own kernel."""
    inputs = np.full((4, WIDTH), 255, np.uint8)
    weights = np.full((WIDTH, 32), 127, np.int8)
    weights[:, ::2] = -127
    return not np.array_equal(product(inputs, weights), inputs.astype(np.int32) @ weights.astype(np.int32))


def product(inputs: Array, weights: Array) -> Array:
    """Sums int32 [n, outputs] of uint8 [n, width] by int8 or uint8 [width, outputs], as ONNX Runtime computes them.

    Unsigned weights stand for themselves minus 128.
    """
    zero = np.full((), MIDDLE if weights.dtype == np.uint8 else 0, weights.dtype)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["inputs", "weights", "", "zero"], ["sums"])],
        "product",
        [helper.make_tensor_value_info("inputs", TensorProto.UINT8, ["n", inputs.shape[1]])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, None)],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(zero, "zero")],
    )
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {"inputs": inputs})[0]
    return result


def shifted(tensor: QuantizedTensor) -> QuantizedTensor:
    """The same values with signed eight-bit integers stored unsigned, around 128; unsigned ones as they are."""
    if tensor.zero_point is not None:
        return tensor
    return dataclasses.replace(
        tensor,
        spec=msgspec.structs.replace(tensor.spec, symmetric=False),
        integers=(tensor.integers.astype(np.int16) + MIDDLE).astype(np.uint8),
        zero_point=np.full_like(tensor.scale, MIDDLE, np.uint8),
    )


def middle(shape: tuple[int, ...], unsigned: bool) -> Array:
    """Zero points of eight-bit integers in the middle of their range."""
    return np.full(shape, MIDDLE, np.uint8) if unsigned else np.zeros(shape, np.int8)
