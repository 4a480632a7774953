"""How much memory there is, and giving back what the process no longer uses."""

import ctypes
import sys
from pathlib import Path


def available_memory() -> int | None:
    """Bytes of memory that are free for use, where the system says so."""
    path = Path("/proc/meminfo")
    if path.is_file():
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def release_memory() -> None:
    """Give freed memory back to the system, between stages that each take a lot.

    The GNU C library keeps freed blocks of up to 32 MB, as most tensors are, on its heap, where they count as the
    process's for as long as anything above them lives.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries lack it
    if trim is not None:
        trim(0)
