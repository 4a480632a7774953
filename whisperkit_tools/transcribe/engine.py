"""A loaded bundle as all its transcriptions share it, and the samples of what they are given."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from whisperkit_tools.decoder.models import Models
from whisperkit_tools.decoder.session import DecoderSession
from whisperkit_tools.errors import AudioError
from whisperkit_tools.speech import SAMPLE_RATE_HZ, Samples
from whisperkit_tools.transcribe.audio.load import load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.tokenizer import SpecialTokens, WhisperTokenizer

AudioSource: TypeAlias = Samples | str | Path | Callable[[], Samples]
"""Samples `[n]` at 16 kHz, the path of a file, or a function that returns the samples."""


@dataclass(frozen=True, slots=True)
class TranscriptionEngine:
    """A loaded bundle, shared by all its transcriptions. One transcription runs at a time.

    Attributes:
        models: The bundle's packages.
        tokenizer: Its tokenizer.
        session: Its decoder with caches, used for window after window.
        max_length: Maximum number of tokens of prompt and answer together.
    """

    models: Models
    tokenizer: WhisperTokenizer
    session: DecoderSession
    max_length: int

    @property
    def special(self) -> SpecialTokens:
        """The special ids."""
        return self.tokenizer.special

    @property
    def prompt_limit(self) -> int:
        """Maximum number of tokens of a prompt: half of the context less one, as in OpenAI's code and the runtime."""
        return self.max_length // 2 - 1

    @property
    def frame_s(self) -> float:
        """Seconds of a mel frame."""
        return self.models.sizes.hop_length / SAMPLE_RATE_HZ

    @property
    def position_s(self) -> float:
        """Seconds of an encoder position, which is also one step between timestamps."""
        return self.frame_s * self.models.sizes.frames_per_position

    @property
    def window_s(self) -> float:
        """Seconds of a window."""
        return self.models.sizes.n_samples / SAMPLE_RATE_HZ

    def resolved(self, options: TranscribeOptions) -> TranscribeOptions:
        """Return the options with the language and task that the model was tuned for where none are given."""
        special = self.special
        language = options.language or special.default_language
        return replace(
            options,
            language=None if options.detects_language else language,
            task=options.task or special.default_task,
        )

    def prompt(self, options: TranscribeOptions) -> tuple[tuple[int, ...], str | None]:
        """Return the ids of the prompt, and a notice if some were cut.

        Raises:
            OptionsError: The model takes no prompt, or this one spells a special token.
        """
        if options.prompt is None or not options.prompt.strip():
            return (), None
        return self.tokenizer.encode_prompt(options.prompt, self.prompt_limit)


def read_samples(audio: AudioSource, note: Callable[[str], None] | None = None) -> Samples:
    """Return the samples of an audio as one row of float32.

    Args:
        audio: The audio.
        note: Told what to know of a file.

    Raises:
        AudioError: It is missing, damaged, empty or not finite, or has several channels.
    """
    if isinstance(audio, str | Path):
        audio = load_audio(audio, note=note)
    elif callable(audio):
        audio = audio()
    _check_samples(audio)
    return np.ascontiguousarray(audio, dtype=np.float32)


def _check_samples(audio: Samples) -> None:
    """Raise `AudioError` unless the audio is a row of finite numbers."""
    if audio.ndim != 1:
        raise AudioError(f"the audio has shape {list(audio.shape)}, expected one channel: [samples]")
    if audio.size == 0:
        raise AudioError("the audio holds no samples; there is nothing to transcribe")
    if not bool(np.isfinite(audio).all()):
        bad = int(np.count_nonzero(~np.isfinite(audio)))
        raise AudioError(f"the audio holds {bad} samples that are not numbers (NaN or infinite); export it again")
