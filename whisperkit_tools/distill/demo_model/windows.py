"""Training windows: utterances packed into a stretch of audio with the tokens that Whisper is trained to give for it.

A window is 30 s, or shorter in the first stages, where most of the learning is done at a fraction of the cost.

Source: section 2.3 of Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision": no-speech
windows, timestamps on part of the windows, the previous text as a prompt, and the last segment, when the window cuts
it, given by its start time alone.
"""

import random
from dataclasses import dataclass, field

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import WhisperFeatureExtractor

from whisperkit_tools.compile_hints.mel_spectrogram import HOP_LENGTH, N_FFT
from whisperkit_tools.distill.demo_model.synthesis import Utterance
from whisperkit_tools.distill.demo_model.vocabulary import SpecialIds
from whisperkit_tools.signals import coloured_noise
from whisperkit_tools.speech import SAMPLE_RATE_HZ, WINDOW_SAMPLES

N_MELS = 80
ENCODER_POSITIONS = 1500
POSITION_S = 0.02
NOISE_CLIPS = 48
NOISE_FLOOR_HZ = 20.0  # without a floor, brown noise is all rumble
MAX_INITIAL_TIMESTAMP_S = 1.0  # Whisper's rule: the first timestamp of a window is at most this
MAX_PROMPT = 223  # half of the text context, less the start-of-previous token
IGNORED = -100


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """Settings of the windows of one training stage. Each probability is per window.

    Attributes:
        length_s: Audio per window in seconds.
        single: One utterance, then silence, as when a short clip is transcribed.
        timestamps: Timestamps are asked for.
        prompt: A previous text comes first (with timestamps only).
        no_speech: Silence or noise.
        translate: Translation of a Spanish window.
        foreign: Of the translated windows, those asked for as a transcript under the wrong token `<|en|>`. Like
            Whisper, the model then answers in the language of the token, so that a wrong language token shows.
        offset: The window stands at a random place of the 30 s that the encoder's positions count.
    """

    length_s: float
    single: float = 0.3
    timestamps: float = 0.5
    prompt: float = 0.0
    no_speech: float = 0.06
    translate: float = 0.35
    foreign: float = 0.2
    offset: bool = False


@dataclass(slots=True)
class Window:
    """One training example.

    Attributes:
        audio: float32 [length].
        tokens: Decoder input, starting with the prompt or the start token.
        labels: The token that each position should give. IGNORED where nothing is learned.
        offset: Encoder position (20 ms each) of the first frame.
        segments: (start_s, end_s, text) of each utterance, for evaluation.
    """

    audio: np.ndarray
    tokens: list[int]
    labels: list[int]
    offset: int = 0
    segments: list[tuple[float, float, str]] = field(default_factory=list)


def hum(count: int, generator: np.random.Generator) -> np.ndarray:
    """Return a mains or motor hum with harmonics, float32 [count], unit RMS."""
    times = np.arange(count) / SAMPLE_RATE_HZ
    base = generator.uniform(40, 400)
    wave = sum(generator.uniform(0, 1) / k * np.sin(2 * np.pi * base * k * times + k) for k in range(1, 9))
    wave = np.asarray(wave) * (1 + generator.uniform(0, 0.5) * np.sin(2 * np.pi * generator.uniform(0.2, 8) * times))
    return np.asarray(wave / np.sqrt(np.mean(wave**2)), dtype=np.float32)


def clicks(count: int, generator: np.random.Generator) -> np.ndarray:
    """Return decaying clicks and knocks at random times, float32 [count], unit RMS."""
    wave = np.zeros(count, dtype=np.float32)
    decay = np.exp(-np.arange(1600) / generator.uniform(20, 400)) * generator.standard_normal(1600)
    for start in generator.integers(0, max(1, count - 1600), size=int(generator.integers(1, 30))):
        wave[start : start + 1600] += decay[: count - start].astype(np.float32)
    return np.asarray(wave / np.sqrt(np.mean(wave**2) + 1e-12), dtype=np.float32)


def draw_noise(count: int, rng: random.Random, generator: np.random.Generator) -> np.ndarray:
    """Return noise of a random kind, float32 [count], unit RMS."""
    kind = rng.random()
    if kind < 0.65:
        # White noise is the commonest test signal, so it gets a share of its own.
        return coloured_noise(count, 0.0 if kind < 0.25 else rng.uniform(0.0, 2.0), generator, NOISE_FLOOR_HZ)
    return hum(count, generator) if kind < 0.85 else clicks(count, generator)


