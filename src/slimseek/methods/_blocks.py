"""The blocks of a transformer: how many, what their tensors are called, and the model with some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from slimseek import plugins
from slimseek.errors import UsageError
from slimseek.schema import Layer, Model, Tensor

CONFIG, GENERATION = "config.json", "generation_config.json"
DECODER, DECODER_DEPTH = "model.decoder.layers", "decoder_layers"
"""What the names of a recogniser's blocks begin with, and where its configuration says how many: those of its decoder,
which runs once for every token.
"""
WHISPER = "whisper"
PER_LAYER = ("layer", "attention_window")
"""Parts of the names of those lists in a configuration that have an entry for each block."""


def depth(model: Model) -> int:
    """How many blocks the configuration of a transformer says; of a recogniser those of its decoder."""
    if model.spec.family == WHISPER:
        return int(msgspec.json.decode(model.files[CONFIG])[DECODER_DEPTH])
    return int(_resolved(model).num_hidden_layers)


def evenly(whole: int, count: int) -> tuple[int, ...]:
    """Numbers of so many blocks, evenly spaced with the first and the last among them."""
    return tuple(place * (whole - 1) // max(1, count - 1) for place in range(count))


def kept_only(model: Model, kept: Sequence[int]) -> Model:
    """The transformer with these blocks alone, renumbered, and with a configuration that says so.

    Args:
        model: of the transformer family, or a recogniser, whose decoder is meant.
        kept: numbers of blocks, ascending.

    Raises:
        UsageError: the blocks cannot be told from the names of tensors, are tied, or one cannot take another's place.
    """
    if model.spec.family == WHISPER:
        blocks, files = DECODER, _shallower(model.files, kept)
    else:
        check_untied(model, "leave blocks out")
        config = _resolved(model)
        blocks, files = (
            prefix(model, int(config.num_hidden_layers)),
            {CONFIG: _rewritten(model.files[CONFIG], config, kept)},
        )
    places = {old: new for new, old in enumerate(kept)}
    _check_exchangeable(model, blocks, places)

    def renamed(named: Mapping[str, Any]) -> dict[str, Any]:
        found = ((_renamed(name, blocks, places), value) for name, value in named.items())
        return {name: value for name, value in found if name}

    layers = [_renamed_layer(layer, blocks, places) for layer in model.layers]
    return dataclasses.replace(
        model,
        files=dict(model.files) | files,
        tensors=renamed(model.tensors),
        layers=tuple(layer for layer in layers if layer is not None),
        activations=renamed(model.activations),
        smoothing=renamed(model.smoothing),
    )


def _resolved(model: Model) -> Any:
    """The configuration as transformers completes it: per-layer lists that the file leaves out are there."""
    return plugins.require("transformers").AutoConfig.for_model(**msgspec.json.decode(model.files[CONFIG]))


def prefix(model: Model, whole: int) -> str:
    """What the names of the blocks' tensors begin with, before the block's number.

    Args:
        model: of the transformer family.
        whole: how many blocks there are.

    Raises:
        UsageError: no tensors, or several kinds, are numbered so.
    """
    numbers: dict[str, set[int]] = {}
    for name in model.named:
        parts = name.split(".")
        place = next((place for place, part in enumerate(parts) if part.isdigit()), None)
        if place is not None and parts[0] == "transformer":
            numbers.setdefault(".".join(parts[:place]), set()).add(int(parts[place]))
    found = [start for start, those in numbers.items() if those == set(range(whole))]
    if len(found) != 1:
        counted = ", ".join(f"{len(those)} of {start}" for start, those in numbers.items()) or "none"
        raise UsageError(f"{CONFIG} says {whole} blocks, and the tensors are numbered otherwise ({counted})")
    return found[0]


def contents(model: Model, blocks: str) -> dict[int, dict[str, Tensor]]:
    """The tensors of each block by what stands behind the block's number in their names.

    Args:
        model: of the transformer family.
        blocks: what :func:`prefix` gives.
    """
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in model.named.items():
        if name.startswith(f"{blocks}."):
            number, _, rest = name.removeprefix(f"{blocks}.").partition(".")
            found.setdefault(int(number), {})[rest] = tensor
    return found


def check_untied(model: Model, verb: str) -> None:
    """Refuse a model whose blocks use the same tensors: what leaves one of them would leave all.

    Raises:
        UsageError: names the first of the tensors; ``verb`` says what to do before blocks are tied.
    """
    for name, own in model.tied.items():
        raise UsageError(f"{name} is the same tensor as {own} (simplify.tie); {verb} before that")


def _check_exchangeable(model: Model, blocks: str, places: Mapping[int, int]) -> None:
    """Refuse a block in a place where the architecture wants other tensors, such as the first that has no norm."""
    content = contents(model, blocks)
    for old, new in places.items():
        mine, wanted = ({rest: tensor.shape for rest, tensor in content[place].items()}.items() for place in (old, new))
        if mine != wanted:
            name = min(dict(mine ^ wanted))
            raise UsageError(f"block {old} cannot take the place of block {new}: they differ in {name}; keep {new}")


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


def _shallower(files: Mapping[str, bytes], kept: Sequence[int]) -> dict[str, bytes]:
    """A recogniser's configuration with the new depth of its decoder; heads that follow the time, by which transformers
    finds when a word was said, are renumbered with their blocks.
    """
    config = msgspec.json.decode(files[CONFIG]) | {DECODER_DEPTH: len(kept)}
    found = {CONFIG: config}
    if GENERATION in files:
        generation = msgspec.json.decode(files[GENERATION])
        heads = generation.get("alignment_heads")
        if heads:
            generation["alignment_heads"] = [[kept.index(block), head] for block, head in heads if block in kept]
        found[GENERATION] = generation
    return {name: msgspec.json.format(msgspec.json.encode(value), indent=2) for name, value in found.items()}


def _rewritten(content: bytes, config: Any, kept: Sequence[int]) -> bytes:
    """config.json with the new depth under its own key, and the entries of the kept blocks in per-layer lists."""
    depth, written = config.num_hidden_layers, msgspec.json.decode(content)
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == depth and any(part in key for part in PER_LAYER):
            written[key] = [value[old] for old in kept]
    written.pop("num_hidden_layers", None)
    written[config.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(kept)
    return msgspec.json.format(msgspec.json.encode(written), indent=2)
