"""What the small files of a Whisper's folder say: widths, how recordings are read, how scores become text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from slimseek.errors import UsageError
from slimseek.models._text.files import json_of
from slimseek.preprocess import Decoding, SoundPreprocess
from slimseek.recognise import FEATURES
from slimseek.schema import Array, ModelSpec, QuantizedTensor, Tensor, TensorSpec

SHORT = "short_chunk_length"
"""Of the preprocessor: seconds of the window for recordings that fit it; others than slimseek pass over it."""
CONFIG, GENERATION, PREPROCESSOR = "config.json", "generation_config.json", "preprocessor_config.json"
LANGUAGE = re.compile(r"<\|([a-z]+)\|>")
FRAMES_OF_A_PLACE = 2
"""The second convolution takes every other frame."""
TASK = "transcribe"
TOKENS_A_SECOND = 224 / 30
"""At most; OpenAI's own bound, in proportion to the window."""
PLACES = "model.encoder.embed_positions.weight"
SURE = 0.5
"""Probability of the end's token that ends a transcript. Of recordings above nine seconds that a Whisper of few bits
heard to their ends these had 0.97 and more, and 0.19 where it left out three of four sentences.
"""
LONGEST_WAVE = 10_000
NARROW = 2**-11
"""How far float16 and the arithmetic of float32 move a sine together."""


class Shape(msgspec.Struct, frozen=True):
    """The widths of a Whisper, named as its configuration names them."""

    vocab_size: int
    d_model: int
    num_mel_bins: int
    max_source_positions: int
    max_target_positions: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    activation_function: str = "gelu"
    scale_embedding: bool = False
    tie_word_embeddings: bool = True
    max_length: int | None = None


def is_whisper(path: Path) -> bool:
    """Whether a folder's configuration says so."""
    config = path / CONFIG
    return config.is_file() and json_of({CONFIG: config.read_bytes()}, CONFIG).get("model_type") == "whisper"


def shape(files: Mapping[str, bytes], path: Path | str = "model") -> Shape:
    """The widths that ``config.json`` gives.

    Raises:
        UsageError: one is missing, or it asks for what no Whisper has.
    """
    try:
        found = msgspec.convert(json_of(files, CONFIG), Shape)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {CONFIG} is no Whisper's: {error}") from error
    if found.activation_function != "gelu" or found.scale_embedding or not found.tie_word_embeddings:
        raise UsageError(
            f"{path}: {CONFIG} asks for another activation than gelu, scaled embeddings, or an output table of its "
            "own, which no Whisper has"
        )
    return found


def spec(files: Mapping[str, bytes], widths: Shape) -> ModelSpec:
    """What the model takes and gives."""
    frames = widths.max_source_positions * FRAMES_OF_A_PLACE
    sound = _sound(json_of(files, PREPROCESSOR), widths, frames)
    axis = "frames" if sound.short else frames
    return ModelSpec(
        family="whisper",
        modality="speech",
        output="transcript",
        inputs=(TensorSpec(name=FEATURES, dtype="float32", shape=("batch", widths.num_mel_bins, axis)),),
        dim=widths.vocab_size,
        normalised=False,
        preprocess=None,
        sound=sound,
        decoding=_decoding(json_of(files, CONFIG) | json_of(files, GENERATION), widths, sound.seconds),
    )


def with_window(files: Mapping[str, bytes], sound: SoundPreprocess, seconds: int) -> dict[str, bytes]:
    """The files of the model whose window has so many seconds."""
    frames = seconds * sound.rate // sound.hop
    before = {name: value for name, value in json_of(files, PREPROCESSOR).items() if name != SHORT}
    reading = {"chunk_length": seconds, "n_samples": seconds * sound.rate, "nb_max_frames": frames}
    changed = {
        CONFIG: json_of(files, CONFIG) | {"max_source_positions": frames // FRAMES_OF_A_PLACE},
        PREPROCESSOR: before | reading,
    }
    return dict(files) | {name: json.dumps(content, indent=1).encode() for name, content in changed.items()}


def with_short_window(files: Mapping[str, bytes], seconds: int) -> dict[str, bytes]:
    """The files of the model that hears what fits in a window of so many seconds, and all else in its own."""
    content = json_of(files, PREPROCESSOR) | {SHORT: seconds}
    return dict(files) | {PREPROCESSOR: json.dumps(content, indent=1).encode()}


def frequencies(width: int) -> Array:
    """Radians a place of the waves in the encoder's table of places, float32 [width / 2]: from 1 down to 1 in 10,000,
    evenly in their logarithms.
    """
    count = width // 2
    return np.exp(np.arange(count, dtype=np.float32) * np.float32(-math.log(LONGEST_WAVE) / max(1, count - 1)))


@lru_cache(maxsize=4)
def sinusoids(places: int, width: int) -> Array:
    """The encoder's table of places as OpenAI computes it, float32 [places, width]: sines, then cosines. The last few
    are kept, since each prediction of a size asks.
    """
    angles = np.arange(places, dtype=np.float32)[:, None] * frequencies(width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def is_computed(table: Tensor) -> bool:
    """Whether the encoder's table of places is :func:`sinusoids`, as in every Whisper that was never trained further;
    a file in float16 counts.
    """
    if isinstance(table, QuantizedTensor):
        return False
    return bool(np.allclose(table.astype(np.float32), sinusoids(*table.shape), rtol=0, atol=NARROW))


def _sound(found: Mapping[str, Any], widths: Shape, frames: int) -> SoundPreprocess:
    rate, hop = int(found.get("sampling_rate", 16000)), int(found.get("hop_length", 160))
    short = found.get(SHORT, 0)
    if not isinstance(short, int) or not 0 <= short * rate < frames * hop:
        raise UsageError(f"{PREPROCESSOR}: {SHORT} is {short!r}; whole seconds, fewer than the window's "
                         f"{frames * hop / rate:g}, are allowed, or 0 for none")  # fmt: skip
    return SoundPreprocess(
        rate=rate,
        features="whisper",
        seconds=frames * hop / rate,
        short=float(short),
        window=int(found.get("n_fft", 400)),
        hop=hop,
        mels=widths.num_mel_bins,
        high=8000.0,
    )


def _decoding(found: Mapping[str, Any], widths: Shape, seconds: float) -> Decoding:
    """As transformers' ``generate`` reads the two files: start, language, task, and no times."""
    start, end = found.get("decoder_start_token_id"), found.get("eos_token_id")
    end = end[0] if isinstance(end, list) else end
    if not isinstance(start, int) or not isinstance(end, int):
        raise UsageError(f"{GENERATION} names no decoder_start_token_id or no eos_token_id")
    several = bool(found.get("is_multilingual")) and bool(found.get("lang_to_id"))
    named = {match[1]: token for text, token in found.get("lang_to_id", {}).items() if (match := LANGUAGE.match(text))}
    task = found.get("task_to_id", {}).get(TASK) if several else None
    silent = found.get("no_timestamps_token_id")
    language = str(found.get("language") or "").strip("<|>")
    return Decoding(
        kind="autoregressive",
        end=end,
        prompt=tuple(token for token in (start, task, silent) if token is not None),
        languages=named if several else {},
        language=language if several else "",
        suppressed=tuple(token for token in found.get("suppress_tokens") or () if 0 <= token < widths.vocab_size),
        suppressed_first=tuple(found.get("begin_suppress_tokens") or ()),
        most=min(math.ceil(TOKENS_A_SECOND * seconds), widths.max_target_positions - 4),
        end_above=SURE,
    )
