"""The list of operation types against the kernels."""

import subprocess
import sys

from whisperkit_tools.mil.kernels import kernels
from whisperkit_tools.mil.operations import Work, work_of

UNKNOWN = {"local_response_norm", "upsample_bilinear"}
"""Kernels whose work nobody counts."""


def test_every_kernel_is_listed() -> None:
    assert {name for name in kernels() if work_of(name) is None and not name.startswith("constexpr_")} == UNKNOWN


def test_kernels_that_only_move_elements_are_listed_as_such() -> None:
    moving = {name for name, kernel in kernels().items() if kernel.moves_only}
    # Choosing between two elements is a computation to the engine.
    assert {name for name in moving if work_of(name) is not Work.MOVEMENT} == {"select"}


def test_the_list_is_read_without_torch() -> None:
    modules = "whisperkit_tools.mil.operations, whisperkit_tools.compile_hints.lint.rules"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
