"""Fixtures that several test files need."""

import logging
import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _quiet_libraries():
    os.environ["TQDM_DISABLE"] = "1"
    from whisperkit_tools.mil.quiet import import_coremltools

    import_coremltools()


@pytest.fixture(autouse=True)
def _restore_log_levels():
    """`wkt` run inside a test silences the libraries for its process, which is the other tests' too."""
    loggers = [
        logging.getLogger(name) for name in ("transformers", "huggingface_hub", "coremltools", "torch", "datasets")
    ]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real audio and checkpoints beside the project; tests that use it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: this test needs the real audio and checkpoints beside the project")
    return SHARED


@pytest.fixture
def wkt(capsys):
    """Run `wkt` in this process; gives exit code, stdout and stderr."""

    from whisperkit_tools import cli

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return stop.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory, worker_id) -> Path:
    """The converted embedded demo, made once for all workers of a run."""
    from filelock import FileLock

    from whisperkit_tools.checkpoint import open_checkpoint
    from whisperkit_tools.convert.conversion import ConversionConfig, convert
    from whisperkit_tools.convert.speech import verification_speech

    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "demo-bundles"
    with FileLock(f"{root}.lock"):
        if not root.is_dir():
            convert(open_checkpoint("demo"), ConversionConfig(output_dir=root), verification_speech())
    return next(path for path in root.iterdir() if not path.name.startswith("."))
