"""Flags of segments that a reader should not trust: loops, low confidence, text where no speech was found.

A decoder caught in a loop writes with confidence, so its probabilities do not show it.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from whisperkit_tools.speech import Segment
from whisperkit_tools.transcribe.options import TranscribeOptions

REPETITION, LOW_CONFIDENCE, NO_SPEECH = "repetition", "low_confidence", "no_speech"
# How often in a row people say the same 1, 2, 3, ... words. More is a loop.
# Source: nyrahealth/CrisperWhisper; longer phrases as its longest.
_LIMITS = (8, 8, 4, 3, 3)
_LONGEST_PHRASE = 30  # words
_DEFAULTS = TranscribeOptions()
_UNSPACED = r"\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
# A word of letters, marks and digits, or a single character of a script without spaces.
_WORDS = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}_])[\w'’])+")


def is_loop(text: str) -> bool:
    """Return whether a text repeats the same words in a row more often than people do."""
    return bool(loops(_WORDS.findall(text.lower())))


def loops(words: Sequence[str]) -> list[tuple[int, int]]:
    """Return the stretches of words in which the same phrase is repeated too often, as start and stop."""
    found = []
    for length in range(1, min(_LONGEST_PHRASE, len(words) // 2) + 1):
        limit = _LIMITS[min(length, len(_LIMITS)) - 1]
        begin = 0
        for at in range(len(words) - length + 1):
            if at + length < len(words) and words[at] == words[at + length]:
                continue
            if (at - begin) // length + 1 > limit:
                found.append((begin, at + length))
            begin = at + 1
    return found


def flagged(segments: Sequence[Segment], options: TranscribeOptions) -> list[Segment]:
    """Return the segments of a transcription with their flags.

    Args:
        segments: In time order. A loop may run through several of them.
        options: Their thresholds, or the defaults for those that are switched off.
    """
    words = [(number, word) for number, item in enumerate(segments) for word in _WORDS.findall(item.text.lower())]
    looping = {
        number for start, stop in loops([word for _, word in words]) for number in {of for of, _ in words[start:stop]}
    }
    return [
        replace(item, flags=(*((REPETITION,) if number in looping else ()), *_of_window(item, options)))
        for number, item in enumerate(segments)
    ]


def _of_window(segment: Segment, options: TranscribeOptions) -> tuple[str, ...]:
    """Return the flags that the probabilities of a segment's window tell."""
    min_logprob = _given(options.logprob_threshold, _DEFAULTS.logprob_threshold)
    max_silence = _given(options.no_speech_threshold, _DEFAULTS.no_speech_threshold)
    flags = []
    if segment.avg_logprob is not None and segment.avg_logprob < min_logprob:
        flags.append(LOW_CONFIDENCE)
    if segment.no_speech_prob is not None and segment.no_speech_prob > max_silence:
        flags.append(NO_SPEECH)
    return tuple(flags)


def _given(value: float | None, default: float | None) -> float:
    chosen = default if value is None else value
    assert chosen is not None
    return chosen


def flag_notice(segments: Sequence[Segment]) -> str | None:
    """Return one line on the flagged segments, or None without any."""
    counts = {flag: sum(flag in item.flags for item in segments) for flag in (REPETITION, LOW_CONFIDENCE, NO_SPEECH)}
    told = [f"{count} with {flag}" for flag, count in counts.items() if count]
    if not told:
        return None
    number = sum(bool(item.flags) for item in segments)
    first = next(item for item in segments if item.flags)
    return (
        f"{number} of {len(segments)} segments are flagged ({', '.join(told)}), the first at {first.start_s:.1f} s; "
        "check what they say"
    )
