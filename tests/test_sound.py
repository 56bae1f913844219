"""Recordings: any format, rate and number of channels gives what the plain copy gives, or a refusal by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console
from transformers import WhisperFeatureExtractor

from slimseek import progress
from slimseek.errors import UsageError
from slimseek.inputs import _spectrum, sound
from slimseek.inputs.reader import reader
from slimseek.inputs.sound import SoundInput, blocks, cut, made
from slimseek.preprocess import SoundPreprocess
from slimseek.schema import Array, ModelSpec, TensorSpec

RATE = 16000
SECONDS = 3
WHISPER = SoundPreprocess(rate=RATE, features="whisper", seconds=3.0, high=8000.0)


def spec(**sound: Any) -> ModelSpec:
    made = SoundPreprocess(**({"rate": RATE, "features": "waveform"} | sound))
    samples = TensorSpec(name="samples", dtype="float32", shape=("batch", "time"))
    return ModelSpec(family="any", modality="speech", output="embedding", inputs=(samples,), dim=4, normalised=False,
                     preprocess=None, sound=made)  # fmt: skip


def tone(seconds: float = 1.0, rate: int = RATE, hertz: float = 440.0) -> Array:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def read(path: Path, rate: int = RATE) -> Array:
    return np.concatenate(list(blocks(str(path), rate)))


# ---------------------------------------------------------------- features


@pytest.mark.parametrize("kind", ["tones", "noise", "silence", "long", "one sample"])
def test_whispers_features_are_those_of_transformers(kind: str) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, SECONDS * RATE).astype(np.float32)
    samples = {"tones": made(1, RATE), "noise": noise[:30000], "silence": np.zeros(RATE, np.float32), "long": noise,
               "one sample": np.ones(1, np.float32)}[kind]  # fmt: skip
    whole = np.zeros(SECONDS * RATE, np.float32)
    whole[: len(samples)] = samples
    extractor = WhisperFeatureExtractor(chunk_length=SECONDS)
    found = _spectrum.whisper(samples, WHISPER)
    assert found.dtype == np.float32
    assert found.shape == (80, 100 * SECONDS)
    assert found == pytest.approx(extractor._np_extract_fbank_features(whole[None], "cpu")[0], abs=1e-5)
    # PyTorch's own way to them, in float32, is itself so far off.
    assert found == pytest.approx(
        extractor(samples, sampling_rate=RATE, return_tensors="np").input_features[0], abs=1e-4
    )


def test_mel_filters_are_triangles_of_one_area() -> None:
    filters = _spectrum.filters(RATE, 400, 80, 0.0, 8000.0)
    assert filters == pytest.approx(WhisperFeatureExtractor().mel_filters, abs=1e-12)
    assert (_spectrum.filters(RATE, 400, 80, 0.0, 0.0) == filters).all(), "half of the rate where no end is given"


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "subtype", "off"),
    [
        ("plain.wav", "PCM_16", 1e-4),
        ("deep.wav", "PCM_24", 1e-6),
        ("float.wav", "FLOAT", 0.0),
        ("eight.wav", "PCM_U8", 1e-2),
        ("telephone.wav", "ULAW", 2e-2),
        ("free.flac", "PCM_16", 1e-4),
        ("vorbis.ogg", "VORBIS", 5e-2),
    ],
)
def test_every_format_gives_the_same_samples(name: str, subtype: str, off: float, tmp_path: Path) -> None:
    soundfile.write(tmp_path / name, tone(), RATE, subtype=subtype)
    found = read(tmp_path / name)
    assert found.dtype == np.float32
    assert np.abs(found[:RATE] - tone()).max() <= off


def test_mp3_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "song.mp3", tone(), RATE)
    found = read(tmp_path / "song.mp3")
    spectrum = np.abs(np.fft.rfft(found))
    assert abs(int(spectrum.argmax()) * RATE / len(found) - 440) < 2


def test_channels_are_averaged(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "five.wav", np.stack([tone(), 0 * tone(), tone(), 0 * tone(), tone()], 1), RATE, "FLOAT")
    assert read(tmp_path / "five.wav") == pytest.approx(0.6 * tone(), abs=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_any_rate_becomes_the_models(rate: int, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "other.wav", tone(65.0, rate), rate, "FLOAT")
    found = read(tmp_path / "other.wav")
    assert len(found) == 65 * RATE, "blocks join without a gap"
    assert np.abs(found - tone(65.0))[200:-200].max() < 2e-3


def test_resampling_is_told_once(tmp_path: Path) -> None:
    sound._told.cache_clear()
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", tone(0.1, 8000), 8000)
    written = io.StringIO()
    with progress.shown_on(Console(file=written)):
        for number in range(3):
            read(tmp_path / f"{number}.wav")
    assert written.getvalue().strip() == "recordings of 8,000 samples a second are resampled to the model's 16,000"


def broken(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.wav"
    if kind == "no samples":
        soundfile.write(path, np.zeros(0, np.float32), RATE)
    elif kind == "nan":
        soundfile.write(path, np.array([0.1, np.nan, 0.2], np.float32), RATE, "FLOAT")
    elif kind == "infinite":
        soundfile.write(path, np.array([0.1, np.inf], np.float32), RATE, "FLOAT")
    elif kind == "text":
        path.write_text("this is no sound")
    elif kind == "no bytes":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "headless":
        path = path.with_suffix(".raw")
        path.write_bytes(bytes(100))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no samples", "holds no samples"),
        ("nan", "holds NaN or infinite samples"),
        ("infinite", "holds NaN or infinite samples"),
        ("text", "cannot be read as a recording"),
        ("no bytes", "holds no bytes"),
        ("folder", "is no file"),
        ("absent", "there is no recording"),
        ("headless", "cannot be read as a recording"),
    ],
)
def test_what_is_no_recording_is_refused_by_name(kind: str, message: str, tmp_path: Path) -> None:
    path = broken(kind, tmp_path)
    with pytest.raises(UsageError, match=message) as refusal:
        read(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


# ---------------------------------------------------------------- windows


def test_a_long_recording_is_cut_where_it_is_quiet() -> None:
    """Ten seconds of tone with a pause in its eleventh; windows of at most 12."""
    long = tone(40.0)
    long[int(10.9 * RATE) : int(11.1 * RATE)] = 0
    parts = [long[start : start + 7 * RATE] for start in range(0, len(long), 7 * RATE)]
    windows = list(cut(iter(parts), 12 * RATE, RATE))
    assert np.array_equal(np.concatenate(windows), long)
    assert abs(len(windows[0]) - 11 * RATE) < 0.1 * RATE
    assert all(len(window) <= 12 * RATE for window in windows)
    assert min(len(window) for window in windows[:-1]) >= 10 * RATE


def test_an_hour_is_read_window_by_window(tmp_path: Path) -> None:
    """At a rate of its own and in little memory: no more than some blocks are held."""
    import tracemalloc

    path = tmp_path / "hour.flac"
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        for _ in range(60):
            file.write(np.tile(tone(1.0, 8000), 60))
    count = 0
    tracemalloc.start()
    for _ in cut(blocks(str(path), RATE), 30 * RATE, RATE):
        count += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 120 <= count <= 144
    assert peak < 40e6, "an hour at the model's rate takes 230 MB"


def test_rows_are_the_first_windows_and_fill_up(tmp_path: Path) -> None:
    for name, seconds in (("short", 0.5), ("long", 2.5)):
        soundfile.write(tmp_path / f"{name}.wav", tone(seconds), RATE, "FLOAT")
    items = [str(tmp_path / "short.wav"), str(tmp_path / "long.wav")]
    fixed = reader(spec(seconds=1.0), {})
    assert isinstance(fixed, SoundInput)
    rows = fixed.rows(items)
    assert [fixed.width(row) for row in rows] == [(RATE,), (RATE,)]
    assert np.array_equal(rows[0], np.concatenate([tone(0.5), np.zeros(RATE // 2, np.float32)]))
    assert fixed.batch(rows)["samples"].shape == (2, RATE)
    assert len(list(fixed.windows(items[1]))) == 3
    free = SoundInput(spec())
    assert [len(row) for row in free.rows(items)] == [RATE // 2, RATE * 5 // 2]
    assert SoundInput(spec(seconds=30.0)).rows_in_batch((30 * RATE,)) == 16


def test_made_recordings_are_the_same_every_time_and_differ() -> None:
    read_in = SoundInput(spec())
    first, again, other = read_in.rows(["random:1", "random:1", "random:2"])
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 0.05
    assert np.abs(first).max() <= 1
