"""Recordings as a model takes them: any rate and number of channels, read in blocks, a window after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from slimseek.errors import UsageError, first_line
from slimseek.inputs import _cepstrum, _spectrum
from slimseek.inputs.arrays import RANDOM
from slimseek.plugins import require
from slimseek.preprocess import SoundPreprocess
from slimseek.progress import say
from slimseek.schema import Array, Batch, ModelSpec

SAMPLES_IN_BATCH = 16 * 480_000
ROWS_IN_BATCH = 32
BLOCK_SECONDS = 30
LAST_PART = 6
"""A window may end so many times earlier than it must, at its quietest place: within its last sixth."""
QUIET_SECONDS = 0.1
SILENT_SECONDS = 1.0
"""What a Whisper hears of silence at the end of each window at least: without any it says its words again."""
MADE_SECONDS = 2.0
HIGHEST_RATE = 768_000


class SoundInput:
    """Reads wav, flac, ogg and mp3, brings them to the model's rate and to one channel, and computes its features.

    The item ``random:SEED`` is a made recording of gliding tones: for checks that have no data at hand.
    """

    query_prefix = ""
    document_prefix = ""

    def __init__(self, spec: ModelSpec) -> None:
        """For a model whose ``sound`` says how its recordings become arrays; its one input has a batch axis."""
        assert spec.sound
        self._sound: SoundPreprocess = spec.sound
        self._short = msgspec.structs.replace(spec.sound, seconds=spec.sound.short)
        self._input = spec.inputs[0]

    def windows(self, item: str) -> Iterator[Array]:
        """What the model takes of each part of a recording, one after the other: float32, without a batch axis.

        A recording that is longer than the model's window is cut where it is quiet, so that no word is.

        Raises:
            UsageError: it is no recording, is empty, or holds NaN or infinite samples.
        """
        for samples in self._parts(item):
            yield self._features(samples, item)

    def fits(self, item: str) -> bool:
        """Whether all of a recording is in one window.

        Raises:
            UsageError: as :meth:`windows`.
        """
        return len(list(islice(self._parts(item), 2))) < 2

    def rows(self, items: Sequence[str], prefix: str = "") -> list[Array]:
        """What the model takes of the first window of each recording: all of it, but for long ones."""
        return [next(self.windows(item)) for item in items]

    def width(self, row: Array) -> tuple[int, ...]:
        """Rows of the same shape can stand in one batch."""
        return row.shape

    def rows_in_batch(self, width: tuple[int, ...]) -> int:
        """How many rows a batch takes, so that its memory is bounded."""
        return max(1, min(ROWS_IN_BATCH, SAMPLES_IN_BATCH // max(1, self._longest or int(np.prod(width)))))

    def batch(self, rows: Sequence[Array], width: object = None) -> Batch:
        """Rows side by side along the batch axis."""
        return {self._input.name: np.stack(rows)}

    def __call__(self, items: Sequence[str]) -> Batch:
        """Items to one batch of arrays."""
        return self.batch(self.rows(items))

    @property
    def _longest(self) -> int:
        """Samples of a window at most; 0 where recordings keep their length."""
        return round(self._sound.seconds * self._sound.rate)

    def _parts(self, item: str) -> Iterator[Array]:
        """The samples of each window."""
        longest = _heard(self._sound) if self._sound.features == "whisper" else self._longest
        return cut(self._samples(item), longest, self._sound.rate)

    def _samples(self, item: str) -> Iterator[Array]:
        if item.startswith(RANDOM):
            return iter((made(int(item.removeprefix(RANDOM)), self._sound.rate),))
        return blocks(item, self._sound.rate)

    def _features(self, samples: Array, item: str) -> Array:
        """One window's."""
        sound = self._sound
        if sound.features == "whisper":
            return _spectrum.whisper(samples, self._short if len(samples) <= _heard(self._short) else sound)
        filled = np.pad(samples, (0, max(0, self._longest - len(samples))))
        if sound.features == "waveform":
            return filled
        found = (_cepstrum.mfcc if sound.features == "mfcc" else _cepstrum.log_mel)(filled, sound)
        return self._shaped(found if sound.channels_last else np.ascontiguousarray(found.T))

    def _shaped(self, found: Array) -> Array:
        """With an axis of length one where the network has one."""
        places = [place for place, axis in enumerate(self._input.shape[1:]) if axis == 1]
        return np.expand_dims(found, places[0]) if places and len(self._input.shape) > found.ndim + 1 else found


