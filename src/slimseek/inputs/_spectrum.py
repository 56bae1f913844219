"""Spectra of recordings in numpy alone, the same for training and serving."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from slimseek.preprocess import SoundPreprocess
from slimseek.schema import Array

LINEAR_BELOW = 1000.0
"""Hz up to which Slaney's mel scale is linear, three bands for 200 Hz; above it, 27 bands for a factor of 6.4."""
BANDS_BELOW = 15.0
STEP_ABOVE = float(np.log(6.4)) / 27.0
QUIETEST = 1e-10
DYNAMIC_RANGE = 8.0


def whisper(samples: Array, sound: SoundPreprocess) -> Array:
    """Whisper's log-mel spectrum of a window, float32 [mels, seconds * rate / hop].

    log10 of the energy in each band, at least 8 below the window's greatest, plus 4, divided by 4 (Radford et al.,
    2022, 2.2, and the code published with it).

    Args:
        samples: float32 [n], n at most ``seconds * rate``; silence follows.
        sound: with ``seconds``.
    """
    whole = np.zeros(round(sound.seconds * sound.rate), np.float32)
    whole[: len(samples)] = samples
    energy = power(np.pad(whole, sound.window // 2, mode="reflect"), sound.window, sound.hop)[:-1]
    bands = energy @ filters(sound.rate, sound.window, sound.mels, sound.low, sound.high)
    logarithm = np.log10(np.maximum(bands.T, QUIETEST))
    logarithm = np.maximum(logarithm, logarithm.max() - DYNAMIC_RANGE)
    return np.ascontiguousarray((logarithm + 4.0) / 4.0, np.float32)


def power(samples: Array, window: int, hop: int) -> Array:
    """Power spectrum of frames under a Hann window, float64 [frames, window // 2 + 1]."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectrum = np.fft.rfft(frames * hann, axis=1)
    result: Array = spectrum.real**2 + spectrum.imag**2
    return result


@lru_cache(maxsize=8)
def filters(rate: int, window: int, mels: int, low: float, high: float) -> Array:
    """Triangles that are even on Slaney's mel scale, each of one area, float64 [window // 2 + 1, mels].

    (Slaney, Auditory Toolbox, 1998.) ``high`` is half of the rate where it is 0.
    """
    edges = _hertz(np.linspace(_bands(low), _bands(high or rate / 2), mels + 2))
    bins = np.linspace(0, rate / 2, window // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    result: Array = np.maximum(0, np.minimum(rising, falling)) * 2.0 / (edges[2:] - edges[:-2])
    return result


def _bands(hertz: float) -> float:
    """The place of a frequency on the mel scale."""
    if hertz < LINEAR_BELOW:
        return hertz * BANDS_BELOW / LINEAR_BELOW
    return BANDS_BELOW + float(np.log(hertz / LINEAR_BELOW)) / STEP_ABOVE


def _hertz(bands: Array) -> Array:
    """Frequencies of places on the mel scale."""
    above = LINEAR_BELOW * np.exp(STEP_ABOVE * (bands - BANDS_BELOW))
    found: Array = np.where(bands < BANDS_BELOW, bands * LINEAR_BELOW / BANDS_BELOW, above)
    return found
