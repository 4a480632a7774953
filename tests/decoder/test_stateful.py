"""A stateful bundle transcribes as the stateless one does, token by token."""

import numpy as np
import pytest

from whisperkit_tools.decoder.stateful import StatefulSession
from whisperkit_tools.demo import demo_longform, demo_utterances
from whisperkit_tools.transcribe.audio.load import find_inputs, load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber


@pytest.fixture(scope="module")
def both(demo_bundle, stateful_bundle):
    return Transcriber.load(demo_bundle), Transcriber.load(stateful_bundle)


def audio_of(item):
    return load_audio(find_inputs([str(item.path)])[0])


def assert_equal(both, audio, **options):
    stateless, stateful = (one.transcribe(audio, TranscribeOptions(**options)) for one in both)
    assert stateful.tokens == stateless.tokens
    for found, expected in zip(stateful.segments, stateless.segments, strict=True):
        assert (found.text, found.start_s, found.end_s) == (expected.text, expected.start_s, expected.end_s)
        assert [(w.text, w.start_s, w.end_s) for w in found.words] == [
            (w.text, w.start_s, w.end_s) for w in expected.words
        ]
    assert stateful.timings.decoder_steps == stateless.timings.decoder_steps
    return stateful


def utterance(language, number):
    return [one for one in demo_utterances() if one.language == language][number]


@pytest.mark.parametrize("language", ["en", "es"])
@pytest.mark.parametrize("number", [0, 3, 7])
def test_the_same_tokens_and_words(both, language, number):
    audio = audio_of(utterance(language, number))
    result = assert_equal(both, audio, word_timestamps=True)
    assert result.tokens and result.segments[0].words
    assert_equal(both, audio, timestamps=False, language=language)


def test_the_same_translation_and_prompt(both):
    audio = audio_of(utterance("es", 1))
    assert_equal(both, audio, language="es", task="translate")
    assert_equal(both, audio, language="es", prompt="Simon")


def test_the_same_after_rewinding_for_other_temperatures(both):
    result = assert_equal(
        both, audio_of(utterance("en", 1)), temperatures=(0.0, 0.4, 0.8), logprob_threshold=0.0, seed=3
    )
    assert result.timings.fallbacks == 2


def test_the_same_over_several_windows(both):
    first, second, third = (audio_of(utterance("en", number)) for number in (0, 4, 5))
    silence = np.zeros(16000 * 22, np.float32)
    audio = np.concatenate([first, silence, second, silence, third])
    result = assert_equal(both, audio, language="en", word_timestamps=True, condition_on_previous_text=True)
    assert result.timings.windows > 1


@pytest.mark.slow
def test_the_same_on_a_long_recording(both):
    audio = audio_of(demo_longform()[0])[: 16000 * 65]
    assert_equal(both, audio, language=demo_longform()[0].language, word_timestamps=True)


def test_the_same_in_float16(demo_bundle, stateful_bundle):
    pair = [Transcriber.load(path, precision="float16") for path in (demo_bundle, stateful_bundle)]
    assert_equal(pair, audio_of(utterance("en", 2)), language="en")


def test_a_window_is_projected_once(both, monkeypatch):
    calls = []
    window = both[1].models.decoder.window
    run = window.run
    monkeypatch.setattr(window, "run", lambda *args, **given: calls.append(1) or run(*args, **given))
    both[1].transcribe(audio_of(utterance("en", 0)))  # the language is detected first: two beginnings, one window
    assert len(calls) == 1


def test_caches_can_be_filled_from_a_table(both):
    import torch

    from whisperkit_tools.decoder.session import CacheColumns

    stateless, stateful = (one.models.new_session() for one in both)
    assert isinstance(stateful, StatefulSession)
    embeds = torch.randn(1, 128, 1, 1500, generator=torch.manual_seed(0))
    channels = both[0].sizes.cache_channels
    keys, values = torch.randn(2, 1, channels, 1, 3, generator=torch.manual_seed(1))
    for session in (stateless, stateful):
        session.begin(embeds)
        session.fill(CacheColumns(keys, values), 3)
        assert torch.equal(session.columns(1, 3).keys, keys[..., 1:])
        assert torch.equal(session.columns(0, 2).values, values[..., :2])
    expected, found = (session.step(7, 3)[0] for session in (stateless, stateful))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    stateful.fill(None, 3)
    added, same = (session.columns(3, 4) for session in (stateless, stateful))
    torch.testing.assert_close(same.keys, added.keys, rtol=1e-3, atol=1e-3)
