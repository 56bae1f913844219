"""Transformers whose layers are narrower than their configuration says: one that fits, or the shapes themselves."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from slimseek.models._text import files as text_files
from slimseek.schema import Model, QuantizedTensor, Tensor, is_float

CONFIG = "config.json"
WIDTHS = ("intermediate_size", "hidden_dim", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim")
"""Keys for the inner width of a block's feed-forward part."""
HEADS = ("num_attention_heads", "num_key_value_heads", "num_heads", "n_heads", "n_head", "encoder_attention_heads")
"""Keys, and attributes of attention modules, for a number of heads."""
QUERIES = ("query", "q", "q_lin", "q_proj", "Wqkv", "qkv_proj", "c_attn")
"""Names of the layers whose outputs are as wide as all heads of an attention module together, or three times so."""
ALL_HEADS = ("all_head_size", "inner_dim", "embed_dim")
"""Attributes of attention modules for the width of all heads together."""

NOISE = 1e-3

Shapes = Mapping[str, tuple[int, ...]]


def resized(model: Model, tensors: Mapping[str, Tensor], shapes: Callable[[Mapping[str, bytes]], Shapes]) -> Model:
    """The model with tensors of other shapes, and with a configuration that has them if there is one.

    Args:
        model: before.
        tensors: of the same names.
        shapes: those of the tensors of the network that some files describe.
    """
    for files in _candidates(model, tensors):
        try:
            fits = fit(tensors, shapes(files))
        except Exception:  # a configuration with numbers that the architecture refuses is no candidate
            continue
        if fits:
            return dataclasses.replace(model, files=files, tensors=tensors)
    return dataclasses.replace(model, tensors=tensors)


def told_apart(model: Model) -> Model:
    """The model with a little noise on every float tensor that is one number throughout, or equal to another; itself
    where there is none.
    """
    generator = np.random.default_rng(0)
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    changed: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        if isinstance(tensor, QuantizedTensor) or not is_float(tensor):
            continue
        content = tensor.shape, hashlib.blake2b(np.ascontiguousarray(tensor).tobytes(), digest_size=16).digest()
        if content in seen or (tensor.size and tensor.min() == tensor.max()):
            changed[name] = tensor + generator.normal(0, NOISE, tensor.shape).astype(tensor.dtype)
        seen.add(content)
    return dataclasses.replace(model, tensors={**model.tensors, **changed}) if changed else model


def fit(tensors: Mapping[str, Tensor], shapes: Shapes) -> bool:
    """Whether every tensor has the shape that it should have."""
    return all(tuple(tensor.shape) == shapes.get(name) for name, tensor in tensors.items())


def _candidates(model: Model, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, bytes]]:
    """Files whose configuration says the new widths, Dense modules among them; the feed-forward parts first."""
    files = dict(model.files)
    for number, place in enumerate(text_files.plan(files, Path("model")).dense):
        weight = tensors.get(f"dense.{number}.linear.weight")
        name = f"{place}/{CONFIG}"
        if weight is not None and name in files:
            outputs, inputs = weight.shape
            files[name] = _with(files[name], {"in_features": inputs, "out_features": outputs})
    written = msgspec.json.decode(files[CONFIG])
    changed = [(before.shape, tensors[name].shape) for name, before in model.tensors.items()
               if tuple(tensors[name].shape) != tuple(before.shape)]  # fmt: skip
    narrower = {(old, new) for one, other in changed for old, new in zip(one, other, strict=True) if old != new}
    inner = {key: new for key in WIDTHS for old, new in narrower if written.get(key) == old}
    heads = {key: round(written[key] * new / old) for key in HEADS if isinstance(written.get(key), int)
             for old, new in narrower}  # fmt: skip
    for change in (inner, heads, inner | heads, {}):
        yield files | {CONFIG: _with(files[CONFIG], change)}


def _with(content: bytes, change: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(msgspec.json.decode(content) | dict(change)), indent=2)


def widen_(network: nn.Module, shapes: Shapes) -> None:
    """Give each parameter the shape of its tensor, and modules the widths and numbers of heads that follow."""
    for name, module in network.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            shape = shapes.get(f"{name}.{key}")
            if shape is not None and tuple(parameter.shape) != tuple(shape):
                setattr(module, key, nn.Parameter(torch.empty(shape), requires_grad=parameter.requires_grad))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif hasattr(module, "nf") and hasattr(module, "weight"):  # transformers' Conv1D
            module.nx, module.nf = module.weight.shape
        elif isinstance(module, nn.Embedding):
            module.num_embeddings, module.embedding_dim = module.weight.shape
    for module in network.modules():
        _set_heads_(module)


def _set_heads_(module: nn.Module) -> None:
    """The number of heads of an attention module by the width of what makes its queries."""
    queries = next((child for name, child in module.named_children() if name in QUERIES), None)
    width, size = _outputs(queries), _head_size(module)
    if width is None or size is None:
        return
    parts = 3 if width % (3 * size) == 0 and hasattr(module, "Wqkv") else 1
    heads = width // parts // size
    before = next((getattr(module, key) for key in HEADS if isinstance(getattr(module, key, None), int)), heads)
    if heads == before:
        return
    for key in HEADS:
        if isinstance(getattr(module, key, None), int):
            setattr(module, key, round(getattr(module, key) * heads / before))
    for key in ALL_HEADS:
        if getattr(module, key, None) == before * size:
            setattr(module, key, heads * size)


def _outputs(layer: nn.Module | None) -> int | None:
    return getattr(layer, "out_features", None) or getattr(layer, "nf", None)


def _head_size(module: nn.Module) -> int | None:
    for key in ("attention_head_size", "head_dim", "key_value_proj_dim"):
        if isinstance(getattr(module, key, None), int):
            return int(getattr(module, key))
    return None
