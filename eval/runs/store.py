"""The folder of a run: rows are appended as they come and survive any death of the process. See `RunStore`."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

from filelock import FileLock, Timeout

from whisperkit_tools.errors import DatasetError, OptionsError, option
from whisperkit_tools.eval.schema import RUN_FILE, SHORT_KEY, ResultRow, read_row
from whisperkit_tools.eval.typed_json import to_json
from whisperkit_tools.files import write_json, write_whole
from whisperkit_tools.strict_json import json_text, parse_json

_LOCK = ".lock"
_NAMED_LINES = 5


class Identified(Protocol):
    """A dataclass with an id."""

    @property
    def id(self) -> str:
        """Unique within a file."""
        ...


RowT = TypeVar("RowT", bound=Identified)


@dataclass(slots=True)
class JsonLines(Generic[RowT]):
    """An append-only file of rows, one JSON object a line. The last row of an id counts.

    Attributes:
        path: The file. It need not exist.
        rows: The rows by id.
        repairs: Damage of the file when it was opened, one line each.
        superseded: Whether the file holds rows that later ones replace.
    """

    path: Path
    rows: dict[str, RowT] = field(default_factory=dict)
    repairs: list[str] = field(default_factory=list)
    superseded: bool = False
    _file: IO[bytes] | None = None

    @classmethod
    def open(cls, path: Path, decode: Callable[[Any, str], RowT]) -> "JsonLines[RowT]":
        """Read the file. A line that was cut off or damaged is dropped, because its example is then done again.

        Args:
            path: The file.
            decode: Makes a row from parsed JSON and its place. Raises `DatasetError` for a damaged one.
        """
        lines = cls(path)
        raw = path.read_bytes() if path.is_file() else b""
        bad = []
        for number, line in enumerate(raw.splitlines(keepends=True), 1):
            row = _decoded(line, decode, f"{path}: line {number}")
            if row is None:
                bad.append(number)
            else:
                lines._keep(row)
        if bad:
            named = ", ".join(map(str, bad[:_NAMED_LINES])) + (", ..." if len(bad) > _NAMED_LINES else "")
            lines.repairs.append(
                f"{path}: repaired: {len(bad)} damaged line{'s' if len(bad) > 1 else ''} dropped (line {named}); "
                "these examples are done again"
            )
            lines.rewrite(lines.rows.values())
        return lines

    def append(self, row: RowT) -> None:
        """Add a row. When this returns, it is on the disk."""
        if self._file is None:
            self._file = self.path.open("ab")
        # One write, so that no kill can come between a line and its end.
        self._file.write(_encoded(row))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._keep(row)

    def _keep(self, row: RowT) -> None:
        self.superseded |= row.id in self.rows
        self.rows[row.id] = row

    def rewrite(self, rows: Iterable[RowT]) -> None:
        """Replace the file's content, whole or not at all."""
        self.close()
        kept = list(rows)
        write_whole(self.path, b"".join(map(_encoded, kept)))
        self.rows = {row.id: row for row in kept}
        self.superseded = False

    def close(self) -> None:
        """Close the file. A later append opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _encoded(row: Identified) -> bytes:
    return json_text(to_json(row), indent=None).encode() + b"\n"


def _decoded(line: bytes, decode: Callable[[Any, str], RowT], where: str) -> RowT | None:
    """Return a line's row. None when it is damaged. A line without its end was cut off, even if it parses."""
    if not line.endswith(b"\n"):
        return None
    try:
        return decode(parse_json(line), where)
    except (ValueError, DatasetError):
        return None


class RunStore:
    """The folder of one run, held by one process at a time."""

    def __init__(self, folder: Path, description: Mapping[str, Any], parts: Iterable[str]) -> None:
        """Open the run, or begin it.

        Args:
            folder: The run's folder.
            description: The run. Its `key` must be that of the run in the folder.
            parts: Stems of the files of rows.

        Raises:
            OptionsError: The folder holds another run.
        """
        self.folder = folder
        self.description = self._opened(description)
        self.parts: dict[str, JsonLines[ResultRow]] = {
            part: JsonLines.open(folder / f"{part}.jsonl", read_row) for part in parts
        }

    @classmethod
    @contextlib.contextmanager
    def hold(cls, folder: Path, description: Mapping[str, Any], parts: Iterable[str]) -> "Iterator[RunStore]":
        """Open the run and keep other processes from it.

        Raises:
            DatasetError: Another process holds it.
            OptionsError: The folder holds another run, or the path is not a folder.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise OptionsError(f"{folder} is not a folder; choose another place with {option('root')}") from error
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise DatasetError(f"another command is writing the run {folder}; wait for it to end") from error
        try:
            store = cls(folder, description, parts)
            try:
                yield store
            finally:
                store.close()
        finally:
            lock.release()

    @property
    def repairs(self) -> list[str]:
        """Damage of the files, one line each."""
        return [line for lines in self.parts.values() for line in lines.repairs]

    def close(self) -> None:
        """Close all files."""
        for lines in self.parts.values():
            lines.close()

    def _opened(self, description: Mapping[str, Any]) -> dict[str, Any]:
        """Return the description with which the run was begun.

        A damaged one is written anew, because the folder's name holds the key.
        """
        path = self.folder / RUN_FILE
        found: Any = None
        if path.is_file():
            with contextlib.suppress(ValueError):
                found = parse_json(path.read_bytes())
        if isinstance(found, dict) and found.get("key") == description["key"]:
            return found
        if isinstance(found, dict) and "key" in found:
            old, new = str(found["key"])[:SHORT_KEY], description["key"][:SHORT_KEY]
            raise OptionsError(
                f"{self.folder} holds another run (key {old}, this one is {new}); "
                f"choose another place with {option('root')}"
            )
        write_json(path, description)
        return dict(description)
