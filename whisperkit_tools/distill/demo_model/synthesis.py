"""Synthetic speech: espeak-ng through its C library, which also reports the start of each word.

The library keeps one process-wide voice, so a process makes one utterance at a time. Several processes make a pool.
"""

import ctypes
import ctypes.util
import multiprocessing
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from whisperkit_tools.distill.demo_model.grammar import Sentence
from whisperkit_tools.speech import SAMPLE_RATE_HZ

VOICES = {
    "en": ("en-us", "en-gb-x-rp", "en-us-nyc", "en-gb-scotland", "en-gb-x-gbclan", "en-029"),
    "es": ("es", "es-419"),
}
# Whispered, robotic and croaking variants are left out: at this model's size they cost accuracy on all others.
VARIANTS = tuple(
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 Andy Annie Gene Mario Michael Hugo steph paul linda john max".split()  # noqa: SIM905
)
RATE, PITCH, PITCH_RANGE = 1, 3, 4  # espeak_PARAMETER in espeak-ng's speak_lib.h
EVENT_END, EVENT_WORD = 0, 1  # espeak_EVENT_TYPE
TRIM_LEVEL = 0.01  # of full scale: espeak-ng's own lead-in and tail are digital silence, or nearly


@dataclass(frozen=True, slots=True)
class Voice:
    """Settings of a voice."""

    name: str
    rate_wpm: int
    pitch: int
    pitch_range: int


@dataclass(frozen=True, slots=True)
class Utterance:
    """One spoken sentence.

    Attributes:
        sentence: The sentence in both languages.
        language: "en" or "es": the language spoken.
        audio: int16 [n] at 16 kHz, trimmed to the speech.
        words_s: Start of each word of the text, in seconds.
    """

    sentence: Sentence
    language: str
    audio: np.ndarray
    words_s: tuple[float, ...]

    @property
    def text(self) -> str:
        """The sentence in the language spoken."""
        return self.sentence.text(self.language)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.audio) / SAMPLE_RATE_HZ


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Synthesizer:
    """espeak-ng in this process.

    Raises:
        RuntimeError: The library is not installed.
    """

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise RuntimeError("libespeak-ng was not found; install espeak-ng (1.51 made the committed audio)")
        self._library = ctypes.CDLL(name)
        synchronous = 2  # AUDIO_OUTPUT_SYNCHRONOUS
        self._native_rate_hz = self._library.espeak_Initialize(synchronous, 0, None, 0)
        self._chunks: list[np.ndarray] = []
        self._words: list[tuple[int, int]] = []
        self._callback = _Callback(self._receive)  # kept, because ctypes holds no reference to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(
        self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]"
    ) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != EVENT_END:
            if events[index].type == EVENT_WORD:
                self._words.append((events[index].text_position, events[index].audio_position))
            index += 1
        return 0

    def speak(self, text: str, voice: Voice) -> tuple[np.ndarray, tuple[float, ...]]:
        """Speak `text`.

        Returns:
            audio: int16 [n] at 16 kHz, trimmed.
            words_s: The start of each word in seconds.
        """
        self._chunks, self._words = [], []
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice.name!r}")
        for parameter, value in ((RATE, voice.rate_wpm), (PITCH, voice.pitch), (PITCH_RANGE, voice.pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode()
        utf8 = 1  # espeakCHARS_UTF8
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, utf8, None, None)
        native = np.concatenate(self._chunks).astype(np.float32) / 32768
        audio = soxr.resample(native, self._native_rate_hz, SAMPLE_RATE_HZ)
        loud = np.flatnonzero(np.abs(audio) > TRIM_LEVEL)
        start, stop = int(loud[0]), int(loud[-1]) + 1
        words_s = _word_times(text, self._words, start / SAMPLE_RATE_HZ)
        pcm = np.clip(np.round(audio[start:stop] * 32767), -32768, 32767).astype(np.int16)
        return pcm, words_s


def _word_times(text: str, events: list[tuple[int, int]], trimmed_s: float) -> tuple[float, ...]:
    """Return the start of each word in seconds.

    espeak-ng reports "on the" as one word. A word without a report is placed between its neighbours.
    """
    starts = [index for index in range(len(text)) if text[index] != " " and (index == 0 or text[index - 1] == " ")]
    times: dict[int, float] = {}
    for position, audio_ms in events:
        word = max((number for number, start in enumerate(starts) if start <= position), default=0)
        times.setdefault(word, max(0.0, audio_ms / 1000 - trimmed_s))
    known = sorted(times)
    if not known:
        return tuple(0.0 for _ in starts)
    return tuple(float(np.interp(word, known, [times[item] for item in known])) for word in range(len(starts)))


def draw_voice(language: str, rng: random.Random) -> Voice:
    """Return a random voice of `language`: a variant, a speed of 125 to 205 words a minute and a pitch."""
    name = f"{rng.choice(VOICES[language])}+{rng.choice(VARIANTS)}"
    return Voice(name, rng.randint(125, 205), rng.randint(25, 75), rng.randint(30, 70))


def _speak_batch(job: tuple[list[tuple[Sentence, str]], int]) -> list[Utterance]:
    items, seed = job
    rng, synthesizer = random.Random(seed), Synthesizer()
    utterances = []
    for sentence, language in items:
        audio, words_s = synthesizer.speak(sentence.text(language), draw_voice(language, rng))
        utterances.append(Utterance(sentence, language, audio, words_s))
    return utterances


def speak_all(items: list[tuple[Sentence, str]], seed: int, processes: int = 2) -> list[Utterance]:
    """Speak (sentence, language) pairs, each by a voice of its own. The result depends on `seed` alone."""
    size = 250
    jobs = [(items[start : start + size], seed * 100_003 + start) for start in range(0, len(items), size)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return [utterance for batch in pool.map(_speak_batch, jobs, chunksize=1) for utterance in batch]


def save_pool(path: Path, utterances: list[Utterance]) -> None:
    """Write a pool as one .npz file."""
    np.savez(
        path,
        audio=np.concatenate([item.audio for item in utterances]),
        lengths=np.array([len(item.audio) for item in utterances]),
        english=np.array([item.sentence.english for item in utterances]),
        spanish=np.array([item.sentence.spanish for item in utterances]),
        languages=np.array([item.language for item in utterances]),
        words=np.concatenate([np.array(item.words_s) for item in utterances]),
    )


def load_pool(path: Path) -> list[Utterance]:
    """Read a pool from the file that `save_pool` wrote."""
    with np.load(path) as data:
        fields = {name: data[name] for name in data.files}
    sentences = [Sentence(str(en), str(es)) for en, es in zip(fields["english"], fields["spanish"], strict=True)]
    audio = np.split(fields["audio"], np.cumsum(fields["lengths"])[:-1])
    languages = [str(language) for language in fields["languages"]]
    counts = [len(item.text(language).split()) for item, language in zip(sentences, languages, strict=True)]
    words = np.split(fields["words"], np.cumsum(counts)[:-1])
    return [
        Utterance(sentence, language, samples, tuple(map(float, times)))
        for sentence, language, samples, times in zip(sentences, languages, audio, words, strict=True)
    ]
