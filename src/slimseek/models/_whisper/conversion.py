"""Whisper from CTranslate2's binary into the layout of transformers, which every other part reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from slimseek import reading
from slimseek.errors import UsageError
from slimseek.models._whisper.ctranslate2 import variables
from slimseek.schema import Array

SPECIFICATION = "WhisperSpec"
EXACT_GELU = 3
"""How the binary numbers the activation that every Whisper has."""
FRAMES = 3000
RATE = 16000
PARTS = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
"""Parts of a block that have the same weights in both layouts."""
ATTENTIONS = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
}
"""Products that the binary has joined, by their rows."""
WHOLE = {
    "decoder/embeddings/weight": "decoder.embed_tokens.weight",
    "decoder/position_encodings/encodings": "decoder.embed_positions.weight",
    "encoder/position_encodings/encodings": "encoder.embed_positions.weight",
    **{f"encoder/conv{number}/{kind}": f"encoder.conv{number}.{kind}" for number in (1, 2)
       for kind in ("weight", "bias")},
    **{f"{part}/layer_norm/{old}": f"{part}.layer_norm.{new}" for part in ("encoder", "decoder")
       for old, new in (("gamma", "weight"), ("beta", "bias"))},
}  # fmt: skip
KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
BLOCK = re.compile(r"(encoder|decoder)/layer_(\d+)/(.+)/(weight|bias|gamma|beta)")
SPECIAL = {"end": "<|endoftext|>", "start": "<|startoftranscript|>", "transcribe": "<|transcribe|>",
           "translate": "<|translate|>", "silent": "<|notimestamps|>", "before": "<|startofprev|>"}  # fmt: skip
ENGLISH_END = 50256
"""The end of a transcript in the vocabulary of English, GPT-2's, whose models know no other language though it has
tokens for them; the vocabulary of all languages has a token more.
"""
LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


def converted(binary: bytes, name: str, config: bytes, tokenizer: bytes) -> tuple[dict[str, bytes], dict[str, Array]]:
    """The small files of a folder of transformers, and float32 tensors under their names there.

    Args:
        binary: the whole ``model.bin``.
        name: of it, for messages.
        config: CTranslate2's ``config.json``: ids that are suppressed, heads that follow the time.
        tokenizer: ``tokenizer.json``, whose special tokens tell the rest.

    Raises:
        UsageError: the binary is no whole Whisper in floats.
    """
    arrays = variables(binary, name, SPECIFICATION)
    tensors = _tensors(arrays, name)
    settings, tokens = _object(config, f"config.json of {name}"), _special(tokenizer, name)
    config_json = _config(arrays, tensors, tokens, name)
    _check_whole(tensors, config_json, name)
    files = {
        "config.json": config_json,
        "generation_config.json": _generation(tokens, settings),
        "preprocessor_config.json": _preprocessor(tensors),
        "tokenizer_config.json": _tokenizer_config(),
    }
    return {file: _json(content) for file, content in files.items()} | {"tokenizer.json": tokenizer}, tensors


def _tensors(arrays: Mapping[str, Array], name: str) -> dict[str, Array]:
    """Float32 tensors, products that are joined in the binary apart."""
    found: dict[str, Array] = {}
    for variable, array in arrays.items():
        block = BLOCK.fullmatch(variable)
        if array.ndim == 0 or not (block or variable in WHOLE):
            continue
        if array.dtype.itemsize < 2 or array.dtype.kind == "i":
            raise UsageError(f"{name}: {variable} is {array.dtype}; a model in floats is converted")
        values = array.astype(np.float32)
        if not np.isfinite(values).all():
            raise UsageError(f"{name}: {variable} holds NaN or infinite values")
        if block is None:
            found[f"model.{WHOLE[variable]}"] = values
            continue
        part, number, place, kind = block.groups()
        names = ATTENTIONS.get(place) or ((PARTS[place],) if place in PARTS else ())
        if not names or len(values) % len(names):
            raise UsageError(f"{name}: {variable} of {list(values.shape)} has no place in a Whisper")
        for target, piece in zip(names, np.split(values, len(names)), strict=True):
            found[f"model.{part}.layers.{number}.{target}.{KINDS[kind]}"] = piece
    for key in [key for key in found if key.endswith("k_proj.bias")]:
        if found.pop(key).any():
            raise UsageError(f"{name}: {key} is not zero, and a Whisper has none")
    return found


def _check_whole(tensors: Mapping[str, Array], config: Mapping[str, Any], name: str) -> None:
    """Whether every block has all of its tensors, and the rest are there."""
    wanted = set(WHOLE.values())
    for part in ("encoder", "decoder"):
        places = [place for place in (*PARTS, *ATTENTIONS) if part == "decoder" or not place.startswith("attention")]
        ends = [end for place in places for end in ATTENTIONS.get(place) or (PARTS[place],)]
        wanted |= {f"{part}.layers.{number}.{end}.{kind}" for number in range(config[f"{part}_layers"]) for end in ends
                   for kind in ("weight", "bias") if not (kind == "bias" and end.endswith("k_proj"))}  # fmt: skip
    missing = {f"model.{tensor}" for tensor in wanted} - set(tensors)
    if missing:
        raise UsageError(f"{name} lacks {min(missing)}")


def _config(
    arrays: Mapping[str, Array], tensors: Mapping[str, Array], tokens: Mapping[str, int], name: str
) -> dict[str, Any]:  # fmt: skip
    if int(arrays.get("decoder/activation", np.int8(EXACT_GELU))) != EXACT_GELU:
        raise UsageError(f"{name} has another activation than GELU, which every Whisper has")
    try:
        table = tensors["model.decoder.embed_tokens.weight"]
        shape: dict[str, Any] = {
            "vocab_size": len(table),
            "d_model": table.shape[1],
            "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
            "max_source_positions": len(tensors["model.encoder.embed_positions.weight"]),
            "max_target_positions": len(tensors["model.decoder.embed_positions.weight"]),
        }
        for part in ("encoder", "decoder"):
            shape |= {
                f"{part}_layers": 1 + max(int(key.split(".")[3]) for key in tensors if f"{part}.layers." in key),
                f"{part}_attention_heads": int(arrays[f"{part}/num_heads"]),
                f"{part}_ffn_dim": len(tensors[f"model.{part}.layers.0.fc1.bias"]),
            }
    except (KeyError, ValueError) as error:
        raise UsageError(f"{name} is no whole Whisper: {error} is missing") from error
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        **shape,
        "activation_function": "gelu",
        "scale_embedding": bool(arrays.get("decoder/scale_embeddings", np.int8(0))),
        "bos_token_id": tokens["start"],
        "decoder_start_token_id": tokens["start"],
        "eos_token_id": tokens["end"],
        "pad_token_id": tokens["end"],
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def _generation(tokens: Mapping[str, int], settings: Mapping[str, Any]) -> dict[str, Any]:
    languages = {f"<|{name[1:]}|>": number for name, number in tokens.items() if name.startswith("#")}
    several = tokens["end"] != ENGLISH_END
    found: dict[str, Any] = {
        "alignment_heads": settings.get("alignment_heads", []),
        "begin_suppress_tokens": settings.get("suppress_ids_begin", []),
        "bos_token_id": tokens["end"],
        "decoder_start_token_id": tokens["start"],
        "eos_token_id": tokens["end"],
        "is_multilingual": several,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "no_timestamps_token_id": tokens["silent"],
        "pad_token_id": tokens["end"],
        "prev_sot_token_id": tokens["before"],
        "return_timestamps": False,
        "suppress_tokens": settings.get("suppress_ids", []),
    }
    if several:
        found |= {
            "lang_to_id": languages,
            "task": "transcribe",
            "task_to_id": {task: tokens[task] for task in ("transcribe", "translate")},
        }
    return found


def _preprocessor(tensors: Mapping[str, Array]) -> dict[str, Any]:
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": tensors["model.encoder.conv1.weight"].shape[1],
        "sampling_rate": RATE,
        "chunk_length": 30,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 30 * RATE,
        "nb_max_frames": FRAMES,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def _tokenizer_config() -> dict[str, Any]:
    text = SPECIAL["end"]
    return {"tokenizer_class": "WhisperTokenizer", "add_prefix_space": False, "bos_token": text, "eos_token": text,
            "pad_token": text, "unk_token": text, "errors": "replace", "model_max_length": 1024}  # fmt: skip


def _special(tokenizer: bytes, name: str) -> dict[str, int]:
    """Id of each special token by its name in ``SPECIAL``, of a language by ``#`` and its code."""
    added = {one["content"]: one["id"] for one in _object(tokenizer, f"tokenizer.json of {name}")["added_tokens"]}
    missing = [text for text in SPECIAL.values() if text not in added]
    if missing:
        raise UsageError(f"tokenizer.json of {name} has no {' and no '.join(missing)}")
    languages = {f"#{found[1]}": number for text, number in added.items() if (found := LANGUAGE.fullmatch(text))}
    return {own: added[text] for own, text in SPECIAL.items()} | languages


def _object(content: bytes, name: str) -> dict[str, Any]:
    try:
        return dict(reading.decoded(content, dict[str, Any]))
    except msgspec.MsgspecError as error:
        raise UsageError(f"{name} is no JSON object: {error}") from error


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)
