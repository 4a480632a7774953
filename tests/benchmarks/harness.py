"""What all benchmarks share: how they are declared, what they return, and how time and memory are measured."""

import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that a benchmark found.

    Attributes:
        name: The quantity.
        value: In `unit`; a text where it is not a single number.
        unit: Empty for a ratio or a count.
        case: The model, size or setting that it belongs to; figures with a case are shown as a matrix.
        spec: How to format the value.
    """

    name: str
    value: float | int | str | None
    unit: str = ""
    case: str = ""
    spec: str = ""

    def text(self) -> str:
        """Format value and unit."""
        if self.value is None:
            return ""
        shown = self.value if isinstance(self.value, str) else format(self.value, self.spec)
        return f"{shown} {self.unit}".strip()


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: the key of its values, its title, and how to format a value times `scale`."""

    key: str
    title: str
    spec: str = ""
    scale: float | None = None

    def text(self, row: dict[str, Any]) -> str:
        """Format the column's value of a row; nothing for a missing one."""
        value = row.get(self.key)
        if value is None:
            return "-"
        return format(value if self.scale is None else value * self.scale, self.spec)


@dataclass(slots=True)
class Table:
    """Rows of values in base units, and the columns to show of them."""

    columns: tuple[Column, ...]
    title: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **row: Any) -> dict[str, Any]:
        """Add a row and say it to stderr at once, because the next may take minutes."""
        self.rows.append(row)
        progress("  ".join(f"{column.title} {column.text(row)}" for column in self.columns))
        return row

    def text(self) -> str:
        """Format the table with texts to the left and numbers to the right."""
        lines = [[column.title for column in self.columns]]
        lines += [[column.text(row) for column in self.columns] for row in self.rows]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        are_texts = [all(isinstance(row.get(column.key), str | None) for row in self.rows) for column in self.columns]
        align = [str.ljust if is_text else str.rjust for is_text in are_texts]
        shown = [
            "  ".join(put(cell, width) for put, cell, width in zip(align, cells, widths, strict=True))
            for cells in lines
        ]
        return "\n".join(([self.title] if self.title else []) + [line.rstrip() for line in shown])


@dataclass(slots=True)
class Result:
    """What a benchmark returns: all rows, the figures that sum them up, remarks, and whether its limits hold."""

    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    passed: bool = True

    def text(self) -> str:
        """Format everything for people."""
        parts = [table.text() for table in self.tables]
        if self.figures:
            named = [(f"{one.name}, {one.case}" if one.case else one.name, one.text()) for one in self.figures]
            width = max(len(name) for name, _ in named)
            parts.append("\n".join(f"{name:<{width}}  {text}" for name, text in named))
        return "\n\n".join([*parts, *(["\n".join(self.notes)] if self.notes else [])])

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "tables": [{"title": table.title, "rows": table.rows} for table in self.tables],
            "figures": [asdict(figure) for figure in self.figures],
            "notes": self.notes,
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A declared benchmark."""

    name: str
    run: Callable[[Namespace], Result]
    options: Callable[[ArgumentParser], None]


REGISTRY: dict[str, Benchmark] = {}


def benchmark(
    name: str, options: Callable[[ArgumentParser], None] = lambda parser: None
) -> Callable[[Callable[[Namespace], Result]], Callable[[Namespace], Result]]:
    """Declare a function as the benchmark `name`, of the module of the same name with underscores.

    Args:
        name: With dashes.
        options: Adds the benchmark's own options to a parser.
    """

    def declare(run: Callable[[Namespace], Result]) -> Callable[[Namespace], Result]:
        REGISTRY[name] = Benchmark(name, run, options)
        return run

    return declare


def progress(text: str) -> None:
    """Say what has been done so far."""
    print(text, file=sys.stderr, flush=True)


def bundle_argument(parser: ArgumentParser) -> None:
    """Add the bundle to measure."""
    parser.add_argument("bundle", type=Path)


def threads_option(parser: ArgumentParser) -> None:
    """Add the number of threads, which the entry sets before the benchmark runs."""
    parser.add_argument("--threads", type=int, default=2)


def work_option(parser: ArgumentParser) -> None:
    """Add the folder for large temporary files."""
    parser.add_argument("--work", type=Path, help="folder for checkpoints and bundles [default: a temporary one]")


def numbers(text: str) -> list[float]:
    """Parse `3,3.5,4`."""
    return [float(part) for part in text.split(",")]


class Stopwatch:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @property
    def wall_s(self) -> float:
        """Seconds that passed."""
        return time.perf_counter() - self._wall

    @property
    def cpu_s(self) -> float:
        """Seconds that this process computed."""
        return time.process_time() - self._cpu


def in_turn(ways: dict[str, Callable[[], Any]], runs: int) -> dict[str, dict[str, list[float]]]:
    """Wall and processor seconds of each way, `runs` times in turn after one run to warm up."""
    seconds: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            watch = Stopwatch()
            way()
            if run:
                seconds[name]["wall"].append(watch.wall_s)
                seconds[name]["cpu"].append(watch.cpu_s)
    return seconds


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that ended well: its stdout, wall seconds and peak resident bytes."""

    output: str
    seconds: float
    peak_bytes: int


def measured_process(command: Sequence[str]) -> Finished:
    """Run a command in a process of its own, whose peak resident set the operating system reports."""
    watch = Stopwatch()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {process.returncode}")
    return Finished(output, watch.wall_s, usage.ru_maxrss * peak_unit_bytes())


def peak_unit_bytes() -> int:
    """Return the bytes that one count of `ru_maxrss` is: kibibytes on Linux, bytes on macOS."""
    return 1 if sys.platform == "darwin" else 1024


def wkt(*arguments: object) -> list[str]:
    """Return the command that runs `wkt` with these arguments."""
    return [sys.executable, "-m", "whisperkit_tools", *map(str, arguments)]


def benchmarks(*arguments: object) -> list[str]:
    """Return the command that runs the benchmarks' entry with these arguments; it is to run in `ROOT`."""
    return [sys.executable, "-m", "tests.benchmarks", *map(str, arguments)]
