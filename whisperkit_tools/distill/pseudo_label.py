"""Labelling speech with a teacher: the recordings go through an evaluation's workers, and come back as segments.

Source: Gandhi et al. 2023, "Distil-Whisper", arXiv 2311.00430, section 4.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from whisperkit_tools.distill.labels import LabelledRecording, LabelledSegment, Labels, hold_labels
from whisperkit_tools.errors import DatasetError, EvaluationError, OptionsError, option
from whisperkit_tools.eval.backends.base import EvaluationTarget
from whisperkit_tools.eval.datasets.dataset import fingerprint
from whisperkit_tools.eval.runs.runner import EngineFactory
from whisperkit_tools.eval.runs.worker import CLEAN, Task, TaskResult, WorkerFactory
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.signals import coloured_noise
from whisperkit_tools.speech import SAMPLE_RATE_HZ, AudioReader, Recording, Transcription

NO_SPEECH = "no-speech"
_NOISE_FLOOR_HZ = 20.0
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """How speech is labelled.

    Attributes:
        language: Code of the spoken language. None for that of each recording, or detected.
        no_speech_share: Share of windows without speech, with empty labels, among all segments.
        seed: Seed of those windows.
        max_failures: The run stops when more recordings than this have failed.

    Raises:
        OptionsError: A value is out of range.
    """

    language: str | None = None
    no_speech_share: float = 0.0
    seed: int = 0
    max_failures: int = 10

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.no_speech_share <= 0.5:
            raise OptionsError(f"{option('no_speech_share')} is {self.no_speech_share:g}, allowed are 0 to 0.5")
        if self.max_failures < 0:
            raise OptionsError(f"{option('max_failures')} is {self.max_failures}; the minimum is 0")


@dataclass(frozen=True, slots=True)
class Labelling:
    """Labels that were written.

    Attributes:
        folder: Their folder.
        recordings: Number of recordings that were labelled.
        segments: Number of segments, those without speech among them.
        audio_s: Seconds of audio in the segments.
        empty: Number of segments without text.
        failures: A line for each recording that could not be labelled.
    """

    folder: Path
    recordings: int
    segments: int
    audio_s: float
    empty: int
    failures: tuple[str, ...]


def pseudo_label(
    recordings: Sequence[Recording],
    target: EvaluationTarget,
    folder: Path,
    options: LabelOptions,
    *,
    engine: EngineFactory,
    read: AudioReader,
    progress: Progress | None = None,
) -> Labelling:
    """Label recordings, or go on with it.

    Args:
        recordings: Speech of any length.
        target: The teacher.
        folder: The folder of the labels.
        options: The options.
        engine: Makes the engine that transcribes.
        read: Decodes audio files.
        progress: Told of each recording.

    Raises:
        DatasetError: There is no recording, or nothing was heard in any.
        OptionsError: The folder holds labels of another run.
        EvaluationError: More recordings failed than allowed. What was labelled is kept.
    """
    progress = progress or SilentProgress()
    if not recordings:
        raise DatasetError("there is no recording to label")
    with hold_labels(folder, _description(recordings, target, options)) as labels:
        for line in labels.journal.repairs:
            progress.note(line)
        work = _Work(labels, recordings, target, options, progress)
        work.run(engine, read)
        if options.no_speech_share:
            work.add_no_speech()
        segments = labels.finish([*work.order, *(key for key in labels.done if key.startswith(NO_SPEECH))])
        if not any(segment.text for segment in segments):
            raise DatasetError("the teacher heard no speech in any recording; there is nothing to learn from")
    return Labelling(
        folder,
        sum(key in labels.done for key in work.order),
        len(segments),
        round(sum(segment.end_s - segment.start_s for segment in segments), 3),
        sum(not segment.text for segment in segments),
        tuple(work.failures),
    )


def _description(recordings: Sequence[Recording], target: EvaluationTarget, options: LabelOptions) -> dict[str, Any]:
    return {
        "teacher": target.backend.model,
        "teacher_sha256": target.backend.identity,
        "backend": target.backend.name,
        "decoding": dict(target.backend.options),
        "audio": fingerprint(tuple(recordings)),
        "language": options.language,
        "no_speech_share": options.no_speech_share,
        "seed": options.seed,
    }


class _Work:
    """One attempt at the recordings that are left."""

    def __init__(
        self,
        labels: Labels,
        recordings: Sequence[Recording],
        target: EvaluationTarget,
        options: LabelOptions,
        progress: Progress,
    ) -> None:
        self.labels, self.target, self.options, self.progress = labels, target, options, progress
        self.recordings = recordings
        self.order = [recording.id for recording in recordings]
        self.failures: list[str] = []

    def run(self, engine: EngineFactory, read: AudioReader) -> None:
        """Label what is not labelled yet."""
        tasks = [
            Task(number, CLEAN, "", recording, language=self.options.language or recording.language)
            for number, recording in enumerate(self.recordings)
            if recording.id not in self.labels.done
        ]
        before = len(self.recordings) - len(tasks)
        if before:
            self.progress.note(
                f"{self.labels.folder}: resumed, {before} of {len(self.recordings)} are labelled already"
            )
        if not tasks:
            return
        languages = tuple(sorted({task.language for task in tasks if task.language is not None}))
        performer = engine(WorkerFactory(self.target.load, read, languages))
        with contextlib.closing(_closable(performer, tasks)) as results:
            for done, result in enumerate(results, before + 1):
                self._take(self.recordings[result.number], result)
                self.progress.advance("labels", done, len(self.recordings))

    def _take(self, recording: Recording, result: TaskResult) -> None:
        self.labels.add(_row(recording, result, self.target))
        if result.error is not None:
            self.failures.append(f"{recording.id}: {result.error}")
            if len(self.failures) > self.options.max_failures:
                raise EvaluationError(
                    f"stopped: {len(self.failures)} recordings failed, {option('max_failures')} is "
                    f"{self.options.max_failures} ({'; '.join(self.failures[:_SHOWN])}). Labels are kept: the same "
                    "command goes on"
                )

    def add_no_speech(self) -> None:
        """Write windows of silence and noise, which have empty labels."""
        spoken = sum(len(row.segments) for key, row in self.labels.done.items() if not key.startswith(NO_SPEECH))
        share = self.options.no_speech_share
        for number in range(round(spoken * share / (1 - share))):
            key = f"{NO_SPEECH}-{number:05}"
            if key in self.labels.done:
                continue
            path = self.labels.folder / NO_SPEECH / f"{number:05}.flac"
            seconds = _write_noise(path, np.random.default_rng([self.options.seed, number]))
            segment = LabelledSegment(f"{key}#0000", key, str(path.resolve()), 0.0, seconds, "")
            self.labels.add(LabelledRecording(key, segment.audio, seconds, "", segments=(segment,)))


def _closable(engine: Any, tasks: Sequence[Task]) -> Any:
    """Return the engine's results as a generator, whose closing ends the workers at once."""
    yield from engine.run(tasks)


