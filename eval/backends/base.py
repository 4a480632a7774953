"""The backend protocol: anything that turns audio into text, whatever its model format or service."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from whisperkit_tools.speech import SAMPLE_RATE_HZ, Samples, Segment, Timings, Transcription


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """The measured artifact.

    Attributes:
        name: The variant's name.
        path: The bundle's folder at that time.
        bytes: Size of all files.
        component_bytes: Size of each package.
        sha256: One digest over the digests of all files.
        created: ISO 8601 time of its making. Empty when unknown.
        options: Its making, as in its manifest.
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
    """The engine that ran the model.

    Attributes:
        name: The backend, such as `executor` or `faster-whisper`.
        model: The bundle's name, the checkpoint, or the service's model.
        identity: Anything that distinguishes two models of one name, such as a digest. Part of the run's key.
        options: The options that it was created with.
        versions: Versions of the libraries that it uses.
    """

    name: str
    model: str
    identity: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


class TranscriptionBackend(Protocol):
    """Audio to text. Created once for each worker, used for many examples by one thread at a time."""

    def check(self, languages: Collection[str]) -> None:
        """Check, before any audio is read, that these languages can be transcribed.

        Args:
            languages: Codes of the languages that examples declare.

        Raises:
            WktError: Some cannot, or the options do not fit the model.
        """
        ...

    def transcribe(self, audio: Samples, *, language: str | None = None, words: bool = False) -> Transcription:
        """Transcribe one audio.

        Args:
            audio: `[samples]`, float32, mono, 16 kHz.
            language: Code of the spoken language. None to detect it.
            words: Also return the times of the words, where the backend can.

        Raises:
            WktError: This example cannot be transcribed.
        """
        ...


@dataclass(frozen=True, slots=True)
class BackendRequest:
    """One audio of many.

    Attributes:
        read: Returns `[samples]`, float32, mono, 16 kHz, when its turn comes.
        language: Code of the spoken language. None to detect it.
        words: Also return the times of the words.
        is_silent: Nothing is said in it, so only whether something is heard counts. One short attempt is enough.
    """

    read: Callable[[], Samples]
    language: str | None = None
    words: bool = False
    is_silent: bool = False


@runtime_checkable
class BatchingBackend(Protocol):
    """A backend that transcribes several audios at once."""

    def transcribe_many(self, requests: Iterable[BackendRequest]) -> Iterator[tuple[int, Transcription | Exception]]:
        """Transcribe audios, which are read as their turn comes.

        Yields:
            The index of each, and its transcription or why it failed, in the order in which they end.
        """
        ...


BackendLoader: TypeAlias = Callable[[], TranscriptionBackend]
"""Loads a model. Picklable, because worker processes and cluster nodes load their own."""


@dataclass(frozen=True, slots=True)
class EvaluationTarget:
    """A model under a backend, known without loading it.

    Attributes:
        name: Unique among the targets of one command.
        load: Loads it.
        backend: The engine that runs it.
        bundle: None for a model that is not a bundle.
    """

    name: str
    load: BackendLoader
    backend: BackendInfo
    bundle: BundleInfo | None = None


def transcription(
    text: str, audio: Samples, timings: Timings, segments: Sequence[Segment] = (), language: str | None = None
) -> Transcription:
    """Return the transcription of a backend that reports no tokens or probabilities.

    Args:
        text: The whole text.
        audio: `[samples]`, 16 kHz.
        timings: What the backend reports. `total_s` is required.
        segments: Phrases in time order, with words where they were requested. Empty where the backend has none.
        language: Code of the given or detected language.
    """
    return Transcription(
        text=text,
        language=language,
        language_probability=None,
        task="transcribe",
        segments=tuple(segments),
        tokens=(),
        audio_duration_s=round(len(audio) / SAMPLE_RATE_HZ, 6),
        timings=timings,
    )
