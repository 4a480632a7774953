"""Running an evaluation. Every result is on the disk before the next is awaited, so that nothing is ever lost."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from whisperkit_tools.errors import EvaluationError, OptionsError, option
from whisperkit_tools.eval.backends.base import EvaluationTarget
from whisperkit_tools.eval.datasets.dataset import Dataset
from whisperkit_tools.eval.runs.engines import Engine
from whisperkit_tools.eval.runs.machine import machine, versions
from whisperkit_tools.eval.runs.scoring import Scorer
from whisperkit_tools.eval.runs.store import RunStore
from whisperkit_tools.eval.runs.summary import Results, summarise
from whisperkit_tools.eval.runs.tasks import EvaluateConfig, run_key, tasks
from whisperkit_tools.eval.runs.worker import CLEAN, PARTS, Task, TaskResult, WorkerFactory
from whisperkit_tools.eval.schema import REPORT_FILE, RUN_FILE, SHORT_KEY, Report, ResultRow, RunReport
from whisperkit_tools.eval.typed_json import to_json
from whisperkit_tools.files import safe_name, write_json
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.speech import AudioReader

EngineFactory = Callable[[WorkerFactory], Engine]
_SHOWN_FAILURES = 3


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run whose tasks are all done. Some may have failed."""

    folder: Path
    report: RunReport


def run_folder(root: Path, target: EvaluationTarget, dataset: Dataset, key: str) -> Path:
    """Return the folder of a run: `ROOT/<dataset>/<name>-<key>`."""
    return root / safe_name(dataset.name) / f"{safe_name(target.name)}-{key[:SHORT_KEY]}"


def evaluate(
    target: EvaluationTarget,
    dataset: Dataset,
    config: EvaluateConfig,
    *,
    root: Path,
    engine: EngineFactory,
    read: AudioReader,
    progress: Progress | None = None,
    spellings: Mapping[str, str] | None = None,
) -> FinishedRun:
    """Run or resume the evaluation of one target on one dataset.

    Args:
        target: The model under a backend.
        dataset: The examples.
        config: The measurements.
        root: Folder of all runs.
        engine: Makes the engine that performs the tasks.
        read: Decodes audio files.
        progress: Receives notes and the number of tasks done, with the running word error rate and speed.
        spellings: Table of the English normaliser.

    Returns:
        The run with its report, which is also in its folder.

    Raises:
        WktError: It cannot start, or more examples failed than `max_failures`. Finished results are kept.
    """
    progress = progress or SilentProgress()
    if not dataset.examples:
        raise OptionsError(f"dataset {dataset.name} has no examples left to transcribe; widen the choice of examples")
    key = run_key(target, dataset, config)
    folder = run_folder(root, target, dataset, key)
    with RunStore.hold(folder, _description(target, dataset, config, key), PARTS) as store:
        for line in store.repairs:
            progress.note(line)
        _compare_surroundings(store.description, progress)
        planned = tasks(dataset, config, read)
        attempt = _Attempt(
            target.name, store, planned, Scorer(config.normalizer, spellings), config.max_failures, progress
        )
        if attempt.pending:
            languages = tuple(sorted({task.language for task in planned if task.language is not None}))
            attempt.perform(engine(WorkerFactory(target.load, read, languages)))
        else:
            progress.note(f"{folder}: all {len(planned)} tasks are done already")
        _put_in_order(store, planned)
        if attempt.pending or "finished" not in store.description:
            store.description["finished"] = _now()
            write_json(folder / RUN_FILE, store.description)
        results = Results.read({part: list(lines.rows.values()) for part, lines in store.parts.items()}, planned)
        report = summarise(target, dataset, config, store.description, results)
        write_json(folder / REPORT_FILE, to_json(Report(runs=(report,))))
    return FinishedRun(folder, report)


