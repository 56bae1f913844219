"""Whether every integer of a model has a place in the graph that a runtime gets."""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto

from slimseek.errors import SlimseekError
from slimseek.integers import is_integer, is_shared
from slimseek.schema import Model


def check_places(graph: onnx.ModelProto, model: Model) -> None:
    """Refuse a graph in which integers would not be used, so that no float weight is shipped as a quantized one.

    A tensor that the vector does not need may be missing. One that is missing while a float constant of its size
    stands there under a name of its own was changed on the way (a constant folded into it, say).

    Args:
        graph: the float graph, weights under their tensors' names.
        model: the integers.

    Raises:
        SlimseekError: names the tensor.
    """
    constants = {tensor.name.partition("#")[0]: tensor for tensor in graph.graph.initializer}
    strangers = {
        math.prod(tensor.dims)
        for name, tensor in constants.items()
        if tensor.data_type == TensorProto.FLOAT and name not in model.tensors
    }
    for name, tensor in model.tensors.items():
        if (is_integer(tensor) or is_shared(tensor)) and name not in constants and math.prod(tensor.shape) in strangers:
            raise SlimseekError(
                f"the exported graph holds {name} under another name or with other values, so its integers would not "
                f"be used; skip this layer"
            )
