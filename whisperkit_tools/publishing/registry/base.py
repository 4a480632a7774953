"""Where variants are published: what a registry can do, whatever keeps it.

`hub.HubRegistry` is a model repository on the Hub, `folder.FolderRegistry` a folder of the same layout. Both change in
one step, from a head that the caller has seen to the next.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from whisperkit_tools.errors import PublishError

Content = Path | bytes
"""A file to publish: where it lies, or its bytes."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a registry.

    Attributes:
        size_bytes: Its size.
        sha256: Of its content, where the registry knows it.
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
            return digest(content) == self.sha256
        return self.blob_id is not None and digest(content, "sha1", f"blob {size}\0".encode()) == self.blob_id


def digest(content: Content, algorithm: str = "sha256", prefix: bytes = b"") -> str:
    """Hex digest of `prefix` and the content, read in pieces."""
    running = hashlib.new(algorithm, prefix)
    if isinstance(content, bytes):
        running.update(content)
    else:
        with content.open("rb") as file:
            while piece := file.read(1 << 20):
                running.update(piece)
    return running.hexdigest()


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit does.

    Attributes:
        additions: Path in the registry to content; files that are there with this content may be among them.
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
            PublishError: A path could lead out of the registry, or is added and removed at once.
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
        id: Names it.
        url: Where people can look at it.
        pull_request: Address of the pull request that proposes it instead, if that was asked for.
    """

    id: str
    url: str
    pull_request: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a registry holds at one commit.

    Attributes:
        commit: Its id; None for a registry that does not exist yet.
        files: By path; of a branch that does not exist yet, those that it would start with.
    """

    commit: str | None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)


class ConflictError(PublishError):
    """Somebody else has changed the registry since it was read."""


class Registry(Protocol):
    """A place that keeps variants."""

    @property
    def label(self) -> str:
        """Its name in messages."""
        ...

    @property
    def name(self) -> str:
        """Its name in what is published."""
        ...

    @property
    def absent(self) -> str:
        """What to say when it is not there."""
        ...

    def create(self, *, private: bool) -> None:
        """Make it, if it is not there.

        Raises:
            PublishError: It may not be made.
        """
        ...

    def snapshot(self, revision: str | None = None) -> Snapshot:
        """What it holds now, or held at a tag or a commit.

        Raises:
            PublishError: It cannot be read, or has no such revision.
        """
        ...

    def read(self, path: str, snapshot: Snapshot) -> bytes | None:
        """A small file as it is in the snapshot, or None when it is not there.

        Raises:
            PublishError: It cannot be read.
        """
        ...

    def fetch(self, path: str, snapshot: Snapshot, destination: Path, *, again: bool = False) -> None:
        """Put a file of the snapshot at `destination`; its content is the caller's to check.

        Args:
            path: In the registry.
            snapshot: The state it is taken from.
            destination: Where to.
            again: Do not take what an earlier call has kept.

        Raises:
            PublishError: It cannot be read.
        """
        ...

    def tags(self) -> Mapping[str, str]:
        """The states that have names.

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

    def commit(self, change: Change, parent: Snapshot, *, pull_request: bool = False) -> Commit:
        """Apply a change to the state that `parent` describes: all of it or nothing.

        Raises:
            ConflictError: The registry has moved on.
            PublishError: It refuses.
        """
        ...


def printable(text: str) -> str:
    """Text from outside for a terminal: what would move it, or is not seen, is written out."""
    return "".join(one if one.isprintable() else f"[U+{ord(one):04X}]" for one in text)


def check_path(path: str) -> None:
    """Check that a registry's path stays inside, and says what it names.

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
            f"{path!r} is no path for a registry: parts separated by '/', none of them empty, hidden or '..', and "
            "only printable characters without '\\' and ':' are allowed"
        )
