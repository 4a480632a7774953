"""How long work tells where it stands, without knowing who listens."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """A listener: the command line prints, a library caller may ignore."""

    def stage(self, subject: str, what: str) -> AbstractContextManager[None]:
        """A context in which `what` is done to `subject`."""
        ...

    def note(self, message: str) -> None:
        """Something that the user should know and that is no failure."""
        ...


class SilentProgress:
    """Listens to nothing."""

    def stage(self, subject: str, what: str) -> AbstractContextManager[None]:
        """Do nothing around the stage."""
        return nullcontext()

    def note(self, message: str) -> None:
        """Drop the message."""
