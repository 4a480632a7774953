"""The protocol of registries, where variants are published, and its types.

`hub.HubRegistry` is a model repository on the Hub, `folder.FolderRegistry` a folder of the same layout. Both change in
one step, from a state that the caller has read to the next.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from whisperkit_tools.errors import PublishError
from whisperkit_tools.files import sha256

Content = Path | bytes
"""A file to publish: its path, or its bytes."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a registry.

    Attributes:
        size_bytes: Its size.
        sha256: Digest of its content, where the registry knows it.
        blob_id: Git's blob id of its content, where the registry knows it.
    """

    size_bytes: int
    sha256: str | None = None
    blob_id: str | None = None

    def holds(self, content: Content) -> bool:
        """Whether the file has this content."""
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if size != self.size_bytes:
            return False
        if self.sha256 is not None:
            return _sha256(content) == self.sha256
        return self.blob_id is not None and _git_blob_id(content) == self.blob_id


def _sha256(content: Content) -> str:
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256(content)


def _git_blob_id(content: Content) -> str:
    """Return the id that git gives to a file. Source: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects."""
    data = content if isinstance(content, bytes) else content.read_bytes()  # a registry keeps large files by sha256
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class RegistryChange:
    """The content of a commit.

    Attributes:
        additions: Content by path in the registry. Files that exist with this content may be among them.
        deletions: Paths of files to remove.
        title: One line.
        description: More lines.
        tag: A name for the new state.
    """

    additions: Mapping[str, Content]
    deletions: frozenset[str] = frozenset()
    title: str = ""
    description: str = ""
    tag: str | None = None

    def __post_init__(self) -> None:
        """Check the paths.

        Raises:
            PublishError: A path could lead out of the registry, or is both added and removed.
        """
        for path in (*self.additions, *self.deletions):
            check_path(path)
        both = sorted(set(self.additions) & self.deletions)
        if both:
            raise PublishError(f"{', '.join(both)}: added and removed in one commit")


@dataclass(frozen=True, slots=True)
class Commit:
    """A state of a registry.

    Attributes:
        id: Its id.
        url: Its address for people.
        pull_request: Address of the pull request that proposes it, if one was asked for.
    """

    id: str
    url: str
    pull_request: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of a registry at one commit.

    Attributes:
        commit: Its id; None for a registry that does not exist yet.
        files: Files by path. A branch that does not exist yet has those that it would start with.
    """

    commit: str | None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)


class ConflictError(PublishError):
    """Raised when somebody else has changed the registry since it was read."""


class Registry(Protocol):
    """A place that keeps variants."""

    @property
    def label(self) -> str:
        """Return its name in messages."""
        ...

    @property
    def name(self) -> str:
        """Return its name in what is published."""
        ...

    @property
    def absent(self) -> str:
        """Return the message for the case that it does not exist."""
        ...

    def create(self, *, private: bool) -> None:
        """Make it, if it does not exist.

        Raises:
            PublishError: It cannot be made.
        """
        ...

    def snapshot(self, revision: str | None = None) -> Snapshot:
        """Return its content now, or at a tag or a commit.

        Raises:
            PublishError: It cannot be read, or has no such revision.
        """
        ...

    def read(self, path: str, snapshot: Snapshot) -> bytes | None:
        """Return a small file of the snapshot, or None when there is none.

        Raises:
            PublishError: It cannot be read.
        """
        ...

    def fetch(self, path: str, snapshot: Snapshot, destination: Path, *, again: bool = False) -> None:
        """Put a file of the snapshot at `destination`. The caller checks its content.

        Args:
            path: Path in the registry.
            snapshot: The state that the file is taken from.
            destination: The file to write.
            again: Do not use the cached copy of an earlier call.

        Raises:
            PublishError: It cannot be read.
        """
        ...

    def tags(self) -> Mapping[str, str]:
        """Return the commits that have names, by name.

        Raises:
            PublishError: It cannot be read.
        """
        ...

    def set_tag(self, tag: str, commit: str) -> None:
        """Name a state.

        Raises:
            PublishError: The name is another state's.
        """
        ...

    def commit(self, change: RegistryChange, parent: Snapshot, *, pull_request: bool = False) -> Commit:
        """Apply a change to the state that `parent` describes, as a whole or not at all.

        Raises:
            ConflictError: The registry has moved on.
            PublishError: It refuses.
        """
        ...


def check_path(path: str) -> None:
    """Check that a path stays inside the registry and is readable.

    Raises:
        PublishError: It is absolute, has `..`, `.` or empty parts, backslashes, control or bidirectional characters,
            or a hidden part.
    """
    parts = path.split("/")
    wrong = (
        not path
        or PurePosixPath(path).is_absolute()
        or any(part in ("", ".", "..") or part.startswith(".") for part in parts)
        or "\\" in path
        or ":" in path
        or any(not character.isprintable() for character in path)
        or len(path.encode()) > 1000
    )
    if wrong:
        raise PublishError(
            f"{path!r} is not a path for a registry: parts separated by '/', none of them empty, hidden or '..', and "
            "only printable characters without '\\' and ':' are allowed"
        )
