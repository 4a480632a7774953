"""What is done to one example, in this process, in another, or on another machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from whisperkit_tools.errors import WktError
from whisperkit_tools.eval.backends.base import Hypothesis, Transcriber, TranscriberFactory
from whisperkit_tools.eval.datasets.examples import AudioReader, Example
from whisperkit_tools.eval.runs.streaming import Stream, simulate
from whisperkit_tools.speech import SAMPLE_RATE_HZ

CLEAN, NOISE, NO_SPEECH, STREAMING = "results", "noise", "no_speech", "streaming"
PARTS = (CLEAN, NOISE, NO_SPEECH, STREAMING)


@dataclass(frozen=True, slots=True)
class Task:
    """One example to be transcribed in one way; picklable.

    Attributes:
        number: Place among all tasks of the run.
        part: Which question it answers: one of `PARTS`, and the stem of the file its row goes to.
        condition: What was done to the audio, such as `white@10`; empty when nothing was.
        example: With its alteration, if any.
        language: Handed to the transcriber; None to let it find out.
        words: Whether word times are wanted.
        hop_s: Of the streaming simulation.
    """

    number: int
    part: str
    condition: str
    example: Example
    language: str | None
    words: bool = False
    hop_s: float = 1.0

    @property
    def key(self) -> str:
        """Unique within its part."""
        return f"{self.example.id}|{self.condition}" if self.condition else self.example.id


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task: a hypothesis, a stream, or an error."""

    number: int
    duration_s: float | None = None
    hypothesis: Hypothesis | None = None
    stream: Stream | None = None
    error: str | None = None


class SetupError(WktError):
    """A worker cannot start: no example can be transcribed."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Everything a worker needs to start; picklable.

    Attributes:
        load: Loads the transcriber.
        read: Decodes audio files.
        languages: Of all examples, checked once at the start.
    """

    load: TranscriberFactory
    read: AudioReader
    languages: Sequence[str] = ()

    def start(self) -> "Worker":
        """Load the transcriber.

        Raises:
            WktError: It cannot be loaded, or cannot do what is asked for.
        """
        transcriber = self.load()
        transcriber.check(self.languages)
        return Worker(transcriber, self.read)


class Worker:
    """A loaded transcriber that performs tasks; an example's failure is an outcome, not an exception."""

    def __init__(self, transcriber: Transcriber, read: AudioReader) -> None:
        self._transcriber = transcriber
        self._read = read

    def perform(self, task: Task) -> Outcome:
        """Read the audio and transcribe it."""
        try:
            return self._perform(task)
        except Exception as error:  # whatever a backend raises, the other examples go on
            return Outcome(task.number, error=describe(error))

    def _perform(self, task: Task) -> Outcome:
        audio = task.example.samples(self._read)
        duration_s = round(len(audio) / SAMPLE_RATE_HZ, 6)
        if task.part == STREAMING:
            stream = simulate(self._transcriber, audio, language=task.language, hop_s=task.hop_s)
            return Outcome(task.number, duration_s, stream=stream)
        hypothesis = self._transcriber.transcribe(audio, language=task.language, words=task.words)
        return Outcome(task.number, duration_s, hypothesis)


def describe(error: BaseException) -> str:
    """One line on an error; ours speak for themselves."""
    lines = str(error).strip().splitlines()
    text = lines[0][:500] if lines else "no message"
    return text if isinstance(error, WktError) else f"{type(error).__name__}: {text}"
