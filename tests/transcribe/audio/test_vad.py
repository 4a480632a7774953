"""Finding speech by loudness, and cutting in pauses."""

import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperkit_tools.demo import demo_longform
from whisperkit_tools.errors import AudioError
from whisperkit_tools.transcribe.audio.load import AudioInput, load_audio
from whisperkit_tools.transcribe.audio.vad import EnergyDetector, SileroDetector, cut_in_pauses, detector

RATE = 16_000


def tones(spans_s, length_s, *, level=0.1, background=0.0):
    audio = np.random.default_rng(0).normal(0, 1, round(length_s * RATE)) * background
    for start, stop in spans_s:
        time = np.arange(round(start * RATE), round(stop * RATE)) / RATE
        audio[round(start * RATE) : round(stop * RATE)] += level * np.sin(2 * np.pi * 300 * time)
    return audio.astype(np.float32)


@pytest.mark.parametrize("background", [0.0, 1e-4, 0.01])
@pytest.mark.parametrize("level", [0.01, 0.1, 0.9])
def test_sounds_are_found_to_within_the_margin(level, background):
    if background * 5 > level:
        pytest.skip("nothing to be heard")
    spans = [(1.0, 2.5), (4.0, 4.6), (7.0, 9.9)]
    found = EnergyDetector().speech(tones(spans, 11, level=level, background=background))
    assert len(found) == len(spans)
    for (start, stop), (wanted_start, wanted_stop) in zip(found, spans, strict=True):
        assert -0.2 <= start / RATE - wanted_start <= 0
        assert 0 <= stop / RATE - wanted_stop <= 0.2


def test_short_pauses_and_clicks_do_not_count():
    audio = tones([(1, 2), (2.2, 3)], 6)
    audio[5 * RATE : 5 * RATE + 200] = 0.5
    found = EnergyDetector().speech(audio)
    assert [(round(a / RATE, 1), round(b / RATE, 1)) for a, b in found] == [(0.8, 3.2)]


@pytest.mark.parametrize("audio", [np.zeros(RATE, np.float32), np.full(10, 1e-4, np.float32)])
def test_silence_has_no_speech(audio):
    assert EnergyDetector().speech(audio) == []


def test_the_demo_sentences_lie_in_the_speech_and_the_long_pauses_do_not():
    for recording in demo_longform():
        found = EnergyDetector().speech(load_audio(AudioInput(str(recording.path), recording.path)))
        for segment in recording.phrases:
            covered = sum(max(0, min(b, segment.end_s * RATE) - max(a, segment.start_s * RATE)) for a, b in found)
            assert covered >= 0.8 * (segment.end_s - segment.start_s) * RATE, segment
        for before, after in pairwise(recording.phrases):
            if after.start_s - before.end_s > 1:
                assert any(a >= before.end_s * RATE for _, a in found), (before, after)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 900), st.integers(0, 400)), min_size=0, max_size=12),
    longest=st.integers(640, 1600),
)
@settings(max_examples=300, deadline=None)
def test_pieces_hold_all_speech_once_and_are_no_longer_than_asked(lengths, longest):
    spans, at = [], 0
    for speech, pause in lengths:
        spans.append((at, at + speech))
        at += speech + max(1, pause)
    audio = np.zeros(at, np.float32)
    pieces = cut_in_pauses(audio, spans, longest)
    assert all(0 < stop - start <= longest for start, stop in pieces)
    assert all(left[1] <= right[0] for left, right in pairwise(pieces))
    flags = np.zeros(at, int)
    for start, stop in pieces:
        flags[start:stop] += 1
    assert all(flags[start:stop].min() == 1 for start, stop in spans)
    # Only speech without a pause for so long is cut within.
    cuts = {stop for _, stop in pieces} - {stop for _, stop in spans}
    assert all(any(a < cut < b and b - a > longest for a, b in spans) for cut in cuts)


def test_the_longest_pause_of_the_later_half_is_chosen():
    spans = [(0, 100), (300, 400), (410, 600), (650, 800), (810, 900), (910, 1200)]
    assert cut_in_pauses(np.zeros(1200, np.float32), spans, 1000) == [(0, 600), (650, 1200)]


def test_speech_without_pause_is_cut_where_it_is_quietest():
    audio = np.full(4 * RATE, 0.5, np.float32)
    audio[round(1.7 * RATE) : round(1.75 * RATE)] = 0
    pieces = cut_in_pauses(audio, [(0, 4 * RATE)], 2 * RATE)
    assert pieces[0][1] / RATE == pytest.approx(1.725, abs=0.02)
    assert pieces[-1][1] == 4 * RATE


def test_detectors_by_name(monkeypatch):
    assert isinstance(detector("energy"), EnergyDetector)
    monkeypatch.setitem(sys.modules, "silero_vad", None)  # as if it were not installed
    with pytest.raises(AudioError, match="pip install silero-vad"):
        detector("silero")


def test_silero_finds_the_demo_sentences():
    recording = demo_longform()[0]
    found = SileroDetector().speech(load_audio(AudioInput(str(recording.path), recording.path)))
    said = sum(segment.end_s - segment.start_s for segment in recording.phrases)
    assert 0.7 * said < sum(stop - start for start, stop in found) / RATE < 1.3 * said
