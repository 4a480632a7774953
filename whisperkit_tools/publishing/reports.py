"""Evaluation reports beside the variants, or in a dataset repository of their own.

No path of a report may contain `<variant>/`, because the runtime's download pattern `*<variant>/*` would find it.
"""

import re
from dataclasses import replace
from pathlib import Path, PureWindowsPath

from whisperkit_tools.errors import PublishError
from whisperkit_tools.eval.schema import REPORT_FILE, Report, RunReport
from whisperkit_tools.eval.typed_json import to_json
from whisperkit_tools.publishing.eligibility import PublishableBundle
from whisperkit_tools.publishing.registry.base import Content, RegistryChange
from whisperkit_tools.strict_json import json_text

REPORTS = "reports"
_OTHERS = ("report.md", "report.html")  # the page shows texts of the dataset, which may have its own terms


def report_files(item: PublishableBundle, *, with_transcripts: bool) -> dict[str, Content]:
    """Return the files of a bundle's evaluations, in `reports/<dataset>/<date>-<variant>-<content>/`.

    Args:
        item: The bundle.
        with_transcripts: Publish `report.html` too.

    Raises:
        PublishError: A file is a symbolic link.
    """
    found: dict[str, Content] = {}
    for dataset, folder in item.report_folders.items():
        run = item.reports[dataset]
        safe = re.sub(r"[^A-Za-z0-9_-]+", "-", dataset).strip("-") or "dataset"
        day = re.sub(r"[^0-9-]", "", run.finished[:10]) or "undated"
        base = f"{REPORTS}/{safe}/{day}-{item.bundle.name}-{item.content[:8]}"
        found[f"{base}/{REPORT_FILE}"] = _portable(run)
        for name in _OTHERS if with_transcripts else _OTHERS[:1]:
            path = folder / name
            if path.is_symlink():
                raise PublishError(f"{path} is a symbolic link; run `wkt report` again")
            if path.is_file():
                found[f"{base}/{name}"] = path
    return found


def _portable(run: RunReport) -> bytes:
    """Return `report.json` without paths of the machine that measured."""
    bundle = None if run.bundle is None else replace(run.bundle, path=run.bundle.name)
    dataset = replace(run.dataset, source=_name_of(run.dataset.source))
    whole = to_json(Report((replace(run, bundle=bundle, dataset=dataset),)))
    return (json_text(whole, indent=1, sort_keys=True) + "\n").encode()


def _name_of(source: str) -> str:
    local = source.startswith(("/", "~", ".")) or bool(PureWindowsPath(source).drive)
    return Path(source).name if local else source


def split_reports(change: RegistryChange) -> tuple[RegistryChange, RegistryChange]:
    """Split a change into one without reports and one with nothing else."""
    apart = {path: content for path, content in change.additions.items() if path.startswith(f"{REPORTS}/")}
    kept = {path: content for path, content in change.additions.items() if path not in apart}
    return replace(change, additions=kept), RegistryChange(apart, title=f"Reports: {change.title}", tag=None)
