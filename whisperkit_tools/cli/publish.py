"""`wkt publish`: proved bundles into a model repository."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from whisperkit_tools.publishing.eligibility import Evidence
    from whisperkit_tools.publishing.publish import Plan
    from whisperkit_tools.publishing.registry.base import Commit, Registry

DEFAULT_REPORTS = Path("evaluations")


@click.command()
@click.argument("bundles", nargs=-1, metavar="[BUNDLE...]", type=click.Path(path_type=Path))
@click.option("--repo", metavar="ORG/NAME", help="The model repository on the Hub (HF_ENDPOINT names a mirror).")
@click.option("--to", "folder", type=click.Path(path_type=Path, file_okay=False), help="A plain folder instead.")
@click.option("--create", is_flag=True, help="Make the repository when it is not there.")
@click.option("--private", is_flag=True, help="Make it private.")
@click.option("--revision", metavar="BRANCH", help="The branch to commit to [default: main].")
@click.option("--pr", "pull_request", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--tag", help="A name for this release.")
@click.option("--adopt", is_flag=True, help="Take over a repository that another tool laid out.")
@click.option("--reports", type=click.Path(path_type=Path, file_okay=False),
              help="Where `wkt evaluate` put its runs [default: evaluations, where it is there].")  # fmt: skip
@click.option("--reports-repo", metavar="ORG/NAME", help="A dataset repository for the reports.")
@click.option("--with-transcripts", is_flag=True, help="Publish report.html too, which shows the datasets' texts.")
@click.option(
    "--require", metavar="DATASET[,...]", default="", help="Datasets whose evaluation every bundle must have."
)
@click.option("--allow-unproven", metavar="REASON", help="Publish what lacks a proof; the reason goes into the card.")
@click.option("--device-table", type=click.Path(path_type=Path, dir_okay=False), help="A config.json to take as it is.")
@click.option("--dry-run", is_flag=True, help="Show exactly what would be added, changed and deleted.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(bundles: tuple[Path, ...], repo: str | None, folder: Path | None, revision: str | None, dry_run: bool,
            as_json: bool, reports: Path | None, reports_repo: str | None, require: str, allow_unproven: str | None,
            device_table: Path | None, **how: Any) -> None:  # fmt: skip
    """Publish bundles and their evaluation reports to a model repository.

    Without BUNDLE the one made last. A bundle is published only if its manifest proves it: every hash matches,
    contract and parity are verified, and a compressed one has passed its quality gate. Each publication is one commit;
    publishing the same again makes none. --to DIR keeps the same layout in a plain folder.
    """
    from dataclasses import replace
    from datetime import UTC, datetime

    from whisperkit_tools.cli.registries import show_plan
    from whisperkit_tools.publishing.publish import PublishOptions, plan_publication

    _check_usage(repo, folder, revision, reports_repo, allow_unproven)
    registry, apart = _registries(repo, folder, revision, reports_repo)
    options = PublishOptions(**how, device_table=_read_table(device_table))
    options = replace(options, create=options.create or folder is not None)
    evidence = _evidence(bundles, reports, [name for name in require.split(",") if name], allow_unproven)
    now = datetime.now(UTC).isoformat(timespec="seconds")

    def make_plan() -> "Plan":
        return plan_publication(registry, evidence, options, now)

    done = _plans(make_plan, apart, options) if dry_run else _publish(registry, make_plan, apart, options)
    if as_json:
        click.echo(json.dumps(_as_json(done), indent=2))
        return
    for label, plan, commit in done:
        if len(done) > 1:
            click.echo(f"{label}:")
        show_plan(plan)
        if commit is not None:
            click.echo(commit.pull_request or commit.url)
        elif not dry_run:
            click.echo(f"{label} has all of this already; no commit was made")


def _check_usage(repo: str | None, folder: Path | None, revision: str | None, reports_repo: str | None,
                 allow_unproven: str | None) -> None:  # fmt: skip
    if (repo is None) == (folder is None):
        raise click.UsageError("say where to publish: --repo ORG/NAME, or --to DIR")
    if folder is not None and revision is not None:
        raise click.UsageError("--revision names a branch, and a folder has none; leave it away, or use --repo")
    if reports_repo is not None and reports_repo == repo:
        raise click.UsageError("--reports-repo is another repository than --repo; leave it away to keep reports there")
    if allow_unproven is not None and not allow_unproven.strip():
        raise click.UsageError("--allow-unproven needs a reason: it is shown to everybody who reads the card")


def _registries(
    repo: str | None, folder: Path | None, revision: str | None, reports_repo: str | None
) -> tuple["Registry", "Registry | None"]:
    from whisperkit_tools.publishing.registry.folder import FolderRegistry
    from whisperkit_tools.publishing.registry.hub import HubRegistry

    registry = FolderRegistry(folder) if folder is not None else HubRegistry(repo or "", revision=revision)
    return registry, HubRegistry(reports_repo, repo_type="dataset") if reports_repo is not None else None


def _evidence(bundles: tuple[Path, ...], reports: Path | None, required: list[str], allow_unproven: str | None
              ) -> list["Evidence"]:  # fmt: skip
    """The bundles with their proofs; reports that were named must be about them."""
    from whisperkit_tools.bundle import Bundle, find_bundle
    from whisperkit_tools.errors import BundleError
    from whisperkit_tools.publishing.eligibility import check_reports, examine

    try:
        opened = [Bundle.open(path) for path in bundles] or [find_bundle()]
    except BundleError as error:
        raise BundleError(str(error).replace("with --bundle", "as BUNDLE")) from None
    where = reports or DEFAULT_REPORTS
    evidence = [examine(bundle, where, required, allow_unproven=allow_unproven) for bundle in opened]
    if reports is not None:
        for line in check_reports(reports, evidence):
            click.echo(line, err=True)
    return evidence


def _plans(make_plan: Any, apart: "Registry | None", options: Any) -> list[tuple[str, "Plan", None]]:
    """What would be done, repository by repository."""
    from whisperkit_tools.publishing.publish import plan_reports, without_reports
    from whisperkit_tools.publishing.reports import split_reports

    plan = make_plan()
    if apart is None:
        return [("the repository", plan, None)]
    reports = split_reports(plan.change)[1]
    return [(apart.label, plan_reports(apart, reports, options), None), ("the repository", without_reports(plan), None)]


def _publish(
    registry: "Registry", make_plan: Any, apart: "Registry | None", options: Any
) -> list[tuple[str, "Plan", "Commit | None"]]:
    """Commit, the reports first where they go into a repository of their own."""
    from dataclasses import replace

    from whisperkit_tools.publishing.publish import carry_out, plan_reports, without_reports
    from whisperkit_tools.publishing.reports import split_reports

    done = []
    if apart is not None:
        reports, quiet = split_reports(make_plan().change)[1], replace(options, tag=None)
        outcome = carry_out(apart, lambda: plan_reports(apart, reports, quiet), quiet)
        done.append((apart.label, outcome.plan, outcome.commit))
    make = make_plan if apart is None else lambda: without_reports(make_plan())
    outcome = carry_out(registry, make, options)
    return [*done, (registry.label, outcome.plan, outcome.commit)]


def _as_json(done: Any) -> dict[str, Any]:
    from whisperkit_tools.cli.registries import plan_json

    found = [{**plan_json(plan), "commit": _commit_json(commit)} for _, plan, commit in done]
    return found[0] if len(found) == 1 else {**found[1], "reports": found[0]}


def _commit_json(commit: "Commit | None") -> dict[str, Any] | None:
    return None if commit is None else {"id": commit.id, "url": commit.url, "pull_request": commit.pull_request}


def _read_table(path: Path | None) -> Any:
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise click.BadParameter(f"{path} is not there", param_hint="--device-table") from error
    except ValueError as error:
        raise click.BadParameter(f"{path} is not JSON: {error}", param_hint="--device-table") from error
