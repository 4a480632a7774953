"""The check of a bundle before publication: it is what was verified, and it passed its gate."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.contract import COMPONENTS, MODEL_COMPONENTS
from whisperkit_tools.errors import DatasetError, OptionsError, PublishError, option
from whisperkit_tools.eval.schema import REPORT_FILE, RunReport, read_report
from whisperkit_tools.manifest import MANIFEST, Manifest, ParityRecord
from whisperkit_tools.publishing.registry.base import check_path
from whisperkit_tools.publishing.variant_names import check_variant

_SIZE_IN_NAME = re.compile(r"_(\d+)MB$")


@dataclass(frozen=True, slots=True)
class PublishableBundle:
    """A bundle that was checked.

    Attributes:
        bundle: The bundle.
        content: Digest of its files. Evaluation reports name a bundle by it.
        model_bytes: Bytes of encoder and decoder together.
        size_bytes: Bytes of all files.
        reports: Its newest evaluation on each dataset, by dataset.
        report_folders: The folder of each of them.
        shortfalls: What it does not prove.
        unproven: The reason for publishing it despite shortfalls.
    """

    bundle: Bundle
    content: str
    model_bytes: int
    size_bytes: int
    reports: Mapping[str, RunReport] = field(default_factory=dict)
    report_folders: Mapping[str, Path] = field(default_factory=dict)
    shortfalls: tuple[str, ...] = ()
    unproven: str | None = None

    @property
    def name(self) -> str:
        """The name of the variant."""
        return self.bundle.name

    def files(self) -> dict[str, Path]:
        """Return the files to publish by their paths in the variant folder: those of the manifest, and the manifest."""
        return _published(self.bundle)


def check_bundle(
    bundle: Bundle, reports: Path | None, required: Collection[str] = (), *, allow_unproven: str | None = None
) -> PublishableBundle:
    """Check that a bundle may be published.

    Args:
        bundle: The bundle.
        reports: Folder with the runs of `wkt evaluate`, or None.
        required: Datasets on which it must have been evaluated.
        allow_unproven: A reason to publish it although a proof is missing. A changed or rejected bundle is refused
            nevertheless.

    Raises:
        PublishError: It may not be published. Every reason is named.
    """
    check_variant(bundle.name)
    content = _check_files(bundle)
    model_bytes = sum(bundle.package(name).nbytes for name in MODEL_COMPONENTS)
    _check_size(bundle.name, model_bytes)
    if bundle.manifest.compression is not None and bundle.manifest.compression.rejected:
        raise PublishError(
            f"{bundle.name} was rejected by its quality gate and is never published; compress it less, or relax the "
            "gate's limits, with `wkt palettize`"
        )
    found = find_reports(reports, content) if reports is not None else {}
    shortfalls = [*_verification(bundle.manifest), *_gate(bundle.name, bundle.manifest)]
    missing = sorted(set(required) - set(found))
    shortfalls += [f"no evaluation of this very bundle on {name} (run `wkt evaluate`)" for name in missing]
    if shortfalls and allow_unproven is None:
        raise PublishError(
            f"{bundle.name} does not prove that it is good enough: {'; '.join(shortfalls)}. Supply what is missing, or "
            f"give a reason to publish it nevertheless with {option('allow_unproven', 'REASON')}"
        )
    return PublishableBundle(
        bundle,
        content,
        model_bytes,
        sum(path.stat().st_size for path in _published(bundle).values()),
        {name: run for name, (run, _) in found.items()},
        {name: folder for name, (_, folder) in found.items()},
        tuple(shortfalls),
        allow_unproven if shortfalls else None,
    )


def _check_files(bundle: Bundle) -> str:
    """Check that the bundle's files are exactly those of its manifest. Return the digest of its content."""
    recorded = bundle.manifest.files
    if not recorded:
        raise PublishError(
            f"{bundle.name} has no {MANIFEST} that records its files, so nothing about it is proved; convert or "
            "palettize it with wkt"
        )
    for name in recorded:
        check_path(name)
        path = bundle.path / name
        if any(parent.is_symlink() for parent in (path, *path.parents) if bundle.path in (parent, *parent.parents)):
            raise PublishError(
                f"{bundle.name}: {name} is reached through a symbolic link; publish the files themselves"
            )
    changed = bundle.differing_files()
    if changed:
        raise PublishError(
            f"{bundle.name} has changed since it was verified: {'; '.join(changed)}; make it again, or remove what "
            "does not belong to it"
        )
    missing = [name for name in COMPONENTS if not any(item.startswith(f"{name}.mlpackage/") for item in recorded)]
    if missing:
        raise PublishError(f"{bundle.name} lacks {', '.join(missing)}")
    return bundle.manifest.content_sha256()


