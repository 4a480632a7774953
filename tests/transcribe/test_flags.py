"""Flags of segments: loops that people do not say, low confidence, text without speech."""

import json

import pytest

from whisperkit_tools.speech import Segment
from whisperkit_tools.transcribe.flags import flag_notice, flagged, is_loop, loops
from whisperkit_tools.transcribe.options import TranscribeOptions

OPTIONS = TranscribeOptions()


@pytest.mark.parametrize(
    ("words", "often"),
    [("no", 8), ("thank you", 6), ("a b c", 4), ("a b c d", 3), ("a b c d e", 3)],
)
def test_up_to_a_limit_people_repeat_themselves(words, often):
    assert not is_loop(f"well {' '.join([words] * often)} then")
    assert is_loop(" ".join([words] * (often + 3)))


def test_the_stretch_of_a_loop():
    words = [*["so", "it", "is"], *["about"] * 10, "that"]
    assert (3, 13) in loops(words)
    assert loops(["a"]) == loops([]) == []


@pytest.mark.parametrize("text", ["", "...", "ha ha ha", "1 2 3 4 5 6 7 8 9 10", "好的好的", "1, 1, 1, 1"])
def test_what_is_no_loop(text):
    assert not is_loop(text)


def test_transcripts_from_the_field(shared):
    lines = (shared / "cases" / "21-loops-that-look-confident" / "transcripts.jsonl").read_text(encoding="utf-8")
    for row in map(json.loads, lines.splitlines()):
        assert is_loop(row["text"]) is row["loop"], row["text"]


def test_a_loop_through_several_segments_flags_all_of_them():
    texts = [" Hello there.", *[" Thank you."] * 9, " Goodbye now."]
    found = flagged([Segment(at, at + 1.0, text) for at, text in enumerate(texts)], OPTIONS)
    assert [item.flags for item in found] == [(), *[("repetition",)] * 9, ()]
    assert flag_notice(found) == (
        "9 of 11 segments are flagged (9 with repetition), the first at 1.0 s; check what they say"
    )


def test_the_windows_probabilities():
    segments = [
        Segment(0.0, 1.0, "a", avg_logprob=-1.5, no_speech_prob=0.7),
        Segment(1.0, 2.0, "b", avg_logprob=-0.5, no_speech_prob=0.1),
        Segment(2.0, 3.0, "c"),
    ]
    assert [item.flags for item in flagged(segments, OPTIONS)] == [("low_confidence", "no_speech"), (), ()]
    strict = TranscribeOptions(logprob_threshold=-0.1, no_speech_threshold=0.05)
    assert flagged(segments, strict)[1].flags == ("low_confidence", "no_speech")
    off = TranscribeOptions(logprob_threshold=None, no_speech_threshold=None)
    assert flagged(segments, off)[0].flags == ("low_confidence", "no_speech")
    assert flag_notice(flagged(segments[1:], OPTIONS)) is None


def test_flags_are_in_the_json_of_a_transcription(transcriber):
    import numpy as np

    heard = transcriber.transcribe(np.zeros(16_000, np.float32), TranscribeOptions(no_speech_threshold=None))
    assert all("flags" in item for item in heard.to_dict()["segments"])
