"""Reading the folders of finished runs, without changing them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from whisperkit_tools.errors import DatasetError, OptionsError
from whisperkit_tools.eval.reports.format import fact
from whisperkit_tools.eval.schema import (
    REPORT_FILE,
    RESULTS_FILE,
    RUN_FILE,
    SHORT_KEY,
    ResultRow,
    RunReport,
    read_report,
    read_row,
)
from whisperkit_tools.folders import recognised
from whisperkit_tools.paths import is_own_link
from whisperkit_tools.strict_json import parse_json

NAMES_SHOWN = 6
NAMED_SETTINGS = 2


@dataclass(frozen=True, slots=True)
class ReadRun:
    """A finished run.

    Attributes:
        folder: The run's folder.
        report: Its figures.
        rows: Its examples in the dataset's order.
        notes: Oddities of the files, one line each.
    """

    folder: Path
    report: RunReport
    rows: tuple[ResultRow, ...]
    notes: tuple[str, ...] = ()


def read_runs(folders: Sequence[Path]) -> list[ReadRun]:
    """Read several runs and make their names unique by their settings or the start of their keys.

    Raises:
        DatasetError: A folder is not a finished run.
        OptionsError: Two are the same run.
    """
    runs = [read_run(folder) for folder in folders]
    seen: dict[str, ReadRun] = {}
    for run in runs:
        if run.report.key in seen:
            other = seen[run.report.key].folder
            raise OptionsError(
                f"{other} and {run.folder} are the same run (key {run.report.key[:SHORT_KEY]}); pass it once"
            )
        seen[run.report.key] = run
    return _with_unique_names(runs)


def read_run(folder: Path) -> ReadRun:
    """Read one run's folder.

    Raises:
        DatasetError: It is not the folder of a finished run, or its files are damaged or inconsistent.
    """
    folder = folder.parent if folder.name in (REPORT_FILE, RESULTS_FILE, RUN_FILE) else folder
    _require_run(folder)
    report = read_report(folder / REPORT_FILE)
    if len(report.runs) != 1:
        raise DatasetError(
            f"{folder} is a comparison of {len(report.runs)} runs, not a run; pass the runs' own folders"
        )
    rows, notes = read_rows(folder / RESULTS_FILE)
    expected = report.runs[0].dataset.examples
    if len(rows) != expected:
        notes.append(
            f"{folder}: {RESULTS_FILE} holds {len(rows)} of the run's {expected} examples; "
            "the same `wkt evaluate` command adds the others"
        )
    return ReadRun(folder, report.runs[0], tuple(rows), tuple(notes))


def read_rows(path: Path) -> tuple[list[ResultRow], list[str]]:
    """Read a `results.jsonl`. Of rows with the same id the last counts.

    Returns:
        The rows in the dataset's order, and a note when a killed run left its last line unfinished.

    Raises:
        DatasetError: A line before the last is damaged, or a row lacks a field.
    """
    lines = path.read_bytes().split(b"\n")
    rows: dict[str, ResultRow] = {}
    notes: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as error:
            if any(rest.strip() for rest in lines[number:]):
                raise DatasetError(
                    f"{path}: line {number} is not valid JSON; the same `wkt evaluate` command repairs the file"
                ) from error
            notes.append(
                f"{path}: the last line ({number}) was cut off and is omitted; `wkt evaluate` repairs the file"
            )
            continue
        row = read_row(value, f"{path}: line {number}")
        rows[row.id] = row
    return sorted(rows.values(), key=lambda row: row.index), notes


def _require_run(folder: Path) -> None:
    if not folder.is_dir():
        raise DatasetError(f"{folder} does not exist; pass the folder of a run that `wkt evaluate` made")
    if not (folder / RESULTS_FILE).is_file():
        inside = sorted(str(path.parent) for path in folder.glob(f"*/{RESULTS_FILE}"))
        inside = inside or sorted(str(path.parent) for path in folder.glob(f"*/*/{RESULTS_FILE}"))
        shown = ", ".join(inside[:NAMES_SHOWN]) + (", ..." if len(inside) > NAMES_SHOWN else "")
        what = recognised(folder)
        other = f"it is {what}" if what else "pass a folder that `wkt evaluate` made"
        hint = f"it holds runs, pass them: {shown}" if inside else other
        raise DatasetError(f"{folder} is not a run (no {RESULTS_FILE}); {hint}")
    if not (folder / REPORT_FILE).is_file():
        raise DatasetError(
            f"{folder} is a run that was not finished (no {REPORT_FILE}); the same `wkt evaluate` command resumes it"
        )


def _with_unique_names(runs: list[ReadRun]) -> list[ReadRun]:
    unique = []
    for run in runs:
        name = run.report.name
        alike = [other.report for other in runs if other.report.name == name]
        if len(alike) > 1:
            settings, key = _distinct_settings(run.report, alike), run.report.key[:SHORT_KEY]
            told_apart = settings if settings and len(alike) == len(runs) else f"{name} ({settings or key})"
            note = f"{run.folder}: another run is called {name} too; this one is shown as {told_apart}"
            notes = run.notes if settings else (*run.notes, note)
            run = replace(run, report=replace(run.report, name=told_apart), notes=notes)
        unique.append(run)
    return unique


def _distinct_settings(run: RunReport, alike: Sequence[RunReport]) -> str:
    """Return the settings in which runs of one name differ, such as `long form chunked`. Empty when not distinctive."""
    settings = {it.key: {"backend": it.backend.name, **it.options, **it.backend.options} for it in alike}
    names = dict.fromkeys(name for values in settings.values() for name in values)
    differ = [name for name in names if len({repr(values.get(name)) for values in settings.values()}) > 1]
    described = {
        key: ", ".join(f"{name.replace('_', ' ')} {fact(values.get(name))}" for name in differ)
        for key, values in settings.items()
    }
    is_clear = len(differ) <= NAMED_SETTINGS and len(set(described.values())) == len(alike)
    return described[run.key] if is_clear else ""


def audio_file(run: ReadRun, row: ResultRow) -> Path | None:
    """Return the example's audio file at its recorded place, else beside the dataset. None when it is gone."""
    if row.audio is None:
        return None
    recorded = Path(row.audio)
    places = [recorded] if recorded.is_absolute() else [recorded, Path(run.report.dataset.source) / recorded]
    try:
        return next((place for place in places if place.is_file() and _is_itself(place)), None)
    except (OSError, ValueError):  # a name that the file system rejects
        return None


def _is_itself(path: Path) -> bool:
    """Whether a file is no link to another place: a page would embed what lies there."""
    return not path.is_symlink() or is_own_link(path.parent, path)


def relative_to_folder(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, with forward slashes."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
