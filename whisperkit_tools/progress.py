"""The progress protocol: how long work reports its state, independent of who shows it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """A receiver of progress. The command line prints it, a library caller may ignore it."""

    def stage(self, subject: str, what: str) -> AbstractContextManager[None]:
        """Return a context in which `what` is done to `subject`, for example `("TextDecoder", "export")`."""
        ...

    def note(self, message: str) -> None:
        """Report something that the user should know and that is not a failure."""
        ...

    def advance(self, what: str, done: float, total: float, detail: str = "") -> None:
        """Report how much of some countable work is done.

        Args:
            what: The work, for example `palettes`. Each name is one bar or line.
            done: Units done so far, those of earlier attempts included.
            total: Units in all, in the same unit.
            detail: Running figures for people, for example `WER 5.30 %`.
        """
        ...


class SilentProgress:
    """Ignores everything."""

    def stage(self, subject: str, what: str) -> AbstractContextManager[None]:
        """Do nothing around the stage."""
        return nullcontext()

    def note(self, message: str) -> None:
        """Drop the message."""

    def advance(self, what: str, done: float, total: float, detail: str = "") -> None:
        """Drop the count."""
