"""What a bundle must prove before it is published: that it is what was verified, and that it passed its gate."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whisperkit_tools.bundle import MANIFEST, PACKAGES, Bundle, folder_bytes
from whisperkit_tools.errors import DatasetError, PublishError
from whisperkit_tools.eval.schema import REPORT_FILE, RunReport, read_report
from whisperkit_tools.publish.names import check_variant
from whisperkit_tools.publish.registry import check_path

_SIZED = ("AudioEncoder", "TextDecoder")  # what the size in a variant's name counts


@dataclass(frozen=True, slots=True)
class Evidence:
    """A bundle with what was found about it.

    Attributes:
        bundle: The bundle.
        content: sha256 over the paths and hashes of its files: evaluation reports name a bundle by it.
        model_bytes: Encoder and decoder together.
        size_bytes: All files.
        reports: Its evaluations, newest of each dataset, by dataset.
        report_folders: Where each of them lies.
        shortfalls: What it does not prove; none means that it may be published.
        unproven: Why it is published in spite of shortfalls.
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
    def is_compressed(self) -> bool:
        """Whether the bundle was palettized."""
        return bool(self.bundle.manifest.get("compression"))

    def files(self) -> dict[str, Path]:
        """What is published: path inside the variant folder to file; only what the manifest names, and itself."""
        names = [*self.bundle.manifest.get("files", {}), MANIFEST]
        return {name: self.bundle.path / name for name in sorted(names)}


def examine(
    bundle: Bundle, reports: Path | None, required: Collection[str] = (), *, allow_unproven: str | None = None
) -> Evidence:
    """Check a bundle's proofs.

    Args:
        bundle: The bundle.
        reports: Folder with the runs of `wkt evaluate`; None when there is none.
        required: Datasets whose evaluation the policy asks for.
        allow_unproven: A reason to publish it whatever is missing; a changed or rejected bundle is refused still.

    Raises:
        PublishError: It may not be published; every reason is named.
    """
    check_variant(bundle.name)
    content = _check_files(bundle)
    if bundle.manifest.get("compression", {}).get("rejected"):
        raise PublishError(
            f"{bundle.name} was rejected by its quality gate and is never published; compress it less, or lower the "
            "gate's limits, with `wkt palettize`"
        )
    found = find_reports(reports, content) if reports is not None else {}
    shortfalls = [*_verification(bundle.manifest), *_gate(bundle.manifest)]
    missing = sorted(set(required) - set(found))
    shortfalls += [f"no evaluation of this very bundle on {name} (`wkt evaluate --dataset {name}`)" for name in missing]
    if shortfalls and allow_unproven is None:
        raise PublishError(
            f"{bundle.name} does not prove that it is good enough: {'; '.join(shortfalls)}. Make up for it, or say why "
            "it is published all the same with --allow-unproven REASON"
        )
    return Evidence(
        bundle,
        content,
        sum(folder_bytes(bundle.package(name)) for name in _SIZED),
        folder_bytes(bundle.path),
        {name: run for name, (run, _) in found.items()},
        {name: folder for name, (_, folder) in found.items()},
        tuple(shortfalls),
        allow_unproven if shortfalls else None,
    )


def content_digest(files: Mapping[str, Any]) -> str:
    """One digest of a bundle's content from the manifest's `files`: as `wkt evaluate` names it in its reports."""
    whole = hashlib.sha256()
    for name in sorted(files, key=lambda item: item.split("/")):
        whole.update(f"{name} {files[name]['sha256']}\n".encode())
    return whole.hexdigest()


def _check_files(bundle: Bundle) -> str:
    """The digest of the bundle's content, whose files are exactly those of its manifest."""
    recorded = bundle.manifest.get("files")
    if not isinstance(recorded, dict) or not recorded:
        raise PublishError(
            f"{bundle.name} has no {MANIFEST} that records its files, so nothing about it can be proved; convert or "
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
    missing = [name for name in PACKAGES if not any(item.startswith(f"{name}.mlpackage/") for item in recorded)]
    if missing:
        raise PublishError(f"{bundle.name} lacks {', '.join(missing)}")
    return content_digest(recorded)


def _verification(manifest: Mapping[str, Any]) -> list[str]:
    if not manifest.get("conversion", {}).get("verified"):
        return ["it was converted with --no-verify, so its parity with the checkpoint is unknown"]
    measured = manifest.get("parity", {}).get("psnr_db", {})
    missing = [name for name in PACKAGES if name not in measured]
    return [f"its manifest has no parity figures of {', '.join(missing)}"] if missing else []


def _gate(manifest: Mapping[str, Any]) -> list[str]:
    compression = manifest.get("compression")
    if not compression:
        return []
    gate = compression.get("gate")
    if not isinstance(gate, dict) or "shortfalls" not in gate:
        return ["it is compressed, and no quality gate was asked"]
    return [f"its quality gate: {line}" for line in gate["shortfalls"]]


def find_reports(root: Path, content: str) -> dict[str, tuple[RunReport, Path]]:
    """The newest finished evaluation of a bundle on each dataset.

    Args:
        root: A run's folder, or a folder of them.
        content: The bundle's digest; reports of other bundles are passed over.

    Returns:
        Dataset to the run and its folder.

    Raises:
        PublishError: A report is damaged.
    """
    found: dict[str, tuple[RunReport, Path]] = {}
    for path in sorted(root.rglob(REPORT_FILE)) if root.is_dir() else ():
        for run in _runs(path):
            if run.bundle is None or run.bundle.sha256 != content:
                continue
            known = found.get(run.dataset.name)
            if known is None or known[0].finished < run.finished:
                found[run.dataset.name] = (run, path.parent)
    return found


def _runs(path: Path) -> Sequence[RunReport]:
    try:
        return read_report(path).runs
    except DatasetError as error:
        raise PublishError(str(error)) from error
