"""The audio that a prefill is made from and judged on: speech or noise for the mean, other speech for the evidence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import soundfile
from numpy.typing import NDArray

from whisperkit_tools.conversion.components import one_window
from whisperkit_tools.demo import DemoLongform, demo_longform, demo_utterances
from whisperkit_tools.errors import AudioError
from whisperkit_tools.speech import SAMPLE_RATE_HZ, WINDOW_SAMPLES

Samples: TypeAlias = NDArray[np.float32]
Item = TypeVar("Item")

SOURCES = ("speech", "noise", "mixed")
SPEECH_WINDOWS = 8
NOISE_WINDOWS = 8
HELD_OUT_WINDOWS = 8
SEED = 0
_LEAD_S = (0.0, 0.5)  # silence before a phrase: people press the button before they speak
_COLOURS = (0.0, 1.0, 2.0)  # power proportional to 1 / frequency ** colour
_LEVELS = (1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, slots=True)
class Recording:
    """One of the user's own recordings.

    Attributes:
        name: As the user knows it.
        samples: `[n]` at 16 kHz.
        text: What is said, or None when nobody wrote it down.
    """

    name: str
    samples: Samples
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Clip:
    """Speech to transcribe, with what is said.

    Attributes:
        name: For messages.
        samples: `[n]` at 16 kHz.
        text: What is said.
        language: Its code; None to have it detected.
    """

    name: str
    samples: Samples
    text: str
    language: str | None


@dataclass(frozen=True, slots=True)
class PrefillAudio:
    """What an estimate is made from, and what it is judged on; nothing is in both.

    Attributes:
        windows: For the mean, each `[480000]`.
        held_out: For the comparison of caches, each `[480000]`.
        held_out_from: Whose those are: `demo` or `recordings`.
        clips: For the comparison of transcripts.
        judged_on: Whose those are: `demo`, or `recordings` where the user's own have transcripts.
    """

    windows: tuple[Samples, ...]
    held_out: tuple[Samples, ...]
    held_out_from: str
    clips: tuple[Clip, ...]
    judged_on: str


def demo_audio(source: str) -> PrefillAudio:
    """Speech of the demo's long recordings for the mean; its short ones, with other sentences, for the evidence."""
    return PrefillAudio(_windows(source, demo_speech_windows), held_out_windows(), "demo", demo_clips(), "demo")


def own_audio(source: str, recordings: Sequence[Recording]) -> PrefillAudio:
    """Every other one of the user's recordings for the mean, the rest for the evidence.

    Where there is only one, or none of the rest has a transcript, the demo's short recordings take their place.

    Args:
        source: One of `SOURCES`.
        recordings: At least one.
    """
    used, rest = recordings[::2], recordings[1::2]
    windows = _windows(source, lambda: _spread([w for item in used for w in _cut(item.samples)], SPEECH_WINDOWS))
    clips = tuple(
        Clip(item.name, item.samples, item.text, None)
        for item in rest
        if item.text and any(c.isalnum() for c in item.text)
    )
    held_out = _spread([w for item in rest for w in _cut(item.samples)])
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
    """A whole window and single phrases of each of the demo's long recordings."""
    generator = np.random.default_rng(SEED)
    windows: list[Samples] = []
    recordings = demo_longform()
    each = SPEECH_WINDOWS // len(recordings)
    for recording in recordings:
        samples = _read(recording.path)
        windows += [one_window(samples), *_phrases(recording, samples, each - 1, generator)]
    return windows


def _phrases(recording: DemoLongform, samples: Samples, count: int, generator: np.random.Generator) -> list[Samples]:
    """Windows with one phrase each, after a silence of random length."""
    windows = []
    for segment in _spread(recording.segments, count):
        lead = np.zeros(round(generator.uniform(*_LEAD_S) * SAMPLE_RATE_HZ), np.float32)
        first, last = (round(at * SAMPLE_RATE_HZ) for at in (segment.start_s, segment.end_s))
        windows.append(one_window(np.concatenate([lead, samples[first:last]])))
    return windows


def noise_windows() -> list[Samples]:
    """White, pink and brown noise at three levels, seeded."""
    generator = np.random.default_rng(SEED)
    kinds = [(colour, level) for level in _LEVELS for colour in _COLOURS][:NOISE_WINDOWS]
    return [coloured_noise(colour, generator) * np.float32(level) for colour, level in kinds]


def coloured_noise(colour: float, generator: np.random.Generator) -> Samples:
    """A window of noise of power proportional to `1 / frequency ** colour`, RMS 1."""
    spectrum = np.fft.rfft(generator.standard_normal(WINDOW_SAMPLES))
    lowest = 20 * WINDOW_SAMPLES // SAMPLE_RATE_HZ  # 20 Hz: without a floor brown noise is all rumble
    spectrum /= np.maximum(np.arange(len(spectrum)), lowest) ** (colour / 2)
    noise = np.fft.irfft(spectrum, WINDOW_SAMPLES)
    return np.asarray(noise / np.sqrt(np.mean(noise**2)), np.float32)


def held_out_windows() -> tuple[Samples, ...]:
    """Some of the demo's short recordings, each in a window of its own."""
    return tuple(one_window(_read(item.path)) for item in _spread(demo_utterances()))


def demo_clips() -> tuple[Clip, ...]:
    """The demo's short recordings with their transcripts."""
    return tuple(Clip(item.id, _read(item.path), item.text, item.language) for item in demo_utterances())


def _spread(items: Sequence[Item], count: int = HELD_OUT_WINDOWS) -> tuple[Item, ...]:
    """Choose `count` items at equal distances, or all when there are fewer."""
    if len(items) <= count:
        return tuple(items)
    return tuple(items[at * len(items) // count] for at in range(count))


def _cut(samples: Samples) -> list[Samples]:
    """Windows of a recording, one after another; a last piece of less than a second is dropped."""
    starts = range(0, max(len(samples) - SAMPLE_RATE_HZ + 1, 1), WINDOW_SAMPLES)
    return [one_window(samples[at : at + WINDOW_SAMPLES]) for at in starts]


def _read(path: Path) -> Samples:
    samples, rate_hz = soundfile.read(path, dtype="float32")
    if rate_hz != SAMPLE_RATE_HZ or samples.ndim != 1:
        raise AudioError(f"{path} is damaged ({rate_hz} Hz, shape {samples.shape}); install whisperkit-tools again")
    return np.asarray(samples, np.float32)
