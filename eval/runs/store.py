"""A run's folder: rows are appended as they come and survive any death of the process; see `RunStore`."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from whisperkit_tools.errors import DatasetError
from whisperkit_tools.eval.schema import RUN_FILE

_LOCK = ".lock"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file into a temporary sibling, then rename it."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file into a temporary sibling, then rename it, so that it is there whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@dataclass(slots=True)
class JsonLines:
    """An append-only file of JSON objects, one a line, each with an `id`; the last one of an id counts.

    Attributes:
        path: The file; it need not exist.
        rows: What it holds, by id.
        repairs: What was wrong with the file when it was opened, one line each.
        superseded: Whether the file holds rows that later ones replace.
    """

    path: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)
    superseded: bool = False
    _file: IO[bytes] | None = None

    @classmethod
    def open(cls, path: Path, required: frozenset[str] = frozenset()) -> "JsonLines":
        """Read the file; a line that was cut off or damaged is dropped, for its example is then done again.

        Args:
            path: The file.
            required: Fields without which a row counts as damaged.
        """
        lines = cls(path)
        raw = path.read_bytes() if path.is_file() else b""
        bad = []
        for number, line in enumerate(raw.splitlines(keepends=True), 1):
            row = _parsed(line)
            if row is None or not required <= row.keys():
                bad.append(number)
            else:
                lines._keep(row)
        if bad:
            named = ", ".join(str(number) for number in bad[:5]) + (", ..." if len(bad) > 5 else "")
            lines.repairs.append(
                f"{path}: repaired: {len(bad)} damaged line{'s' if len(bad) > 1 else ''} dropped (line {named}); "
                "these examples are done again"
            )
            lines.rewrite(lines.rows.values())
        return lines

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; when this returns, it is on the disk."""
        if self._file is None:
            self._file = self.path.open("ab")
        # One write, so that no kill can come between a line and its end.
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._keep(dict(row))

    def _keep(self, row: dict[str, Any]) -> None:
        self.superseded |= row["id"] in self.rows
        self.rows[row["id"]] = row

    def rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the file's content, whole or not at all."""
        self.close()
        kept = [dict(row) for row in rows]
        write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        self.rows = {row["id"]: row for row in kept}
        self.superseded = False

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A whole line's object; None when it is damaged. A line without its end was cut off, even if it parses."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("id"), str) else None


class RunStore:
    """The folder of one run, held by one process at a time."""

    def __init__(
        self, folder: Path, description: Mapping[str, Any], parts: Iterable[str], required: frozenset[str] = frozenset()
    ) -> None:
        """Open the run, or begin it.

        Args:
            folder: The run's own.
            description: What the run is; its `key` must be that of the run in the folder.
            parts: Stems of the files that rows go to.
            required: Fields without which a row counts as damaged.

        Raises:
            DatasetError: The folder holds another run.
        """
        self.folder = folder
        self.description = self._opened(description)
        self.parts = {part: JsonLines.open(folder / f"{part}.jsonl", required) for part in parts}

    @classmethod
    @contextlib.contextmanager
    def hold(
        cls, folder: Path, description: Mapping[str, Any], parts: Iterable[str], required: frozenset[str] = frozenset()
    ) -> "Iterator[RunStore]":
        """Open the run and keep other processes from it.

        Raises:
            DatasetError: Another process holds it, the folder holds another run, or the path is no folder.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise DatasetError(f"{folder} is not a folder; choose another place with -o") from error
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise DatasetError(f"another command is writing the run {folder}; wait for it to end") from error
        try:
            store = cls(folder, description, parts, required)
            try:
                yield store
            finally:
                store.close()
        finally:
            lock.release()

    @property
    def repairs(self) -> list[str]:
        """What was wrong with the files, one line each."""
        return [line for lines in self.parts.values() for line in lines.repairs]

    def close(self) -> None:
        """Close all files."""
        for lines in self.parts.values():
            lines.close()

    def _opened(self, description: Mapping[str, Any]) -> dict[str, Any]:
        """What the run was begun with; a damaged description is written anew, for the folder's name has its key."""
        path = self.folder / RUN_FILE
        found: Any = None
        if path.is_file():
            with contextlib.suppress(ValueError):
                found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("key") == description["key"]:
            return found
        if isinstance(found, dict) and "key" in found:
            raise DatasetError(
                f"{self.folder} holds another run (key {str(found['key'])[:8]}, this one is {description['key'][:8]}); "
                "choose another place with -o"
            )
        write_json(path, description)
        return dict(description)
