"""Transcribing many recordings with several decoded at once: lanes of one decoder, refilled as soon as one is free.

A transcription is a generator that asks for decoder steps, see `decoder.session.Steps`. Here the steps that all lanes
ask for are decoded together. All else, audio, features and encoder, is done for one recording at a time, as alone: the
encoder gains nothing from a batch, because one window keeps it busy. The tokens are those of one recording at a time,
except where rounding decides between two that are equally likely.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch

from whisperkit_tools.decoder.lanes import DecoderLanes
from whisperkit_tools.decoder.session import DecoderSession, DecoderStep, StepRequest, Steps
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.memory import available_memory, release_memory
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.speech import SAMPLE_RATE_HZ, Transcription
from whisperkit_tools.transcribe.engine import AudioSource, TranscriptionEngine, read_samples
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.run import TranscriptionRun

AUTO = "auto"
AUTO_BATCH = 8  # beyond it, reading the audio's keys and values, which are each recording's own, takes most of a step
_MEMORY_SHARE = 0.5  # of what is available, for an automatic batch

BatchSize: TypeAlias = int | str


@dataclass(frozen=True, slots=True)
class TranscriptionRequest:
    """A recording to transcribe.

    Attributes:
        audio: `[samples]` at 16 kHz, a file, or a function that returns the samples when the recording's turn comes.
        options: How it is transcribed.
    """

    audio: AudioSource
    options: TranscribeOptions = field(default_factory=TranscribeOptions)


@dataclass(frozen=True, slots=True)
class TranscriptionResult:
    """What became of a request: a transcription or an error.

    Attributes:
        index: Place of the request among all.
        transcription: None where it failed. Its times are the recording's share of what the batch took.
        error: None where it succeeded.
    """

    index: int
    transcription: Transcription | None = None
    error: Exception | None = None

    def get(self) -> Transcription:
        """Return the transcription.

        Raises:
            Exception: The request failed. It is the very error.
        """
        if self.transcription is None:
            raise self.error or RuntimeError("neither a transcription nor an error")
        return self.transcription


def check_batch_size(value: BatchSize) -> None:
    """Check a batch size.

    Raises:
        OptionsError: It is neither `auto` nor a number of recordings.
    """
    if value != AUTO and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise OptionsError(f"{option('batch_size')} is {value!r}; expected {AUTO!r} or a number of at least 1")


def automatic_batch_size(engine: TranscriptionEngine) -> int:
    """Return how many recordings to decode at once: `AUTO_BATCH`, or as many as half of the free memory holds."""
    models = engine.models
    if not models.takes_batches:
        return 1
    free = available_memory()
    if torch.device(models.device).type == "cuda":
        free = torch.cuda.mem_get_info(models.device)[0]
    fitting = AUTO_BATCH if free is None else int(free * _MEMORY_SHARE / models.sizes.lane_bytes)
    return max(1, min(AUTO_BATCH, fitting))


class BusyClock:
    """The seconds that one transcription has taken: its own work, and its share of the steps decoded together."""

    def __init__(self) -> None:
        self._spent_s = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        """Return the seconds so far."""
        return self._spent_s + (0.0 if self._since is None else time.perf_counter() - self._since)

    def start(self) -> None:
        """Count from here."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Count up to here."""
        self._spent_s, self._since = self(), None

    def add(self, seconds: float) -> None:
        """Count what was done for this transcription along with others."""
        self._spent_s += seconds


class SingleLane:
    """A session on which one transcript is decoded at a time, as lanes of one."""

    def __init__(self, session: DecoderSession) -> None:
        self._session = session

    def sessions(self) -> list[DecoderSession]:
        """Return the session."""
        return [self._session]

    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> list[DecoderStep]:
        """Decode one token."""
        return [self._session.step(token, position) for token, position in zip(tokens, positions, strict=True)]

    def move(self, source: int, target: int) -> None:
        """Do nothing, because there is nowhere to move to."""


@dataclass(slots=True)
class _Lane:
    """A lane, and what is in it.

    Attributes:
        session: Its session.
        clock: Time of its transcription.
        index: Place of the request.
        run: The transcription. None in a free lane.
        steps: Its work. None in a free lane.
        wanted: The step that it waits for.
    """

    session: DecoderSession
    clock: BusyClock = field(default_factory=BusyClock)
    index: int = -1
    run: TranscriptionRun | None = None
    steps: Steps[None] | None = None
    wanted: StepRequest | None = None


