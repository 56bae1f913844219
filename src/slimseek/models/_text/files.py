"""What the folders of text encoders have in common: tokenizer, longest sequence, prompts, pooling."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import normalizers

from slimseek import reading
from slimseek.errors import UsageError
from slimseek.inputs.text import TOKENIZER, tokenizer_of
from slimseek.preprocess import TextPreprocess
from slimseek.schema import TensorSpec

PROMPTS = "config_sentence_transformers.json"
KEPT_SUFFIXES = (".json", ".txt", ".model")
BLOCKS = ("num_hidden_layers", "encoder_layers", "decoder_layers")
MOST_BLOCKS = 1000
"""Of a network; a damaged file that names billions would be built for ever."""
LARGEST_SMALL_FILE = 64 * 1024 * 1024
UNLIMITED = 10**6
INPUTS = tuple(
    TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in ("input_ids", "attention_mask")
)
POOLING_KEYS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}
POSITIONS = 512
POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "mpnet", "camembert")


class _Module(msgspec.Struct):
    """An entry of ``modules.json``."""

    type: str
    path: str


class Plan(msgspec.Struct, frozen=True):
    """What ``modules.json`` asks for: folders of the transformer, the pooling and the Dense layers."""

    transformer: str
    pooling: str
    dense: tuple[str, ...]
    normalise: bool


def check_blocks(config: Any, source: object) -> None:
    """UsageError for a configuration of transformers that asks for more blocks than any network has."""
    for name in BLOCKS:
        if getattr(config, name, 0) > MOST_BLOCKS:
            raise UsageError(f"{source}: {name} is {getattr(config, name)}; up to {MOST_BLOCKS:,} are built")


def small_files(folder: Path, subfolders: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Configuration and tokenizer files of the folder and of the named subfolders, path to content."""
    files = {}
    for place in (folder, *(folder / name for name in subfolders if name and os.path.isdir(folder / name))):
        for path in sorted(place.iterdir()):
            if path.suffix in KEPT_SUFFIXES and path.is_file() and not path.name.endswith(".index.json"):
                if path.stat().st_size > LARGEST_SMALL_FILE:
                    raise UsageError(f"{path} has {path.stat().st_size} bytes; a configuration file is smaller")
                files[path.relative_to(folder).as_posix()] = path.read_bytes()
    return files


def json_of(files: Mapping[str, bytes], path: str) -> dict[str, Any]:
    """A JSON object among the files, ``{}`` if the file is absent.

    Raises:
        UsageError: it is not a JSON object.
    """
    if path not in files:
        return {}
    try:
        return dict(reading.decoded(files[path], dict))
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is not a JSON object: {error}") from error


def tokenizer_without_padding(content: bytes, lower_case: bool = False) -> bytes:
    """tokenizer.json with fixed padding and truncation taken out, so that no user of the file pads to 128 tokens.

    Raises:
        UsageError: the tokenizers library cannot read it.
    """
    tokenizer = tokenizer_of(content)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if lower_case:
        steps = [normalizers.Lowercase(), *([tokenizer.normalizer] if tokenizer.normalizer else [])]
        tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer.to_str().encode()


def preprocess(files: Mapping[str, bytes], positions: int, token_table: str | None) -> TextPreprocess:
    """Longest sequence, padding and prompts as the folder's files give them.

    Args:
        files: the folder's small files; ``tokenizer.json`` among them.
        positions: the most tokens that the model has positions for.
        token_table: name of the tensor with one row a token.
    """
    sentence = json_of(files, "sentence_bert_config.json")
    tokenizer = json_of(files, "tokenizer_config.json")
    lengths = [sentence.get("max_seq_length"), tokenizer.get("model_max_length"), positions]
    prompts = json_of(files, PROMPTS).get("prompts") or {}
    return TextPreprocess(
        max_length=min(int(length) for length in lengths if length and length < UNLIMITED),
        pad_id=pad_id(files),
        query_prefix=prompts.get("query", ""),
        document_prefix=prompts.get("document", prompts.get("passage", "")),
        token_table=token_table,
    )


