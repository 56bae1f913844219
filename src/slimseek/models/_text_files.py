"""What the folders of text encoders have in common: tokenizer, longest sequence, prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer, normalizers

from slimseek.errors import UsageError
from slimseek.inputs.text import TOKENIZER
from slimseek.schema import TensorSpec, TextPreprocess

KEPT_SUFFIXES = (".json", ".txt", ".model")
LARGEST_SMALL_FILE = 64 * 1024 * 1024
UNLIMITED = 10**6
INPUTS = tuple(
    TensorSpec(name=name, dtype="int64", shape=("batch", "sequence")) for name in ("input_ids", "attention_mask")
)


def small_files(folder: Path, subfolders: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Configuration and tokenizer files of the folder and of the named subfolders, path to content."""
    files = {}
    for place in (folder, *(folder / name for name in subfolders if name)):
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
        return msgspec.json.decode(files[path], type=dict)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is not a JSON object: {error}") from error


def tokenizer_without_padding(content: bytes, lower_case: bool = False) -> bytes:
    """tokenizer.json with fixed padding and truncation taken out, so that no user of the file pads to 128 tokens.

    Raises:
        UsageError: the tokenizers library cannot read it.
    """
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare Exception for any fault of the file
        raise UsageError(f"{TOKENIZER} cannot be read: {error}") from error
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
    prompts = json_of(files, "config_sentence_transformers.json").get("prompts") or {}
    return TextPreprocess(
        max_length=min(int(length) for length in lengths if length and length < UNLIMITED),
        pad_id=pad_id(files),
        query_prefix=prompts.get("query", ""),
        document_prefix=prompts.get("document", prompts.get("passage", "")),
        token_table=token_table,
    )


def pad_id(files: Mapping[str, bytes]) -> int:
    """Id of the padding token: from the configuration, else from the tokenizer's usual names, else 0."""
    configured = json_of(files, "config.json").get("pad_token_id")
    if isinstance(configured, int) and configured >= 0:
        return configured
    tokenizer = Tokenizer.from_buffer(files[TOKENIZER])
    known = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>", "<|endoftext|>"))
    return next((token for token in known if token is not None), 0)
