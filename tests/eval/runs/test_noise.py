"""Noise at the level that was asked for, the same for every model, and clips in which nobody speaks."""

import pickle

import numpy as np
import pytest
import scipy.signal
import soundfile

from whisperkit_tools.errors import OptionsError
from whisperkit_tools.eval.runs.noise import (
    NOISE_KINDS,
    mix,
    no_speech_behaviour,
    no_speech_examples,
    with_noise,
)
from whisperkit_tools.speech import Recording

RATE = 16_000


def read(path):
    return soundfile.read(path, dtype="float32")[0]


@pytest.fixture
def examples(tmp_path):
    generator = np.random.default_rng(0)
    found = []
    for index in range(8):
        path = tmp_path / f"{index}.wav"
        at = np.arange(RATE * (1 + index % 3)) / RATE
        soundfile.write(path, 0.2 * np.sin(2 * np.pi * generator.uniform(100, 900) * at), RATE, subtype="FLOAT")
        found.append(Recording(str(index), "text", path, speaker=f"speaker {index // 2}"))
    return found


def snr_db(clean, noisy):
    """By the definition: the noise is what is left after fitting the clean signal."""
    scale = float(noisy @ clean / (clean @ clean))
    noise = noisy - scale * clean
    return 10 * np.log10(scale**2 * np.mean(clean**2) / np.mean(noise**2))


@pytest.mark.parametrize("kind", NOISE_KINDS)
@pytest.mark.parametrize("level", [20, 5, 0, -5])
def test_the_ratio_is_the_one_asked_for(examples, kind, level):
    for example, noisy in zip(examples, with_noise(examples, kind, level, read), strict=True):
        heard = noisy.audio(read)
        assert heard.dtype == np.float32
        assert np.abs(heard).max() <= 1
        # Noise and signal are not quite orthogonal, which the fit above takes for signal.
        assert snr_db(example.audio(read), heard) == pytest.approx(level, abs=0.8)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_noise_is_the_same_in_any_process_and_only_louder(examples, kind):
    def noise(level, seed=0):
        noisy = with_noise(examples, kind, level, read, seed)[3]
        heard = pickle.loads(pickle.dumps(noisy)).audio(read) if level > 15 else noisy.audio(read)
        return heard - examples[3].audio(read)

    np.testing.assert_array_equal(noise(20), noise(20))
    np.testing.assert_allclose(noise(20) * 10 ** (5 / 20), noise(15), atol=1e-6)
    assert not np.allclose(noise(20), noise(20, seed=1))


def test_examples_hear_different_noise(examples):
    same = [Recording(str(i), "text", examples[0].path) for i in range(2)]
    first, second = with_noise(same, "white", 10, read)
    assert not np.allclose(first.audio(read), second.audio(read))


def test_white_noise_is_white(examples):
    noisy = with_noise(examples, "white", 0, read)[2]
    noise = noisy.alteration(np.ones(40 * RATE, dtype=np.float32))
    noise = noise - noise.mean()
    _, power = scipy.signal.welch(noise, RATE, nperseg=512)
    assert power[5:-5].max() / power[5:-5].min() < 1.6


def test_babble_is_of_other_speakers_than_the_examples_own(examples):
    for example, noisy in zip(examples, with_noise(examples, "babble", 10, read), strict=True):
        own = {item.path for item in examples if item.speaker == example.speaker}
        talkers = set(noisy.alteration.talkers)
        assert len(talkers) == 6
        assert not talkers & own


def test_babble_of_one_speaker_leaves_out_the_examples_own_audio(examples):
    alone = [Recording(item.id, "text", item.path, speaker="one") for item in examples[:4]]
    for noisy in with_noise(alone, "babble", 10, read):
        assert noisy.path not in noisy.alteration.talkers
        assert len(noisy.alteration.talkers) == 3


def test_what_cannot_be_made(examples):
    with pytest.raises(OptionsError, match="babble is made of 3 or more other recordings, and the dataset has 3"):
        with_noise(examples[:3], "babble", 10, read)
    with pytest.raises(OptionsError, match="no noise 'pub'; known: white, babble"):
        with_noise(examples, "pub", 10, read)
    with pytest.raises(OptionsError, match="a signal-to-noise ratio of 100 dB; expected -30 to 60"):
        with_noise(examples, "white", 100, read)


def test_silence_has_no_ratio_and_loud_mixtures_are_turned_down():
    silence, ones = np.zeros(100, dtype=np.float32), np.ones(100, dtype=np.float32)
    np.testing.assert_array_equal(mix(silence, ones, 0), silence)
    np.testing.assert_array_equal(mix(ones, silence, 0), ones)
    assert np.abs(mix(ones, ones, 0)).max() == 1.0


def test_clips_without_speech():
    clips = no_speech_examples()
    assert len({clip.id for clip in clips}) == len(clips) == 20
    for clip in clips:
        samples = pickle.loads(pickle.dumps(clip)).audio(read)
        assert len(samples) == clip.duration_s * RATE
        assert clip.text == ""
        level = float(np.sqrt(np.mean(samples**2)))
        assert level == (0 if "silence" in clip.id else pytest.approx(float(clip.id.split("-")[1]), rel=1e-3))


def test_what_was_heard_in_them():
    clips = no_speech_examples()
    found = no_speech_behaviour([(clips[0], ""), (clips[1], "thank you"), (clips[2], "you")])
    assert (found.clips, found.clips_with_text, found.words) == (3, 2, 3)
    assert [(clip.kind, clip.duration_s, clip.words) for clip in found.details] == [
        ("silence", 3.0, 0),
        ("silence", 30.0, 2),
        ("white_noise", 3.0, 1),
    ]
    with pytest.raises(ValueError, match="x is not a clip without speech"):
        no_speech_behaviour([(Recording("x", ""), "")])