def positions(model_type: str, most: int | None, pad_id: int | None) -> int:
    """Tokens that a configuration has positions for: RoBERTa and MPNet lose those up to the padding id."""
    offset = (pad_id or 0) + 1 if model_type in POSITIONS_AFTER_PADDING else 0
    return int(most or POSITIONS) - offset


def plan(files: Mapping[str, bytes], path: Path) -> Plan:
    """Read ``modules.json``; a bare transformers folder has no pooling, and its vectors are compared by the cosine.

    Raises:
        UsageError: it is not valid, lacks a module, or asks for one that is not known.
    """
    similarity = json_of(files, PROMPTS).get("similarity_fn_name")
    cosine = similarity in (None, "cosine")
    if "modules.json" not in files:
        return Plan(transformer="", pooling="", dense=(), normalise=cosine)
    try:
        modules = reading.decoded(files["modules.json"], list[_Module])
        kinds = [(module.type.rpartition(".")[2], module.path) for module in modules]
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path}: modules.json is not valid ({error})") from error
    places = {kind: place for kind, place in kinds if kind in ("Transformer", "Pooling")}
    unknown = [kind for kind, _ in kinds if kind not in ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")]
    if unknown:
        raise UsageError(
            f"{path}: modules.json asks for {', '.join(unknown)}; Transformer, Pooling, Dense, Normalize work"
        )
    elsewhere = [place for _, place in kinds if not reading.is_inside(path / place, path)]
    if elsewhere:
        raise UsageError(f"{path}: modules.json names {elsewhere[0]!r}, which lies outside of the folder")
    missing = {"Transformer", "Pooling"} - set(places)
    if missing:
        raise UsageError(f"{path}: modules.json lacks {' and '.join(sorted(missing))}")
    return Plan(
        transformer=places["Transformer"],
        pooling=places["Pooling"],
        dense=tuple(place for kind, place in kinds if kind == "Dense"),
        normalise=cosine or any(kind == "Normalize" for kind, _ in kinds),
    )


def pooling(files: Mapping[str, bytes], place: str, path: Path) -> str:
    """How tokens are pooled: ``mean``, ``cls``, ``max`` or ``lasttoken``.

    Args:
        files: the model's small files.
        place: the folder of the pooling's configuration; ``""`` means the mean, as sentence-transformers does.
        path: for messages.

    Raises:
        UsageError: the configuration is missing, or asks for another pooling or for several.
    """
    if not place:
        return "mean"
    name = f"{place}/config.json"
    if name not in files:
        raise UsageError(f"{path} has no {name}, which says how tokens are pooled")
    config = json_of(files, name)
    chosen = [
        POOLING_KEYS.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on is True
    ]
    if isinstance(config.get("pooling_mode"), str):
        chosen = [config["pooling_mode"]]
    if len(chosen) != 1 or chosen[0] not in POOLING_KEYS.values():
        raise UsageError(
            f"{path}: pooling {' + '.join(chosen) or 'none'} is not known; {', '.join(POOLING_KEYS.values())} are"
        )
    return chosen[0]


def pad_id(files: Mapping[str, bytes]) -> int:
    """Id of the padding token: from the configuration, else from the tokenizer's usual names, else 0."""
    configured = json_of(files, "config.json").get("pad_token_id")
    if isinstance(configured, int) and configured >= 0:
        return configured
    tokenizer = tokenizer_of(files[TOKENIZER])
    known = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>", "<|endoftext|>"))
    return next((token for token in known if token is not None), 0)


def largest_id(tokenizer: bytes) -> int:
    """The largest id that a tokenizer.json can give."""
    return max(tokenizer_of(tokenizer).get_vocab(with_added_tokens=True).values(), default=0)
