"""The audio that a prefill is made from and judged on: speech or noise for the mean, other speech for the evidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from whisperkit_tools.conversion.components import one_window
from whisperkit_tools.demo import demo_longform, demo_utterances, read_demo_audio
from whisperkit_tools.signals import coloured_noise
from whisperkit_tools.speech import SAMPLE_RATE_HZ, WINDOW_SAMPLES, AudioReader, Recording, Samples
from whisperkit_tools.transcribe.audio.load import load_audio

Item = TypeVar("Item")

SOURCES = ("speech", "noise", "mixed")
SPEECH_WINDOWS = 8
NOISE_WINDOWS = 8
HELD_OUT_WINDOWS = 8
SEED = 0
_LEAD_S = (0.0, 0.5)  # silence before a phrase: people press the button before they speak
_COLOURS = (0.0, 1.0, 2.0)  # power proportional to 1 / frequency ** colour
_FLOOR_HZ = 20.0
_LEVELS = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, slots=True)
class PrefillAudio:
    """The audio of an estimate and of its judgement. Nothing is in both.

    Attributes:
        windows: For the mean, each `[480000]`.
        held_out: For the comparison of caches, each `[480000]`.
        held_out_from: Whose those are: `demo` or `recordings`.
        clips: For the comparison of transcripts, with samples and text.
        judged_on: Whose those are: `demo`, or `recordings` where the user's own have transcripts.
    """

    windows: tuple[Samples, ...]
    held_out: tuple[Samples, ...]
    held_out_from: str
    clips: tuple[Recording, ...]
    judged_on: str


def demo_audio(source: str) -> PrefillAudio:
    """Return speech of the demo's long recordings for the mean, and its short ones for the evidence.

    The short ones have other sentences.

    Args:
        source: One of `SOURCES`.
    """
    return PrefillAudio(_windows(source, demo_speech_windows), held_out_windows(), "demo", demo_clips(), "demo")


def own_audio(source: str, recordings: Sequence[Recording]) -> PrefillAudio:
    """Return every other one of the user's recordings for the mean, and the rest for the evidence.

    Where there is only one, or none of the rest has a transcript, the demo's short recordings take their place.

    Args:
        source: One of `SOURCES`.
        recordings: At least one.
    """
    heard = [decoded(item, load_audio) for item in recordings]
    used, rest = (_cut_all(part) for part in (heard[::2], heard[1::2]))
    windows = _windows(source, lambda: _spread(used, SPEECH_WINDOWS))
    clips = tuple(item for item in heard[1::2] if item.text and any(c.isalnum() for c in item.text))
    held_out = _spread(rest)
    return PrefillAudio(
        windows,
        held_out or held_out_windows(),
        "recordings" if held_out else "demo",
        clips or demo_clips(),
        "recordings" if clips else "demo",
    )


def _windows(source: str, speech: Callable[[], Sequence[Samples]]) -> tuple[Samples, ...]:
    chosen = () if source == "noise" else tuple(speech())
    return chosen if source == "speech" else (*chosen, *noise_windows())


def demo_speech_windows() -> list[Samples]:
    """Return a whole window and single phrases of each of the demo's long recordings."""
    generator = np.random.default_rng(SEED)
    windows: list[Samples] = []
    recordings = demo_longform()
    each = SPEECH_WINDOWS // len(recordings)
    for recording in recordings:
        samples = recording.audio(read_demo_audio)
        windows += [one_window(samples), *_phrases(recording, samples, each - 1, generator)]
    return windows


def _phrases(recording: Recording, samples: Samples, count: int, generator: np.random.Generator) -> list[Samples]:
    """Return windows with one phrase each, after a silence of random length."""
    windows = []
    for phrase in _spread(recording.phrases, count):
        lead = np.zeros(round(generator.uniform(*_LEAD_S) * SAMPLE_RATE_HZ), np.float32)
        first, last = (round(at * SAMPLE_RATE_HZ) for at in (phrase.start_s, phrase.end_s))
        windows.append(one_window(np.concatenate([lead, samples[first:last]])))
    return windows


def noise_windows() -> list[Samples]:
    """Return white, pink and brown noise at three levels, seeded."""
    generator = np.random.default_rng(SEED)
    kinds = [(colour, level) for level in _LEVELS for colour in _COLOURS][:NOISE_WINDOWS]
    return [coloured_noise(WINDOW_SAMPLES, colour, generator, _FLOOR_HZ) * np.float32(level) for colour, level in kinds]


def held_out_windows() -> tuple[Samples, ...]:
    """Return some of the demo's short recordings, each in a window of its own."""
    return tuple(one_window(item.audio(read_demo_audio)) for item in _spread(demo_utterances()))


def demo_clips() -> tuple[Recording, ...]:
    """Return the demo's short recordings with their samples."""
    return tuple(decoded(item, read_demo_audio) for item in demo_utterances())


def decoded(recording: Recording, read: AudioReader) -> Recording:
    """Return the same recording with its samples in memory."""
    return replace(recording, samples=recording.audio(read), alteration=None)


def _spread(items: Sequence[Item], count: int = HELD_OUT_WINDOWS) -> tuple[Item, ...]:
    """Choose `count` items at equal distances, or all when there are fewer."""
    if len(items) <= count:
        return tuple(items)
    return tuple(items[at * len(items) // count] for at in range(count))


def _cut_all(recordings: Sequence[Recording]) -> list[Samples]:
    """Return windows of all recordings, one after another. A last piece of less than a second is dropped."""
    windows = []
    for recording in recordings:
        samples = recording.audio(load_audio)
        starts = range(0, max(len(samples) - SAMPLE_RATE_HZ + 1, 1), WINDOW_SAMPLES)
        windows += [one_window(samples[at : at + WINDOW_SAMPLES]) for at in starts]
    return windows
