"""Harder audio: noise mixed in at a given level, and clips without speech.

Everything is drawn from a seed and the example's id, so that two models get the same noise, in any process and order.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.eval.schema import NoSpeech, NoSpeechClip
from whisperkit_tools.signals import coloured_noise
from whisperkit_tools.speech import SAMPLE_RATE_HZ, AudioReader, Recording, Samples

WHITE, BABBLE = "white", "babble"
NOISE_KINDS = (WHITE, BABBLE)
SNR_LIMITS_DB = (-30.0, 60.0)
_TALKERS = 6
_MIN_TALKERS = 3
_BABBLE_S = 30
_EXPONENTS = {"white_noise": 0.0, "pink_noise": 1.0, "brown_noise": 2.0}


@dataclass(frozen=True, slots=True)
class WhiteNoise:
    """An alteration: Gaussian noise, equally strong at all frequencies.

    Attributes:
        snr_db: Mean power of the example over mean power of the noise.
        seed: Random seed of the noise.
    """

    snr_db: float
    seed: int

    def __call__(self, samples: Samples) -> Samples:
        """Add the noise; see `mix`."""
        noise = np.random.default_rng(self.seed).standard_normal(len(samples), dtype=np.float32)
        return mix(samples, noise, self.snr_db)


@dataclass(frozen=True, slots=True)
class BabbleNoise:
    """An alteration: several speakers at once, taken from other recordings of the dataset.

    Attributes:
        snr_db: Mean power of the example over mean power of the noise.
        seed: Random seed of the place at which this example starts in the babble.
        talkers: Recordings of the speakers.
        read: Decodes them. Picklable.
    """

    snr_db: float
    seed: int
    talkers: tuple[Path, ...]
    read: AudioReader

    def __call__(self, samples: Samples) -> Samples:
        """Add the noise; see `mix`."""
        track = babble(self.talkers, self.read)
        start = np.random.default_rng(self.seed).integers(len(track))
        noise = np.resize(np.roll(track, -int(start)), len(samples))
        return mix(samples, noise, self.snr_db)


def mix(samples: Samples, noise: Samples, snr_db: float) -> Samples:
    """Add noise at a signal-to-noise ratio. Both powers are taken over the whole clip, including its pauses.

    A mixture beyond full scale is scaled down as a whole, which keeps the ratio where clipping would not. A silent
    clip has no ratio and stays unchanged.

    Args:
        samples: `[samples]`, 16 kHz.
        noise: `[samples]`, at any level.
        snr_db: Decibels.

    Returns:
        `[samples]`, float32.
    """
    power, noise_power = (float(np.mean(np.square(part, dtype=np.float64))) for part in (samples, noise))
    if not power or not noise_power:
        return samples
    gain = np.sqrt(power / noise_power / 10 ** (snr_db / 10))
    mixed = samples + np.float32(gain) * noise
    peak = float(np.abs(mixed).max())
    return np.asarray(mixed / max(1.0, peak), dtype=np.float32)


@lru_cache(maxsize=16)
def babble(talkers: tuple[Path, ...], read: AudioReader) -> Samples:
    """Return all talkers at once, equally loud, each recording repeated: `[30 s]`, float32."""
    count = _BABBLE_S * SAMPLE_RATE_HZ
    track = np.zeros(count, dtype=np.float32)
    for path in talkers:
        speech = read(path)[:count]
        loudness = float(np.sqrt(np.mean(np.square(speech, dtype=np.float64))))
        if loudness:
            track += np.resize(speech, count) / np.float32(loudness)
    return track


def with_noise(
    examples: Sequence[Recording], kind: str, snr_db: float, read: AudioReader, seed: int = 0
) -> tuple[Recording, ...]:
    """Return the same examples with noise in them.

    An example's noise is the same at all ratios, only louder or softer.

    Args:
        examples: At least four for babble, which consists of other examples' audio.
        kind: One of `NOISE_KINDS`.
        snr_db: Signal-to-noise ratio in decibels.
        read: Decodes audio files. A function of a module, because the examples go to worker processes.
        seed: The same seed gives the same noise.

    Raises:
        OptionsError: Unknown kind, a ratio out of range, or too few recordings for babble.
    """
    low, high = SNR_LIMITS_DB
    if kind not in NOISE_KINDS:
        raise OptionsError(f"{option('noise_kinds')}: no noise {kind!r}; known: {', '.join(NOISE_KINDS)}")
    if not low <= snr_db <= high:
        raise OptionsError(
            f"{option('noise_snr_db')}: a signal-to-noise ratio of {snr_db:g} dB; expected {low:g} to {high:g}"
        )
    seeds = [_seed(seed, kind, example.id) for example in examples]
    if kind == WHITE:
        return tuple(item.altered(WhiteNoise(snr_db, own)) for item, own in zip(examples, seeds, strict=True))
    order = _talkers(examples, seed)
    return tuple(
        item.altered(BabbleNoise(snr_db, own, _others(item, order), read))
        for item, own in zip(examples, seeds, strict=True)
    )


def _seed(*parts: object) -> int:
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _talkers(examples: Sequence[Recording], seed: int) -> list[tuple[str, Path]]:
    """Return speakers and recordings in a random order, every speaker once before any repeats."""
    found = [(item.speaker or item.id, item.path) for item in examples if item.path is not None]
    if len({path for _, path in found}) <= _MIN_TALKERS:
        raise OptionsError(
            f"babble is made of {_MIN_TALKERS} or more other recordings, and the dataset has {len(found)} in all; "
            f"take more examples, or {option('noise_kinds', WHITE)}"
        )
    order = np.random.default_rng(_seed(seed, BABBLE)).permutation(len(found))
    rounds: dict[str, int] = {}
    ranked = []
    for index in order:
        speaker, path = found[index]
        rounds[speaker] = rounds.get(speaker, 0) + 1
        ranked.append((rounds[speaker], speaker, path))
    ranked.sort(key=lambda item: item[0])
    return [(speaker, path) for _, speaker, path in ranked]


def _others(example: Recording, order: Sequence[tuple[str, Path]]) -> tuple[Path, ...]:
    """Return the first talkers other than this example's speaker, who is used only when there are too few others."""
    paths = [path for speaker, path in order if speaker != (example.speaker or example.id)]
    if len(paths) < _MIN_TALKERS:
        paths = [path for _, path in order if path != example.path]
    return tuple(paths[:_TALKERS])


