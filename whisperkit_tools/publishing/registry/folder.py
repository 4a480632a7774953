"""A registry in a plain folder, for a team without the Hub and for experiments.

A commit is staged beside the files with a journal. Once the journal exists, the commit has happened. Readers see it as
done and change nothing. Whoever writes next finishes it. Before the journal, nothing has changed.
"""

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from whisperkit_tools import limits
from whisperkit_tools.errors import OptionsError, PublishError, option
from whisperkit_tools.files import read_json_object, read_limited, sha256, write_json
from whisperkit_tools.publishing.registry.base import (
    Commit,
    ConflictError,
    Content,
    RegistryChange,
    RemoteFile,
    Snapshot,
)
from whisperkit_tools.publishing.registry.journal import Journal, JournalFolder

LOCK_SECONDS = 60
READ_ATTEMPTS = 100
READ_PAUSE_S = 0.1


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
        self._journal = JournalFolder(folder)
        self._places: dict[str, Path] = {}
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
        """Return the content of the folder. Nothing is written: a commit under way is seen as if it were finished.

        Raises:
            PublishError: A revision other than the present one was asked for.
        """
        if not self.folder.is_dir():
            return Snapshot(None)
        files, tags = self._seen()
        head = _state_id(files)
        if revision is not None and tags.get(revision, revision) != head:
            known = ", ".join(sorted(name for name, state in tags.items() if state == head)) or "none"
            raise PublishError(
                f"{self.label} keeps its present state only, which {revision!r} does not name (its tags: {known}); a "
                "repository on the Hub keeps all states"
            )
        return Snapshot(head, files)

    def _seen(self) -> tuple[dict[str, RemoteFile], dict[str, str]]:
        """Return files and tags as they are, or as they will be when a commit under way is finished.

        Another command may move files meanwhile. So the folder is read until it is the same before and after.

        Raises:
            PublishError: It does not come to rest.
        """
        for _ in range(READ_ATTEMPTS):
            before = self._moment()
            try:
                journal = self._journal.pending()
                files, tags = self._with(journal), self._tags()
            except (FileNotFoundError, PublishError):
                if self._moment() == before:
                    raise
            else:
                if self._moment() == before:
                    pending = journal.tag if journal is not None else None
                    return files, tags if pending is None else {**tags, pending: _state_id(files)}
            time.sleep(READ_PAUSE_S)
        raise PublishError(f"another command is working on {self.label}; wait for it to end")

    def _moment(self) -> tuple[bytes | None, list[tuple[str, int, int]]]:
        """Return what differs after another command has changed something."""
        found = [(path, (self.folder / path).lstat()) for path in self._paths()]
        return self._journal.raw(), [(path, stat.st_size, stat.st_mtime_ns) for path, stat in found]

    def _with(self, journal: Journal | None) -> dict[str, RemoteFile]:
        """Return the files with a commit carried out."""
        self._places = {path: self.folder / path for path in self._paths()}
        if journal is not None:
            waiting = {path: self._journal.staged(journal, path) for path in journal.moves}
            self._places.update({path: place for path, place in waiting.items() if place is not None})
            for path in journal.deletions:
                self._places.pop(path, None)
        return {path: self._describe(path, self._places[path]) for path in sorted(self._places)}

    def read(self, path: str, snapshot: Snapshot) -> bytes | None:
        """Return the bytes of a file.

        Raises:
            PublishError: It is larger than a card, a table or an index can be.
        """
        if path not in snapshot.files:
            return None
        return read_limited(self._place_of(path), limits.JSON_BYTES, PublishError)

    def fetch(self, path: str, snapshot: Snapshot, destination: Path, *, again: bool = False) -> None:
        """Copy a file."""
        source = self._place_of(path)
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, destination)

    def _place_of(self, path: str) -> Path:
        """Return where a file of the last snapshot is: in its place, or on its way there."""
        place = self._journal.place(path)
        waiting = self._places.get(path, place)
        return waiting if waiting.is_file() else place

    def tags(self) -> dict[str, str]:
        """Return the states that have names, of which only the present one still exists."""
        return self._tags()

    def set_tag(self, tag: str, commit: str) -> None:
        """Name a state.

        Raises:
            PublishError: The name is another state's.
        """
        with self._locked():
            self._finish()
            self._check_tag(tag, commit)
            self._write_tags({**self._tags(), tag: commit})

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
                self._journal.place(path)
            present = {path: content for path, content in change.additions.items() if self._holds(path, content)}
            self._carry_out(self._journal.stage(change, present))
            return Commit(_state_id(self._files()), self.label)

    def _check_tag(self, tag: str, commit: str | None) -> None:
        known = self._tags().get(tag)
        if known is not None and known != commit:
            raise PublishError(f"{self.label} has a tag {tag!r} already, for another state; choose another name")

    def _holds(self, path: str, content: Content) -> bool:
        place = self.folder / path
        return place.is_file() and self._describe(path, place).holds(content)

    def _files(self) -> dict[str, RemoteFile]:
        return {path: self._describe(path, self.folder / path) for path in self._paths()}

    def _describe(self, path: str, place: Path) -> RemoteFile:
        """Return size and digest of a file. An unchanged file is hashed once."""
        stat = place.stat()
        key = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if key not in self._known:
            self._known[key] = RemoteFile(stat.st_size, sha256=sha256(place))
        return self._known[key]

    def _paths(self) -> list[str]:
        """Return the published files, without hidden ones and symbolic links."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return sorted(
            path.as_posix()
            for path in found
            if not any(part.startswith(".") for part in path.parts) and not (self.folder / path).is_symlink()
        )

    def _finish(self) -> None:
        """Carry out the commit that a killed command left, if there is one."""
        journal = self._journal.pending()
        if journal is not None:
            self._carry_out(journal)

    def _carry_out(self, journal: Journal) -> None:
        self._journal.carry_out(journal)
        if journal.tag is not None:
            self._write_tags({**self._tags(), journal.tag: _state_id(self._files())})
        self._journal.close()

    def _tags(self) -> dict[str, str]:
        path = self._journal.state_file("tags.json")
        if not path.exists():
            return {}
        advice = "remove it to continue without tags"
        content = read_json_object(path, PublishError, advice)
        if not all(isinstance(state, str) for state in content.values()):
            raise PublishError(f"{path} is not a table of names and states; {advice}")
        return dict(content)

    def _write_tags(self, tags: dict[str, str]) -> None:
        write_json(self._journal.state_file("tags.json"), tags)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        place = self._journal.state_file("lock")
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place)
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
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:40]
