"""Publishing bundles to a model repository, and getting them back."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from whisperkit_tools.bundle import DEFAULT_BUNDLES_DIR, Bundle
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.files import read_json_value
from whisperkit_tools.pipeline.arguments import as_bundle, as_bundles, as_tuple, open_registry
from whisperkit_tools.pipeline.evaluate import DEFAULT_ROOT
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.publishing import index
from whisperkit_tools.publishing import publish as publishing
from whisperkit_tools.publishing import pull as pulling
from whisperkit_tools.publishing.eligibility import PublishableBundle, check_bundle, check_reports
from whisperkit_tools.publishing.options import PublishOptions
from whisperkit_tools.publishing.publish import Publication
from whisperkit_tools.publishing.pull import Pulled
from whisperkit_tools.publishing.registry.base import Registry
from whisperkit_tools.publishing.registry.folder import FolderRegistry
from whisperkit_tools.publishing.registry.hub import HubRegistry


def publish(
    bundles: Bundle | str | Path | Iterable[Bundle | str | Path] = (),
    *,
    repo: str | Registry | None = None,
    to: str | Path | Registry | None = None,
    create: bool = False,
    private: bool = False,
    revision: str | None = None,
    pr: bool = False,
    tag: str | None = None,
    adopt: bool = False,
    reports: str | Path | None = None,
    reports_repo: str | None = None,
    with_transcripts: bool = False,
    require: str | Sequence[str] = (),
    allow_unproven: str | None = None,
    device_table: str | Path | Mapping[str, Any] | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Publication:
    """Publish bundles and their evaluation reports to a model repository, in one commit.

    Args:
        bundles: One or several bundles, opened or by folder. Empty for the last converted one.
        repo: The model repository on the Hub.
        to: A plain folder instead.
        create: Create the repository if it does not exist.
        private: Create it as a private one.
        revision: Branch to commit to. None for the main branch.
        pr: Open a pull request instead of committing.
        tag: Name for this release.
        adopt: Take over a repository that another tool laid out.
        reports: Folder of the evaluation runs. None for `evaluations`, where it exists.
        reports_repo: A dataset repository for the reports.
        with_transcripts: Publish `report.html` too, which contains the texts of the dataset.
        require: Datasets on which every bundle must have been evaluated.
        allow_unproven: Reason for publishing what lacks a proof. It is shown in the model card.
        device_table: A device table to use as it is: a JSON file or its content.
        dry_run: Return the plan and change nothing.
        progress: Receives notes.

    Raises:
        OptionsError: The options contradict each other.
        PublishError: A bundle is not proved, or the repository refuses the change.

    Example:
        >>> import whisperkit_tools as wkt
        >>> done = wkt.publish("bundles/acme_whisper-demo", to="registry/")
        >>> done.plan.variants
        ('acme_whisper-demo',)
        >>> done.commit is not None
        True
    """
    progress = progress or SilentProgress()
    _check_places(repo, to, revision, reports_repo)
    if allow_unproven is not None and not allow_unproven.strip():
        raise OptionsError(f"{option('allow_unproven')} needs a reason: everybody who reads the card sees it")
    registry = _registry(repo, to, revision)
    options = PublishOptions(
        create=create or to is not None,
        private=private,
        pull_request=pr,
        tag=tag,
        adopt=adopt,
        device_table=_device_table(device_table),
        with_transcripts=with_transcripts,
    )
    opened = as_bundles(bundles) or [as_bundle(None)]
    checked = _check_bundles(opened, reports, _datasets(require), allow_unproven, progress)
    apart = None if reports_repo is None else HubRegistry(reports_repo, repo_type="dataset")
    return publishing.publish(checked, registry, options, reports_registry=apart, dry_run=dry_run)


def _check_places(repo: object, to: object, revision: str | None, reports_repo: str | None) -> None:
    """Check that one place to publish to is named.

    Raises:
        OptionsError: None is named, or the options contradict each other.
    """
    if (repo is None) == (to is None):
        raise OptionsError(
            f"name one place to publish to: {option('repo', 'ORG/NAME')}, or {option('to', 'DIR')} for a folder"
        )
    if to is not None and revision is not None:
        raise OptionsError(
            f"{option('revision')} names a branch, and a folder has no branches; omit it, or use {option('repo')}"
        )
    if reports_repo is not None and reports_repo == repo:
        raise OptionsError(
            f"{option('reports_repo')} must be another repository than {option('repo')}; omit it to keep the reports "
            "there"
        )


def _registry(repo: str | Registry | None, to: str | Path | Registry | None, revision: str | None) -> Registry:
    if to is not None:
        return FolderRegistry(Path(to)) if isinstance(to, (str, Path)) else to
    return HubRegistry(repo or "", revision=revision) if isinstance(repo, str) or repo is None else repo


def _datasets(require: str | Sequence[str]) -> list[str]:
    return [name for word in as_tuple(require) for name in word.split(",") if name]


def _device_table(table: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return a device table that was given or is in a file.

    Raises:
        OptionsError: The file does not exist or is not JSON.
    """
    if table is None or isinstance(table, Mapping):
        return table
    try:
        content: Mapping[str, Any] = read_json_value(
            Path(table), OptionsError, f"choose another {option('device_table')}"
        )
    except FileNotFoundError:
        raise OptionsError(f"{option('device_table')}: {table} does not exist") from None
    return content


