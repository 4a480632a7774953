"""A registry in a plain folder: for a team without the Hub, and for trying things out.

A commit is staged beside the files with a journal; from the moment the journal is there the commit has happened, and
whoever opens the folder next finishes it. Before that moment nothing has changed.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from whisperkit_tools.errors import PublishError
from whisperkit_tools.publish.registry import Change, Commit, ConflictError, RemoteFile, Snapshot, check_path, digest

STATE = ".wkt"  # the registry's own files; hidden, so never among those that are published
LOCK_SECONDS = 60


class FolderRegistry:
    """A folder with one sub-folder per variant, laid out as a repository on the Hub.

    It keeps its present state only: the index names earlier versions, their files are gone.
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder, which need not exist.

        Raises:
            PublishError: Something else is there.
        """
        if folder.exists() and not folder.is_dir():
            raise PublishError(f"{folder} is not a folder; choose another place with --to")
        self.folder = folder

    @property
    def label(self) -> str:
        """The folder's path."""
        return str(self.folder)

    @property
    def name(self) -> str:
        """The folder's name alone: where it lies is nobody's business."""
        return self.folder.resolve().name

    def create(self, *, private: bool) -> None:
        """Make the folder; whether it is private is the file system's matter."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def snapshot(self, revision: str | None = None) -> Snapshot:
        """What the folder holds.

        Raises:
            PublishError: A revision other than the present one was asked for.
        """
        if not self.folder.is_dir():
            return Snapshot(None)
        with self._locked():
            self._finish()
            tags = self._tags()
            files = {path: _describe(self.folder / path) for path in self._paths()}
        head = _state_id(files)
        if revision is not None and tags.get(revision, revision) != head:
            known = ", ".join(sorted(name for name, state in tags.items() if state == head)) or "none"
            raise PublishError(
                f"{self.label} keeps its present state only, which {revision!r} does not name (tags of it: {known}); "
                "a repository on the Hub keeps them all"
            )
        return Snapshot(head, files)

    def read(self, path: str, snapshot: Snapshot) -> bytes | None:
        """A file's bytes."""
        return (self.folder / path).read_bytes() if path in snapshot.files else None

    def fetch(self, path: str, snapshot: Snapshot, destination: Path) -> None:
        """Copy a file."""
        check_path(path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.folder / path, destination)

    def commit(self, change: Change, parent: Snapshot, *, pull_request: bool = False) -> Commit:
        """Apply a change.

        Raises:
            ConflictError: The folder has changed since `parent`.
            PublishError: A pull request was asked for.
        """
        if pull_request:
            raise PublishError("a folder has no pull requests; leave --pr away, or publish with --repo")
        with self._locked():
            self._finish()
            files = {path: _describe(self.folder / path) for path in self._paths()}
            if _state_id(files) != parent.commit:
                raise ConflictError(f"{self.label} has changed since it was read")
            self._stage(change)
            self._finish()
            files = {path: _describe(self.folder / path) for path in self._paths()}
            head = _state_id(files)
            if change.tag is not None:
                self._write_state("tags.json", {**self._tags(), change.tag: head})
        return Commit(head, self.label)

    def _paths(self) -> list[str]:
        """Published files: hidden ones and links are not."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return sorted(
            path.as_posix()
            for path in found
            if not any(part.startswith(".") for part in path.parts) and not (self.folder / path).is_symlink()
        )

    def _stage(self, change: Change) -> None:
        stage = self.folder / STATE / "stage"
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        moves: dict[str, str] = {}
        for number, (path, content) in enumerate(sorted(change.additions.items())):
            there = self.folder / path
            if there.is_file() and _describe(there).holds(content):
                continue
            moves[path] = str(number)
            if isinstance(content, bytes):
                (stage / str(number)).write_bytes(content)
            else:
                shutil.copyfile(content, stage / str(number))
        self._write_state("journal.json", {"moves": moves, "deletions": sorted(change.deletions)})

    def _finish(self) -> None:
        """Do what the journal says, if there is one; doing it twice does no harm."""
        journal = self.folder / STATE / "journal.json"
        if not journal.is_file():
            return
        content = json.loads(journal.read_text(encoding="utf-8"))
        for path, staged in content["moves"].items():
            source, target = self.folder / STATE / "stage" / staged, self.folder / path
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
        for path in content["deletions"]:
            (self.folder / path).unlink(missing_ok=True)
            self._remove_empty(self.folder / path)
        journal.unlink()
        shutil.rmtree(self.folder / STATE / "stage", ignore_errors=True)

    def _remove_empty(self, path: Path) -> None:
        for parent in path.parents:
            if parent == self.folder or any(parent.iterdir()):
                return
            parent.rmdir()

    def _tags(self) -> dict[str, str]:
        path = self.folder / STATE / "tags.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def _write_state(self, name: str, value: Any) -> None:
        path = self.folder / STATE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
        temporary.replace(path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        (self.folder / STATE).mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / STATE / "lock")
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout as error:
            raise PublishError(f"another command is working on {self.label}; wait for it to end") from error
        try:
            yield
        finally:
            lock.release()


def _describe(path: Path) -> RemoteFile:
    return RemoteFile(path.stat().st_size, sha256=digest(path))


def _state_id(files: dict[str, RemoteFile]) -> str:
    """A name for the folder's content, of the length of a commit's."""
    lines = "".join(f"{path}\0{file.sha256}\n" for path, file in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:40]
