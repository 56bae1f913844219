"""A transformer of the same family with fewer channels: which axes of its tensors follow, and which channels stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import transformers

from slimseek.errors import UsageError
from slimseek.integers import dequantize
from slimseek.models._text import files as text_files
from slimseek.models._text.widths import CONFIG, WIDTHS
from slimseek.schema import Array, Model, QuantizedTensor, Tensor, Widths

QUERIES_KEYS_VALUES = ("query", "key", "value", "q", "k", "v", "q_lin", "k_lin", "v_lin", "q_proj", "k_proj", "v_proj",
                       "Wqkv", "qkv_proj")  # fmt: skip
"""Names of the layers whose outputs are those of all heads."""
OUTPUTS = ("attention.output.dense", "attention.out_lin", "attn.o", "attn.Wo", "o_proj", "out_proj")
"""Ends of the names of the layers whose inputs are those of all heads."""
INNER_STEP = 8
Shapes = Mapping[str, tuple[int, ...]]
ShapesOf = Callable[[Mapping[str, bytes]], Shapes]
Axis = tuple[str, int]
"""What an axis follows (``channels``, widths of ``heads``, their number ``head``, ``inner``), and how many times."""


def widths(files: Mapping[str, bytes]) -> Widths:
    """What the configuration says.

    Raises:
        UsageError: it names no width of the feed-forward part, or its heads are not as wide as its channels together.
    """
    config, inner = _config(files)
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    if not inner:
        raise UsageError(f"{CONFIG} names no width of the feed-forward part ({', '.join(WIDTHS)})")
    grouped = getattr(config, "num_key_value_heads", None) not in (None, heads)
    if hidden % heads or grouped or getattr(config, "head_dim", None) not in (None, hidden // heads):
        raise UsageError(f"{CONFIG} has {heads} heads and {hidden} channels, which do not go together one to one")
    return Widths(layers=int(config.num_hidden_layers), hidden=hidden, heads=heads, inner=getattr(config, inner))


def described(model: Model, hidden: int, inner: int) -> dict[str, bytes]:
    """The files of a model with other widths, its heads as wide as before, Dense modules and pooling among them."""
    files, now = dict(model.files), widths(model.files)
    config, inner_key = _config(files)
    written = msgspec.json.decode(files[CONFIG])
    heads = hidden * now.heads // now.hidden
    for key, value in (("hidden_size", hidden), ("num_attention_heads", heads), ("num_key_value_heads", heads)):
        name = config.attribute_map.get(key, key)
        if name in written or key != "num_key_value_heads":
            written[name] = value
    written[inner_key] = inner
    files[CONFIG] = _json(written)
    plan = text_files.plan(files, Path("model"))
    for place, key in ((plan.pooling, "word_embedding_dimension"), *((name, "in_features") for name in plan.dense[:1])):
        name = f"{place}/{CONFIG}"
        if name in files and text_files.json_of(files, name).get(key) == now.hidden:
            files[name] = _json(text_files.json_of(files, name) | {key: hidden})
    return files


def narrowed(model: Model, hidden: int, inner: int, shapes: ShapesOf) -> Model:
    """The model with the channels, heads and inner units that weigh most, each with the weights it has.

    A channel weighs, summed over all tensors that have it, its share of the tensor's squares; heads and inner units
    are chosen in each block by the same of its own tensors.

    Args:
        model: float, neither smoothed nor rounded.
        hidden: channels that are left, a multiple of the width of a head.
        inner: units of the feed-forward part that are left.
        shapes: those of the tensors of the network that some files describe.

    Raises:
        UsageError: the family or this configuration does not follow such a change.
    """
    now, files = widths(model.files), described(model, hidden, inner)
    axes = {name: _axes(name, tensor.shape, now, probes)
            for probes in [_probed(model, now, shapes)] for name, tensor in model.tensors.items()}  # fmt: skip
    left = {"channels": hidden, "heads": hidden * now.heads // now.hidden, "inner": inner}
    kept: dict[tuple[str, str], Array] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.tensors.items():
        assert not isinstance(tensor, QuantizedTensor)
        values: Array = tensor
        for place, axis in enumerate(axes[name]):
            if axis is not None:
                values = np.take(values, _places(model, name, axis, axes, left, kept, now), place)
        tensors[name] = np.ascontiguousarray(values)
    wanted = shapes(files)
    odd = next((name for name, tensor in tensors.items() if tensor.shape != wanted.get(name)), None)
    if odd is not None:
        raise UsageError(f"{odd} would be {list(tensors[odd].shape)}, and the architecture has {wanted.get(odd)}")
    has_dense = bool(text_files.plan(files, Path("model")).dense)
    spec = model.spec if has_dense else msgspec.structs.replace(model.spec, dim=hidden)
    return dataclasses.replace(model, spec=spec, files=files, tensors=tensors)


def _config(files: Mapping[str, bytes]) -> tuple[Any, str]:
    """The configuration as transformers completes it, and its key for the inner width, ``""`` without one."""
    config = transformers.AutoConfig.for_model(**msgspec.json.decode(files[CONFIG]))
    return config, next((key for key in WIDTHS if isinstance(getattr(config, key, None), int)), "")


def _probed(model: Model, now: Widths, shapes: ShapesOf) -> tuple[Shapes, Shapes]:
    """Shapes with one head more, and with a wider feed-forward part: what differs is what follows."""
    wider = now.hidden + now.hidden // now.heads
    return (shapes(described(model, wider, now.inner)), shapes(described(model, now.hidden, now.inner + INNER_STEP)))


def _axes(name: str, shape: tuple[int, ...], now: Widths, probes: tuple[Shapes, Shapes]) -> list[Axis | None]:
    """What each axis of a tensor follows; ``None`` where it stays."""
    found: list[Axis | None] = []
    stem, _, _ = name.rpartition(".")
    for place, size in enumerate(shape):
        if probes[1][name][place] != size:
            found.append(("inner", size // now.inner))
        elif probes[0][name][place] == size:
            found.append(None)
        elif size == now.heads and probes[0][name][place] == size + 1:
            found.append(("head", 1))
        else:
            queries = place == 0 and stem.rpartition(".")[2] in QUERIES_KEYS_VALUES
            outputs = place == 1 and stem.endswith(OUTPUTS)
            found.append(("heads" if queries or outputs else "channels", size // now.hidden))
    return found


def _places(
    model: Model, name: str, axis: Axis, axes: Mapping[str, list[Axis | None]], left: Mapping[str, int],
    kept: dict[tuple[str, str], Array], now: Widths,
) -> Array:  # fmt: skip
    """Positions along an axis that stay, ascending."""
    kind, times = axis
    block = "" if kind == "channels" else _block(name)
    group = "heads" if kind == "head" else kind
    width = now.hidden // now.heads if kind == "heads" else 1
    whole = {"channels": now.hidden, "heads": now.heads, "inner": now.inner}[group]
    if (group, block) not in kept:
        alike = [other for other in axes if kind == "channels" or _block(other) == block]
        scores = _scores(model, alike, axes, group, whole)
        kept[group, block] = np.sort(np.argsort(-scores, kind="stable")[: left[group]])
    units = kept[group, block]
    inside = (units[:, None] * width + np.arange(width)).reshape(-1)
    return (np.arange(times)[:, None] * whole * width + inside).reshape(-1)


def _scores(model: Model, names: Iterable[str], axes: Mapping[str, list[Axis | None]], group: str, whole: int) -> Array:
    """Float64 [whole]: the sum over tensors of each unit's share of the tensor's squares."""
    scores = np.zeros(whole)
    for name in names:
        for place, axis in enumerate(axes[name]):
            if axis is None or axis[0].rstrip("s") != group.rstrip("s"):
                continue
            squares = np.square(dequantize(model.tensors[name]).astype(np.float64))
            along = squares.sum(axis=tuple(other for other in range(squares.ndim) if other != place))
            sums = along.reshape(axis[1], whole, -1).sum((0, 2))
            scores += sums / max(sums.sum(), 1e-30)
    return scores


def _block(name: str) -> str:
    """What a tensor's name begins with up to the number of its block; ``""`` outside of blocks."""
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return "" if place is None or parts[0] != "transformer" else ".".join(parts[: place + 1])


def _json(content: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2)
