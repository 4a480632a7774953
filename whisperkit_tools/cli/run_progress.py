"""How an evaluation goes, on stderr: a bar on a terminal, a line now and then elsewhere."""

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from whisperkit_tools.cli.sigint import check_interrupted

if TYPE_CHECKING:
    from whisperkit_tools.eval.runs.runner import Status

_LINE_EVERY_S = 30.0


class RunProgress:
    """Shows one run; a context manager."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
        self._bar: Progress | None = None
        self._task: Any = None
        self._said_at = time.monotonic()

    def __enter__(self) -> "RunProgress":
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=None, figures="loading")
        return self

    def __exit__(self, *details: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, message: str) -> None:
        """Print something that the user should know."""
        self._console.print(f"note: {message}")

    def advanced(self, status: "Status") -> None:
        """Show how far it is."""
        check_interrupted()
        if self._bar is not None:
            self._bar.update(self._task, completed=status.done, total=status.total, figures=figures(status))
        elif time.monotonic() - self._said_at >= _LINE_EVERY_S or status.done == status.total:
            self._said_at = time.monotonic()
            self._console.print(f"{self._name}: {status.done}/{status.total}  {figures(status)}")


def figures(status: "Status") -> str:
    """The running figures of a run, in a line."""
    parts = [] if status.wer is None else [f"WER {100 * status.wer:.2f} %"]
    if status.rtfx is not None:
        parts.append(f"{status.rtfx:.1f}x real time")
    if status.left_s is not None and status.done < status.total:
        parts.append(f"{_clock(status.left_s)} left")
    if status.failures:
        parts.append(f"{status.failures} failed")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