def blocks(item: str, rate: int) -> Iterator[Array]:
    """A recording's samples at a rate, mono float32 [n] from about -1 to 1, some thirty seconds at a time.

    Raises:
        UsageError: it cannot be read, is empty, or holds NaN or infinite samples.
    """
    soundfile = require("soundfile")
    try:
        with soundfile.SoundFile(_file(item)) as file:
            found = False
            for block in _resampled(_mono(file, item), file.samplerate, rate, item):
                found = found or len(block) > 0
                yield block
            if not found:
                raise UsageError(f"{item} holds no samples")
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
        reason = first_line(error).rpartition(": ")[2]
        raise UsageError(f"{item} cannot be read as a recording (wav, flac, ogg, mp3): {reason}") from error


def cut(samples: Iterator[Array], longest: int, rate: int) -> Iterator[Array]:
    """Blocks of samples as windows of at most ``longest`` (0 for all in one), which follow each other without a gap.

    A window that others follow ends in the middle of the quietest tenth of a second of its last part.
    """
    held = np.zeros(0, np.float32)
    for block in samples:
        held = np.concatenate([held, block])
        while longest and len(held) > longest:
            quiet = max(1, min(round(QUIET_SECONDS * rate), longest // LAST_PART // 2))
            end = _quietest(held[:longest], longest - longest // LAST_PART, quiet)
            yield held[:end]
            held = held[end:]
    if len(held):
        yield held


def made(seed: int, rate: int) -> Array:
    """Two seconds of gliding tones with pauses, float32 [n]: no speech, but neither noise."""
    random = np.random.default_rng(seed)
    time = np.arange(round(MADE_SECONDS * rate)) / rate
    sound = np.zeros(len(time))
    for _ in range(4):
        start, glide, beat = random.uniform(100, rate / 8), random.uniform(-100, 100), random.uniform(1, 5)
        envelope = np.maximum(0, np.sin(2 * np.pi * beat * time + random.uniform(0, 6)))
        sound += envelope * np.sin(2 * np.pi * (start * time + glide * time**2))
    return (sound / 8).astype(np.float32)


def _file(item: str) -> str:
    path = Path(item)
    if not path.is_file():
        raise UsageError(f"{item} is no file" if path.exists() else f"there is no recording {item}")
    if path.stat().st_size == 0:
        raise UsageError(f"{item} holds no bytes")
    return item


def _mono(file: Any, item: str) -> Iterator[Array]:
    """The mean of the channels, block by block."""
    while True:
        block = file.read(BLOCK_SECONDS * file.samplerate, dtype="float32", always_2d=True)
        if not len(block):
            return
        if not np.isfinite(block).all():
            raise UsageError(f"{item} holds NaN or infinite samples")
        yield block.mean(1)


def _resampled(source: Iterator[Array], given: int, rate: int, item: str) -> Iterator[Array]:
    if given == rate:
        yield from source
        return
    if not 0 < given <= HIGHEST_RATE:
        raise UsageError(f"{item} has {given} samples a second; up to {HIGHEST_RATE:,} are read")
    _told(given, rate)
    stream = require("soxr").ResampleStream(given, rate, 1, dtype="float32")
    for block in source:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


@cache
def _told(given: int, rate: int) -> None:
    """Say once a run that recordings of this rate are resampled."""
    say(f"recordings of {given:,} samples a second are resampled to the model's {rate:,}")


def _heard(sound: SoundPreprocess) -> int:
    """Samples that a Whisper's window holds, behind which it finds some silence."""
    whole = round(sound.seconds * sound.rate)
    return whole - min(round(SILENT_SECONDS * sound.rate), whole // LAST_PART)


def _quietest(samples: Array, start: int, width: int) -> int:
    """The place behind ``start`` around which ``width`` samples hold the least energy."""
    energy = np.cumsum(np.concatenate([[0.0], np.square(samples[start:], dtype=np.float64)]))
    return start + int(np.argmin(energy[width:] - energy[:-width])) + width // 2