def _check_size(name: str, model_bytes: int) -> None:
    """Check the size in the name of a compressed variant, which the runtime and people read."""
    found = _SIZE_IN_NAME.search(name)
    if found is not None and int(found[1]) != int(model_bytes / 1e6):
        raise PublishError(
            f"{name} says {found[1]} MB, but its encoder and decoder have {int(model_bytes / 1e6)} MB; "
            "give the folder the name that `wkt palettize` gave it"
        )


def _verification(manifest: Manifest) -> list[str]:
    conversion, parity = manifest.conversion, manifest.parity or ParityRecord()
    if conversion is None:
        return ["its manifest records no conversion, so its parity with a checkpoint is unknown"]
    if not conversion.verified:
        return ["it was converted without verification, so its parity with the checkpoint is unknown"]
    missing = [name for name in COMPONENTS if name not in parity.psnr_db]
    if missing:
        return [f"its manifest has no parity figures of {', '.join(missing)}"]
    return [
        f"its parity: {component} {name} has {value} dB in {mode}, the minimum is {minimum} dB"
        for mode in ("float32", "float16")
        if (minimum := parity.gate.get(f"{mode}_db")) is not None
        for component, figures in parity.psnr_db.items()
        for name, value in figures.get(mode, {}).items()
        if not value >= minimum
    ]


def _gate(name: str, manifest: Manifest) -> list[str]:
    if manifest.compression is None:
        named = _SIZE_IN_NAME.search(name)
        return ["its name is that of a compressed variant, but its manifest records no compression"] if named else []
    gate = manifest.compression.gate
    if gate is None or gate.shortfalls is None or gate.qoi is None:
        return ["it is compressed, but no quality gate was measured"]
    return [f"its quality gate: {line}" for line in gate.shortfalls]


def _published(bundle: Bundle) -> dict[str, Path]:
    names = [*bundle.manifest.files, MANIFEST]
    return {name: bundle.path / name for name in sorted(names)}


def find_reports(root: Path, content: str) -> dict[str, tuple[RunReport, Path]]:
    """Return the newest finished evaluation of a bundle on each dataset.

    Args:
        root: A run's folder, or a folder of them.
        content: The bundle's digest. Reports of other bundles are skipped.

    Returns:
        The run and its folder by dataset.

    Raises:
        PublishError: A report is damaged.
    """
    found: dict[str, tuple[RunReport, Path]] = {}
    for run, folder in all_reports(root):
        if run.bundle is None or run.bundle.sha256 != content:
            continue
        known = found.get(run.dataset.name)
        if known is None or known[0].finished < run.finished:
            found[run.dataset.name] = (run, folder)
    return found


def all_reports(root: Path) -> list[tuple[RunReport, Path]]:
    """Return every run below a folder with its own folder. Comparisons of several runs are skipped.

    Raises:
        PublishError: A report is damaged, or a symbolic link.
    """
    found = []
    for path in sorted(root.rglob(REPORT_FILE)) if root.is_dir() else ():
        if path.is_symlink():
            raise PublishError(f"{path} is a symbolic link; name the folder that `wkt evaluate` made")
        runs = _runs(path)
        found += [(runs[0], path.parent)] if len(runs) == 1 else []
    return found


def check_reports(root: Path, bundles: Sequence[PublishableBundle]) -> list[str]:
    """Check that a folder of reports that the user named is about these bundles.

    Returns:
        A line for each report of another content of one of these bundles, which was measured before a change.

    Raises:
        OptionsError: The folder does not exist, holds no report, or none of these bundles.
    """
    reports = all_reports(root)
    if not reports:
        raise OptionsError(
            f"{option('reports')}: no report of `wkt evaluate` in {root}; name the folder of a run, or of several"
        )
    contents = {item.content: item.bundle.name for item in bundles}
    others = [(run, folder) for run, folder in reports if run.bundle is None or run.bundle.sha256 not in contents]
    if len(others) == len(reports):
        about = "; ".join(sorted({f"{folder} is about {_subject(run)}" for run, folder in others})[:3])
        here = ", ".join(f"{name} ({content[:12]})" for content, name in contents.items())
        raise OptionsError(
            f"{option('reports')}: no report in {root} is of this very bundle, {here}: {about}; evaluate it again"
        )
    names = set(contents.values())
    return [
        f"skipped {folder}: it measured another content of {run.bundle.name}, {run.bundle.sha256[:12]}"
        for run, folder in others
        if run.bundle is not None and run.bundle.name in names
    ]


def _subject(run: RunReport) -> str:
    return run.name if run.bundle is None else f"{run.bundle.name} ({run.bundle.sha256[:12]})"


def _runs(path: Path) -> Sequence[RunReport]:
    try:
        return read_report(path).runs
    except DatasetError as error:
        raise PublishError(str(error)) from error
