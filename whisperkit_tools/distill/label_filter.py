"""Choosing among labels, after labelling: by word error rate, confidence, repetitions, pace, and a second opinion.

Every segment is judged alone. Only then are neighbours joined to windows of up to 30 s, so that a bad segment takes
nothing else with it. Neighbours are consecutive segments of one recording and one speaker, between which nothing was
dropped, so a window is one stretch of one recording.

Source: Gandhi et al. 2023, "Distil-Whisper", arXiv 2311.00430, section 4.2: a threshold of 10 % word error rate.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from whisperkit_tools.distill.labels import LabelledRecording, LabelledSegment
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.eval.metrics.alignment import align
from whisperkit_tools.eval.metrics.normalize import Normalization
from whisperkit_tools.eval.metrics.wer import repeated_ngrams
from whisperkit_tools.speech import WINDOW_S

_SHORTEST_S = 0.1


@dataclass(frozen=True, slots=True)
class LabelFilter:
    """Limits that a segment has to keep. None switches one off.

    Attributes:
        max_wer: Word errors per reference word, in percent, where the recording has a reference.
        min_logprob: Mean log probability.
        max_repeats: Number of repeated 5-grams, as with a teacher that loops.
        max_words_per_second: Pace of the text.
        max_disagreement: Word errors against the labels of another teacher, in percent.

    Raises:
        OptionsError: Naming all values that are out of range.
    """

    max_wer: float | None = 10.0
    min_logprob: float | None = -1.0
    max_repeats: int | None = 2
    max_words_per_second: float | None = 8.0
    max_disagreement: float | None = None

    def __post_init__(self) -> None:
        """Check all values at once."""
        problems = [
            f"{option(name)} is {value:g}; the minimum is 0"
            for name in ("max_wer", "max_repeats", "max_words_per_second", "max_disagreement")
            if (value := getattr(self, name)) is not None and not value >= 0
        ]
        if self.min_logprob is not None and not self.min_logprob <= 0:
            problems.append(f"{option('min_logprob')} is {self.min_logprob:g}, expected a log probability, 0 or below")
        if problems:
            raise OptionsError("; ".join(problems))


@dataclass(frozen=True, slots=True)
class JudgedSegment:
    """A segment, its figures, and the limits that it does not keep.

    Attributes:
        segment: The segment.
        errors: Word errors against the reference. None without one.
        reference_words: Words of the reference that fall to this segment.
        reasons: Names of the limits, empty for a segment that is kept.
        figures: The value of each figure by the name of its limit.
    """

    segment: LabelledSegment
    errors: int | None = None
    reference_words: int = 0
    reasons: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainingWindow:
    """Up to 30 s of one recording, of which a student learns.

    Attributes:
        id: Id of its first segment.
        recording: Id of the recording.
        audio: The audio file.
        start_s: Seconds from its start.
        end_s: Seconds from its start.
        language: Code of the language. None where it is not known.
        segments: Its segments in order. One without text for a window without speech.
        previous: Text of the recording before the window. Empty at its start, and after a dropped segment.
    """

    id: str
    recording: str
    audio: str
    start_s: float
    end_s: float
    language: str | None
    segments: tuple[LabelledSegment, ...]
    previous: str = ""


def judge(
    recordings: Iterable[LabelledRecording],
    limits: LabelFilter,
    *,
    second: Mapping[str, LabelledRecording] | None = None,
) -> list[JudgedSegment]:
    """Judge every segment.

    Args:
        recordings: Labelled recordings.
        limits: The limits.
        second: Labels of another teacher, by recording. None for no second opinion.
    """
    normalization = Normalization()
    judged = []
    for recording in recordings:
        texts = [normalization.text(segment.text, recording.language) for segment in recording.segments]
        references = _edits(recording.reference, texts, recording.language, normalization)
        other = (second or {}).get(recording.id)
        opinion = "".join(f"{one.text} " for one in other.segments) if other else None
        opinions = _edits(opinion, texts, recording.language, normalization)
        for segment, text, errors, differences in zip(recording.segments, texts, references, opinions, strict=True):
            judged.append(_judged(segment, text, errors, differences, limits))
    return judged


def _edits(
    reference: str | None, texts: Sequence[str], language: str | None, normalization: Normalization
) -> list[tuple[int, int] | None]:
    """Return errors and reference words of each segment. None for each where there is no reference.

    The recording's words are aligned with the reference as a whole. What is missing from the text falls to the segment
    at that place.
    """
    if reference is None or not reference.strip():
        return [None] * len(texts)
    words = normalization.text(reference, language).split()
    hypothesis = [word for text in texts for word in text.split()]
    owner = [index for index, text in enumerate(texts) for _ in text.split()]
    found = [[0, 0] for _ in texts]
    at = 0
    for piece in align(words, hypothesis):
        count = max(len(piece.reference), len(piece.hypothesis))
        for step in range(count):
            place = min(at + min(step, max(len(piece.hypothesis) - 1, 0)), len(owner) - 1)
            index = owner[place] if owner else 0
            if found:
                found[index][0] += piece.type != "equal"
                found[index][1] += step < len(piece.reference)
        at += len(piece.hypothesis)
    return [(errors, total) for errors, total in found]


def _judged(
    segment: LabelledSegment,
    text: str,
    errors: tuple[int, int] | None,
    differences: tuple[int, int] | None,
    limits: LabelFilter,
) -> JudgedSegment:
    seconds = max(segment.end_s - segment.start_s, _SHORTEST_S)
    figures: dict[str, float] = {
        "max_repeats": repeated_ngrams(text),
        "max_words_per_second": len(text.split()) / seconds,
    }
    if segment.avg_logprob is not None:
        figures["min_logprob"] = segment.avg_logprob
    for name, pair in (("max_wer", errors), ("max_disagreement", differences)):
        if pair is not None:
            figures[name] = 100 * pair[0] / max(pair[1], 1)
    reasons = [name for name, value in figures.items() if _is_beyond(name, value, getattr(limits, name))]
    if segment.text and segment.end_s - segment.start_s > WINDOW_S:
        reasons.append("longer_than_a_window")
    own_errors, words = errors or (None, 0)
    return JudgedSegment(segment, own_errors, words, tuple(sorted(reasons)), figures)


def _is_beyond(name: str, value: float, limit: float | None) -> bool:
    if limit is None:
        return False
    return value < limit if name.startswith("min") else value > limit


def join(judged: Sequence[JudgedSegment], max_s: float = WINDOW_S) -> list[TrainingWindow]:
    """Join kept neighbours to windows.

    Args:
        judged: All segments in the order of their recordings, dropped ones included.
        max_s: Maximum length of a window in seconds.
    """
    windows: list[TrainingWindow] = []
    group: list[LabelledSegment] = []
    before = ""

    def close() -> None:
        nonlocal before
        if group:
            windows.append(_window(group, before))
            before = f"{before} {' '.join(one.text for one in group)}".strip()
            group.clear()

    last: LabelledSegment | None = None
    for one in judged:
        segment = one.segment
        starts_anew = last is None or last.recording != segment.recording or last.speaker != segment.speaker
        if starts_anew or one.reasons:
            close()
            before = ""
        elif group and segment.end_s - group[0].start_s > max_s:
            close()
        if one.reasons:
            last = None
            continue
        group.append(segment)
        last = segment
    close()
    return windows


def _window(group: Sequence[LabelledSegment], previous: str) -> TrainingWindow:
    first, last = group[0], group[-1]
    return TrainingWindow(
        first.id, first.recording, first.audio, first.start_s, last.end_s, first.language, tuple(group), previous
    )


def summary(judged: Sequence[JudgedSegment], windows: Sequence[TrainingWindow]) -> dict[str, object]:
    """Return what the limits dropped, with examples, and the word error rate before and after."""
    kept = [one for one in judged if not one.reasons]
    reasons = sorted({reason for one in judged for reason in one.reasons})
    return {
        "segments": len(judged),
        "kept": len(kept),
        "audio_s": _seconds(judged),
        "kept_audio_s": _seconds(kept),
        "wer": _rate(judged),
        "kept_wer": _rate(kept),
        "windows": len(windows),
        "dropped": {
            reason: {
                "segments": len(dropped := [one for one in judged if reason in one.reasons]),
                "audio_s": _seconds(dropped),
                "examples": [
                    {
                        "id": one.segment.id,
                        "audio": one.segment.audio,
                        "start_s": one.segment.start_s,
                        "end_s": one.segment.end_s,
                        "text": one.segment.text,
                        "value": round(one.figures[reason], 4) if reason in one.figures else None,
                    }
                    for one in dropped[:5]
                ],
            }
            for reason in reasons
        },
    }


def _seconds(judged: Iterable[JudgedSegment]) -> float:
    return round(sum(one.segment.end_s - one.segment.start_s for one in judged), 3)


def _rate(judged: Iterable[JudgedSegment]) -> float | None:
    known = [one for one in judged if one.errors is not None]
    words = sum(one.reference_words for one in known)
    return round(sum(one.errors or 0 for one in known) / words, 6) if words else None
