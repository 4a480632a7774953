"""Signals: the peak signal-to-noise ratio of tensors, and coloured noise."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.speech import SAMPLE_RATE_HZ, Samples

IDENTICAL_DB = 200.0


def psnr_db(reference: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the peak signal-to-noise ratio, `20 log10(max |reference| / rmse)`, in dB.

    Args:
        reference: Any shape.
        found: The same shape.

    Returns:
        At most `IDENTICAL_DB`, which stands for equal arrays. `-inf` when something is not finite.

    Raises:
        ValueError: The shapes differ.
    """
    if reference.shape != found.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {found.shape}")
    wide, other = reference.astype(np.float64), found.astype(np.float64)
    return peak_to_error_db(float(np.abs(wide).max()), math.sqrt(float(np.mean((wide - other) ** 2))))


def peak_to_error_db(peak: float, rmse: float) -> float:
    """Return `20 log10(peak / rmse)` in dB, as `psnr_db`, from figures that were gathered piece by piece."""
    if not math.isfinite(rmse):
        return -math.inf
    if rmse == 0:
        return IDENTICAL_DB
    return min(IDENTICAL_DB, 20 * math.log10(peak / rmse)) if peak > 0 else -math.inf


def coloured_noise(count: int, exponent: float, generator: np.random.Generator, floor_hz: float = 0.0) -> Samples:
    """Return noise of power proportional to `1 / frequency ** exponent`, `[count]` float32 at 16 kHz, RMS 1.

    Args:
        count: Samples.
        exponent: 0 for white noise, 1 for pink, 2 for brown.
        generator: Draws the noise.
        floor_hz: Frequency below which the power does not rise. Without it, brown noise is all rumble.
    """
    spectrum = np.fft.rfft(generator.standard_normal(count))
    bins = np.maximum(np.arange(len(spectrum)), max(1.0, floor_hz * count / SAMPLE_RATE_HZ))
    noise = np.fft.irfft(spectrum / bins ** (exponent / 2), count)
    return np.asarray(noise / np.sqrt(np.mean(noise**2)), np.float32)