def _description(target: EvaluationTarget, dataset: Dataset, config: EvaluateConfig, key: str) -> dict[str, Any]:
    return {
        "key": key,
        "name": target.name,
        "backend": to_json(target.backend),
        "bundle": to_json(target.bundle) if target.bundle is not None else None,
        "dataset": {"name": dataset.name, "source": dataset.source, "fingerprint": dataset.fingerprint},
        "options": config.keyed,
        "machine": machine(),
        "versions": {**versions(), **target.backend.versions},
        "started": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _compare_surroundings(description: Mapping[str, Any], progress: Progress) -> None:
    """Report a run that continues on another machine or with other versions, because its times then mix both."""
    begun, here = description.get("machine"), machine()
    parts = ("processor", "cpus", "accelerator")
    if isinstance(begun, dict) and any(begun.get(part) != here[part] for part in parts):
        progress.note(
            f"this run was begun on another machine ({begun.get('processor')}, {begun.get('cpus')} CPUs): "
            "its times come from both"
        )
    old = description.get("versions")
    changed = [name for name, value in versions().items() if isinstance(old, dict) and old.get(name, value) != value]
    if changed:
        progress.note(f"this run was begun with other versions of {', '.join(changed)}")


def _put_in_order(store: RunStore, planned: Sequence[Task]) -> None:
    """Sort each file by the run's order. Workers finish in any order, and a retried example comes after the others."""
    order = {(task.part, task.key): task.number for task in planned}
    for part, lines in store.parts.items():
        ids = [key for key in lines.rows if (part, key) in order]
        wanted = sorted(ids, key=lambda key: order[part, key])
        if list(lines.rows) != wanted or lines.superseded:
            lines.rewrite([lines.rows[key] for key in wanted])


@dataclass(slots=True)
class _Attempt:
    """One attempt at the remaining tasks. Failed ones of an earlier attempt are tried again."""

    name: str
    store: RunStore
    planned: Sequence[Task]
    scorer: Scorer
    max_failures: int
    progress: Progress
    pending: list[Task] = field(init=False)
    failures: list[str] = field(default_factory=list)
    errors: int = 0
    words: int = 0

    def __post_init__(self) -> None:
        rows = {part: lines.rows for part, lines in self.store.parts.items()}
        done = {(part, key) for part in rows for key, row in rows[part].items() if row.error is None}
        self.pending = [task for task in self.planned if (task.part, task.key) not in done]
        for row in rows[CLEAN].values():
            self._count(row)

    def perform(self, engine: Engine) -> None:
        """Perform the remaining tasks.

        Raises:
            EvaluationError: More of them failed than `max_failures` allows.
        """
        by_number = {task.number: task for task in self.pending}
        before = len(self.planned) - len(self.pending)
        if before:
            self.progress.note(f"{self.store.folder}: resumed, {before} of {len(self.planned)} tasks are done already")
        started, audio_s = time.monotonic(), 0.0
        with contextlib.closing(_closable(engine, self.pending)) as results:
            for done, result in enumerate(results, before + 1):
                self._take(by_number[result.number], result)
                audio_s += result.duration_s or 0.0
                speed = audio_s / max(time.monotonic() - started, 1e-9)
                self.progress.advance(self.name, done, len(self.planned), self._figures(speed))

    def _take(self, task: Task, result: TaskResult) -> None:
        row = self.scorer.row(task, result)
        self.store.parts[task.part].append(row)
        if task.part == CLEAN:
            self._count(row)
        if result.error is not None:
            self.failures.append(f"{task.key}: {result.error}")
            if len(self.failures) > self.max_failures:
                raise EvaluationError(self._stopped())

    def _count(self, row: ResultRow) -> None:
        self.errors += row.errors
        self.words += row.reference_words if row.error is None else 0

    def _stopped(self) -> str:
        shown = "; ".join(self.failures[:_SHOWN_FAILURES])
        return (
            f"stopped: {len(self.failures)} examples failed, "
            f"{option('max_failures')} is {self.max_failures} ({shown}). "
            "Finished results are kept: the same command continues, and tries these again"
        )

    def _figures(self, speed: float) -> str:
        """Return the running figures: word error rate so far, seconds of audio per second, failures."""
        parts = [f"WER {100 * self.errors / self.words:.2f} %"] if self.words else []
        parts += [f"{speed:.1f}x real time"] if speed else []
        parts += [f"{len(self.failures)} failed"] if self.failures else []
        return ", ".join(parts)


def _closable(engine: Engine, pending: Sequence[Task]) -> Any:
    """Return the engine's results as a generator, whose closing ends the workers at once."""
    yield from engine.run(pending)
