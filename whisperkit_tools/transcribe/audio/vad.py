"""Detectors of speech, and cutting long audio in its pauses.

The built-in detector goes by loudness. That is enough to find the pauses of a recording, and it needs no package.
Silero's network also tells speech from other sounds, where its package is installed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np

from whisperkit_tools.errors import AudioError, option
from whisperkit_tools.speech import SAMPLE_RATE_HZ, Samples

Levels: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Span: TypeAlias = tuple[int, int]
"""First sample, and the one after the last."""

HOP = SAMPLE_RATE_HZ // 100  # 10 ms
_FRAME_HOPS = 3  # a frame's level is over 30 ms
_SILENT_DB = -100.0


class SpeechDetector(Protocol):
    """Finds speech in audio."""

    def speech(self, audio: Samples) -> list[Span]:
        """Return the stretches with speech, in order, in samples."""
        ...


@dataclass(frozen=True, slots=True)
class EnergyDetector:
    """Counts what is louder than the background as speech.

    The threshold lies between the background (10th percentile of the levels) and the speech (95th), nearer to the
    former, but no more than `range_db` below the latter, because between digital silence and speech the middle means
    nothing.

    Attributes:
        nearness: Where the threshold lies between background (0) and speech (1).
        range_db: Maximum distance of speech below its loud parts.
        floor_db: Level below which nothing is speech, in dB of full scale.
        shortest_speech_s: Minimum length of a sound, unless speech is near.
        shortest_pause_s: Minimum length of a pause.
        margin_s: Time added on both sides, for soft beginnings and ends.
    """

    nearness: float = 0.3
    range_db: float = 40.0
    floor_db: float = -60.0
    shortest_speech_s: float = 0.1
    shortest_pause_s: float = 0.3
    margin_s: float = 0.15

    def speech(self, audio: Samples) -> list[Span]:
        """Return the stretches with speech, in order, in samples."""
        levels = levels_db(audio)
        background, loud = np.percentile(levels, [10, 95])
        threshold = max(background + self.nearness * (loud - background), loud - self.range_db, self.floor_db)
        spans = _runs(levels >= threshold)
        hops_s = HOP / SAMPLE_RATE_HZ
        spans = _bridged(spans, round(self.shortest_pause_s / hops_s))
        spans = [span for span in spans if span[1] - span[0] >= self.shortest_speech_s / hops_s]
        margin = round(self.margin_s / hops_s)
        wider = [(max(0, start - margin), stop + margin) for start, stop in spans]
        return [(start * HOP, min(stop * HOP, len(audio))) for start, stop in _bridged(wider, 1)]


class SileroDetector:
    """Silero's voice activity detector, from the package `silero-vad`."""

    def __init__(self) -> None:
        """Load it.

        Raises:
            AudioError: It is not installed.
        """
        try:
            self._package: Any = import_module("silero_vad")
        except ImportError as error:
            raise AudioError(
                "the silero detector needs the package silero-vad; install it with `pip install silero-vad`, or use "
                f"the built-in one with {option('vad', 'energy')}"
            ) from error
        self._model: Any = self._package.load_silero_vad()

    def speech(self, audio: Samples) -> list[Span]:
        """Return the stretches with speech, in order, in samples."""
        import torch

        found = self._package.get_speech_timestamps(
            torch.from_numpy(audio), self._model, sampling_rate=SAMPLE_RATE_HZ, speech_pad_ms=150
        )
        return [(int(span["start"]), int(span["end"])) for span in found]


def detector(name: str) -> SpeechDetector:
    """Return the detector of a name: `energy` or `silero`.

    Raises:
        AudioError: Its package is not installed.
    """
    return SileroDetector() if name == "silero" else EnergyDetector()


def cut_in_pauses(audio: Samples, speech: Sequence[Span], longest: int) -> list[Span]:
    """Cut audio into pieces of speech, in the longest pause that keeps each within a length.

    The audio between, before and after the pieces is omitted. Speech without a pause for so long is cut where it is
    quietest.

    Args:
        audio: `[samples]`.
        speech: Stretches with speech, in order.
        longest: Maximum number of samples of a piece.

    Returns:
        The pieces, in order, without overlap.
    """
    left = list(speech)
    pieces = []
    while left:
        start = left[0][0]
        within = sum(stop - start <= longest for _, stop in left)
        if within == len(left):
            pieces.append((start, left[-1][1]))
            break
        if not within:
            cut = _quietest(audio, start + longest // 2, start + longest)
            pieces.append((start, cut))
            left[0] = (cut, left[0][1])
            continue
        count = _before_longest_pause(left[: within + 1], start + longest // 2)
        pieces.append((start, left[count - 1][1]))
        left = left[count:]
    return pieces


def _before_longest_pause(spans: Sequence[Span], middle: int) -> int:
    """Return how many spans lie before the longest pause: of those after `middle`, or else the last one."""
    pauses = [(following[0] - span[1], count) for count, (span, following) in enumerate(pairwise(spans), start=1)]
    late = [pause for pause, (span, _) in zip(pauses, pairwise(spans), strict=True) if span[1] >= middle]
    return max(late)[1] if late else pauses[-1][1]


def _quietest(audio: Samples, first: int, last: int) -> int:
    """Return the sample in the quietest 30 ms between two."""
    levels = levels_db(audio[first:last])
    return first + int(levels.argmin()) * HOP + HOP // 2


def levels_db(audio: Samples) -> Levels:
    """Return the level of each 10 ms, over the 30 ms around it, in dB of full scale: `[hops]`, at least one."""
    hops = max(1, -(-len(audio) // HOP))
    # Hop by hop: the squares of hours of audio in float64 would take eight times the audio's memory.
    power = np.array([np.square(audio[at * HOP : (at + 1) * HOP], dtype=np.float64).sum() for at in range(hops)])
    around = np.convolve(power, np.ones(_FRAME_HOPS), "same") / (_FRAME_HOPS * HOP)
    levels: Levels = 10 * np.log10(np.maximum(around, 10 ** (_SILENT_DB / 10)))
    return levels


def _runs(flags: np.ndarray[Any, np.dtype[np.bool_]]) -> list[Span]:
    """Return first and end of each run of true flags."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _bridged(spans: Sequence[Span], shortest: int) -> list[Span]:
    """Join spans with less than `shortest` between them."""
    joined: list[Span] = []
    for start, stop in spans:
        if joined and start - joined[-1][1] < shortest:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined
