"""Whole blocks of a transformer leave it: half of the depth is half of the time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from slimseek import integers, plugins
from slimseek.errors import NoEffect, UsageError
from slimseek.schema import Layer, Model, Samples, Step

CONFIG = "config.json"
PER_LAYER = ("layer", "attention_window")
"""Parts of the names of those lists in a configuration that have an entry for each block."""


class LayerPruning(Step, frozen=True, kw_only=True):
    """Keep some blocks of a transformer and close the gaps; the configuration says the new depth.

    What is left gives other vectors than before, until a step such as ``distil.embedding`` trains it.

    Attributes:
        keep: numbers of the blocks to keep, from 0, ascending; or how many, evenly spaced with the first and the last
            among them; ``None`` for half of them, rounded up.
    """

    keep: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.keep, tuple):
            if not self.keep:
                raise UsageError("prune.layers: keep is empty; at least one block must stay")
            if any(low >= high for low, high in zip(self.keep, self.keep[1:], strict=False)):
                raise UsageError(f"prune.layers: keep is {list(self.keep)}; each block once and ascending is allowed")

    def apply(self, model: Model, samples: Samples) -> Model:
        """Drop the other blocks' tensors, renumber the rest, and rewrite the configuration."""
        if model.spec.family != "transformer":
            raise UsageError(
                f"prune.layers: blocks are known of the family transformer; this model is of {model.spec.family}"
            )
        integers.check_finite(model, "pruned")
        config = _resolved(model)
        depth = int(config.num_hidden_layers)
        blocks = _blocks(model, depth)
        kept = self._kept(depth)
        if len(kept) == depth:
            raise NoEffect(f"prune.layers: keep is all of the {depth} blocks")
        places = {old: new for new, old in enumerate(kept)}
        _check_exchangeable(model, blocks, places)

        def renamed(named: Mapping[str, Any]) -> dict[str, Any]:
            found = ((_renamed(name, blocks, places), value) for name, value in named.items())
            return {name: value for name, value in found if name}

        layers = [_renamed_layer(layer, blocks, places) for layer in model.layers]
        return dataclasses.replace(
            model,
            files=dict(model.files) | {CONFIG: _rewritten(model.files[CONFIG], config, kept)},
            tensors=renamed(model.tensors),
            layers=tuple(layer for layer in layers if layer is not None),
            activations=renamed(model.activations),
            smoothing=renamed(model.smoothing),
        )

    def notes(self, before: Model, after: Model) -> tuple[str, ...]:
        """Which block became which."""
        depth = int(_resolved(before).num_hidden_layers)
        kept = self._kept(depth)
        places = ", ".join(f"{old} -> {new}" for new, old in enumerate(kept))
        gone = ", ".join(str(old) for old in range(depth) if old not in kept)
        return (f"blocks kept (old -> new): {places}; dropped: {gone}",)

    def _kept(self, depth: int) -> tuple[int, ...]:
        """Numbers of the blocks to keep of so many."""
        if isinstance(self.keep, tuple):
            if self.keep[0] < 0 or self.keep[-1] >= depth:
                raise UsageError(f"prune.layers: keep is {list(self.keep)}; blocks 0 to {depth - 1} are there")
            return self.keep
        count = (depth + 1) // 2 if self.keep is None else self.keep
        if not 1 <= count <= depth:
            raise UsageError(f"prune.layers: keep is {count}; 1 to {depth} blocks can be kept")
        return tuple(place * (depth - 1) // max(1, count - 1) for place in range(count))


def _resolved(model: Model) -> Any:
    """The configuration as transformers completes it: per-layer lists that the file leaves out are there."""
    return plugins.require("transformers").AutoConfig.for_model(**msgspec.json.decode(model.files[CONFIG]))


def _blocks(model: Model, depth: int) -> str:
    """What the names of the blocks' tensors begin with, before the block's number."""
    numbers: dict[str, set[int]] = {}
    for name in model.tensors:
        parts = name.split(".")
        place = next((place for place, part in enumerate(parts) if part.isdigit()), None)
        if place is not None and parts[0] == "transformer":
            numbers.setdefault(".".join(parts[:place]), set()).add(int(parts[place]))
    found = [start for start, those in numbers.items() if those == set(range(depth))]
    if len(found) != 1:
        counted = ", ".join(f"{len(those)} of {start}" for start, those in numbers.items()) or "none"
        raise UsageError(
            f"prune.layers: {CONFIG} says {depth} blocks, and the tensors are numbered otherwise ({counted})"
        )
    return found[0]


def _check_exchangeable(model: Model, blocks: str, places: Mapping[int, int]) -> None:
    """Refuse a block in a place where the architecture wants other tensors, such as the first that has no norm."""
    content: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in model.tensors.items():
        if name.startswith(f"{blocks}."):
            number, _, rest = name.removeprefix(f"{blocks}.").partition(".")
            content.setdefault(number, {})[rest] = tensor.shape
    for old, new in places.items():
        mine, wanted = content[str(old)].items(), content[str(new)].items()
        if mine != wanted:
            name = min(dict(mine ^ wanted))
            raise UsageError(
                f"prune.layers: block {old} cannot take the place of block {new}: they differ in {name}; keep {new}"
            )


def _renamed(name: str, blocks: str, places: Mapping[int, int]) -> str:
    """The name with the block's new number, ``""`` for a dropped block."""
    if not name.startswith(f"{blocks}."):
        return name
    number, _, rest = name.removeprefix(f"{blocks}.").partition(".")
    return f"{blocks}.{places[int(number)]}.{rest}" if int(number) in places else ""


def _renamed_layer(layer: Layer, blocks: str, places: Mapping[int, int]) -> Layer | None:
    name, weight = (_renamed(part, blocks, places) for part in (layer.name, layer.weight))
    bias = _renamed(layer.bias, blocks, places) if isinstance(layer.bias, str) else layer.bias
    return msgspec.structs.replace(layer, name=name, weight=weight, bias=bias) if name else None


def _rewritten(content: bytes, config: Any, kept: Sequence[int]) -> bytes:
    """config.json with the new depth under its own key, and the entries of the kept blocks in per-layer lists."""
    depth, written = config.num_hidden_layers, msgspec.json.decode(content)
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == depth and any(part in key for part in PER_LAYER):
            written[key] = [value[old] for old in kept]
    written.pop("num_hidden_layers", None)
    written[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    return msgspec.json.format(msgspec.json.encode(written), indent=2)
