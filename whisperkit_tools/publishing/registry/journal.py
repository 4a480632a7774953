"""The journal of a folder registry: a commit that was decided, and its files on their way into place.

A folder may come from elsewhere, and its journal with it. So a journal is checked whole, against what is on the disk,
before the first file moves, and nothing moves through a symbolic link.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from whisperkit_tools import limits
from whisperkit_tools.errors import PublishError
from whisperkit_tools.files import read_limited, sha256, write_json
from whisperkit_tools.paths import inside
from whisperkit_tools.publishing.registry.base import Content, RegistryChange, check_path
from whisperkit_tools.records import read_typed
from whisperkit_tools.strict_json import JsonError, parse_json

STATE = ".wkt"  # the registry's own files; hidden, so never among those that are published
_STAGE = f"{STATE}/stage"
_JOURNAL = f"{STATE}/journal.json"


@dataclass(frozen=True, slots=True)
class Journal:
    """A commit on its way.

    Attributes:
        moves: Name in the stage of each file that is added or replaced, by its path in the registry.
        deletions: Paths of the files that are removed.
        tag: A name for the new state.
        sha256: Digest of each added file. Journals of earlier versions have none.
    """

    moves: Mapping[str, str]
    deletions: tuple[str, ...]
    tag: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


class JournalFolder:
    """A registry's folder with the files of its next commit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def state_file(self, name: str) -> Path:
        """Return the place of one of the registry's own files, never reached through a link.

        Raises:
            PublishError: It is a link, or the folder of these files is.
        """
        return inside(self._folder, f"{STATE}/{name}", PublishError, links=False)

    def place(self, path: str) -> Path:
        """Return the place of a published file, never reached through a link.

        Raises:
            PublishError: The path leads out of the folder, or through a symbolic link.
        """
        check_path(path)
        return inside(self._folder, path, PublishError, links=False)

    def raw(self) -> bytes | None:
        """Return the content of the journal, None without one.

        Raises:
            PublishError: It is a link, or not a file of a journal's size.
        """
        path = self.state_file("journal.json")
        return read_limited(path, limits.JSON_BYTES, PublishError) if path.exists() else None

    def pending(self) -> Journal | None:
        """Return the commit that a killed command left, None without one. Nothing is changed.

        Raises:
            PublishError: The journal is damaged, or does not fit what is on the disk.
        """
        content = self.raw()
        if content is None:
            return None
        path = self._folder / _JOURNAL
        try:
            journal = read_typed(Journal, parse_json(content), str(path), error=PublishError)
            self._check(journal)
        except (JsonError, PublishError) as error:
            raise PublishError(
                f"the journal of an unfinished commit cannot be carried out ({error}); to continue "
                f"without it, remove {path.parent}"
            ) from error
        return journal

    def staged(self, journal: Journal, path: str) -> Path | None:
        """Return where a file of the commit waits, None when it is in its place already."""
        place = inside(self._folder, f"{_STAGE}/{journal.moves[path]}", PublishError, links=False)
        return place if place.is_file() else None

    def stage(self, change: RegistryChange, present: Mapping[str, Content]) -> Journal:
        """Copy the files of a commit beside the published ones, then write the journal, with which it has happened.

        Args:
            change: The commit.
            present: Those of its files that the registry holds with the same content.
        """
        stage = inside(self._folder, _STAGE, PublishError, links=False)
        shutil.rmtree(stage, ignore_errors=True)
        added = [path for path in sorted(change.additions) if path not in present]
        moves, digests = {path: str(number) for number, path in enumerate(added)}, {}
        try:
            stage.mkdir(parents=True)
            for path, name in moves.items():
                _copy(change.additions[path], stage / name)
                digests[path] = sha256(stage / name)
            journal = Journal(moves, tuple(sorted(change.deletions)), change.tag, digests)
            write_json(self.state_file("journal.json"), asdict(journal))
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)  # a full disk has room again
            raise
        return journal

    def carry_out(self, journal: Journal) -> None:
        """Move and remove what the journal says. Doing it twice does no harm."""
        for path in journal.moves:
            staged, target = self.staged(journal, path), self.place(path)
            if staged is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                staged.replace(target)
        for path in journal.deletions:
            place = self.place(path)
            place.unlink(missing_ok=True)
            self._remove_empty(place)

    def close(self) -> None:
        """Remove the journal of a commit that was carried out."""
        self.state_file("journal.json").unlink(missing_ok=True)
        shutil.rmtree(inside(self._folder, _STAGE, PublishError, links=False), ignore_errors=True)

    def _remove_empty(self, path: Path) -> None:
        for parent in path.parents:
            if parent == self._folder or not parent.is_dir() or any(parent.iterdir()):
                return
            parent.rmdir()

    def _check(self, journal: Journal) -> None:
        """Check that each step can be taken.

        Raises:
            PublishError: One of them cannot.
        """
        self.state_file("tags.json")
        paths = [*journal.moves, *journal.deletions]
        folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
        for path in paths:
            place = self.place(path)
            if path in folders or paths.count(path) > 1:
                raise PublishError(f"{path} is named twice")
            if place.exists() and not place.is_file():
                raise PublishError(f"{place} is not a file")
            self._check_parents(path)
        for path, name in journal.moves.items():
            self._check_move(journal, path, name)

    def _check_parents(self, path: str) -> None:
        for parent in PurePosixPath(path).parents:
            place = self._folder / parent
            if place.exists() and not place.is_dir():
                raise PublishError(f"{place} is not a folder")

    def _check_move(self, journal: Journal, path: str, name: str) -> None:
        if not (name.isascii() and name.isdigit()):
            raise PublishError(f"{name!r} is not the name of a staged file")
        found = self.staged(journal, path) or self.place(path)
        if not found.is_file():
            raise PublishError(f"the content of {path} is missing")
        if path in journal.sha256 and sha256(found) != journal.sha256[path]:
            raise PublishError(f"the content of {path} is not what was to be published")


def _copy(content: Content, target: Path) -> None:
    if isinstance(content, bytes):
        target.write_bytes(content)
    else:
        shutil.copyfile(content, target)
