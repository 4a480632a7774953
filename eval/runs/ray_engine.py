"""An engine on a Ray cluster, which hands out tasks, again when a worker or a machine dies.

Every machine reads bundle and audio itself, at the same paths as here: from a shared file system, or from copies.
"""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from whisperkit_tools.eval.runs.worker import SetupError, Task, TaskResult, Worker, WorkerFactory, describe

RETRIES = 3  # of a task whose worker died
_AHEAD = 2  # tasks in flight for each slot, so that no worker waits for this process
_loaded: dict[bytes, Worker] = {}  # in a Ray worker, which keeps its model between tasks


@dataclass(frozen=True, slots=True)
class RayEngine:
    """Performs tasks on a Ray cluster.

    Attributes:
        factory: Starts a worker.
        address: Address of a running cluster, such as `auto` or `ray://host:10001`. None starts one on this machine.
        workers: Maximum number of simultaneous tasks. None for the cluster's number of CPUs.
    """

    factory: WorkerFactory
    address: str | None = None
    workers: int | None = None

    def run(self, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        """Perform all tasks. A cluster that was started here is shut down with the iteration.

        Raises:
            SetupError: Ray is not installed, the cluster cannot be reached, or no worker can load the model.
        """
        ray = _import_ray()
        started_here = self._connect(ray)
        try:
            yield from self._results(ray, tasks)
        finally:
            if started_here:
                ray.shutdown()

    def _connect(self, ray: Any) -> bool:
        """Join the cluster. Return whether it was started here."""
        if ray.is_initialized():
            return False
        settings: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
        if self.address is None:
            settings |= {"num_cpus": self.workers, "include_dashboard": False}
        else:
            settings |= {"address": self.address}
        try:
            ray.init(**settings)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = "on this machine" if self.address is None else f"at {self.address}"
            raise SetupError(f"no Ray cluster {where}: {describe(error)}; start one with `ray start --head`") from error
        return True

    def _results(self, ray: Any, tasks: Sequence[Task]) -> Iterator[TaskResult]:
        """Keep the cluster busy, and yield results."""
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_perform)
        factory = ray.put(pickle.dumps(self.factory))
        waiting = list(reversed(tasks))
        running: dict[Any, Task] = {}
        while waiting or running:
            slots = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting and len(running) < slots * _AHEAD:
                task = waiting.pop()
                running[remote.remote(factory, task)] = task
            done, _ = ray.wait(list(running), num_returns=1, timeout=5)
            for reference in done:
                yield _result(ray, reference, running.pop(reference))


def _perform(factory: bytes, task: Task) -> TaskResult | str:
    """Perform a task in a Ray worker. Return a string when the model cannot be loaded."""
    if factory not in _loaded:
        try:
            loaded: WorkerFactory = pickle.loads(factory)  # noqa: S301 - made by this run's own process
            worker = loaded.start()
        except Exception as error:  # reported by the process that started the run
            return describe(error)
        _loaded.clear()
        _loaded[factory] = worker
    return _loaded[factory].perform(task)


def _result(ray: Any, reference: Any, task: Task) -> TaskResult:
    try:
        result: TaskResult | str = ray.get(reference)
    except ray.exceptions.RayError as error:
        return TaskResult(task.number, error=f"its Ray worker died {RETRIES + 1} times: {describe(error)}")
    if isinstance(result, str):
        raise SetupError(f"a Ray worker cannot load the model: {result}")
    return result


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise SetupError("Ray is not installed; pip install 'whisperkit-tools[ray]'") from error
    return ray
