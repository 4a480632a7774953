"""What the evaluation asks of anything that turns audio to text, whatever model format or service is behind it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

FloatArray: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class TimedText:
    """A phrase or a word with its times in seconds from the start of the audio."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Timings:
    """How long one example took, in seconds of wall time; None is what a backend does not tell.

    Attributes:
        audio_s: Length of the audio.
        total_s: From audio samples to text.
        mel_s: In the mel spectrogram.
        encoder_s: In the audio encoder.
        decoder_s: In the decoding loop.
        first_token_s: From audio samples to the first token of text.
        tokens: Tokens that were generated and kept.
        windows: Windows that were encoded.
        fallbacks: Attempts that were dropped for a higher temperature.
    """

    audio_s: float
    total_s: float
    mel_s: float | None = None
    encoder_s: float | None = None
    decoder_s: float | None = None
    first_token_s: float | None = None
    tokens: int | None = None
    windows: int | None = None
    fallbacks: int | None = None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What a transcriber heard.

    Attributes:
        text: The whole text.
        timings: How long it took.
        segments: Phrases in time order; empty where the backend has none.
        words: Words in time order; empty unless they were asked for.
        language: Code of the language; None where the backend does not tell.
    """

    text: str
    timings: Timings
    segments: tuple[TimedText, ...] = ()
    words: tuple[TimedText, ...] = ()
    language: str | None = None


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """The artifact that is measured.

    Attributes:
        name: The variant's name.
        path: Where it was.
        bytes: Of all files.
        component_bytes: Of each package.
        sha256: One digest over the digests of all files.
        created: ISO 8601 time of its making; empty when unknown.
        options: How it was made, as its manifest has it.
    """

    name: str
    path: str
    bytes: int
    component_bytes: Mapping[str, int]
    sha256: str
    created: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What ran the model.

    Attributes:
        name: Of the backend, such as `executor` or `faster-whisper`.
        model: The bundle's name, the checkpoint, or the service's model.
        identity: Anything that makes two models of the same name different, such as a digest; part of the run's key.
        options: That it was created with.
        versions: Of the libraries behind it.
    """

    name: str
    model: str
    identity: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


class Transcriber(Protocol):
    """Audio to text; created once for each worker, used for many examples by one thread at a time."""

    def check(self, languages: Collection[str]) -> None:
        """Check, before any audio is read, that these languages can be transcribed.

        Args:
            languages: Codes of the languages that examples declare.

        Raises:
            WktError: Some cannot, or the options do not fit the model.
        """
        ...

    def transcribe(self, audio: FloatArray, *, language: str | None = None, words: bool = False) -> Hypothesis:
        """Transcribe one audio.

        Args:
            audio: `[samples]`, float32, mono, 16 kHz.
            language: Code of the spoken language; None to let the model find out.
            words: Also tell when each word is said, where the backend can.

        Raises:
            WktError: This example cannot be transcribed.
        """
        ...


TranscriberFactory: TypeAlias = Callable[[], Transcriber]
"""Loads a model; picklable, because worker processes and cluster nodes load their own."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to evaluate: known without loading it.

    Attributes:
        name: Unique among the candidates of one command.
        load: Loads it.
        backend: What runs it.
        bundle: None for a model that is no bundle.
    """

    name: str
    load: TranscriberFactory
    backend: BackendInfo
    bundle: BundleInfo | None = None
