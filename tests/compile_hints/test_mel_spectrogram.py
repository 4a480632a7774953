"""MelSpectrogram against transformers' feature extractor, and its filters against transformers' filter bank."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from whisperkit_tools.compile_hints.mel_spectrogram import MelSpectrogram
from whisperkit_tools.speech import WINDOW_SAMPLES

MAXIMUM_DIFFERENCE = 1e-3


def window(audio: np.ndarray) -> np.ndarray:
    """Pad or cut to 30 seconds."""
    return np.pad(audio[:WINDOW_SAMPLES], (0, max(0, WINDOW_SAMPLES - len(audio)))).astype(np.float32)


def difference(audio: np.ndarray, n_mels: int) -> float:
    expected = WhisperFeatureExtractor(feature_size=n_mels)(audio, sampling_rate=16000, return_tensors="pt")
    found = MelSpectrogram(n_mels)(torch.from_numpy(audio))
    assert found.shape == (1, n_mels, 1, 3000)
    return float((found[:, :, 0] - expected.input_features).abs().max())


def synthetic(name: str) -> np.ndarray:
    noise = np.random.default_rng(0)
    seconds = np.arange(WINDOW_SAMPLES) / 16000
    return {
        "silence": np.zeros(WINDOW_SAMPLES),
        "full-scale noise": noise.uniform(-1, 1, WINDOW_SAMPLES),
        "full-scale tone": np.sin(2 * np.pi * 440 * seconds),
        "click": np.eye(1, WINDOW_SAMPLES, 100_000)[0],
        "sweep at -60 dBFS": 1e-3 * np.sin(2 * np.pi * (50 + 130 * seconds) * seconds),
        "first and last sample": np.eye(1, WINDOW_SAMPLES, 0)[0] + np.eye(1, WINDOW_SAMPLES, WINDOW_SAMPLES - 1)[0],
    }[name].astype(np.float32)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize(
    "name",
    ["silence", "full-scale noise", "full-scale tone", "click", "sweep at -60 dBFS", "first and last sample"],
)
def test_synthetic_audio_equals_transformers(name: str, n_mels: int) -> None:
    assert difference(synthetic(name), n_mels) < MAXIMUM_DIFFERENCE


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("level_dbfs", [0, -60])
def test_speech_equals_transformers(shared: Path, level_dbfs: int, n_mels: int) -> None:
    for path in sorted((shared / "audio" / "LibriSpeech").rglob("*.flac"))[:4]:
        audio, _ = soundfile.read(path, dtype="float32")
        audio = window(audio / np.abs(audio).max() * 10 ** (level_dbfs / 20))
        assert difference(audio, n_mels) < MAXIMUM_DIFFERENCE


@pytest.mark.parametrize("n_mels", [80, 128])
def test_filters_equal_transformers(n_mels: int) -> None:
    expected = mel_filter_bank(
        num_frequency_bins=201,
        num_mel_filters=n_mels,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=16000,
        norm="slaney",
        mel_scale="slaney",
    )
    found = MelSpectrogram(n_mels).mel_filters[:, :, 0, 0].T.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_built_under_the_meta_device_it_still_holds_its_constants() -> None:
    with torch.device("meta"):
        mel = MelSpectrogram(80)
    assert mel.mel_filters.device.type == mel.windowed_dft.device.type == "cpu"
