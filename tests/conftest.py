"""Fixtures that several test files need."""

import logging
import os
import signal
from functools import partial
from pathlib import Path

import pytest
from helpers.bundles import converted_demo, demo_prefill
from hypothesis import settings

# The same examples each time, so that a failure is a change's doing; `make fuzz` looks for others.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("fuzz", derandomize=False, print_blob=True)
settings.load_profile("repeatable")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: a worker for each core and threads for each core stand in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _quiet_libraries():
    os.environ["TQDM_DISABLE"] = "1"
    from whisperkit_tools.mil.coreml import import_coremltools

    import_coremltools()


@pytest.fixture(autouse=True)
def _restore_log_levels():
    """Undo what `wkt` inside a test does: it silences the libraries for its process, which other tests use too."""
    loggers = [
        logging.getLogger(name) for name in ("transformers", "huggingface_hub", "coremltools", "torch", "datasets")
    ]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real audio and checkpoints beside the project. Tests that use it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: this test needs the real audio and checkpoints beside the project")
    return SHARED


@pytest.fixture
def wkt(capsys):
    """Run `wkt` in this process and return its exit code, stdout and stderr."""

    from whisperkit_tools import cli

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def run_root(tmp_path_factory, worker_id) -> Path:
    """The folder that all workers of a run share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def demo_bundle(run_root) -> Path:
    """The converted embedded demo."""
    return converted_demo(run_root / "demo-bundles")


@pytest.fixture(scope="session")
def prefill_bundle(run_root) -> Path:
    """The same with a prefill."""
    return converted_demo(run_root / "prefill-bundles", prefill=demo_prefill)


@pytest.fixture(scope="session")
def stateful_bundle(run_root) -> Path:
    """The same with its decoder's caches as states."""
    return converted_demo(run_root / "stateful-bundles", deployment_target="ios18", stateful=True)


@pytest.fixture(scope="session")
def verifying_bundle(run_root) -> Path:
    """The same with its decoder on five tokens at once."""
    return converted_demo(run_root / "verifying-bundles", draft_tokens=5)


@pytest.fixture
def write_run(tmp_path):
    """Write the folder of a finished evaluation: `write_run(name, pairs, ...)`, see `helpers.runs.write_run`."""
    from helpers.runs import write_run

    return partial(write_run, tmp_path / "runs")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server that speaks the Hub's protocol, and a client that keeps its cache beside it."""
    from helpers.hub_server import TestHub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with TestHub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def interruptible():
    """Let processes that a test starts be interrupted. A shell's background jobs ignore SIGINT and pass that on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
