"""Files and folders: hashes, sizes, JSON, and writes that happen as a whole or not at all."""

import ctypes
import hashlib
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whisperkit_tools import limits
from whisperkit_tools.errors import BundleError, WktError
from whisperkit_tools.strict_json import JsonError, json_text, parse_json


def sha256(path: Path) -> str:
    """Return the hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """Return the hex digest of a JSON-ready value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def content_files(folder: Path, *omitted: str) -> list[Path]:
    """Return the regular files below a folder, sorted.

    Args:
        folder: The folder.
        omitted: Names of files directly in the folder that are not content. The Finder's `.DS_Store` never is.
    """
    left_out = {folder / name for name in omitted}
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".DS_Store")
    return sorted(path for path in files if path not in left_out)


def content_sha256(digests: Mapping[str, str]) -> str:
    """Return one digest of a folder's content from the digests of its files.

    Args:
        digests: Hex digest of each file by its relative path with forward slashes.
    """
    whole = hashlib.sha256()
    for name in sorted(digests, key=lambda item: item.split("/")):
        whole.update(f"{name} {digests[name]}\n".encode())
    return whole.hexdigest()


def read_json_object(
    path: Path, error: type[WktError] = BundleError, advice: str = "convert or download the bundle again"
) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Args:
        path: The file.
        error: Raised for damaged content.
        advice: What the user can do, as the end of that error's message.

    Raises:
        WktError: Of type `error`: the file is not UTF-8 JSON, or not an object.
    """
    value = read_json_value(path, error, advice)
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {type(value).__name__}, expected an object; {advice}")
    return value


def read_json_value(path: Path, error: type[WktError], advice: str) -> Any:
    """Return the value of a JSON file.

    Args:
        path: The file.
        error: Raised for damaged content, and for a file that is too large.
        advice: What the user can do, as the end of that error's message.

    Raises:
        WktError: Of type `error`: the file is not UTF-8 JSON.
    """
    try:
        return parse_json(read_limited(path, limits.JSON_BYTES, error))
    except JsonError as problem:
        raise error(f"{path} is not valid JSON ({problem}); {advice}") from problem


def read_limited(path: Path, limit: int, error: type[WktError]) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        WktError: Of type `error`: it is not a regular file (reading a pipe may never end), or larger than `limit`.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is not a regular file")
        if status.st_size > limit:
            raise error(f"{path} has {status.st_size} bytes; the maximum for such a file is {limit}")
        return file.read(limit + 1)


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer is opened without waiting for one."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def replace_whole(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling to write, which becomes `path` when the block ends without an error.

    A reader sees the old file or the new one, never a part. An interrupted block leaves the old file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # a link of that name would be written through
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing. Text becomes UTF-8 with the line ends that it has."""
    with replace_whole(path) as partial, partial.open("wb") as file:
        file.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON-ready value as a whole file or nothing, indented, with characters beyond ASCII kept."""
    write_whole(path, json_text(value) + "\n")


def put_in_place(partial: Path, target: Path) -> None:
    """Make the folder `partial` the folder `target`, replacing what is there.

    Where the system can exchange two folders in one call, there is no moment without the target.
    """
    if not target.exists():
        partial.rename(target)
    elif not _exchange(partial, target):
        old = target.parent / f".{target.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one system call. Return False where that is unsupported."""
    name = {"linux": "renameat2", "darwin": "renameatx_np"}.get(sys.platform)
    call = getattr(ctypes.CDLL(None), name, None) if name else None
    if call is None:
        return False
    at_working_directory, swap = (-100, 2) if sys.platform == "linux" else (-2, 2)
    arguments = (at_working_directory, os.fsencode(first), at_working_directory, os.fsencode(second), swap)
    return bool(call(*arguments) == 0)


def safe_name(text: str) -> str:
    """Return `text` as a file name: letters, digits, `.`, `_` and `-`, never empty or hidden."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-") or "unnamed"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, at most 300 characters."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else "no message"
