"""Progress on stderr: stages with their durations, and counts as bars on a terminal or as a line now and then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from whisperkit_tools.cli.flags import show_flags
from whisperkit_tools.cli.interrupts import check_interrupted
from whisperkit_tools.terminal_text import plain, plain_lines

_LINE_EVERY_S = 30.0


@dataclass(slots=True)
class _Count:
    """Countable work under way.

    Attributes:
        first: Units that were done when it was first heard of; earlier attempts did them.
        started: Monotonic time of that moment.
        shown: Monotonic time of the last line.
        bar: Its bar on a terminal.
    """

    first: float
    started: float
    shown: float
    bar: TaskID | None = None


class ConsoleProgress:
    """Shows progress on stderr. A context manager where bars may be open when the work fails."""

    def __init__(self, prefix: str = "") -> None:
        """Show progress.

        Args:
            prefix: Put before each line and bar of a count, such as the name of the run.
        """
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._prefix = prefix
        self._counts: dict[str, _Count] = {}
        self._bars: Progress | None = None

    def __enter__(self) -> "ConsoleProgress":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bars that are still open."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        self._counts.clear()

    @contextmanager
    def stage(self, subject: str, what: str) -> Iterator[None]:
        """Show the stage while it runs, and its duration when it has succeeded."""
        check_interrupted()
        start = time.monotonic()
        # Rich draws one live display at a time: inside bars, the stage is shown when it ends.
        alone = self._console.is_terminal and self._bars is None
        with self._console.status(escape(plain(f"{subject}: {what}"))) if alone else nullcontext():
            yield
        check_interrupted()
        line = plain(f"{subject:<15} {what:<18} {time.monotonic() - start:7.1f} s")
        self._console.print(line, style="dim", markup=False)

    def note(self, message: str) -> None:
        """Print something that the user should know, with options as flags of the running command."""
        self._console.print(plain_lines(f"note: {show_flags(message)}"), markup=False)

    def advance(self, what: str, done: float, total: float, detail: str = "") -> None:
        """Show how much is done, how long the rest takes at this pace, and the running figures."""
        check_interrupted()
        now = time.monotonic()
        count = self._counts.setdefault(what, _Count(done, now, now))
        figures = ", ".join(part for part in (detail, _left(count, done, total)) if part)
        if self._console.is_terminal:
            self._draw(what, count, done, total, figures)
        elif now - count.shown >= _LINE_EVERY_S or (detail and done >= total):
            count.shown = now
            self._console.print(plain(f"{self._prefix}{what}: {_share(done, total)}  {figures}"), markup=False)
        if done >= total:
            self._finish(what)

    def _draw(self, what: str, count: _Count, done: float, total: float, figures: str) -> None:
        if self._bars is None:
            columns = (
                TextColumn("{task.description:<12}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[share]}", markup=False),
                TextColumn("{task.fields[figures]}", markup=False),
            )
            self._bars = Progress(*columns, console=self._console, transient=True)
            self._bars.start()
        if count.bar is None:
            count.bar = self._bars.add_task(plain(f"{self._prefix}{what}"), total=total, figures="", share="")
        self._bars.update(count.bar, completed=done, total=total, figures=plain(figures), share=_share(done, total))

    def _finish(self, what: str) -> None:
        del self._counts[what]
        if self._bars is not None and not self._counts:
            self._bars.stop()
            self._bars = None


def _share(done: float, total: float) -> str:
    """Return `done/total`, whole numbers without decimals."""
    return "/".join(f"{value:,.0f}" if value == int(value) else f"{value:,.1f}" for value in (done, total))


def _left(count: _Count, done: float, total: float) -> str:
    """Return the time left at the pace of this attempt; empty before it can be told."""
    passed = time.monotonic() - count.started
    if done <= count.first or done >= total:
        return ""
    return f"{clock(passed * (total - done) / (done - count.first))} left"


def clock(seconds: float) -> str:
    """Return a duration as `M:SS` or `H:MM:SS`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
