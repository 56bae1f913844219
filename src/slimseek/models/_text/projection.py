"""A last linear map on a model's vectors: one more Dense module, or what the last one already is, multiplied."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np

from slimseek.integers import dequantize
from slimseek.models._text import files as text_files
from slimseek.schema import Array, Layer, Model, QuantizedTensor, Tensor

MODULES = "modules.json"
KIND = "sentence_transformers.models."
IDENTITY = "torch.nn.modules.linear.Identity"


def projected(model: Model, plan: text_files.Plan, matrix: Array) -> Model:
    """The model whose pooled vectors pass a linear layer without a bias before they are brought to length one.

    A last Dense module without an activation takes the map into its own weights; else a module is added.

    Args:
        model: of the transformer family.
        plan: what its ``modules.json`` asks for, or stands for it where there is none.
        matrix: float32 [dim after, dim before].
    """
    spec = msgspec.structs.replace(model.spec, dim=len(matrix))
    last = f"{plan.dense[-1]}/config.json" if plan.dense else ""
    config = text_files.json_of(model.files, last)
    name = f"dense.{len(plan.dense) - 1}.linear"
    linear = str(config.get("activation_function", "")).endswith("Identity")
    if linear and not isinstance(model.tensors[f"{name}.weight"], QuantizedTensor):
        tensors = {key: _multiplied(tensor, matrix) if key in (f"{name}.weight", f"{name}.bias") else tensor
                   for key, tensor in model.tensors.items()}  # fmt: skip
        files = dict(model.files) | {last: _json(config | {"out_features": len(matrix)})}
        return dataclasses.replace(model, spec=spec, files=files, tensors=tensors)
    name = f"dense.{len(plan.dense)}.linear"
    return dataclasses.replace(
        model,
        spec=spec,
        files=_with_module(model, plan, matrix),
        tensors=dict(model.tensors) | {f"{name}.weight": np.ascontiguousarray(matrix, np.float32)},
        layers=(*model.layers, Layer(name=name, kind="linear", weight=f"{name}.weight")),
    )


def _multiplied(tensor: Tensor, matrix: Array) -> Array:
    """A weight [outputs, inputs] or a bias [outputs], in its dtype."""
    assert not isinstance(tensor, QuantizedTensor)
    values = matrix.astype(np.float64) @ dequantize(tensor).astype(np.float64)
    return np.ascontiguousarray(values.astype(tensor.dtype))


def _with_module(model: Model, plan: text_files.Plan, matrix: Array) -> dict[str, bytes]:
    """The files with a Dense module behind the pooling and the Dense modules there are."""
    files = dict(model.files)
    modules = _listed(files) or _modules(files, plan, matrix.shape[1])
    at = 1 + max(place for place, module in enumerate(modules) if _kind(module) in ("Pooling", "Dense"))
    taken = {module["path"] for module in modules} | {name.partition("/")[0] for name in files}
    place = next(f"{number}_Dense" for number in range(at, at + len(taken) + 1) if f"{number}_Dense" not in taken)
    modules.insert(at, {"path": place, "type": f"{KIND}Dense"})
    files[MODULES] = _json([module | {"idx": number, "name": str(number)} for number, module in enumerate(modules)])
    outputs, inputs = matrix.shape
    files[f"{place}/config.json"] = _json(
        {"in_features": inputs, "out_features": outputs, "bias": False, "activation_function": IDENTITY}
    )
    return files


def _listed(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return msgspec.json.decode(files[MODULES], type=list[dict[str, Any]]) if MODULES in files else []


def _modules(files: dict[str, bytes], plan: text_files.Plan, width: int) -> list[dict[str, Any]]:
    """The list that a bare folder of transformers stands for; the mean, and its file, are added."""
    files["1_Pooling/config.json"] = _json({"word_embedding_dimension": width, "pooling_mode_mean_tokens": True})
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *([("Normalize", "2_Normalize")] if plan.normalise else [])]
    return [{"path": place, "type": f"{KIND}{kind}"} for kind, place in kinds]


def _kind(module: dict[str, Any]) -> str:
    return str(module["type"]).rpartition(".")[2]


def _json(content: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2)
