"""Runs an evaluation so that nothing done is ever lost: every outcome is on the disk before the next is waited for."""

import contextlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from whisperkit_tools.errors import EvaluationError
from whisperkit_tools.eval.backends.base import Candidate
from whisperkit_tools.eval.datasets.examples import AudioReader, Dataset
from whisperkit_tools.eval.runs.engines import Engine
from whisperkit_tools.eval.runs.machine import machine, versions
from whisperkit_tools.eval.runs.scoring import REQUIRED, Scorer
from whisperkit_tools.eval.runs.store import RunStore, write_json
from whisperkit_tools.eval.runs.summary import Results, summarise
from whisperkit_tools.eval.runs.tasks import SHORT_KEY, EvaluateConfig, run_key, tasks
from whisperkit_tools.eval.runs.worker import CLEAN, PARTS, Outcome, Task, WorkerSpec
from whisperkit_tools.eval.schema import REPORT_FILE, RUN_FILE, Report, RunReport, to_json

EngineFactory = Callable[[WorkerSpec], Engine]
_SHOWN_FAILURES = 3


@dataclass(frozen=True, slots=True)
class Status:
    """How far a run is.

    Attributes:
        done: Tasks that are on the disk, those of earlier attempts included.
        total: Tasks of the run.
        failures: Tasks that failed in this attempt.
        wer: Over the examples so far; None before there is a reference word.
        rtfx: Seconds of audio per second of wall time in this attempt.
        left_s: Time left at this pace; None before it can be told.
    """

    done: int
    total: int
    failures: int
    wer: float | None
    rtfx: float | None
    left_s: float | None


class Listener(Protocol):
    """Is told how a run goes."""

    def note(self, message: str) -> None:
        """Something that the user should know and that is no failure."""
        ...

    def advanced(self, status: Status) -> None:
        """Another task is done."""
        ...


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run whose every task is done; some may have failed."""

    folder: Path
    report: RunReport


def run_folder(root: Path, candidate: Candidate, dataset: Dataset, key: str) -> Path:
    """Where a run lives: `ROOT/<dataset>/<name>-<key>`."""
    return root / _safe(dataset.name) / f"{_safe(candidate.name)}-{key[:SHORT_KEY]}"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "unnamed"


def evaluate(
    candidate: Candidate,
    dataset: Dataset,
    config: EvaluateConfig,
    *,
    root: Path,
    engine: EngineFactory,
    read: AudioReader,
    listener: Listener,
    spellings: Mapping[str, str] | None = None,
) -> FinishedRun:
    """Run, or resume, one candidate over one dataset.

    Args:
        candidate: What is evaluated.
        dataset: What on.
        config: What is asked.
        root: Folder of all runs.
        engine: Makes whoever performs the tasks.
        read: Decodes audio files.
        listener: Is told how it goes.
        spellings: Of the English normaliser.

    Returns:
        The run with its report, which is also in its folder.

    Raises:
        WktError: It cannot start, or more examples failed than `max_failures`; what is done stays done.
    """
    if not dataset.examples:
        raise EvaluationError(
            f"dataset {dataset.name} has no examples left to transcribe; widen the choice of examples"
        )
    key = run_key(candidate, dataset, config)
    folder = run_folder(root, candidate, dataset, key)
    with RunStore.hold(folder, _description(candidate, dataset, config, key), PARTS, REQUIRED) as store:
        for line in store.repairs:
            listener.note(line)
        _compare_surroundings(store.description, listener)
        planned = tasks(dataset, config, read)
        attempt = _Attempt(store, planned, Scorer(config.normalizer, spellings), config.max_failures, listener)
        if attempt.pending:
            languages = tuple(sorted({task.language for task in planned if task.language is not None}))
            attempt.perform(engine(WorkerSpec(candidate.load, read, languages)))
        else:
            listener.note(f"{folder}: all {len(planned)} tasks are done already")
        _put_in_order(store, planned)
        if attempt.pending or "finished" not in store.description:
            store.description["finished"] = _now()
            write_json(folder / RUN_FILE, store.description)
        results = Results.read({part: list(lines.rows.values()) for part, lines in store.parts.items()}, planned)
        report = summarise(candidate, dataset, config, store.description, results)
        write_json(folder / REPORT_FILE, to_json(Report(runs=(report,))))
    return FinishedRun(folder, report)


def _description(candidate: Candidate, dataset: Dataset, config: EvaluateConfig, key: str) -> dict[str, Any]:
    return {
        "key": key,
        "name": candidate.name,
        "backend": to_json(candidate.backend),
        "bundle": to_json(candidate.bundle) if candidate.bundle is not None else None,
        "dataset": {"name": dataset.name, "source": dataset.source, "fingerprint": dataset.fingerprint},
        "options": config.keyed,
        "machine": machine(),
        "versions": {**versions(), **candidate.backend.versions},
        "started": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _compare_surroundings(description: Mapping[str, Any], listener: Listener) -> None:
    """Say when a run goes on where it was not begun: its times then come from two places."""
    begun, here = description.get("machine"), machine()
    parts = ("processor", "cpus", "accelerator")
    if isinstance(begun, dict) and any(begun.get(part) != here[part] for part in parts):
        listener.note(
            f"this run was begun on another machine ({begun.get('processor')}, {begun.get('cpus')} CPUs): "
            "its times come from both"
        )
    old = description.get("versions")
    changed = [name for name, value in versions().items() if isinstance(old, dict) and old.get(name, value) != value]
    if changed:
        listener.note(f"this run was begun with other versions of {', '.join(changed)}")


def _put_in_order(store: RunStore, planned: Sequence[Task]) -> None:
    """Sort each file by the run's order; workers finish in any, and a retried example stands behind the others."""
    order = {(task.part, task.key): task.number for task in planned}
    for part, lines in store.parts.items():
        ids = [key for key in lines.rows if (part, key) in order]
        wanted = sorted(ids, key=lambda key: order[part, key])
        if list(lines.rows) != wanted or lines.superseded:
            lines.rewrite([lines.rows[key] for key in wanted])


