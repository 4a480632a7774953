"""Checkpoints of long work, from which an interrupted run resumes."""

import time
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

SAVE_EVERY_S = 60.0


class CheckpointStore(Protocol):
    """Named sets of tensors that outlive an interruption."""

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Return what was saved last under a name, or None."""
        ...

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Replace what was saved under a name."""
        ...

    def drop(self, name: str) -> None:
        """Remove what was saved under a name."""
        ...


class NullStore:
    """Stores nothing."""

    def load(self, name: str) -> None:
        """Return None."""

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Drop the tensors."""

    def drop(self, name: str) -> None:
        """Do nothing."""


class SaveInterval:
    """Decides when to save: at most once in `SAVE_EVERY_S`."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def has_passed(self) -> bool:
        """Whether the interval has passed. If so, the next one begins."""
        now = time.monotonic()
        if now - self._last < SAVE_EVERY_S:
            return False
        self._last = now
        return True
