"""What is kept of long work, so that an interrupted run goes on where it was."""

import time
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

KEEP_EVERY_S = 60.0


class Kept(Protocol):
    """Tensors by a name that outlive an interruption."""

    def load(self, name: str) -> dict[str, Tensor] | None:
        """What was saved last under a name; None without."""
        ...

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors in place of what was saved before."""
        ...

    def drop(self, name: str) -> None:
        """Forget a name."""
        ...


class Nothing:
    """Keeps nothing."""

    def load(self, name: str) -> None:
        """There is nothing."""

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Let it go."""

    def drop(self, name: str) -> None:
        """There is nothing."""


class Pace:
    """Says when it is worth keeping what has been done: once in `KEEP_EVERY_S`."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def is_time(self) -> bool:
        """Whether it is, for the first time since the last time."""
        now = time.monotonic()
        if now - self._last < KEEP_EVERY_S:
            return False
        self._last = now
        return True
