"""The machine and the versions with which figures were measured."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "coremltools", "transformers", "numpy", "jiwer", "soundfile", "soxr", "av")


def machine() -> dict[str, Any]:
    """Return processor, cores, memory and system of this machine."""
    return {
        "system": platform.platform(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cpus": os.cpu_count() or 0,
        "memory_bytes": _memory_bytes(),
        "accelerator": _accelerator(),
    }


def versions() -> dict[str, str]:
    """Return the versions of this package, Python, and the libraries that influence results."""
    from whisperkit_tools import __version__

    found = {"whisperkit-tools": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """Return the name of the processor as its maker writes it, as far as the system reports it."""
    if sys.platform == "darwin":
        return _output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _accelerator() -> str:
    """Return the first CUDA device, Apple's chip, or nothing, without importing a slow library."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return _processor()
    return _output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").partition("\n")[0]


def _output_of(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
