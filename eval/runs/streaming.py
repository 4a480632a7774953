"""Simulated live transcription: audio arrives hop by hop, and text is confirmed when two runs in a row agree.

Every hop the backend transcribes the audio since the last cut. Text on which this run and the one before agree is
confirmed and never changes again. The rest is shown as a hypothesis. The clock is simulated from measured computing
times: a hop begins when its audio has arrived and the hop before is done. No hop is omitted when the backend is too
slow, so the text is the same on every machine and only the latencies grow.

Source: LocalAgreement-2 of Macháček, Dabre and Bojar, "Turning Whisper into Real-Time Transcription System", 2023
(arXiv 2307.14743), with its cutting of the audio at confirmed segments once it is longer than 15 s.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.eval.backends.base import TranscriptionBackend
from whisperkit_tools.eval.schema import Stream, StreamedWord
from whisperkit_tools.speech import SAMPLE_RATE_HZ, Samples, Segment, Transcription, Word

CUT_AFTER_S = 15.0
FORCED_CUT_AFTER_S = 25.0  # a hop later it must still be less than Whisper's window of 30 s
# Scripts that write no spaces: Thai, Lao, Burmese, kana, Han. Every character is a unit there.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNIT = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\s{_UNSPACED}]+)")


def simulate(
    backend: TranscriptionBackend,
    audio: Samples,
    *,
    language: str | None = None,
    hop_s: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Stream:
    """Transcribe audio as if it arrived live.

    Args:
        backend: Transcribes each piece.
        audio: `[samples]`, float32, mono, 16 kHz.
        language: Code of the spoken language.
        hop_s: Seconds of new audio before the backend runs again.
        clock: Measures computing time.

    Raises:
        OptionsError: The hop is not a positive time.
    """
    if not (math.isfinite(hop_s) and 0 < hop_s <= CUT_AFTER_S):
        raise OptionsError(f"{option('hop_s')} is {hop_s}; expected more than 0 and at most {CUT_AFTER_S:g} seconds")
    duration_s = len(audio) / SAMPLE_RATE_HZ
    state = _State()
    compute_s: list[float] = []
    now_s, has_word_times = 0.0, True
    for hop in range(1, max(1, math.ceil(duration_s / hop_s - 1e-9)) + 1):
        ready_s = min(hop * hop_s, duration_s)
        heard = audio[round(state.start_s * SAMPLE_RATE_HZ) : round(ready_s * SAMPLE_RATE_HZ)]
        begun = clock()
        hypothesis = backend.transcribe(heard, language=language, words=True)
        compute_s.append(round(clock() - begun, 6))
        now_s = max(ready_s, now_s) + compute_s[-1]
        has_word_times = has_word_times and bool(hypothesis.words or not hypothesis.text.strip())
        state.take(_units(hypothesis, state.start_s, ready_s), hypothesis, ready_s, now_s)
    state.confirm_rest(now_s)
    words = tuple(state.words)
    text = "".join(word.text for word in words).strip()
    return Stream(text, words, tuple(compute_s), duration_s, round(now_s - duration_s, 6), has_word_times)


@dataclass(slots=True)
class _State:
    """The confirmed words, and the words of the last run after them."""

    start_s: float = 0.0
    words: list[StreamedWord] = field(default_factory=list)
    in_buffer: list[str] = field(default_factory=list)
    """Confirmed words that every run still transcribes again."""
    tail: list[Word] = field(default_factory=list)
    seen: dict[tuple[int, str], tuple[float, float]] = field(default_factory=dict)
    """Time at which a word was first shown at its place, and the end of the audio at that time."""

    def take(self, units: list[Word], hypothesis: Transcription, ready_s: float, now_s: float) -> None:
        """Take in one run: show it, confirm its agreement with the run before, cut the audio."""
        known = _split(units, self.in_buffer)
        tail = units[known:]
        for place, unit in enumerate(tail, len(self.words)):
            self.seen.setdefault((place, _form(unit.text)), (now_s, ready_s))
        agreed = _common_prefix(tail, self.tail)
        self._confirm(tail[:agreed], now_s)
        self.tail = tail[agreed:]
        if ready_s - self.start_s > FORCED_CUT_AFTER_S and known + agreed == 0:
            # The runs agreed on nothing in a whole window, so the last run is accepted.
            self.confirm_rest(now_s)
            self._cut(units, len(units), ready_s)
        elif ready_s - self.start_s > CUT_AFTER_S:
            self._cut(units, known + agreed, self._place_to_cut(units, known + agreed, hypothesis, ready_s))

    def confirm_rest(self, now_s: float) -> None:
        """Confirm the last run's words as they are."""
        self._confirm(self.tail, now_s)
        self.tail = []

    def _confirm(self, units: Sequence[Word], now_s: float) -> None:
        for unit in units:
            shown_s, ready_s = self.seen.get((len(self.words), _form(unit.text)), (now_s, now_s))
            end_s = min(unit.end_s, ready_s)  # a word is not shown before it is spoken
            latencies = round(shown_s - end_s, 6), round(now_s - end_s, 6)
            self.words.append(StreamedWord(unit.text, round(end_s, 3), *latencies))
            self.in_buffer.append(_form(unit.text))

    def _place_to_cut(self, units: Sequence[Word], confirmed: int, hypothesis: Transcription, ready_s: float) -> float:
        """Return the end of the last wholly confirmed segment, or of the last confirmed word of a full buffer."""
        limit_s = units[confirmed].start_s if confirmed < len(units) else ready_s
        ends = [self.start_s + segment.end_s for segment in hypothesis.segments]
        ends = [end_s for end_s in ends if self.start_s < end_s <= limit_s + 1e-3]
        if ends:
            return max(ends)
        if ready_s - self.start_s > FORCED_CUT_AFTER_S and confirmed:
            return min(units[confirmed - 1].end_s, limit_s)
        return self.start_s

    def _cut(self, units: Sequence[Word], confirmed: int, cut_s: float) -> None:
        if cut_s <= self.start_s:
            return
        self.start_s = cut_s
        self.in_buffer = [_form(unit.text) for unit in units[:confirmed] if unit.start_s >= cut_s - 1e-3]


