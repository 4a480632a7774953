"""Paths that data names. The one way from a name in a file to a file on this machine."""

import os
import stat
from pathlib import Path, PurePosixPath

from whisperkit_tools.errors import BundleError, WktError

_LONGEST_NAME = 1000  # bytes


def inside(folder: Path, name: object, error: type[WktError] = BundleError, *, links: bool = True) -> Path:
    """Return the place of a file that data names, inside of a folder.

    Whatever a manifest, a table or a journal calls a file, it can be opened, moved and written only there. The file
    need not exist.

    Args:
        folder: The folder that the data may speak about.
        name: The name: parts separated by `/`.
        error: Raised for a name that leads elsewhere.
        links: Follow symbolic links that stay inside of the folder. Where something is written, no link is followed.

    Raises:
        WktError: Of type `error`: the name is not text, empty, absolute, has `..` or control characters, or a symbolic
            link on the way leads out of the folder.
    """
    flaw = _flaw(name)
    if flaw:
        raise error(f"{_shown(name)} {flaw}; only files inside of {folder} can be named")
    parts = PurePosixPath(str(name)).parts
    place = folder
    for part in parts:
        place = place / part
        if _is_link(place) and not (links and is_own_link(folder, place)):
            raise error(f"{place} is a symbolic link; only files inside of {folder} can be named: put the file there")
    return place


def found_inside(folder: Path, name: str, base: Path | None = None) -> Path | None:
    """Return a regular file that a table names, if it lies in the folder that the table belongs to.

    Args:
        folder: The folder. A table may name any file in it, also by an absolute path, and no other.
        name: What the table says.
        base: Where relative names start, in `folder`. None for `folder` itself.
    """
    try:
        named = Path(os.path.normpath((base or folder).absolute() / name))  # `..` may lead up, but not out
        relative = named.relative_to(os.path.normpath(folder.absolute()))
        place = inside(folder, relative.as_posix())
        return place if place.is_file() else None
    except (BundleError, ValueError, OSError):
        return None


def is_own_link(folder: Path, link: Path) -> bool:
    """Return whether a symbolic link's target is in the same folder, or in the blobs of the same Hub cache.

    The cache of the Hub keeps a repository's files in `blobs` and its revisions, as links, in `snapshots`.
    """
    try:
        target, home = link.resolve(), folder.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return False
    if target.is_relative_to(home):
        return True
    revision = next((parent for parent in (home, *home.parents) if parent.parent.name == "snapshots"), None)
    return revision is not None and target.parent == revision.parent.parent / "blobs"


def _flaw(name: object) -> str:
    """Return what is wrong with a name as such; empty when nothing is."""
    if not isinstance(name, str):
        return "is not a name of a file"
    parts = name.split("/")
    if not name or not name.strip():
        return "is empty"
    if any(not one.isprintable() for one in name) or "\\" in name:
        return "has characters that no file name here may have"
    if name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        return "is an absolute path"
    if ".." in parts:
        return "leads out by '..'"
    if "" in parts or "." in parts:
        return "has empty parts"
    if len(name.encode("utf-8", "replace")) > _LONGEST_NAME:
        return "is too long"
    return ""


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _is_link(path: Path) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def expanded(path: str | Path) -> Path:
    """Return a path that a user wrote, with `~` replaced. Where there is no such user, it stays a file's name."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
