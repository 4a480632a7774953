"""The simulation of live transcription, with a clock that stands still except while the transcriber works."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperkit_tools.errors import OptionsError
from whisperkit_tools.eval.backends.base import transcription
from whisperkit_tools.eval.runs.streaming import simulate
from whisperkit_tools.speech import Segment, Timings, Word

RATE_HZ = 16_000


class Speech:
    """Says what was spoken in the audio so far; the samples hold the position in seconds.

    Words are given by text and end; the last heard word is `unsure` in every run, as a word cut in half is.
    """

    def __init__(self, words, *, compute_s=0.1, unsure=False, tells_words=True):
        self.words = words
        self.compute_s = compute_s
        self.unsure = unsure
        self.tells_words = tells_words
        self.now_s = 0.0
        self.calls: list[tuple[float, float]] = []

    def clock(self) -> float:
        return self.now_s

    def check(self, languages) -> None:
        pass

    def transcribe(self, audio, *, language=None, words=False):
        self.now_s += self.compute_s
        start, end = float(audio[0]), float(audio[-1])
        self.calls.append((start, end))
        heard = [(text, at - start) for text, at in self.words if start + 0.01 < at <= end + 0.01]
        if heard and self.unsure and end < len(self.words) - 0.01:
            heard[-1] = (f"maybe{len(self.calls)}", heard[-1][1])
        timed = [Word(f" {text}", at - 0.5, at) for text, at in heard]
        segments = [
            Segment(word.start_s, word.end_s, word.text, words=(word,) if self.tells_words else ()) for word in timed
        ]
        text = "".join(word.text for word in timed).strip()
        return transcription(text, audio, Timings(self.compute_s), segments)


def audio(seconds: float) -> np.ndarray:
    return (np.arange(round(seconds * RATE_HZ)) / RATE_HZ).astype(np.float32)


def spoken(count: int) -> list[tuple[str, float]]:
    """A word a second, ending half-way through it."""
    return [(f"word{number}", number + 0.5) for number in range(count)]


def test_a_word_is_confirmed_when_two_runs_agree():
    speech = Speech(spoken(5))
    stream = simulate(speech, audio(5), clock=speech.clock)
    assert stream.text == "word0 word1 word2 word3 word4"
    first, last = stream.words[0], stream.words[-1]
    # It ends at 0.5 s, is heard with the first second and 0.1 s later shown; a second later it is heard again.
    assert (first.hypothesis_latency_s, first.confirmed_latency_s) == (pytest.approx(0.6), pytest.approx(1.6))
    # With the audio's end all that was heard is confirmed.
    assert (last.hypothesis_latency_s, last.confirmed_latency_s) == (pytest.approx(0.6), pytest.approx(0.6))
    assert stream.compute_s == pytest.approx((0.1,) * 5)
    assert stream.end_lag_s == pytest.approx(0.1)
    assert stream.has_word_times


def test_a_word_that_changes_is_shown_late():
    speech = Speech(spoken(6), unsure=True)
    stream = simulate(speech, audio(6), clock=speech.clock)
    assert stream.text == " ".join(text for text, _ in spoken(6))
    assert stream.words[0].hypothesis_latency_s == pytest.approx(1.6)
    assert stream.words[0].confirmed_latency_s == pytest.approx(2.6)


def test_a_transcriber_that_is_too_slow_falls_behind():
    speech = Speech(spoken(4), compute_s=1.5)
    stream = simulate(speech, audio(4), clock=speech.clock)
    # Hops start at 1.0, 2.5, 4.0 and 5.5 s; the last one ends at 7.0 s.
    assert stream.end_lag_s == pytest.approx(3.0)
    assert stream.text == "word0 word1 word2 word3"


def test_long_audio_is_cut_so_that_no_run_hears_more_than_a_window():
    speech = Speech(spoken(90))
    stream = simulate(speech, audio(90), clock=speech.clock)
    assert stream.text == " ".join(text for text, _ in spoken(90))
    assert max(end - start for start, end in speech.calls) < 17
    assert speech.calls[-1][0] > 70


def test_audio_without_a_segment_to_cut_at_is_cut_before_the_window_ends():
    class OneSegment(Speech):
        def transcribe(self, audio, *, language=None, words=False):
            found = super().transcribe(audio)
            whole = Segment(0.0, found.audio_duration_s, found.text, words=found.words)
            return transcription(found.text, audio, found.timings, [whole])

    speech = OneSegment(spoken(70))
    stream = simulate(speech, audio(70), clock=speech.clock)
    assert stream.text == " ".join(text for text, _ in spoken(70))
    assert max(end - start for start, end in speech.calls) < 30


def test_babble_that_never_agrees_is_cut_too():
    class Babble(Speech):
        def transcribe(self, audio, *, language=None, words=False):
            super().transcribe(audio)
            text = f"word{len(self.calls)}"
            segments = [Segment(0.0, 0.5, text, words=(Word(f" {text}", 0.0, 0.5),))]
            return transcription(text, audio, Timings(0.1), segments)

    speech = Babble([])
    stream = simulate(speech, audio(60), clock=speech.clock)
    assert max(end - start for start, end in speech.calls) < 30
    assert stream.text


def test_without_word_times_they_are_spread_over_the_segments():
    speech = Speech(spoken(5), tells_words=False)
    stream = simulate(speech, audio(5), clock=speech.clock)
    assert stream.text == "word0 word1 word2 word3 word4"
    assert not stream.has_word_times
    assert stream.words[0].end_s == pytest.approx(0.5)


def test_script_without_spaces_goes_letter_by_letter():
    class Chinese(Speech):
        def transcribe(self, audio, *, language=None, words=False):
            seconds = round(float(audio[-1]))
            return transcription("今天天气很好"[:seconds], audio, Timings(0.1))

    speech = Chinese([])
    stream = simulate(speech, audio(6), clock=speech.clock)
    assert [word.text.strip() for word in stream.words] == list("今天天气很好")


def test_silence_and_hops_that_make_no_sense():
    speech = Speech([])
    stream = simulate(speech, audio(2.5), clock=speech.clock)
    assert (stream.text, stream.words, len(stream.compute_s)) == ("", (), 3)
    for hop_s in (0.0, -1.0, float("nan"), 60.0):
        with pytest.raises(OptionsError, match=r"hop_s is .*; expected more than 0 and at most 15 seconds"):
            simulate(speech, audio(2), hop_s=hop_s)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 35), st.sampled_from([0.5, 1.0, 2.0]), st.booleans(), st.floats(0.0, 3.0))
def test_no_word_is_lost_or_doubled(count, hop_s, unsure, compute_s):
    speech = Speech(spoken(count), compute_s=compute_s, unsure=unsure)
    stream = simulate(speech, audio(count), hop_s=hop_s, clock=speech.clock)
    assert stream.text == " ".join(text for text, _ in spoken(count))
    assert all(0 <= word.hypothesis_latency_s <= word.confirmed_latency_s + 1e-6 for word in stream.words)
