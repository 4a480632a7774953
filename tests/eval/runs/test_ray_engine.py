"""Runs on Ray: the same report as alone, also when a worker of the cluster dies in the middle."""

import builtins
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from helpers.evaluation_runs import LoadFake, content, make_dataset, run

from whisperkit_tools.errors import WktError
from whisperkit_tools.eval.runs.ray_engine import RayEngine

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own: sockets and files that it leaves to the collector


@pytest.fixture
def cluster(monkeypatch):
    """A head without CPUs and two workers with one each."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "240")  # on a busy machine
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100_000_000},
    )
    try:
        workers = [nodes.add_node(num_cpus=1, object_store_memory=100_000_000) for _ in range(2)]
        yield nodes, workers
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.slow
def test_a_worker_of_the_cluster_is_killed_and_the_report_is_the_same(tmp_path, cluster):
    nodes, workers = cluster
    dataset, log = make_dataset(tmp_path / "audio", 24), tmp_path / "log"
    alone = run(tmp_path / "alone", dataset)
    begun: list[int] = []
    killer = threading.Thread(target=_kill_when, args=(log, 8, nodes, workers[1], begun))
    killer.start()
    load = LoadFake(str(log), delay_s=0.2)
    together = run(tmp_path / "together", dataset, load, engine=partial(RayEngine, address=nodes.address))
    killer.join()
    assert 8 <= begun[0] < 24
    assert content(together.folder) == content(alone.folder)


def _kill_when(log: Path, lines: int, nodes, worker, begun: list[int]) -> None:
    """Kill a worker node once so many examples were begun, and tell how many there were."""
    until = time.monotonic() + 60
    while time.monotonic() < until and not (log.exists() and len(log.read_text().split()) >= lines):
        time.sleep(0.05)
    begun.append(len(log.read_text().split()))
    nodes.remove_node(worker, allow_graceful=False)


def test_without_ray_it_is_said_what_to_install(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *rest, **more):
        if name == "ray":
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(WktError, match=r"Ray is not installed; pip install 'whisperkit-tools\[ray\]'"):
        run(tmp_path / "out", make_dataset(tmp_path / "audio", 1), engine=RayEngine)