@dataclass(frozen=True, slots=True)
class QuietClip:
    """Makes a clip without speech. Picklable.

    Attributes:
        kind: `silence`, `white_noise`, `pink_noise` or `brown_noise`.
        duration_s: Length.
        level: Root mean square, relative to full scale 1.
        seed: Random seed of the noise.
    """

    kind: str
    duration_s: float
    level: float
    seed: int

    def __call__(self) -> Samples:
        """Return `[samples]`, float32, 16 kHz."""
        count = round(self.duration_s * SAMPLE_RATE_HZ)
        if self.kind == "silence":
            return np.zeros(count, dtype=np.float32)
        generator = np.random.default_rng(self.seed)
        return coloured_noise(count, _EXPONENTS[self.kind], generator) * np.float32(self.level)


def no_speech_examples(seed: int = 0) -> tuple[Recording, ...]:
    """Return silence and noise of several colours and levels, short and a whole window long, without speech."""
    conditions = [("silence", 0.0), *((kind, level) for kind in _EXPONENTS for level in (0.001, 0.01, 0.1))]
    made = []
    for kind, level in conditions:
        for duration_s in (3.0, 30.0):
            id = f"{kind}-{level:g}-{duration_s:g}s" if level else f"{kind}-{duration_s:g}s"
            clip = QuietClip(kind, duration_s, level, _seed(seed, id))
            made.append(Recording(id, "", duration_s=duration_s, generate=clip))
    return tuple(made)


def no_speech_behaviour(results: Iterable[tuple[Recording, str]]) -> NoSpeech:
    """Summarise the texts of clips without speech.

    Args:
        results: Clips of `no_speech_examples` with the normalised hypothesis, where punctuation is not a word.

    Raises:
        ValueError: An example that is not such a clip.
    """
    details = []
    for example, hypothesis in results:
        if not isinstance(example.generate, QuietClip):
            raise ValueError(f"{example.id} is not a clip without speech")
        clip = example.generate
        details.append(NoSpeechClip(clip.kind, clip.duration_s, hypothesis, len(hypothesis.split())))
    heard = [clip.words for clip in details if clip.words]
    return NoSpeech(clips=len(details), clips_with_text=len(heard), words=sum(heard), details=tuple(details))