@dataclass(slots=True)
class _Attempt:
    """One go at the tasks that are left; failed ones of an earlier attempt are tried again."""

    store: RunStore
    planned: Sequence[Task]
    scorer: Scorer
    max_failures: int
    listener: Listener
    pending: list[Task] = field(init=False)
    failures: list[str] = field(default_factory=list)
    errors: int = 0
    words: int = 0

    def __post_init__(self) -> None:
        rows = {part: lines.rows for part, lines in self.store.parts.items()}
        done = {(part, key) for part in rows for key, row in rows[part].items() if row.get("error") is None}
        self.pending = [task for task in self.planned if (task.part, task.key) not in done]
        for row in rows[CLEAN].values():
            self._count(row)

    def perform(self, engine: Engine) -> None:
        """Perform the tasks that are left.

        Raises:
            EvaluationError: More of them failed than allowed.
        """
        by_number = {task.number: task for task in self.pending}
        before = len(self.planned) - len(self.pending)
        if before:
            self.listener.note(f"{self.store.folder}: resumed, {before} of {len(self.planned)} tasks are done already")
        started, audio_s = time.monotonic(), 0.0
        with contextlib.closing(_closable(engine, self.pending)) as outcomes:
            for done, outcome in enumerate(outcomes, 1):
                self._take(by_number[outcome.number], outcome)
                audio_s += outcome.duration_s or 0.0
                self._tell(before + done, done, audio_s, time.monotonic() - started)

    def _take(self, task: Task, outcome: Outcome) -> None:
        row = self.scorer.row(task, outcome)
        self.store.parts[task.part].append(row)
        if task.part == CLEAN:
            self._count(row)
        if outcome.error is not None:
            self.failures.append(f"{task.key}: {outcome.error}")
            if len(self.failures) > self.max_failures:
                raise EvaluationError(self._stopped())

    def _count(self, row: Mapping[str, Any]) -> None:
        self.errors += row["substitutions"] + row["deletions"] + row["insertions"]
        self.words += row["reference_words"] if row["error"] is None else 0

    def _stopped(self) -> str:
        shown = "; ".join(self.failures[:_SHOWN_FAILURES])
        return (
            f"stopped: {len(self.failures)} examples failed, --max-failures is {self.max_failures} ({shown}). "
            "What is done is kept: the same command goes on, and tries these again"
        )

    def _tell(self, done: int, here: int, audio_s: float, wall_s: float) -> None:
        left = len(self.planned) - done
        status = Status(
            done=done,
            total=len(self.planned),
            failures=len(self.failures),
            wer=self.errors / self.words if self.words else None,
            rtfx=audio_s / wall_s if wall_s > 0 and audio_s else None,
            left_s=wall_s / here * left if here else None,
        )
        self.listener.advanced(status)


def _closable(engine: Engine, pending: Sequence[Task]) -> Any:
    """The engine's outcomes as a generator: closing it ends the workers at once."""
    yield from engine.run(pending)
