"""Channels to one, also where their mean would be silence."""

import numpy as np
import pytest
import soundfile

from whisperkit_tools.transcribe.audio.load import load_audio
from whisperkit_tools.transcribe.audio.mixing import BLOCK_S, Mixer

RATE = 16_000
SPEECH = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
OTHER = 0.1 * np.random.default_rng(1).standard_normal(2 * RATE).astype(np.float32)


def mixed(*channels, length=RATE):
    mixer = Mixer(RATE)
    block = np.stack(channels, axis=1)
    pieces = [block[start : start + length] for start in range(0, len(block), length)]
    return np.concatenate(list(mixer.mono(pieces))), mixer.note


@pytest.mark.parametrize("length", [100, 1024, RATE, 10 * RATE])
def test_inverted_channels_do_not_become_silence(length):
    found, note = mixed(SPEECH, -0.9 * SPEECH, length=length)
    np.testing.assert_array_equal(found, SPEECH)
    assert note == "the channels cancel each other out; channel 1, the stronger one, is taken instead of their mean"


@pytest.mark.parametrize(
    "second",
    [-SPEECH + 0.1 * OTHER, -1.05 * SPEECH],
    ids=["with its own noise", "louder"],
)
def test_nearly_inverted_channels(second):
    found, note = mixed(SPEECH, second)
    assert note is not None
    assert found.std() == pytest.approx(SPEECH.std(), rel=0.1)


@pytest.mark.parametrize(
    "channels",
    [(SPEECH,), (SPEECH,) * 2, (SPEECH, OTHER), (0 * SPEECH, SPEECH), (SPEECH, *[0 * SPEECH] * 15), (0 * SPEECH,) * 2],
    ids=["mono", "equal", "independent", "a dead channel", "one of sixteen", "silence"],
)  # fmt: skip
def test_all_other_channels_are_averaged(channels):
    found, note = mixed(*channels)
    np.testing.assert_allclose(found, np.mean(channels, axis=0), atol=1e-7)
    assert note is None


def test_two_of_four_microphones_wired_the_wrong_way_round():
    found, note = mixed(SPEECH, -SPEECH, SPEECH, -SPEECH)
    np.testing.assert_array_equal(np.abs(found), np.abs(SPEECH))
    assert note is not None


def test_a_stretch_in_which_they_cancel_out_is_named():
    long = np.tile(SPEECH, BLOCK_S)  # two blocks
    second = np.concatenate([long[: len(long) // 2], -long[len(long) // 2 :]])
    found, note = mixed(long, second)
    np.testing.assert_array_equal(found, long)
    assert note is not None
    assert note.endswith("for 30 s each from 30 s")


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_file(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", np.stack([SPEECH, -SPEECH], axis=1), rate)
    notes = []
    assert load_audio(tmp_path / "a.wav", note=notes.append).std() > 0.05
    assert len(notes) == 1


def test_recordings_from_the_field(shared):
    folder = shared / "cases" / "13-stereo-out-of-phase"
    notes = []
    found = load_audio(folder / "inverted.wav", note=notes.append)
    stereo, _ = soundfile.read(folder / "inverted.wav", dtype="float32")
    assert any(np.array_equal(found, stereo[:, channel]) for channel in (0, 1))
    assert len(notes) == 1
