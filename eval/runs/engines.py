"""Engines that perform the tasks: this process, or worker processes that are replaced when they die."""

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

from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.eval.runs.worker import SetupError, Task, TaskResult, WorkerFactory, describe

ATTEMPTS = 2  # a task whose worker died is tried once more, because it may not have caused the death


class Engine(Protocol):
    """Performs tasks. Results come in any order."""

    def run(self, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        """Perform all tasks, each once.

        Raises:
            WktError: No worker can start.
        """
        ...


@dataclass(frozen=True, slots=True)
class SerialEngine:
    """Performs tasks in this process, several at once where the backend can."""

    factory: WorkerFactory

    def run(self, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        """Perform all tasks."""
        yield from self.factory.start().perform_all(tasks)


@dataclass(frozen=True, slots=True)
class ProcessEngine:
    """Performs tasks in worker processes, each with its own model.

    Attributes:
        factory: Starts a worker.
        workers: Number of processes.
    """

    factory: WorkerFactory
    workers: int

    def __post_init__(self) -> None:
        """Check the number."""
        if self.workers < 1:
            raise OptionsError(f"{option('workers')} is {self.workers}; expected 1 or more")

    def run(self, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        """Perform all tasks. The workers end with the iteration, however it ends."""
        pool = _Pool(self.factory, min(self.workers, len(tasks)), deque(tasks))
        try:
            yield from pool.results()
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

    def __init__(self, factory: WorkerFactory, workers: int, tasks: deque[Task]) -> None:
        self._factory = factory
        self._tasks = tasks
        self._attempts: dict[int, int] = {}
        # The workers share the cores. Each with all threads would slow the others down.
        self._threads = max(1, (os.cpu_count() or 1) // max(1, workers))
        self._alive: dict[Connection, _Process] = {}
        for _ in range(workers):
            self._start()

    def results(self) -> Iterator[TaskResult]:
        """Wait for the workers until every task has its result."""
        while self._tasks or any(worker.task for worker in self._alive.values()):
            for pipe in wait(list(self._alive)):
                result = self._receive(self._alive[cast(Connection, pipe)])
                if result is not None:
                    yield result

    def end(self) -> None:
        """Stop all workers. Their unfinished tasks are lost."""
        for worker in self._alive.values():
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._alive.values():
            worker.process.join()
        self._alive = {}

    def _start(self) -> None:
        context = get_context("spawn")  # a fork would copy the locks of loaded libraries' threads
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._factory, self._threads), daemon=True)
        process.start()
        theirs.close()
        self._alive[ours] = _Process(process, ours)

    def _receive(self, worker: _Process) -> TaskResult | None:
        """Receive a worker's message, and give it its next task."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            return self._replace(worker)
        if isinstance(message, str):
            raise SetupError(message)
        worker.is_ready, worker.task = True, None
        if self._tasks:
            worker.task = self._tasks.popleft()
            with contextlib.suppress(OSError):  # it has died: its pipe ends, which is received next
                worker.pipe.send(worker.task)
        return message if isinstance(message, TaskResult) else None

    def _replace(self, worker: _Process) -> TaskResult | None:
        """Replace a dead worker. Its task is tried again, or has failed."""
        del self._alive[worker.pipe]
        worker.pipe.close()
        worker.process.join()
        how = _death(worker.process.exitcode)
        if not worker.is_ready:
            raise SetupError(f"a worker process died while it loaded the model: {how}; try fewer {option('workers')}")
        task = worker.task
        failed = None
        if task is not None:
            self._attempts[task.number] = self._attempts.get(task.number, 0) + 1
            if self._attempts[task.number] < ATTEMPTS:
                self._tasks.appendleft(task)
            else:
                failed = TaskResult(task.number, error=f"its worker process died {ATTEMPTS} times: {how}")
        if self._tasks:
            self._start()
        return failed


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"signal {-exitcode}" + (" (out of memory?)" if exitcode == -9 else "")
    return f"exit code {exitcode}"


def _serve(pipe: Connection, factory: WorkerFactory, threads: int) -> None:
    """Run a worker process: report that it is ready or why it cannot be, then perform tasks until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and the parent ends this process
    # Read when the libraries are first imported, which is in `start`.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    try:
        worker = factory.start()
    except Exception as error:  # the parent reports it and ends
        pipe.send(describe(error))
        return
    pipe.send(None)
    with contextlib.suppress(EOFError, OSError):
        while True:
            pipe.send(worker.perform(pipe.recv()))
