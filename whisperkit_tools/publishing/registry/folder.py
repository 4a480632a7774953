"""A registry in a plain folder, for a team without the Hub and for experiments.

A commit is staged beside the files with a journal. Once the journal exists, the commit has happened, and whoever opens
the folder next finishes it. Before that, nothing has changed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from whisperkit_tools.errors import OptionsError, PublishError, option
from whisperkit_tools.files import sha256, write_json
from whisperkit_tools.publishing.registry.base import (
    Commit,
    ConflictError,
    RegistryChange,
    RemoteFile,
    Snapshot,
    check_path,
)

STATE = ".wkt"  # the registry's own files; hidden, so never among those that are published
LOCK_SECONDS = 60


class FolderRegistry:
    """A folder with one sub-folder per variant, laid out as a repository on the Hub.

    It keeps its present state only. The index names earlier versions, but their files are gone.
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder, which need not exist.

        Raises:
            OptionsError: There is something else.
        """
        if folder.exists() and not folder.is_dir():
            raise OptionsError(f"{folder} is not a folder; choose another place with {option('to')}")
        self.folder = folder
        self._known: dict[tuple[str, int, int, int], RemoteFile] = {}

    @property
    def label(self) -> str:
        """Return the folder's path."""
        return str(self.folder)

    @property
    def name(self) -> str:
        """Return the folder's name without its place, which is private."""
        return self.folder.resolve().name

    @property
    def absent(self) -> str:
        """Return the message for the case that it does not exist."""
        return f"there is no folder {self.label}"

    def create(self, *, private: bool) -> None:
        """Make the folder. Its privacy is up to the file system."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def snapshot(self, revision: str | None = None) -> Snapshot:
        """Return the content of the folder.

        Raises:
            PublishError: A revision other than the present one was asked for.
        """
        if not self.folder.is_dir():
            return Snapshot(None)
        with self._locked():
            self._finish()
            tags, files = self._tags(), self._files()
        head = _state_id(files)
        if revision is not None and tags.get(revision, revision) != head:
            known = ", ".join(sorted(name for name, state in tags.items() if state == head)) or "none"
            raise PublishError(
                f"{self.label} keeps its present state only, which {revision!r} does not name (its tags: {known}); a "
                "repository on the Hub keeps all states"
            )
        return Snapshot(head, files)

    def read(self, path: str, snapshot: Snapshot) -> bytes | None:
        """Return the bytes of a file."""
        return (self.folder / path).read_bytes() if path in snapshot.files else None

    def fetch(self, path: str, snapshot: Snapshot, destination: Path, *, again: bool = False) -> None:
        """Copy a file."""
        check_path(path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.folder / path, destination)

    def tags(self) -> dict[str, str]:
        """Return the states that have names, of which only the present one still exists."""
        return self._tags()

    def set_tag(self, tag: str, commit: str) -> None:
        """Name a state.

        Raises:
            PublishError: The name is another state's.
        """
        with self._locked():
            self._check_tag(tag, commit)
            self._write_state("tags.json", {**self._tags(), tag: commit})

    def commit(self, change: RegistryChange, parent: Snapshot, *, pull_request: bool = False) -> Commit:
        """Apply a change.

        Raises:
            ConflictError: The folder has changed since `parent`.
            PublishError: The tag is taken.
            OptionsError: A pull request was asked for.
        """
        if pull_request:
            raise OptionsError(
                f"a folder has no pull requests; omit {option('pr')}, or publish to the Hub with {option('repo')}"
            )
        with self._locked():
            self._finish()
            if _state_id(self._files()) != parent.commit:
                raise ConflictError(f"{self.label} has changed since it was read")
            if change.tag is not None:
                self._check_tag(change.tag, None)
            for path in (*change.additions, *change.deletions):
                self._place(path)
            self._stage(change)
            self._finish()
            return Commit(_state_id(self._files()), self.label)

    def _check_tag(self, tag: str, commit: str | None) -> None:
        known = self._tags().get(tag)
        if known is not None and known != commit:
            raise PublishError(f"{self.label} has a tag {tag!r} already, for another state; choose another name")

    def _place(self, path: str) -> Path:
        """Return where a file of the registry is.

        Raises:
            PublishError: Outside of the folder, by its name or by a symbolic link on the way.
        """
        check_path(path)
        place = self.folder / path
        if not place.parent.resolve().is_relative_to(self.folder.resolve()) or place.is_symlink():
            raise PublishError(f"{place} is reached through a symbolic link; put the files themselves there")
        return place

    def _files(self) -> dict[str, RemoteFile]:
        return {path: self._describe(path) for path in self._paths()}

    def _describe(self, path: str) -> RemoteFile:
        """Return size and digest of a file. An unchanged file is hashed once."""
        stat = (self.folder / path).stat()
        key = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if key not in self._known:
            self._known[key] = RemoteFile(stat.st_size, sha256=sha256(self.folder / path))
        return self._known[key]

    def _paths(self) -> list[str]:
        """Return the published files, without hidden ones and symbolic links."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return sorted(
            path.as_posix()
            for path in found
            if not any(part.startswith(".") for part in path.parts) and not (self.folder / path).is_symlink()
        )

    def _stage(self, change: RegistryChange) -> None:
        stage = self.folder / STATE / "stage"
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        moves: dict[str, str] = {}
        for number, (path, content) in enumerate(sorted(change.additions.items())):
            if (self.folder / path).is_file() and self._describe(path).holds(content):
                continue
            moves[path] = str(number)
            if isinstance(content, bytes):
                (stage / str(number)).write_bytes(content)
            else:
                shutil.copyfile(content, stage / str(number))
        journal = {"moves": moves, "deletions": sorted(change.deletions), "tag": change.tag}
        self._write_state("journal.json", journal)

    def _finish(self) -> None:
        """Do what the journal says, if there is one. Doing it twice does no harm."""
        journal = self.folder / STATE / "journal.json"
        if not journal.is_file():
            return
        content = self._read_journal(journal)
        for path, staged in content["moves"].items():
            source, target = self.folder / STATE / "stage" / staged, self._place(path)
            if source.is_file() and not source.is_symlink():
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
        for path in content["deletions"]:
            self._place(path).unlink(missing_ok=True)
            self._remove_empty(self.folder / path)
        if content.get("tag") is not None:
            self._write_state("tags.json", {**self._tags(), content["tag"]: _state_id(self._files())})
        journal.unlink()
        shutil.rmtree(self.folder / STATE / "stage", ignore_errors=True)

    def _read_journal(self, path: Path) -> dict[str, Any]:
        """Return the journal. A folder may come from elsewhere, so all its paths are checked before anything moves."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for name, staged in content["moves"].items():
                self._place(name)
                int(staged)
            for name in content["deletions"]:
                self._place(name)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PublishError(f"{path} is damaged ({error}); remove {path.parent} to continue without it") from error
        return dict(content)

    def _remove_empty(self, path: Path) -> None:
        for parent in path.parents:
            if parent == self.folder or any(parent.iterdir()):
                return
            parent.rmdir()

    def _tags(self) -> dict[str, str]:
        path = self.folder / STATE / "tags.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def _write_state(self, name: str, value: Any) -> None:
        write_json(self.folder / STATE / name, value)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        state = self.folder / STATE
        if not os.access(self.folder, os.W_OK) and not (state / "journal.json").exists():
            yield  # a folder without write access does not change from here
            return
        if state.is_symlink():
            raise PublishError(f"{state} is a symbolic link; remove it")
        state.mkdir(parents=True, exist_ok=True)
        lock = FileLock(state / "lock")
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout as error:
            raise PublishError(f"another command is working on {self.label}; wait for it to end") from error
        try:
            yield
        finally:
            lock.release()


def _state_id(files: dict[str, RemoteFile]) -> str:
    """Return a name for the content of the folder, as long as that of a commit."""
    lines = "".join(f"{path}\0{file.sha256}\n" for path, file in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:40]
