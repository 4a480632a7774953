"""Tasks and the worker that performs them, in this process, in another, or on another machine."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from whisperkit_tools.errors import WktError
from whisperkit_tools.eval.backends.base import BackendLoader, BackendRequest, BatchingBackend, TranscriptionBackend
from whisperkit_tools.eval.runs.streaming import simulate
from whisperkit_tools.eval.schema import Stream
from whisperkit_tools.files import first_line
from whisperkit_tools.speech import SAMPLE_RATE_HZ, AudioReader, Recording, Samples, Transcription

CLEAN, NOISE, NO_SPEECH, STREAMING = "results", "noise", "no_speech", "streaming"
PARTS = (CLEAN, NOISE, NO_SPEECH, STREAMING)


@dataclass(frozen=True, slots=True)
class Task:
    """One example to be transcribed in one way. Picklable.

    Attributes:
        number: Place among all tasks of the run.
        part: One of `PARTS`, the stem of the file of its row.
        condition: The alteration of the audio, such as `white@10`. Empty for the audio as it is.
        example: The recording, with its alteration if any.
        language: Given to the backend. None to detect it.
        words: Whether word times are requested.
        hop_s: Hop of the streaming simulation.
    """

    number: int
    part: str
    condition: str
    example: Recording
    language: str | None
    words: bool = False
    hop_s: float = 1.0

    @property
    def key(self) -> str:
        """Unique within its part."""
        return f"{self.example.id}|{self.condition}" if self.condition else self.example.id


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The result of a task: a transcription, a stream, or an error."""

    number: int
    duration_s: float | None = None
    transcription: Transcription | None = None
    stream: Stream | None = None
    error: str | None = None


class SetupError(WktError):
    """A worker cannot start, so no example can be transcribed."""


@dataclass(frozen=True, slots=True)
class WorkerFactory:
    """Starts workers. Picklable.

    Attributes:
        load: Loads the backend.
        read: Decodes audio files.
        languages: Languages of all examples, checked once at the start.
    """

    load: BackendLoader
    read: AudioReader
    languages: Sequence[str] = ()

    def start(self) -> "Worker":
        """Load the backend.

        Raises:
            WktError: It cannot be loaded, or cannot transcribe these languages.
        """
        backend = self.load()
        backend.check(self.languages)
        return Worker(backend, self.read)


class Worker:
    """A loaded backend that performs tasks. An example's failure is a result, not an exception."""

    def __init__(self, backend: TranscriptionBackend, read: AudioReader) -> None:
        self._backend = backend
        self._read = read

    def perform_all(self, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        """Perform tasks, several at once where the backend can. Results come in any order."""
        left = {task.number: task for task in tasks}
        if isinstance(self._backend, BatchingBackend):
            try:
                for result in self._together(self._backend, [task for task in tasks if task.part != STREAMING]):
                    del left[result.number]
                    yield result
            except Exception as error:  # the backend, not an example: each of the others is tried by itself
                log = logging.getLogger(__name__)
                log.warning("decoding in batches failed, so recordings go on one by one: %s", first_line(error))
                log.debug("the batch", exc_info=True)
        for task in left.values():
            yield self.perform(task)

    def _together(self, backend: BatchingBackend, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        durations_s: dict[int, float] = {}

        def read(task: Task) -> Samples:
            audio = task.example.audio(self._read)
            durations_s[task.number] = round(len(audio) / SAMPLE_RATE_HZ, 6)
            return audio

        requests = (
            BackendRequest(partial(read, task), task.language, task.words, is_silent=task.part == NO_SPEECH)
            for task in tasks
        )
        for index, found in backend.transcribe_many(requests):
            number = tasks[index].number
            if isinstance(found, Transcription):
                yield TaskResult(number, durations_s[number], found)
            else:
                yield TaskResult(number, error=describe(found))

    def perform(self, task: Task) -> TaskResult:
        """Read the audio and transcribe it."""
        try:
            return self._perform(task)
        except Exception as error:  # whatever a backend raises, the other examples continue
            return TaskResult(task.number, error=describe(error))

    def _perform(self, task: Task) -> TaskResult:
        audio = task.example.audio(self._read)
        duration_s = round(len(audio) / SAMPLE_RATE_HZ, 6)
        if task.part == STREAMING:
            stream = simulate(self._backend, audio, language=task.language, hop_s=task.hop_s)
            return TaskResult(task.number, duration_s, stream=stream)
        found = self._backend.transcribe(audio, language=task.language, words=task.words)
        return TaskResult(task.number, duration_s, found)


def describe(error: BaseException) -> str:
    """Return one line on an error. Errors of this package speak for themselves."""
    return first_line(error) if isinstance(error, WktError) else f"{type(error).__name__}: {first_line(error)}"
