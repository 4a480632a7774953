"""Features of long audio as a whole, against transformers' feature extractor and its `generate`."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.benchmarks import generate_parity as parity
from whisperkit_tools.demo import demo_longform
from whisperkit_tools.errors import OptionsError
from whisperkit_tools.transcribe.audio.features import AudioFeatures, FileFeatures, audio_features
from whisperkit_tools.transcribe.audio.load import AudioInput, load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions


@pytest.fixture(scope="module")
def audio():
    path = demo_longform()[0].path
    return load_audio(AudioInput(str(path), path))


@pytest.mark.parametrize("samples", [None, 480_001, 480_160 + 37, 3 * 479_360 + 5, 2 * 480_000])
@pytest.mark.parametrize("gain", [1.0, "quiet first half"])
def test_features_of_the_whole_file_equal_transformers(models, oracle, audio, samples, gain):
    if samples is not None and samples > len(audio):
        audio = np.tile(audio, 2)
    cut = audio[:samples].copy()
    if gain != 1.0:  # windows of which the floor is far below that of the file
        cut[: len(cut) // 2] *= 1e-3
    expected = oracle.features(cut)[0]
    source = FileFeatures(models, cut)
    assert source.n_frames == expected.shape[1]
    for start in range(0, source.n_frames, 1777):
        count = min(3000, source.n_frames - start)
        found = source.window(start, count)[0, :, 0]
        torch.testing.assert_close(found[:, :count], expected[:, start : start + count], atol=2e-4, rtol=0)
        assert not found[:, count:].any()


def test_window_by_window_differs_where_it_must(models, oracle, audio):
    """At a window's edge, and in the floor of a window that is quieter than the file."""
    cut = audio.copy()
    cut[:480_000] *= 1e-3
    expected = oracle.features(cut)[0]
    found = AudioFeatures(models, cut).window(0, 3000)[0, :, 0]
    assert float((found - expected[:, :3000]).abs().max()) > 0.1


def test_audio_of_one_window_is_the_same_either_way(models, audio):
    short = audio[:480_000]
    assert isinstance(audio_features(models, short, "file"), AudioFeatures)
    assert isinstance(audio_features(models, audio, "window"), AudioFeatures)
    assert isinstance(audio_features(models, audio, "file"), FileFeatures)


def test_long_audio_gives_the_tokens_of_transformers(transcriber, oracle, audio):
    options = parity.SETTINGS["conditioned"]
    expected = parity.expect(oracle, transcriber, audio, options)
    assert len(expected.ids) > 50
    assert list(transcriber.transcribe(audio, replace(options, features="file")).tokens) == expected.ids


def test_unknown_features():
    with pytest.raises(OptionsError, match="features is 'frame', allowed are window, file"):
        TranscribeOptions(features="frame")
