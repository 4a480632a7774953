"""Publishing and withdrawing variants, in one commit each.

When somebody else commits in between, the plan is made again on the new state, unless both change the same variant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from whisperkit_tools.errors import PublishError
from whisperkit_tools.publishing.eligibility import PublishableBundle
from whisperkit_tools.publishing.options import PublishOptions
from whisperkit_tools.publishing.publication_plan import (
    PublicationPlan,
    plan_publication,
    plan_reports,
    plan_withdrawal,
    without_reports,
)
from whisperkit_tools.publishing.registry.base import Commit, ConflictError, Registry
from whisperkit_tools.publishing.reports import split_reports

MAX_REBASES = 4


@dataclass(frozen=True, slots=True)
class Publication:
    """A change of a repository.

    Attributes:
        label: The repository, for people.
        plan: The files that are added, changed and deleted.
        commit: The commit, or None for a dry run and where nothing had to change.
        rebased: How often the plan was made again because somebody else had committed.
        reports: The change of the repository for reports, where there is one of its own.
    """

    label: str
    plan: PublicationPlan
    commit: Commit | None = None
    rebased: int = 0
    reports: "Publication | None" = None


def publish(
    bundles: Sequence[PublishableBundle],
    registry: Registry,
    options: PublishOptions | None = None,
    *,
    reports_registry: Registry | None = None,
    dry_run: bool = False,
    clock: Callable[[], datetime] | None = None,
) -> Publication:
    """Publish bundles with their reports.

    Args:
        bundles: Bundles that `eligibility.check_bundle` returned.
        registry: The registry to publish to.
        options: How to publish.
        reports_registry: A registry for the reports, which is changed first. None keeps them beside the bundles.
        dry_run: Return the plan and change nothing.
        clock: Returns the time to record; the current time in UTC when None.

    Raises:
        PublishError: A registry refuses, or somebody else changed the same variant.
        OptionsError: The options do not fit the registry.
    """
    options, now = options or PublishOptions(), _now(clock)

    def make_plan() -> PublicationPlan:
        return plan_publication(registry, bundles, options, now)

    if reports_registry is None:
        return _done(registry, make_plan, options, dry_run=dry_run)
    plan, untagged = make_plan(), replace(options, tag=None)
    change = split_reports(plan.change)[1]
    reports = _done(
        reports_registry, lambda: plan_reports(reports_registry, change, untagged), untagged, dry_run=dry_run
    )
    done = _done(registry, lambda: without_reports(make_plan()), options, dry_run=dry_run)
    return replace(done, reports=reports)


def withdraw(
    registry: Registry,
    variant: str,
    *,
    pull_request: bool = False,
    dry_run: bool = False,
    clock: Callable[[], datetime] | None = None,
) -> Publication:
    """Remove a variant from folder, table, card and index of a repository. The index keeps its versions.

    Args:
        registry: The registry that has it.
        variant: Its name.
        pull_request: Propose the change instead of making it.
        dry_run: Return the plan and change nothing.
        clock: Returns the time to record; the current time in UTC when None.

    Raises:
        PublishError: There is no such variant, or the registry refuses.
    """
    options, now = PublishOptions(pull_request=pull_request), _now(clock)
    return _done(registry, lambda: plan_withdrawal(registry, variant, now), options, dry_run=dry_run)


def _done(
    registry: Registry, make_plan: Callable[[], PublicationPlan], options: PublishOptions, *, dry_run: bool
) -> Publication:
    return Publication(registry.label, make_plan()) if dry_run else commit_with_retry(registry, make_plan, options)


def commit_with_retry(
    registry: Registry, make_plan: Callable[[], PublicationPlan], options: PublishOptions
) -> Publication:
    """Commit a plan. Make it again when the repository has changed since.

    Args:
        registry: The registry to change.
        make_plan: Makes the plan on the present state.
        options: How to publish.

    Raises:
        PublishError: The registry refuses, or somebody else changed the same variant.
    """
    plan = make_plan()  # refuses what may not be published before a repository is made for it
    if options.create and plan.snapshot.commit is None:
        registry.create(private=options.private)
        plan = make_plan()
    for rebased in range(MAX_REBASES):
        if plan.is_empty:
            _set_missing_tag(registry, plan, options.tag)
            return Publication(registry.label, plan, None, rebased)
        try:
            commit = registry.commit(plan.change, plan.snapshot, pull_request=options.pull_request)
            return Publication(registry.label, plan, commit, rebased)
        except ConflictError:
            newer = make_plan()
            _check_overlap(registry, plan, newer)
            plan = newer
    raise PublishError(f"{registry.label} changes faster than this can be committed; try again when it is quiet")


def _set_missing_tag(registry: Registry, plan: PublicationPlan, tag: str | None) -> None:
    """Set the tag that an interrupted command did not set."""
    if tag is not None and plan.snapshot.commit is not None and tag not in registry.tags():
        registry.set_tag(tag, plan.snapshot.commit)


def _check_overlap(registry: Registry, ours: PublicationPlan, newer: PublicationPlan) -> None:
    """Refuse when somebody else committed other content of the same variant."""
    for name in ours.variants:
        before = {path: item for path, item in ours.snapshot.files.items() if path.startswith(f"{name}/")}
        after = {path: item for path, item in newer.snapshot.files.items() if path.startswith(f"{name}/")}
        mine = {path for path in (*newer.added, *newer.changed, *newer.deleted) if path.startswith(f"{name}/")}
        if before != after and mine:
            raise PublishError(
                f"{name} was changed in {registry.label} by somebody else while this was uploaded: they committed "
                f"{_short(newer)}, this started from {_short(ours)} and differs in {len(mine)} files; look at theirs "
                "(`wkt pull`), then publish again"
            )


def _short(plan: PublicationPlan) -> str:
    return (plan.snapshot.commit or "nothing")[:12]


def _now(clock: Callable[[], datetime] | None) -> str:
    return (clock() if clock else datetime.now(UTC)).isoformat(timespec="seconds")
