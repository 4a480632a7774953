"""The plan of a publication: which files of a repository one commit adds, changes and deletes.

A plan is made from the repository's present state and the bundles at hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from whisperkit_tools.errors import OptionsError, PublishError, option
from whisperkit_tools.publishing.card import CARD
from whisperkit_tools.publishing.device_table import TABLE
from whisperkit_tools.publishing.eligibility import PublishableBundle
from whisperkit_tools.publishing.index import INDEX, Index
from whisperkit_tools.publishing.options import PublishOptions
from whisperkit_tools.publishing.registry.base import Content, Registry, RegistryChange, Snapshot
from whisperkit_tools.publishing.reports import REPORTS, report_files, split_reports
from whisperkit_tools.publishing.repository_files import RepositoryState, published_version, shared_files
from whisperkit_tools.publishing.size_quality_chart import CHART
from whisperkit_tools.publishing.variant_names import check_globs, check_together, variants_of
from whisperkit_tools.terminal_text import printable


@dataclass(frozen=True, slots=True)
class PublicationPlan:
    """The effect of a commit.

    Attributes:
        snapshot: The state that it starts from.
        added: New files with their sizes.
        changed: Files with new content, with their new sizes.
        deleted: Deleted files with their sizes.
        unchanged: Number of files that stay as they are.
        variants: The variants that are published or withdrawn.
        change: The content of the commit.
    """

    snapshot: Snapshot
    added: Mapping[str, int]
    changed: Mapping[str, int]
    deleted: Mapping[str, int]
    unchanged: int
    variants: tuple[str, ...]
    change: RegistryChange

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.added or self.changed or self.deleted)


def plan_publication(
    registry: Registry, bundles: Sequence[PublishableBundle], options: PublishOptions, now: str
) -> PublicationPlan:
    """Plan the publication of bundles.

    Args:
        registry: The registry to publish to.
        bundles: The checked bundles.
        options: How to publish.
        now: ISO 8601 UTC.

    Raises:
        PublishError: The registry does not exist, belongs to another tool, or has the tag for another state.
        OptionsError: A bundle is given twice.
    """
    snapshot = registry.snapshot()
    if snapshot.commit is None and not options.create:
        raise PublishError(f"{registry.absent}; make it with {option('create', True)}")
    _check_owner(registry, snapshot, adopt=options.adopt)
    names = [item.name for item in bundles]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OptionsError(f"{', '.join(twice)}: given twice; a repository holds one variant of a name")
    before = Index.parse(registry.read(INDEX, snapshot))
    index = before
    for item in bundles:
        index = index.published(published_version(item, options, now))
    state = RepositoryState(registry, snapshot, before, index, {item.name: item for item in bundles})
    check_together({*variants_of(snapshot.files), *names})
    plan = _plan(state, options, _title(state))
    _check_tag(registry, plan, options.tag)
    return plan


def plan_withdrawal(registry: Registry, variant: str, now: str) -> PublicationPlan:
    """Plan the removal of a variant from folder, table, card and index.

    Raises:
        PublishError: There is no such variant.
    """
    snapshot = registry.snapshot()
    if snapshot.commit is None:
        raise PublishError(registry.absent)
    _check_owner(registry, snapshot, adopt=False)
    before = Index.parse(registry.read(INDEX, snapshot))
    is_foreign = before.current(variant) is None and variant in variants_of(snapshot.files)  # adopted, in no index
    index = before if is_foreign else before.without(variant, now)
    state = RepositoryState(registry, snapshot, before, index, {}, withdrawn=frozenset({variant}))
    return _plan(state, PublishOptions(), f"Withdraw {variant}")


def plan_reports(registry: Registry, reports: RegistryChange, options: PublishOptions) -> PublicationPlan:
    """Plan the publication of reports in a repository of their own.

    Raises:
        PublishError: The repository does not exist.
    """
    snapshot = registry.snapshot()
    if snapshot.commit is None and not options.create:
        raise PublishError(f"{registry.absent}; make it with {option('create', True)}")
    return _difference(snapshot, reports.additions, set(), (), reports)


def without_reports(plan: PublicationPlan) -> PublicationPlan:
    """Return a plan without its reports, which are published elsewhere."""
    return replace(
        plan,
        added={path: size for path, size in plan.added.items() if not path.startswith(f"{REPORTS}/")},
        changed={path: size for path, size in plan.changed.items() if not path.startswith(f"{REPORTS}/")},
        change=split_reports(plan.change)[0],
    )


def _check_owner(registry: Registry, snapshot: Snapshot, *, adopt: bool) -> None:
    """Refuse to rewrite a repository of another tool without being asked to."""
    if INDEX in snapshot.files or adopt:
        return
    foreign = sorted(variants_of(snapshot.files)) or [name for name in (TABLE, CARD) if name in snapshot.files]
    if foreign:
        shown = printable(", ".join(foreign[:3])) + (", ..." if len(foreign) > 3 else "")
        raise PublishError(
            f"{registry.label} was not laid out by wkt (it holds {shown} and no {INDEX}); to add to it and keep "
            f"its card, table and variants in order from now on, publish with {option('adopt', True)}"
        )


def _check_tag(registry: Registry, plan: PublicationPlan, tag: str | None) -> None:
    """Refuse a tag that names another state, before anything is uploaded."""
    if tag is None or plan.snapshot.commit is None:
        return
    commit = registry.tags().get(tag)
    if commit is not None and (commit != plan.snapshot.commit or not plan.is_empty):
        raise PublishError(
            f"{registry.label} has a tag {tag!r} already, for {commit[:12]}; choose another name for this release"
        )


def _title(state: RepositoryState) -> str:
    names = list(state.bundles)
    what = names[0] if len(names) == 1 else f"{len(names)} variants"
    known = set(variants_of(state.snapshot.files))
    return f"{'Update' if set(names) <= known else 'Publish'} {what}"


def _plan(state: RepositoryState, options: PublishOptions, title: str) -> PublicationPlan:
    """Compare the wanted state with the present one."""
    wanted: dict[str, Content] = {}
    for name, item in state.bundles.items():
        wanted |= {f"{name}/{path}": file for path, file in item.files().items()}
        wanted |= report_files(item, with_transcripts=options.with_transcripts)
    wanted |= shared_files(state, options.device_table)
    deletions = _outdated(state, wanted)
    check_globs(state.variants(), {*wanted, *state.snapshot.files} - deletions)
    change = RegistryChange({}, title=title, description=_description(state), tag=options.tag)
    return _difference(state.snapshot, wanted, deletions, (*state.bundles, *sorted(state.withdrawn)), change)


def _outdated(state: RepositoryState, wanted: Mapping[str, Content]) -> set[str]:
    """Return the files to delete: those that left their bundle, withdrawn variants, a chart without figures."""
    folders = tuple(f"{name}/" for name in (*state.bundles, *state.withdrawn))
    stale = {path for path in state.snapshot.files if path.startswith(folders) and path not in wanted}
    drawn = CHART in state.snapshot.files and INDEX in state.snapshot.files
    return stale | ({CHART} if drawn and CHART not in wanted else set())


def _difference(snapshot: Snapshot, wanted: Mapping[str, Content], deletions: set[str], variants: Sequence[str],
                change: RegistryChange) -> PublicationPlan:  # fmt: skip
    """Return the plan after which a repository holds `wanted`."""
    files = snapshot.files
    fresh = {path: content for path, content in wanted.items() if path not in files or not files[path].holds(content)}
    return PublicationPlan(
        snapshot=snapshot,
        added={path: _size(content) for path, content in sorted(fresh.items()) if path not in files},
        changed={path: _size(content) for path, content in sorted(fresh.items()) if path in files},
        deleted={path: files[path].size_bytes for path in sorted(deletions)},
        unchanged=len(files) - len(deletions) - sum(path in files for path in fresh),
        variants=tuple(variants),
        change=replace(change, additions=fresh, deletions=frozenset(deletions)),
    )


def _size(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _description(state: RepositoryState) -> str:
    lines = []
    for name in state.bundles:
        version = state.index.current(name)
        if version is not None:
            before = f", supersedes {version.supersedes[:12]}" if version.supersedes else ""
            lines.append(f"{name}: {version.size_bytes / 1e6:.1f} MB, content {version.content[:12]}{before}")
    return "\n".join(lines)
