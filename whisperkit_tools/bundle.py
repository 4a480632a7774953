"""Bundles: folders with the packages of a model variant, its tokenizer and configs, and the manifest `wkt.json`.

The manifest records source, conversion, and size and sha256 of every other file. A bundle is written into a hidden
sibling and renamed, so an interrupted command leaves the old bundle or the new one.

Source: names and files are those of the on-device runtime (argmaxinc/argmax-oss-swift, v0.18 to v1.1.0).
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from whisperkit_tools.contract import COMPONENTS, OPTIONAL_COMPONENTS
from whisperkit_tools.errors import BundleError, option
from whisperkit_tools.files import content_files, content_sha256, put_in_place, read_json_object, sha256
from whisperkit_tools.folders import recognised
from whisperkit_tools.manifest import MANIFEST, FileRecord, Manifest, read_manifest
from whisperkit_tools.mil.package import Package

DEFAULT_BUNDLES_DIR = Path("bundles")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Bundle:
    """An existing variant folder.

    Attributes:
        path: The folder.
        manifest: The content of its `wkt.json`. It is empty for a bundle that another tool made.

    Example:
        >>> import whisperkit_tools as wkt
        >>> bundle = wkt.Bundle.open("bundles/acme_whisper-demo")
        >>> bundle.components()
        ('MelSpectrogram', 'AudioEncoder', 'TextDecoder')
        >>> bundle.manifest.conversion.deployment_target
        'ios16'
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> "Bundle":
        """Read a bundle's manifest and check that its packages exist.

        Raises:
            BundleError: There is no such folder, the manifest is damaged, or packages are missing. All missing ones
                are named.
        """
        folder = Path(path)
        if not folder.is_dir():
            found = "a file" if folder.is_file() else "nothing"
            raise BundleError(f"no bundle at {folder}: found {found}; pass the folder that `wkt convert` printed")
        bundle = cls(folder, read_manifest(folder))
        missing = [f"{name}.mlpackage" for name in COMPONENTS if not bundle.has(name)]
        if len(missing) == len(COMPONENTS) and (what := recognised(folder)) and bundle.manifest.is_empty:
            raise BundleError(f"{folder} is not a bundle but {what}")
        if missing:
            raise BundleError(
                f"{folder} is not a complete bundle: missing {', '.join(missing)}; convert or download it again"
            )
        return bundle

    @property
    def name(self) -> str:
        """Name of the variant, which is that of the folder."""
        return self.path.resolve().name

    @property
    def created(self) -> str:
        """ISO 8601 UTC time at which the manifest was written; empty without a manifest."""
        return self.manifest.created

    def package(self, component: str) -> Package:
        """Return a component's package.

        Raises:
            BundleError: The bundle has no such component.
        """
        path = self.path / f"{component}.mlpackage"
        if not path.is_dir():
            raise BundleError(
                f"{self.path} has no {component}.mlpackage; it holds {', '.join(self.components()) or 'none'}"
            )
        return Package(path)

    def has(self, component: str) -> bool:
        """Return whether the bundle has the component's package."""
        return (self.path / f"{component}.mlpackage").is_dir()

    def components(self) -> tuple[str, ...]:
        """Return the names of the bundle's packages in the order in which data passes through them."""
        return tuple(name for name in COMPONENTS + OPTIONAL_COMPONENTS if self.has(name))

    def asset(self, name: str) -> Path:
        """Return the path of a tokenizer or config file.

        Raises:
            BundleError: The file is not in the bundle.
        """
        path = self.path / name
        if not path.is_file():
            raise BundleError(f"{self.path} has no {name}; convert the checkpoint again, or copy the file from it")
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of a config file.

        Raises:
            BundleError: It is missing, or not a JSON object.
        """
        return read_json_object(self.asset(name))

    def content_sha256(self) -> str:
        """Return one digest over all files but the manifest. Reports and registries name a bundle by it.

        The files are read. A file that was changed by hand makes another bundle, whatever the manifest says.
        """
        files = content_files(self.path, MANIFEST)
        return content_sha256({path.relative_to(self.path).as_posix(): sha256(path) for path in files})

    def differing_files(self) -> list[str]:
        """Return a line for each file that is missing, changed, or not in the manifest."""
        recorded = self.manifest.files
        if not recorded:
            return [f"{MANIFEST} records no files: the bundle's integrity cannot be checked"]
        present = {path.relative_to(self.path).as_posix() for path in content_files(self.path, MANIFEST)}
        lines = [f"{name}: recorded, but missing" for name in sorted(set(recorded) - present)]
        lines += [f"{name}: present, but not recorded" for name in sorted(present - set(recorded))]
        for name in sorted(present & set(recorded)):
            lines += _difference(self.path / name, name, recorded[name])
        return lines


def _difference(path: Path, name: str, recorded: FileRecord) -> list[str]:
    size = path.stat().st_size
    if size != recorded.size_bytes:
        return [f"{name}: {size} bytes, recorded {recorded.size_bytes}"]
    digest = sha256(path)
    if digest != recorded.sha256:
        return [f"{name}: sha256 {digest[:12]}..., recorded {recorded.sha256[:12]}..."]
    return []


def find_bundle(bundles_dir: Path = DEFAULT_BUNDLES_DIR) -> Bundle:
    """Return the bundle that was converted last.

    Args:
        bundles_dir: The folder that holds bundles.

    Raises:
        BundleError: There is none, or the last one cannot be determined. The candidates are listed.
    """
    bundles = list_bundles(bundles_dir)
    if not bundles:
        raise BundleError(
            f"no bundle in {bundles_dir}; make one (`wkt convert demo`) or name one as {option('bundle')}"
        )
    latest = max(bundle.created for bundle in bundles)
    candidates = [bundle for bundle in bundles if bundle.created in (latest, "")]
    if len(candidates) > 1:
        names = ", ".join(bundle.name for bundle in candidates)
        raise BundleError(
            f"which bundle was converted last cannot be determined; name one of them as {option('bundle')}: {names}"
        )
    return candidates[0]


def list_bundles(bundles_dir: Path) -> list[Bundle]:
    """Return all complete bundles of a folder, sorted by name. Hidden and incomplete folders are skipped."""
    if not bundles_dir.is_dir():
        return []
    folders = (path for path in sorted(bundles_dir.iterdir()) if path.is_dir() and not path.name.startswith("."))
    return [Bundle.open(path) for path in folders if all((path / f"{name}.mlpackage").is_dir() for name in COMPONENTS)]


def variant_name(
    org: str, model: str, *, turbo: bool = False, stateful: bool = False, size_bytes: int | None = None
) -> str:
    """Return the folder name by which the runtime finds a variant: `<org>_<model>[_turbo][_stateful][_<N>MB]`.

    The runtime downloads what `*<variant>/*` matches, so no name may end with another. Suffixes are only ever appended:
    a name with `_stateful` does not end with a name without it, so the runtime does not find it by that name.

    Args:
        org: The organisation on the Hub.
        model: The model's name without it.
        turbo: Whether the variant has the layout for latency.
        stateful: Whether the decoder's caches are states, a form that today's open runtime does not load.
        size_bytes: Bytes of AudioEncoder and TextDecoder together, for compressed variants only.

    Raises:
        BundleError: A part has characters that are unsafe in a path or a glob.
    """
    for part in (org, model):
        if not _SAFE_NAME.fullmatch(part) or ".." in part:
            raise BundleError(
                f"{part!r} cannot be part of a variant's name: letters, digits, '.', '_' and '-' are allowed"
            )
    size = "" if size_bytes is None else f"_{int(size_bytes / 1e6)}MB"
    return f"{org}_{model}{'_turbo' if turbo else ''}{'_stateful' if stateful else ''}{size}"


@contextmanager
def new_bundle(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `target` when the block succeeds and vanishes when it fails.

    Args:
        target: The variant folder to make.
        force: Replace an existing bundle, which is refused otherwise, before anything is computed.

    Yields:
        The hidden sibling to write into.

    Raises:
        BundleError: The target exists, is not a folder, or is being written by another process.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BundleError(f"{target} exists and is not a folder; choose another {option('output_dir')}")
    if target.exists() and not force:
        raise BundleError(
            f"{target} already exists; replace it with {option('force', True)}, "
            f"or choose another {option('output_dir')}"
        )
    if target.exists() and not _replaceable(target):
        raise BundleError(
            f"{target} holds files but is not a bundle, so {option('force')} does not replace it; move it away"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise BundleError(f"{target.parent} is not a folder; choose another {option('output_dir')}") from error
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BundleError(f"another command is writing {target}; wait for it to end") from error
    partial = target.parent / f".{target.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted command, because nobody else holds the lock
        partial.mkdir()
        yield partial
        put_in_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _replaceable(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return not names or MANIFEST in names or any(name.endswith((".mlpackage", ".mlmodelc")) for name in names)
