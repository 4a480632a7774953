"""Storage of the test Hub: repositories of commits, and the objects that their trees name, on disk.

Object ids are those of the Hub: a git blob's SHA-1 for small text files, the SHA-256 of the content for large ones.
"""

import hashlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A file of a tree. `oid` is the SHA-256 where `lfs`, else the git blob id."""

    oid: str
    size: int
    lfs: bool


@dataclass(frozen=True)
class Commit:
    """A commit. `tree` maps paths to entries."""

    oid: str
    parent: str | None
    title: str
    message: str
    date: str
    tree: dict[str, Entry]


class Conflict(Exception):
    """The parent that a commit names is no longer the head."""


def git_blob_id(content: bytes) -> str:
    """Return the SHA-1 of git's blob object."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """A repository: commits by id, and branches, tags and pull requests by full name."""

    id: str
    kind: str
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        if not self.commits:
            self.refs["refs/heads/main"] = self._add(None, "initial commit", "", {})

    def resolve(self, revision: str) -> Commit | None:
        """Return the commit of a branch, a tag, a full reference or a commit id."""
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return self.commits[self.refs[name]]
        return self.commits.get(revision)

    def history(self, revision: str) -> list[Commit]:
        """Return the commits from the newest to the first."""
        found, commit = [], self.resolve(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent or "")
        return found

    def commit(self, revision: str, title: str, message: str, changes: dict[str, Entry | None],
               parent: str | None = None, pull_request: bool = False) -> tuple[Commit, int | None]:  # fmt: skip
        """Apply changes (None deletes) to the head of a branch, or to a new pull request.

        Raises:
            Conflict: `parent` is given and is not the head.
            KeyError: No such branch.
        """
        with self.lock:
            head = self.resolve(revision)
            if head is None:
                raise KeyError(revision)
            if parent is not None and not pull_request and head.oid != parent:
                raise Conflict(head.oid)
            tree = dict(head.tree)
            for path, entry in changes.items():
                if entry is None:
                    tree.pop(path, None)
                else:
                    tree[path] = entry
            oid = self._add(head.oid, title, message, tree)
            if pull_request:
                number = 1 + sum(name.startswith("refs/pr/") for name in self.refs)
                self.refs[f"refs/pr/{number}"] = oid
                return self.commits[oid], number
            self.refs[revision if revision.startswith("refs/") else f"refs/heads/{revision}"] = oid
            return self.commits[oid], None

    def _add(self, parent: str | None, title: str, message: str, tree: dict[str, Entry]) -> str:
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        text = repr((parent, title, message, sorted(tree.items(), key=lambda item: item[0]), len(self.commits)))
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, message, date, tree)
        return oid


class ObjectStore:
    """Contents on disk, by id. A large object can arrive in parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, oid: str) -> Path:
        """Return the path of an object, whether it exists or not."""
        return self.folder / oid

    def has(self, oid: str) -> bool:
        """Whether the whole object exists."""
        return self.path(oid).is_file()

    def put(self, oid: str, content: bytes) -> None:
        """Keep an object."""
        temporary = self.path(f"{oid}.tmp{threading.get_ident()}")
        temporary.write_bytes(content)
        temporary.replace(self.path(oid))

    def put_part(self, oid: str, number: int, content: bytes) -> str:
        """Keep one part and return its tag."""
        self.path(f"{oid}.part{number}").write_bytes(content)
        return hashlib.md5(content).hexdigest()

    def join(self, oid: str, numbers: list[int]) -> bool:
        """Put the parts together and return whether the content has the SHA-256 that its id states."""
        parts = [self.path(f"{oid}.part{number}") for number in numbers]
        content = b"".join(part.read_bytes() for part in parts)
        if hashlib.sha256(content).hexdigest() != oid:
            return False
        self.put(oid, content)
        for part in parts:
            part.unlink()
        return True
