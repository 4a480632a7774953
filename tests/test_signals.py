"""Signals against closed forms and scipy."""

import numpy as np
import pytest
import scipy.signal

from whisperkit_tools.signals import coloured_noise, psnr_db
from whisperkit_tools.speech import SAMPLE_RATE_HZ, WINDOW_SAMPLES


def test_psnr_of_known_errors():
    reference = np.array([1.0, -2.0, 0.5])
    assert psnr_db(reference, reference) == 200.0
    assert psnr_db(reference, reference + 0.02) == pytest.approx(40.0)  # 20 log10(2 / 0.02)
    assert psnr_db(reference, np.array([1.0, np.nan, 0.5])) == float("-inf")
    assert psnr_db(np.zeros(3), np.ones(3)) == float("-inf")
    with pytest.raises(ValueError, match="shapes differ"):
        psnr_db(reference, reference[:2])


@pytest.mark.parametrize(("exponent", "slope_db"), [(0.0, 0.0), (1.0, -3.01), (2.0, -6.02)])
def test_coloured_noise_falls_by_its_slope_per_octave(exponent, slope_db):
    noise = coloured_noise(SAMPLE_RATE_HZ * 20, exponent, np.random.default_rng(1))
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(1, abs=1e-3)
    frequency, power = scipy.signal.welch(noise, SAMPLE_RATE_HZ, nperseg=4096)
    band = (frequency > 100) & (frequency < 4000)
    fitted = np.polyfit(np.log2(frequency[band]), 10 * np.log10(power[band]), 1)[0]
    assert fitted == pytest.approx(slope_db, abs=0.3)


def test_coloured_noise_above_its_floor_has_the_power_it_says():
    for colour in (0.0, 1.0, 2.0):
        noise = coloured_noise(WINDOW_SAMPLES, colour, np.random.default_rng(3), floor_hz=20).astype(np.float64)
        power = np.abs(np.fft.rfft(noise)) ** 2
        bands = [power[at * 30 : 2 * at * 30].mean() for at in (200, 400, 800, 1600)]  # octaves from 200 Hz
        slopes = np.diff(np.log2(bands))
        assert np.allclose(slopes, -colour, atol=0.15)
        assert np.sqrt(np.mean(noise**2)) == pytest.approx(1, abs=1e-3)


def test_the_floor_bounds_the_power_of_low_frequencies():
    noise = coloured_noise(WINDOW_SAMPLES, 2.0, np.random.default_rng(3), floor_hz=20).astype(np.float64)
    power = np.abs(np.fft.rfft(noise)) ** 2  # bins of 1/30 Hz
    assert power[100:300].mean() == pytest.approx(power[300:600].mean(), rel=0.3)