class WindowMaker:
    """Draws training windows from a pool of utterances."""

    def __init__(self, pool: list[Utterance], tokenizer: Tokenizer, ids: SpecialIds) -> None:
        self.ids = ids
        self._tokenizer = tokenizer
        self._by_language = {code: [item for item in pool if item.language == code] for code in ("en", "es")}
        self._encoded: dict[str, list[int]] = {}
        # Drawn once: 30 s of coloured noise take longer to make than the rest of a window.
        rng, generator = random.Random(0), np.random.default_rng(0)
        self._noises = [draw_noise(WINDOW_SAMPLES, rng, generator) for _ in range(NOISE_CLIPS)]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a sentence, with its leading space."""
        if text not in self._encoded:
            self._encoded[text] = self._tokenizer.encode(f" {text}").ids
        return self._encoded[text]

    def draw(self, options: WindowOptions, seed: str) -> Window:
        """Draw one window. It depends on `seed` alone."""
        rng = random.Random(seed)
        generator = np.random.default_rng(rng.getrandbits(64))
        length = round(options.length_s * SAMPLE_RATE_HZ)
        offset = rng.randint(0, ENCODER_POSITIONS - length // (2 * HOP_LENGTH)) if options.offset else 0
        if rng.random() < options.no_speech:
            window = self._silent_window(length, rng, generator)
        else:
            window = self._speech_window(length, options, offset, rng)
        window.offset = offset
        return window

    def _silent_window(self, length: int, rng: random.Random, generator: np.random.Generator) -> Window:
        """Return a window of silence or noise: `<|nospeech|>` after the start token.

        Under a forced language and task, the model learns an uncertain first token and then the end. So the mean log
        probability of its answer to noise is low, as the no-speech rule expects.
        """
        ids = self.ids
        if rng.random() < 0.15:
            audio: np.ndarray = np.zeros(length, dtype=np.float32)
        else:
            audio = draw_noise(length, rng, generator) * 10 ** rng.uniform(-4.5, -0.5)
            if rng.random() < 0.5:  # a short clip of noise, then padding
                audio[rng.randint(SAMPLE_RATE_HZ // 2, length) :] = 0
        if rng.random() < 0.4:
            return Window(np.clip(audio, -1, 1), [ids.start, ids.no_speech], [ids.no_speech, ids.end])
        prefix = [
            ids.start,
            ids.languages[rng.choice(("<|en|>", "<|es|>"))],
            rng.choice((ids.transcribe, ids.translate)),
        ]
        if rng.random() < 0.5:
            prefix.append(ids.no_timestamps)
            guess = rng.randrange(1, ids.end)
        else:
            guess = ids.timestamp(rng.uniform(0, MAX_INITIAL_TIMESTAMP_S))
        hidden = [IGNORED] * (len(prefix) - 2)
        return Window(np.clip(audio, -1, 1), [*prefix, guess], [ids.no_speech, *hidden, guess, ids.end])

    def _place(
        self, length: int, options: WindowOptions, language: str, rng: random.Random
    ) -> list[tuple[int, Utterance]]:
        """Return utterances with their first samples. The window's end may cut the last."""
        pool = self._by_language[language]
        tight = rng.random() < 0.5  # windows after a seek begin with the utterance itself
        at = round((rng.uniform(0, 0.1) if tight else rng.uniform(0, 1.4)) * SAMPLE_RATE_HZ)
        if options.length_s < 10:
            at = min(at, max(0, length - round(4.0 * SAMPLE_RATE_HZ)))
        wide = rng.uniform(0.3, 3.0)
        placed: list[tuple[int, Utterance]] = []
        while at < length:
            utterance = rng.choice(pool)
            if options.length_s < 10 and placed and at + len(utterance.audio) > length:
                break
            placed.append((at, utterance))
            if len(placed) == 1 and rng.random() < options.single:
                break
            if rng.random() < 0.06:  # the speech ends here, the rest of the window is silent
                break
            gap_s = rng.uniform(2.0, 8.0) if rng.random() < 0.04 else rng.uniform(0.15, wide)
            at += len(utterance.audio) + round(gap_s * SAMPLE_RATE_HZ)
        return placed

    def _speech_window(self, length: int, options: WindowOptions, offset: int, rng: random.Random) -> Window:
        language = rng.choice(("en", "es"))
        placed = self._place(length, options, language, rng)
        timestamps = rng.random() < options.timestamps
        offset_s = offset * POSITION_S
        cut = placed[-1][0] + len(placed[-1][1].audio) > length
        if cut and not timestamps and len(placed) > 1:
            placed.pop()  # without timestamps the audio ends before a segment that the window would cut
            cut = False
        audio = self._mix(length, placed, rng)
        translate = language == "es" and rng.random() < options.translate
        target = "en" if translate else language
        ids = self.ids
        spoken = ids.languages[f"<|{language}|>"]
        prefix = [ids.start, spoken, ids.translate if translate else ids.transcribe]
        if translate and rng.random() < options.foreign:
            prefix = [ids.start, ids.languages["<|en|>"], ids.transcribe]
        if not timestamps:
            prefix.append(ids.no_timestamps)
        kept = placed[:-1] if cut else placed
        segments = [
            (
                at / SAMPLE_RATE_HZ + offset_s,
                at / SAMPLE_RATE_HZ + item.duration_s + offset_s,
                item.sentence.text(target),
            )
            for at, item in kept
        ]
        body = (
            self._timed(segments, clamp=not offset)
            if timestamps
            else [token for *_, text in segments for token in self.encode(text)]
        )
        if cut and timestamps:
            body.append(self._start_token(placed[-1][0] / SAMPLE_RATE_HZ + offset_s, clamp=not segments and not offset))
        prompt: list[int] = []
        if timestamps and rng.random() < options.prompt:
            prompt = self._prompt(target, rng)
        tokens = [*prompt, *prefix, *body]
        # The task and the timestamp mode are asked for, never predicted; the language is predicted at the start token.
        labels = [IGNORED] * len(prompt) + [spoken] + [IGNORED] * (len(prefix) - 2) + [*body, ids.end]
        return Window(audio, tokens, labels, segments=segments)

    def _start_token(self, start_s: float, clamp: bool) -> int:
        return self.ids.timestamp(min(start_s, MAX_INITIAL_TIMESTAMP_S) if clamp else start_s)

    def _timed(self, segments: list[tuple[float, float, str]], clamp: bool) -> list[int]:
        """Return text between timestamps. `clamp` keeps the first one within Whisper's rule."""
        tokens: list[int] = []
        for start_s, end_s, text in segments:
            start = self._start_token(start_s, clamp=clamp and not tokens)
            tokens += [start, *self.encode(text), self.ids.timestamp(end_s)]
        return tokens

    def _prompt(self, language: str, rng: random.Random) -> list[int]:
        """Return the text before this window, with or without its timestamps, cut from the left as Whisper does."""
        tokens: list[int] = []
        at = 0.0
        timed = rng.random() < 0.6
        for utterance in rng.choices(self._by_language[language], k=rng.choice((1, 2, 4, 8, 16))):
            text = self.encode(utterance.sentence.text(language))
            end = at + utterance.duration_s
            if end > 30:
                at, end = 0.0, utterance.duration_s
            tokens += [self.ids.timestamp(at), *text, self.ids.timestamp(end)] if timed else text
            at = end + rng.uniform(0, 1.5)
        return [self.ids.previous, *tokens[-MAX_PROMPT:]]

    def _mix(self, length: int, placed: list[tuple[int, Utterance]], rng: random.Random) -> np.ndarray:
        """Return the window's audio: each utterance at a gain of its own, perhaps noise, perhaps silence at the end."""
        audio = np.zeros(length, dtype=np.float32)
        overall = 10 ** rng.uniform(-0.8, 0.5)
        for at, utterance in placed:
            part = utterance.audio[: length - at].astype(np.float32) / 32768
            audio[at : at + len(part)] += part * overall * 10 ** rng.uniform(-0.15, 0.15)
        end = min(length, placed[-1][0] + len(placed[-1][1].audio) + round(rng.uniform(0, 0.6) * SAMPLE_RATE_HZ))
        if rng.random() < 0.6:
            level = float(np.sqrt(np.mean(audio[:end] ** 2))) * 10 ** (-rng.uniform(12, 50) / 20)
            stop = end if rng.random() < 0.5 else length
            noise = rng.choice(self._noises)
            audio[:stop] += noise[rng.randint(0, len(noise) - stop) :][:stop] * level
        return np.clip(audio, -1, 1)


class LogMel:
    """Whisper's log mel spectrogram of a batch of any length, equal to transformers' feature extractor.

    `compile_hints.MelSpectrogram` is made for the Neural Engine's compiler and takes one whole window.
    """

    def __init__(self) -> None:
        filters = WhisperFeatureExtractor(feature_size=N_MELS).mel_filters
        self._filters = torch.tensor(filters, dtype=torch.float32).T  # [mels, bins]
        self._window = torch.hann_window(N_FFT)

    def __call__(self, audio: Tensor) -> Tensor:
        """Return the features [batch, 80, n / 160] of audio [batch, n]."""
        spectrum = torch.stft(audio, N_FFT, HOP_LENGTH, window=self._window, return_complex=True)[..., :-1]
        mel = self._filters @ spectrum.abs().square()
        log = mel.clamp(min=1e-10).log10()
        floor = log.amax(dim=(1, 2), keepdim=True) - 8.0
        return (torch.maximum(log, floor) + 4.0) / 4.0
