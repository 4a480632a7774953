"""Download of a variant: every file is checked before the folder appears, and no path leads out of it.

A repository is not trusted: paths are checked, sizes and hashes are compared with the manifest and with what the
registry says about its files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle, new_bundle
from whisperkit_tools.errors import BundleError, OptionsError, PublishError, option
from whisperkit_tools.files import read_json_object, sha256
from whisperkit_tools.manifest import MANIFEST, read_manifest
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.publishing.index import INDEX, Index
from whisperkit_tools.publishing.registry.base import Registry, RemoteFile, Snapshot, check_path
from whisperkit_tools.publishing.variant_names import is_variant, variants_of
from whisperkit_tools.terminal_text import printable


@dataclass(frozen=True, slots=True)
class Pulled:
    """A variant that was downloaded.

    Attributes:
        path: Its folder.
        commit: The state of the repository that it came from.
        files: Number of files.
        size_bytes: Bytes of all files.
        has_manifest: Whether there was a manifest to compare the files with. A bundle of another tool has none.
        runs_here: Whether `wkt` can run it. Compiled models, which other tools publish, run on Apple's systems only.
    """

    path: Path
    commit: str
    files: int
    size_bytes: int
    has_manifest: bool
    runs_here: bool


def pull(
    registry: Registry,
    variant: str,
    output_dir: Path,
    *,
    revision: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Pulled:
    """Download a variant.

    Args:
        registry: The registry that has it.
        variant: Its name.
        output_dir: The folder that holds bundles.
        revision: A tag or a commit; None for the present state.
        force: Replace an existing bundle.
        progress: Receives the bytes that are done, and a note for each file.

    Raises:
        OptionsError: `variant` is not a variant's name.
        PublishError: There is no such variant, or a file is not what was published.
        BundleError: The bundle exists already.
    """
    if not is_variant(variant):
        raise OptionsError(
            f"{option('variant')} is {variant!r}, which is not a variant's name: expected "
            "<org>_<model>[_turbo][_<N>MB], as `wkt versions` lists them"
        )
    snapshot = registry.snapshot(revision)
    if snapshot.commit is None:
        raise PublishError(registry.absent)
    known = variants_of(snapshot.files)
    if variant not in known:
        there = printable(", ".join(known)) or "none"
        raise PublishError(f"{registry.label} has no variant {variant!r}; there are: {there}")
    names = {path.removeprefix(f"{variant}/"): path for path in known[variant]}
    for name in names:
        check_path(name)
    sizes = [snapshot.files[path].size_bytes for path in names.values()]
    listener: Progress = progress or SilentProgress()
    with new_bundle(output_dir / variant, force=force) as folder:
        for place, (name, path) in enumerate(names.items(), 1):
            _fetch(registry, snapshot, path, folder / name)
            listener.advance(variant, sum(sizes[:place]), sum(sizes), printable(name))
        manifest = _check_manifest(folder, names)
        _check_index(registry, snapshot, variant, folder)
        runs_here = any(name.startswith(f"{contract.ENCODER}.mlpackage/") for name in names)
        if runs_here:
            Bundle.open(folder)
    return Pulled(output_dir / variant, snapshot.commit, len(names), sum(sizes), manifest, runs_here)


def _fetch(registry: Registry, snapshot: Snapshot, path: str, destination: Path) -> None:
    registry.fetch(path, snapshot, destination)
    expected: RemoteFile = snapshot.files[path]
    if not expected.holds(destination):
        registry.fetch(path, snapshot, destination, again=True)  # the cached copy may be damaged
    if not expected.holds(destination):
        raise PublishError(
            f"{path} from {registry.label} is not what the repository says it is: {destination.stat().st_size} bytes, "
            f"sha256 {sha256(destination)[:12]}..., expected {expected.size_bytes} bytes, "
            f"{(expected.sha256 or expected.blob_id or 'unknown')[:12]}...; nothing was kept, pull again"
        )


def _check_manifest(folder: Path, names: Mapping[str, str]) -> bool:
    """Compare the files with the manifest among them. Return whether there is one."""
    if MANIFEST not in names:
        return False
    content = read_json_object(folder / MANIFEST, PublishError, "nothing was kept")
    if not isinstance(content.get("files"), dict):
        raise PublishError(f"the downloaded {MANIFEST} records no files; nothing was kept")
    for name in content["files"]:
        check_path(name)
    try:
        differing = Bundle(folder, read_manifest(folder)).differing_files()
    except BundleError as error:
        differing = [str(error)]
    if differing:
        raise PublishError(f"what came is not what was published: {'; '.join(differing)}; nothing was kept")
    return True


def _check_index(registry: Registry, snapshot: Snapshot, variant: str, folder: Path) -> None:
    """Compare a variant that wkt published with the version in the index."""
    version = Index.parse(registry.read(INDEX, snapshot)).current(variant)
    if version is None:
        return
    manifest = read_manifest(folder)
    content = "none" if manifest.is_empty else manifest.content_sha256()
    if content != version.content:
        raise PublishError(
            f"{variant} in {registry.label} is not the version that its {INDEX} names: content {content[:12]}, "
            f"expected {version.content[:12]}; somebody changed it without wkt. Nothing was kept; choose an earlier "
            f"commit with {option('revision')}"
        )
