"""coremltools without its notices, and what needs macOS."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from whisperkit_tools.errors import UnsupportedOperationError
from whisperkit_tools.mil.coreml import planned_devices, quiet_coremltools


def test_importing_the_module_is_cheap() -> None:
    code = "import sys, whisperkit_tools.mil.coreml; print(*({'torch', 'coremltools'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is there")
def test_the_compute_plan_is_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperationError, match=r"macOS 14.4 and later only, this is .*without measured the"):
        planned_devices(tmp_path)


def test_importing_coremltools_is_silent() -> None:
    code = "from whisperkit_tools.mil.coreml import import_coremltools; import_coremltools()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(("verbose", "expected"), [(False, []), (True, ["notice"])])
def test_notices_pass_only_when_verbose(verbose: bool, expected: list[str], caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("coremltools")
    level = logger.level
    with quiet_coremltools(verbose=verbose):
        logger.warning("notice")
    assert caplog.messages == expected
    assert logger.level == level
