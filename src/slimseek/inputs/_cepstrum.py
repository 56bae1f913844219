"""Mel spectra and cepstra of recordings as small keyword spotters take them, in numpy alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from slimseek.preprocess import SoundPreprocess
from slimseek.schema import Array

FLOOR = 1e-6
"""Added to each band before its logarithm."""


def log_mel(samples: Array, sound: SoundPreprocess) -> Array:
    """log(band + 1e-6) of the magnitudes in each mel band, float32 [frames, mels].

    As TensorFlow's ``audio_spectrogram`` and ``mfcc`` have it: frames that lie wholly in the recording under a periodic
    Hann window, transformed at the next power of two, the bands triangles on the mel scale 1127 ln(1 + f / 700) of
    height one.

    Args:
        samples: float32 [n], one window of at least ``sound.window`` samples; shorter ones are filled with silence.
        sound: window, hop, mels and frequencies.
    """
    filled = np.pad(samples, (0, max(0, sound.window - len(samples)))).astype(np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(filled, sound.window)[:: sound.hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(sound.window) / sound.window)
    length = 1 << (sound.window - 1).bit_length()
    magnitudes = np.abs(np.fft.rfft(frames * hann, length))
    bands = magnitudes @ _triangles(sound.rate, length, sound.mels, sound.low, sound.high)
    found: Array = np.log(bands + FLOOR).astype(np.float32)
    return found


def mfcc(samples: Array, sound: SoundPreprocess) -> Array:
    """The first ``coefficients`` of the orthonormal cosine transform (DCT-II) of :func:`log_mel`'s bands, float32
    [frames, coefficients] (Davis and Mermelstein, 1980).
    """
    found: Array = (log_mel(samples, sound) @ _cosines(sound.mels, sound.coefficients)).astype(np.float32)
    return found


@lru_cache(maxsize=8)
def _triangles(rate: int, length: int, mels: int, low: float, high: float) -> Array:
    """[length // 2 + 1, mels]; ``high`` is half of the rate where it is 0."""
    edges = np.linspace(_mel(np.array(low)), _mel(np.array(high or rate / 2)), mels + 2)
    places = _mel(np.fft.rfftfreq(length, 1 / rate))[:, None]
    rising = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    found: Array = np.maximum(0, np.minimum(rising, falling))
    return found


@lru_cache(maxsize=8)
def _cosines(mels: int, coefficients: int) -> Array:
    """[mels, coefficients]."""
    places = (np.arange(mels)[:, None] + 0.5) * np.arange(coefficients)[None]
    scale = np.where(np.arange(coefficients) == 0, np.sqrt(1 / mels), np.sqrt(2 / mels))
    found: Array = scale * np.cos(np.pi / mels * places)
    return found


def _mel(hertz: Array) -> Array:
    found: Array = 1127 * np.log1p(hertz / 700)
    return found