def _row(recording: Recording, result: TaskResult, target: EvaluationTarget) -> LabelledRecording:
    audio = str(recording.path.resolve()) if recording.path is not None else recording.id
    found = result.transcription
    return LabelledRecording(
        recording.id,
        audio,
        result.duration_s,
        recording.text,
        recording.language if found is None else found.language,
        () if found is None else _segments(recording, audio, found, target),
        result.error,
    )


def _segments(
    recording: Recording, audio: str, found: Transcription, target: EvaluationTarget
) -> tuple[LabelledSegment, ...]:
    """Return a transcription's segments as records, in the order of time."""
    return tuple(
        LabelledSegment(
            id=f"{recording.id}#{number:04}",
            recording=recording.id,
            audio=audio,
            start_s=segment.start_s,
            end_s=segment.end_s,
            text=segment.text.strip(),
            language=found.language,
            speaker=recording.speaker,
            tokens=segment.tokens,
            avg_logprob=segment.avg_logprob,
            no_speech_prob=segment.no_speech_prob,
            compression_ratio=segment.compression_ratio,
            temperature=segment.temperature,
            teacher=target.backend.model,
            teacher_sha256=target.backend.identity,
        )
        for number, segment in enumerate(found.segments)
    )


def _write_noise(path: Path, generator: np.random.Generator) -> float:
    """Write silence (one in four) or noise of 5 to 30 s, and return its length in seconds."""
    count = round(generator.uniform(5, 30) * SAMPLE_RATE_HZ)
    if generator.random() < 0.25:
        samples = np.zeros(count, np.float32)
    else:
        level = 10 ** generator.uniform(-4, -1)
        samples = level * coloured_noise(count, generator.uniform(0, 2), generator, _NOISE_FLOOR_HZ)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(samples, -1, 1), SAMPLE_RATE_HZ, format="FLAC")
    return round(count / SAMPLE_RATE_HZ, 6)
