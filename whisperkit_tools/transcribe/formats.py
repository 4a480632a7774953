"""A transcription as text, JSON, SubRip or WebVTT."""

from collections.abc import Callable, Sequence

from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.speech import Segment, Transcription
from whisperkit_tools.strict_json import json_text

FORMATS = ("txt", "json", "srt", "vtt")


def render(result: Transcription, format_name: str) -> str:
    """Return a transcription in one of the formats, with a newline at its end.

    Raises:
        OptionsError: There is no such format.
    """
    writers: dict[str, Callable[[Transcription], str]] = {
        "txt": to_txt,
        "json": to_json,
        "srt": to_srt,
        "vtt": to_vtt,
    }
    if format_name not in writers:
        raise OptionsError(f"{option('format')} is {format_name!r}; allowed are {', '.join(FORMATS)}")
    return writers[format_name](result)


def to_txt(result: Transcription) -> str:
    """Return the bare text in one line."""
    return _one_line(result.text) + "\n"


def to_json(result: Transcription) -> str:
    """Return all of a transcription, as `Transcription.to_dict`."""
    return json_text(result.to_dict()) + "\n"


def to_srt(result: Transcription) -> str:
    """Return SubRip cues.

    In them `-->` separates times, so an arrow in the text becomes `->`.
    """
    cues = [
        f"{number}\n{_clock(segment.start_s, ',')} --> {_clock(segment.end_s, ',')}\n{_cue_text(segment)}\n"
        for number, segment in enumerate(_timed(result), start=1)
    ]
    return "\n".join(cues)


def to_vtt(result: Transcription) -> str:
    """Return WebVTT cues, with `&`, `<` and `>` escaped.

    Source: WebVTT, W3C Candidate Recommendation, 4.2.2: cue text may not hold `-->`, `&` or `<`.
    """
    cues = [
        f"\n{_clock(segment.start_s, '.')} --> {_clock(segment.end_s, '.')}\n{_escaped(_one_line(segment.text))}\n"
        for segment in _timed(result)
    ]
    return "WEBVTT\n" + "".join(cues)


def _timed(result: Transcription) -> Sequence[Segment]:
    """Return the segments that a cue can show: those with text and a duration."""
    return [s for s in result.segments if _one_line(s.text) and s.end_s > s.start_s]


def _one_line(text: str) -> str:
    """Return text without line breaks, because a blank line would end a cue."""
    return " ".join(text.split())


def _cue_text(segment: Segment) -> str:
    return _one_line(segment.text).replace("-->", "->")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, point: str) -> str:
    """Return `hh:mm:ss` and milliseconds. Hours have as many digits as they need."""
    milliseconds = round(max(0.0, seconds) * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02d}:{minutes:02d}:{whole:02d}{point}{milliseconds:03d}"
