"""Progress on stderr: one line for each finished stage, and on a terminal the running one with its clock."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from whisperkit_tools.cli.sigint import raise_if_asked


class ConsoleProgress:
    """Prints stages to stderr as they end."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, subject: str, what: str) -> Iterator[None]:
        """Show the stage while it runs and its duration when it has ended well."""
        raise_if_asked()
        start = time.monotonic()
        with self._console.status(f"{subject}: {what}") if self._console.is_terminal else _nothing():
            yield
        raise_if_asked()
        self._console.print(f"[dim]{subject:<15} {what:<18} {time.monotonic() - start:7.1f} s[/dim]", markup=True)

    def note(self, message: str) -> None:
        """Print something that the user should know."""
        self._console.print(f"note: {message}", markup=False)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