def _units(hypothesis: Transcription, start_s: float, ready_s: float) -> list[Word]:
    """Return words with times in the whole audio, spread over the segments by their length where none are reported."""
    if hypothesis.words:
        return [_moved(word, start_s) for word in _spaced(hypothesis.words, hypothesis.text)]
    whole = Segment(0.0, ready_s - start_s, hypothesis.text)
    return [_moved(unit, start_s) for segment in hypothesis.segments or (whole,) for unit in _spread(segment)]


def _spaced(words: Sequence[Word], text: str) -> list[Word]:
    """Restore the spaces that some backends omit."""
    if any(word.text[:1].isspace() for word in words) or " " not in text.strip():
        return list(words)
    return [Word(f" {word.text}", word.start_s, word.end_s) for word in words]


def _spread(segment: Segment) -> list[Word]:
    pieces = _UNIT.findall(" " + segment.text.lstrip())
    total = sum(len(piece) for piece in pieces) or 1
    step_s = (segment.end_s - segment.start_s) / total
    units, at = [], 0
    for piece in pieces:
        units.append(Word(piece, segment.start_s + at * step_s, segment.start_s + (at + len(piece)) * step_s))
        at += len(piece)
    return units


def _moved(unit: Word, by_s: float) -> Word:
    return Word(unit.text, unit.start_s + by_s, unit.end_s + by_s)


def _form(text: str) -> str:
    """Return a word in the form that is compared: without case, space and punctuation around it."""
    bare = text.strip().casefold()
    return bare.strip(".,;:!?¿¡\"'()[]…-。、，！？") or bare


def _common_prefix(first: Sequence[Word], second: Sequence[Word]) -> int:
    for count, (one, other) in enumerate(zip(first, second, strict=False)):
        if _form(one.text) != _form(other.text):
            return count
    return min(len(first), len(second))


def _split(units: Sequence[Word], confirmed: Sequence[str]) -> int:
    """Return the number of leading units that repeat the confirmed words: the prefix with the minimum edit distance.

    A run may write the confirmed part in more or fewer words than before, so counting words does not suffice.
    """
    row = list(range(len(units) + 1))
    for word in confirmed:
        last = row
        row = [last[0] + 1]
        for place, unit in enumerate(units, 1):
            changed = last[place - 1] + (_form(unit.text) != word)
            row.append(min(changed, last[place] + 1, row[-1] + 1))
    return min(range(len(row)), key=lambda count: (row[count], abs(count - len(confirmed))))
