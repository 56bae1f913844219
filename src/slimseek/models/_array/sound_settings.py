"""``preprocessor_config.json``: how a recording becomes what a network takes, as transformers' extractors have it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from slimseek.errors import UsageError
from slimseek.inputs.arrays import BATCH
from slimseek.preprocess import SoundPreprocess
from slimseek.schema import TensorSpec

EXTRACTORS = {"MfccFeatureExtractor": "mfcc", "LogMelFeatureExtractor": "log_mel",
              "Wav2Vec2FeatureExtractor": "waveform", "WhisperFeatureExtractor": "whisper"}  # fmt: skip
SETTINGS = ("feature_extractor_type", "sampling_rate", "win_length", "hop_length", "num_mel_bins", "feature_size",
            "chunk_length", "min_frequency", "max_frequency")  # fmt: skip
IGNORED = ("processor_class", "padding_side", "padding_value", "return_attention_mask", "n_fft", "n_samples",
           "nb_max_frames", "dither")  # fmt: skip


def sound(settings: Mapping[str, Any], inputs: tuple[TensorSpec, ...], where: str) -> SoundPreprocess:
    """What settings say of a network.

    Args:
        settings: as the file has them: lengths in samples, ``chunk_length`` in seconds. Of ``MfccFeatureExtractor``
            ``feature_size`` counts the coefficients that are kept, of all others the bands.
        inputs: of the network; its shape says whether frames or bands stand first.
        where: the settings stand, for messages.

    Raises:
        UsageError: one is missing, unknown or out of its range, or the network takes something else.
    """
    unknown = [
        name for name, value in settings.items() if name not in (*SETTINGS, *IGNORED) and value not in (None, False)
    ]
    if unknown:
        raise UsageError(f"{where}: {unknown[0]} is {settings[unknown[0]]!r}, which is not known; "
                         f"{', '.join(SETTINGS)} are")  # fmt: skip
    kind = settings.get("feature_extractor_type")
    if kind not in EXTRACTORS:
        raise UsageError(f"{where}: feature_extractor_type is {kind!r}; {', '.join(EXTRACTORS)} are allowed")
    features: Any = EXTRACTORS[kind]
    whole = {name: _whole(settings, name, where, default) for name, default in
             (("sampling_rate", 0), ("win_length", 400), ("hop_length", 160), ("feature_size", 80))}  # fmt: skip
    mels = _whole(settings, "num_mel_bins", where, 40 if features == "mfcc" else whole["feature_size"])
    if features == "mfcc" and whole["feature_size"] > mels:
        raise UsageError(f"{where}: feature_size is {whole['feature_size']}; at most the {mels} of num_mel_bins are "
                         "allowed")  # fmt: skip
    low, high, length = (_number(settings, name, where) for name in ("min_frequency", "max_frequency", "chunk_length"))
    if not 0 <= low < (high or whole["sampling_rate"] / 2) <= whole["sampling_rate"] / 2:
        raise UsageError(f"{where}: min_frequency is {low} and max_frequency {high}; from 0 to half of "
                         "sampling_rate, the one below the other, are allowed")  # fmt: skip
    made = SoundPreprocess(
        rate=whole["sampling_rate"], features=features, seconds=length, window=whole["win_length"],
        hop=whole["hop_length"], mels=mels, low=low, high=high,
        coefficients=whole["feature_size"] if features == "mfcc" else 0,
    )  # fmt: skip
    return msgspec.structs.replace(made, channels_last=_frames_first(made, inputs, where))


def settings_of(how: SoundPreprocess) -> bytes:
    """The content of the file from which :func:`sound` reads the same."""
    settings: dict[str, Any] = {
        "feature_extractor_type": next(name for name, features in EXTRACTORS.items() if features == how.features),
        "sampling_rate": how.rate, "win_length": how.window, "hop_length": how.hop, "num_mel_bins": how.mels,
        "feature_size": how.coefficients or how.mels, "chunk_length": how.seconds, "min_frequency": how.low,
        "max_frequency": how.high,
    }  # fmt: skip
    return msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n"


def frames(how: SoundPreprocess) -> int:
    """Frames of a window; 0 where recordings keep their length."""
    samples = round(how.seconds * how.rate)
    return 1 + (samples - how.window) // how.hop if samples >= how.window else 0


def _frames_first(how: SoundPreprocess, inputs: tuple[TensorSpec, ...], where: str) -> bool:
    """Whether the network takes [n, frames, bands] and not [n, bands, frames]; axes of length one do not count."""
    if len(inputs) != 1 or inputs[0].shape[0] != BATCH or inputs[0].dtype != "float32":
        shapes = ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in inputs)
        raise UsageError(f"{where} is of recordings, and the network takes {shapes}; one float32 input, the batch "
                         "first, is wanted")  # fmt: skip
    axes = [axis for axis in inputs[0].shape[1:] if axis != 1]
    bands, count = how.coefficients or how.mels, frames(how)
    if how.features == "waveform":
        if len(axes) == 1:
            return False
        raise UsageError(f"{where} gives samples, and the network takes {list(inputs[0].shape)}")
    for first, order in ((True, (count, bands)), (False, (bands, count))):
        if len(axes) == 2 and all(isinstance(axis, str) or not want or axis == want
                                  for axis, want in zip(axes, order, strict=True)):  # fmt: skip
            return first
    raise UsageError(f"{where} gives {count or 'any number of'} frames of {bands} numbers, and the network takes "
                     f"{list(inputs[0].shape)}; lengths and feature_size must agree with it")  # fmt: skip


def _whole(settings: Mapping[str, Any], name: str, where: str, default: int) -> int:
    value = settings.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1_000_000:
        raise UsageError(f"{where}: {name} is {value!r}; a whole number of 1 or more is allowed")
    return value


def _number(settings: Mapping[str, Any], name: str, where: str) -> float:
    value = settings.get(name) or 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UsageError(f"{where}: {name} is {value!r}; a number of 0 or more is allowed")
    return float(value)