class ManyTranscriptions:
    """Transcribes requests in lanes. Whatever goes wrong with one of them is its own result."""

    def __init__(
        self,
        engine: TranscriptionEngine,
        requests: Iterable[TranscriptionRequest],
        batch_size: int,
        check: Callable[[TranscribeOptions], None],
        progress: Progress | None = None,
    ) -> None:
        """Take the requests. Nothing is read before `results` is asked.

        Args:
            engine: The loaded bundle.
            requests: The recordings, taken from the iterable as lanes become free.
            batch_size: Number of lanes.
            check: Raises `OptionsError` for options that do not fit the model.
            progress: Told once when there is too little memory for so many lanes.
        """
        self._engine, self._check = engine, check
        self._progress = progress or SilentProgress()
        self._waiting: Iterator[tuple[int, TranscriptionRequest]] = iter(enumerate(requests))
        self._running: dict[int, TranscriptionRequest] = {}
        self._size = batch_size
        self._has_noted = False

    def results(self) -> Iterator[TranscriptionResult]:
        """Yield a result for each request, in the order in which they end."""
        while True:
            try:
                yield from self._in_lanes(self._size)
            except (RuntimeError, MemoryError) as error:
                if self._size == 1 or not is_out_of_memory(error):
                    raise
                self._halve()
            else:
                return

    def _halve(self) -> None:
        """Put back what was running, to start again in half as many lanes."""
        if not self._has_noted:
            self._has_noted = True
            self._progress.note(
                f"there is too little memory for {self._size} recordings at once ({option('batch_size')}); "
                "going on with half as many"
            )
        self._size //= 2
        self._waiting = itertools.chain(sorted(self._running.items()), self._waiting)
        self._running = {}
        release_memory()

    def _in_lanes(self, size: int) -> Iterator[TranscriptionResult]:
        """Transcribe what is waiting in this many lanes."""
        decoder = self._engine.models.new_lanes(size) if size > 1 else SingleLane(self._engine.session)
        lanes = [_Lane(session) for session in decoder.sessions()]
        while True:
            for lane in lanes:
                yield from self._fill(lane)
            count = _close_gaps(decoder, lanes)
            if not count:
                return
            yield from self._step(decoder, lanes[:count])

    def _fill(self, lane: _Lane) -> Iterator[TranscriptionResult]:
        """Begin with the next request in a free lane. One that ends at once leaves it free for the next."""
        while lane.steps is None and (waiting := next(self._waiting, None)) is not None:
            lane.index, request = waiting
            lane.clock = BusyClock()
            self._running[lane.index] = request
            result = self._advanced(lane, functools.partial(self._begin, lane, request))
            if result is not None:
                yield result

    def _begin(self, lane: _Lane, request: TranscriptionRequest) -> StepRequest:
        """Read a recording and compute its first window, up to the first decoder step."""
        self._check(request.options)
        notes: list[str] = []
        samples = read_samples(request.audio, notes.append)
        engine, duration_s = replace(self._engine, session=lane.session), len(samples) / SAMPLE_RATE_HZ
        lane.run = TranscriptionRun(engine, request.options, duration_s, SilentProgress(), "", lane.clock)
        lane.run.note(notes)
        lane.steps = lane.run.decode(samples)
        return next(lane.steps)

    def _step(self, decoder: DecoderLanes | SingleLane, lanes: Sequence[_Lane]) -> Iterator[TranscriptionResult]:
        """Decode the steps that the lanes wait for, and let each go on to its next."""
        wanted = [lane.wanted for lane in lanes if lane.wanted is not None]
        started = time.perf_counter()
        found = decoder.step([step.token for step in wanted], [step.position for step in wanted])
        share_s = (time.perf_counter() - started) / len(lanes)
        for lane, step in zip(lanes, found, strict=True):
            lane.clock.add(share_s)
            result = self._advanced(lane, functools.partial(lane.steps.send, step)) if lane.steps is not None else None
            if result is not None:
                yield result

    def _advanced(self, lane: _Lane, advance: Callable[[], StepRequest]) -> TranscriptionResult | None:
        """Let a lane go on to the next step that it wants. Return its result where there is none."""
        lane.clock.start()
        try:
            try:
                lane.wanted = advance()
            except StopIteration:
                result = TranscriptionResult(lane.index, lane.run.result() if lane.run is not None else None)
            else:
                return None
        except Exception as error:  # whatever is wrong with this recording, the others go on
            if self._size > 1 and is_out_of_memory(error):
                raise
            result = TranscriptionResult(lane.index, error=error)
        finally:
            lane.clock.stop()
        lane.steps = lane.run = None
        del self._running[lane.index]
        return result


def _close_gaps(decoder: DecoderLanes | SingleLane, lanes: list[_Lane]) -> int:
    """Move what the last lanes hold into free ones before them, and return how many are busy."""
    busy = sum(lane.steps is not None for lane in lanes)
    gaps = [at for at, lane in enumerate(lanes[:busy]) if lane.steps is None]
    beyond = [at for at in range(busy, len(lanes)) if lanes[at].steps is not None]
    for source, target in zip(beyond, gaps, strict=True):
        decoder.move(source, target)
        lanes[source], lanes[target] = lanes[target], lanes[source]
    return busy


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on a processor or an accelerator."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "not enough memory" in words or "out of memory" in words
