"""Output formats, parsed back."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperkit_tools.errors import OptionsError
from whisperkit_tools.speech import Segment, Timings, Transcription, Word
from whisperkit_tools.transcribe.formats import FORMATS, render

TIMINGS = Timings(
    total_s=1.0, mel_s=0.1, encoder_s=0.2, decoder_s=0.5, time_to_first_token_s=0.4, windows=1, decoder_steps=20,
    tokens=10, tokens_per_second=20.0, fallbacks=0, real_time_factor=0.1,
)  # fmt: skip


def transcription(*pieces):
    segments = tuple(
        Segment(start, end, text, (1, 2), 0.0, -0.1, 0.9, 0.0, (Word(text, start, end),)) for start, end, text in pieces
    )
    return Transcription(
        "".join(text for _, _, text in pieces).strip(), "en", None, "transcribe", segments, (1, 2), 4.0, TIMINGS
    )


def seconds(clock):
    hours, minutes, rest = re.fullmatch(r"(\d{2,}):([0-5]\d):([0-5]\d[.,]\d{3})", clock).groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))


def parse_srt(text):
    cues = []
    for number, block in enumerate(filter(None, text.split("\n\n")), start=1):
        index, times, *lines = block.strip("\n").split("\n")
        assert index == str(number)
        start, end = times.split(" --> ")
        assert "," in start
        cues.append((seconds(start), seconds(end), "\n".join(lines)))
    return cues


def parse_vtt(text):
    header, *blocks = text.rstrip("\n").split("\n\n")
    assert header == "WEBVTT"
    cues = []
    for block in blocks:
        times, *lines = block.split("\n")
        start, end = times.split(" --> ")
        content = "\n".join(lines)
        assert "-->" not in content
        assert "<" not in content
        for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
            content = content.replace(entity, character)
        cues.append((seconds(start), seconds(end), content))
    return cues


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda t: t.split())
times = st.integers(0, 500_000_000).map(lambda ms: ms / 1000)


@given(pieces=st.lists(st.tuples(times, st.integers(1, 30_000), texts), max_size=4))
@settings(max_examples=100, deadline=None)
def test_cues_can_be_read_back(pieces):
    pieces = [(start, start + length / 1000, text) for start, length, text in pieces]
    result = transcription(*pieces)
    expected = [(start, end, " ".join(text.split())) for start, end, text in pieces]
    for found, wanted in zip(parse_vtt(render(result, "vtt")), expected, strict=True):
        assert found == (pytest.approx(wanted[0], abs=6e-4), pytest.approx(wanted[1], abs=6e-4), wanted[2])
    for found, wanted in zip(parse_srt(render(result, "srt")), expected, strict=True):
        assert found == (
            pytest.approx(wanted[0], abs=6e-4), pytest.approx(wanted[1], abs=6e-4), wanted[2].replace("-->", "->")
        )  # fmt: skip


def test_srt():
    result = transcription((0.0, 1.5, " Hello --> you."), (3661.0004, 3662.9996, " Two\n\nlines."))
    assert render(result, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello -> you.\n\n2\n01:01:01,000 --> 01:01:03,000\nTwo lines.\n"
    )


def test_vtt():
    result = transcription((0.0, 1.5, " R&D <b> --> 2"))
    assert render(result, "vtt") == "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nR&amp;D &lt;b&gt; --&gt; 2\n"


def test_cues_without_length_are_left_out():
    result = transcription((1.0, 1.0, " gone"), (1.0, 2.0, "  "))
    assert render(result, "srt") == ""
    assert render(result, "vtt") == "WEBVTT\n"


def test_txt_is_the_bare_text():
    assert render(transcription((0, 1, " One."), (1, 2, " Two.")), "txt") == "One. Two.\n"
    assert render(transcription(), "txt") == "\n"


def test_json_says_everything():
    value = json.loads(render(transcription((0, 1, " ¿Qué?")), "json"))
    assert value["text"] == "¿Qué?"
    assert {"time_to_first_token_s", "tokens_per_second", "real_time_factor", "fallbacks"} <= value["timings"].keys()
    assert value["segments"][0]["words"] == [{"text": " ¿Qué?", "start_s": 0, "end_s": 1}]


def test_an_unknown_format_is_named():
    with pytest.raises(OptionsError, match=r"'doc'; allowed are " + ", ".join(FORMATS)):
        render(transcription(), "doc")
