"""tokenizer.json with fewer tokens: the vocabulary, merges, special tokens and every id that the file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from slimseek.errors import UsageError
from slimseek.inputs.text import TOKENIZER

KINDS = ("WordPiece", "WordLevel", "BPE", "Unigram")
ID_FIELDS = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "sep_token_id",
    "cls_token_id",
    "unk_token_id",
    "mask_token_id",
)
DROPPED_FIELDS = ("decoder_start_token_id", "no_timestamps_token_id", "prev_sot_token_id")
"""Ids of a recogniser; one whose token is gone leaves with it."""
ID_LISTS = ("suppress_tokens", "begin_suppress_tokens")
ID_TABLES = ("lang_to_id", "task_to_id")


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """The vocabulary of a tokenizer.json.

    Attributes:
        document: the parsed file.
        kind: the tokenizer's algorithm, one of WordPiece, WordLevel, BPE, Unigram.
        ids: token to id.
        always: ids that every cut keeps: special tokens, the unknown token, single characters (and bytes), and what
            those cannot spell.
        special: ids of the special tokens among them.
    """

    document: dict[str, Any]
    kind: str
    ids: dict[str, int]
    always: set[int]
    special: set[int]

    @staticmethod
    def read(content: bytes) -> Vocabulary:
        """Parse tokenizer.json; another algorithm than the four raises UsageError."""
        document = msgspec.json.decode(content)
        model = document["model"]
        kind = model.get("type") or ("WordPiece" if "continuing_subword_prefix" in model else "")
        if kind not in KINDS:
            raise UsageError(f"simplify.vocabulary: the tokenizer's algorithm {kind or 'none'!r} is not one of {KINDS}")
        listed = model["vocab"]
        ids = {entry[0]: number for number, entry in enumerate(listed)} if kind == "Unigram" else dict(listed)
        prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
        always = {number for token, number in ids.items() if _is_atom(token, prefix, suffix)}
        if kind == "WordPiece":
            always |= {number for token, number in ids.items() if not _can_be_spelled(token, prefix, ids)}
        special = {token["id"] for token in document.get("added_tokens", []) if token.get("special")}
        always |= {token["id"] for token in document.get("added_tokens", [])}
        unknown = model.get("unk_id") if kind == "Unigram" else ids.get(model.get("unk_token") or "")
        if unknown is not None:
            always.add(unknown)
        return Vocabulary(document=document, kind=kind, ids=ids, always=always, special=special)

    def closed(self, kept: set[int]) -> set[int]:
        """The ids with those that they need: a BPE token is reached only through the two tokens that it merges."""
        if self.kind != "BPE":
            return kept
        parts = {self.ids[left + right]: (self.ids[left], self.ids[right]) for left, right in self._merges()
                 if left + right in self.ids}  # fmt: skip
        closed, waiting = set(kept), list(kept)
        while waiting:
            for part in parts.get(waiting.pop(), ()):
                if part not in closed:
                    closed.add(part)
                    waiting.append(part)
        return closed

    def _merges(self) -> list[tuple[str, str]]:
        merges = self.document["model"].get("merges", [])
        return [
            (left, right) for left, right in (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in merges)
        ]


def rewrite(files: Mapping[str, bytes], vocabulary: Vocabulary, new_ids: Mapping[int, int]) -> dict[str, bytes]:
    """The files that name tokens or ids, with the new ones.

    Args:
        files: small files of the model.
        vocabulary: what tokenizer.json holds now.
        new_ids: id before to id after, for every kept token.
    """
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(vocabulary.document))
    _rewrite_model(document["model"], vocabulary, new_ids)
    document["added_tokens"] = [
        token | {"id": new_ids[token["id"]]} for token in document.get("added_tokens", []) if token["id"] in new_ids
    ]
    _rewrite_processor(document.get("post_processor"), vocabulary.ids, new_ids)
    if document.get("padding"):
        document["padding"]["pad_id"] = new_ids.get(document["padding"]["pad_id"], 0)
    changed = {TOKENIZER: msgspec.json.encode(document)}
    if "vocab.txt" in files:
        kept = sorted((new_ids[old], token) for token, old in vocabulary.ids.items() if old in new_ids)
        changed["vocab.txt"] = "".join(f"{token}\n" for _, token in kept).encode()
    if "vocab.json" in files:
        changed["vocab.json"] = msgspec.json.encode(document["model"]["vocab"])
    if "config.json" in files:
        changed["config.json"] = _rewrite_config(files["config.json"], new_ids, vocab_size=len(new_ids))
    if "generation_config.json" in files:
        changed["generation_config.json"] = _rewrite_config(files["generation_config.json"], new_ids)
    if "tokenizer_config.json" in files:
        changed["tokenizer_config.json"] = _rewrite_tokenizer_config(files["tokenizer_config.json"], new_ids)
    return changed


def _rewrite_model(model: dict[str, Any], vocabulary: Vocabulary, new_ids: Mapping[int, int]) -> None:
    if vocabulary.kind == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new_ids]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_ids[model["unk_id"]]
        return
    kept = sorted((new_ids[old], token) for token, old in vocabulary.ids.items() if old in new_ids)
    model["vocab"] = {token: number for number, token in kept}
    if vocabulary.kind == "BPE":
        joined = any(isinstance(pair, str) for pair in model.get("merges", []))
        model["merges"] = [
            f"{left} {right}" if joined else [left, right]
            for left, right in vocabulary._merges()
            if all(token in model["vocab"] for token in (left, right, left + right))
        ]


def _rewrite_processor(processor: Any, ids: Mapping[str, int], new_ids: Mapping[int, int]) -> None:
    """Post-processors hold special tokens as (token, id) pairs or as lists of ids."""
    if not isinstance(processor, dict):
        return
    for inner in processor.get("processors", []):
        _rewrite_processor(inner, ids, new_ids)
    for name in ("cls", "sep"):
        if isinstance(processor.get(name), list):
            processor[name][1] = new_ids[processor[name][1]]
    special = processor.get("special_tokens")
    for entry in special.values() if isinstance(special, dict) else ():
        entry["ids"] = [new_ids[number] for number in entry["ids"]]


def _rewrite_config(content: bytes, new_ids: Mapping[int, int], **also: int) -> bytes:
    config = msgspec.json.decode(content) | also
    for name in ID_FIELDS:
        if isinstance(config.get(name), int):
            config[name] = new_ids.get(config[name], 0)
    for name in DROPPED_FIELDS:
        old = config.pop(name, None)
        if old in new_ids:
            config[name] = new_ids[old]
    for name in ID_LISTS:
        if isinstance(config.get(name), list):
            config[name] = [new_ids[old] for old in config[name] if old in new_ids]
    for name in ID_TABLES:
        if isinstance(config.get(name), dict):
            config[name] = {key: new_ids[old] for key, old in config[name].items() if old in new_ids}
    return msgspec.json.format(msgspec.json.encode(config), indent=2)


def _rewrite_tokenizer_config(content: bytes, new_ids: Mapping[int, int]) -> bytes:
    config = msgspec.json.decode(content)
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        config["added_tokens_decoder"] = {
            str(new_ids[int(old)]): token for old, token in decoder.items() if int(old) in new_ids
        }
    return msgspec.json.format(msgspec.json.encode(config), indent=2)


def _is_atom(token: str, prefix: str, suffix: str) -> bool:
    """A single character, with or without the marks of a word's inside and end, or a byte token such as <0x0A>."""
    bare = token.removeprefix(prefix) if prefix else token
    bare = bare.removesuffix(suffix) if suffix and bare != suffix else bare
    return len(bare) == 1 or (len(token) == 6 and token.startswith("<0x"))


def _can_be_spelled(token: str, prefix: str, ids: Mapping[str, int]) -> bool:
    """Whether WordPiece has each character of a token by itself, first in a word or inside as the token has it."""
    inside = bool(prefix) and token.startswith(prefix)
    characters = token.removeprefix(prefix) if inside else token
    pieces = [prefix + character if number or inside else character for number, character in enumerate(characters)]
    return all(piece in ids for piece in pieces)