def _check_bundles(
    bundles: Sequence[Bundle],
    reports: str | Path | None,
    required: Sequence[str],
    allow_unproven: str | None,
    progress: Progress,
) -> list[PublishableBundle]:
    """Check that the bundles may be published. Reports that the user named must be about them."""
    where = DEFAULT_ROOT if reports is None else Path(reports)
    found = [check_bundle(bundle, where, required, allow_unproven=allow_unproven) for bundle in bundles]
    if reports is not None:
        for line in check_reports(where, found):
            progress.note(line)
    return found


def pull(
    repo: str | Path | Registry,
    variant: str,
    *,
    revision: str | None = None,
    output_dir: str | Path = DEFAULT_BUNDLES_DIR,
    force: bool = False,
    progress: Progress | None = None,
) -> Pulled:
    """Download a published variant and verify every file.

    Args:
        repo: A repository on the Hub (`ORG/NAME`), or a folder that bundles were published to.
        variant: Name of the variant.
        revision: A tag or a commit. None for the present state.
        output_dir: The folder that holds bundles.
        force: Replace an existing bundle.
        progress: Receives the bytes that are done.

    Raises:
        PublishError: There is no such variant, or a file is not what was published.
        BundleError: The bundle exists already.

    Example:
        >>> import whisperkit_tools as wkt
        >>> published = wkt.publish("bundles/acme_whisper-demo", to="registry/")
        >>> wkt.pull("registry/", "acme_whisper-demo", output_dir="pulled").path.name
        'acme_whisper-demo'
    """
    return pulling.pull(
        open_registry(repo), variant, Path(output_dir), revision=revision, force=force, progress=progress
    )


def unpublish(
    repo: str | Path | Registry,
    variant: str,
    *,
    revision: str | None = None,
    pr: bool = False,
    dry_run: bool = False,
) -> Publication:
    """Remove a variant from a repository and keep its history.

    Args:
        repo: A repository on the Hub (`ORG/NAME`), or a folder that bundles were published to.
        variant: Name of the variant.
        revision: Branch to commit to. None for the main branch.
        pr: Open a pull request instead of committing.
        dry_run: Return the plan and change nothing.

    Raises:
        PublishError: There is no such variant, or the repository refuses the change.
    """
    registry = open_registry(repo, revision=revision)
    return publishing.withdraw(registry, variant, pull_request=pr, dry_run=dry_run)


def list_variants(repo: str | Path | Registry, *, revision: str | None = None) -> list[dict[str, Any]]:
    """Return a repository's variants with their versions, one row for each variant.

    Raises:
        PublishError: The repository cannot be read.
    """
    return index.list_variants(open_registry(repo), revision)


def compare_variants(
    repo: str | Path | Registry, first: str, second: str, *, revision: str | None = None
) -> list[dict[str, Any]]:
    """Return the figures of two published variants side by side, one row for each figure.

    Raises:
        PublishError: The repository does not have one of them.
    """
    return index.compare_versions(open_registry(repo), first, second, revision)
