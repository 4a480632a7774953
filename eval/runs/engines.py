"""Who performs the tasks: this process, or worker processes that are replaced when they die."""

import contextlib
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Protocol, cast

from whisperkit_tools.errors import DatasetError
from whisperkit_tools.eval.runs.worker import Outcome, SetupError, Task, WorkerSpec, describe

ATTEMPTS = 2  # a task whose worker died is tried once more, for the death may not have been its fault


class Engine(Protocol):
    """Performs tasks; outcomes come in any order."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Perform all tasks, each once.

        Raises:
            WktError: No worker can start.
        """
        ...


@dataclass(frozen=True, slots=True)
class SerialEngine:
    """Performs one task after another in this process."""

    spec: WorkerSpec

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Perform all tasks in their order."""
        worker = self.spec.start()
        for task in tasks:
            yield worker.perform(task)


@dataclass(frozen=True, slots=True)
class ProcessEngine:
    """Performs tasks in worker processes, each with its own model.

    Attributes:
        spec: What each worker starts with.
        workers: Number of processes.
    """

    spec: WorkerSpec
    workers: int

    def __post_init__(self) -> None:
        """Check the number."""
        if self.workers < 1:
            raise DatasetError(f"{self.workers} workers cannot do anything; give 1 or more")

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Perform all tasks; the workers end with the iteration, however it ends."""
        pool = _Pool(self.spec, min(self.workers, len(tasks)), deque(tasks))
        try:
            yield from pool.outcomes()
        finally:
            pool.end()


@dataclass(slots=True)
class _Process:
    """A worker process, its pipe, and what it is doing."""

    process: SpawnProcess
    pipe: Connection
    task: Task | None = None
    is_ready: bool = False


class _Pool:
    """Hands one task at a time to each worker, and replaces workers that die."""

    def __init__(self, spec: WorkerSpec, workers: int, tasks: deque[Task]) -> None:
        self._spec = spec
        self._tasks = tasks
        self._attempts: dict[int, int] = {}
        # Two workers share the cores; each with all threads would only be in the other's way.
        self._threads = max(1, (os.cpu_count() or 1) // max(1, workers))
        self._alive: dict[Connection, _Process] = {}
        for _ in range(workers):
            self._start()

    def outcomes(self) -> Iterator[Outcome]:
        """Wait for the workers until every task has its outcome."""
        while self._tasks or any(worker.task for worker in self._alive.values()):
            for pipe in wait(list(self._alive)):
                outcome = self._hear(self._alive[cast(Connection, pipe)])
                if outcome is not None:
                    yield outcome

    def end(self) -> None:
        """Stop all workers; whatever they are doing is lost."""
        for worker in self._alive.values():
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._alive.values():
            worker.process.join()
        self._alive = {}

    def _start(self) -> None:
        context = get_context("spawn")  # a fork would copy the threads' locks of whatever is loaded
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._spec, self._threads), daemon=True)
        process.start()
        theirs.close()
        self._alive[ours] = _Process(process, ours)

    def _hear(self, worker: _Process) -> Outcome | None:
        """Take in what a worker says, and give it its next task."""
        try:
            said = worker.pipe.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        if isinstance(said, str):
            raise SetupError(said)
        worker.is_ready, worker.task = True, None
        if self._tasks:
            worker.task = self._tasks.popleft()
            with contextlib.suppress(OSError):  # it died since: its pipe ends, and that is heard next
                worker.pipe.send(worker.task)
        return said if isinstance(said, Outcome) else None

    def _bury(self, worker: _Process) -> Outcome | None:
        """Replace a dead worker; its task is tried again, or has failed."""
        del self._alive[worker.pipe]
        worker.pipe.close()
        worker.process.join()
        how = _death(worker.process.exitcode)
        if not worker.is_ready:
            raise SetupError(f"a worker process died while it loaded the model: {how}; try fewer --workers")
        task = worker.task
        failed = None
        if task is not None:
            self._attempts[task.number] = self._attempts.get(task.number, 0) + 1
            if self._attempts[task.number] < ATTEMPTS:
                self._tasks.appendleft(task)
            else:
                failed = Outcome(task.number, error=f"its worker process died {ATTEMPTS} times: {how}")
        if self._tasks:
            self._start()
        return failed


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"signal {-exitcode}" + (" (out of memory?)" if exitcode == -9 else "")
    return f"exit code {exitcode}"


def _serve(pipe: Connection, spec: WorkerSpec, threads: int) -> None:
    """The worker process: says that it is ready, or why it cannot be, then performs tasks until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    # Read when the libraries are first imported, which is in `start`.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    try:
        worker = spec.start()
    except Exception as error:  # the parent says it and ends
        pipe.send(describe(error))
        return
    pipe.send(None)
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(worker.perform(pipe.recv()))
