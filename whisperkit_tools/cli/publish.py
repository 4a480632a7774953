"""`wkt publish`: proved bundles into a model repository."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from whisperkit_tools.publish.proof import Evidence
    from whisperkit_tools.publish.publication import Outcome, Plan
    from whisperkit_tools.publish.registry import Registry


@click.command(short_help="Publish bundles with their reports to a model repository.")
@click.argument("bundles", nargs=-1, metavar="[BUNDLE...]", type=click.Path(path_type=Path))
@click.option("--repo", metavar="ORG/NAME", help="The model repository on the Hub (HF_ENDPOINT names a mirror).")
@click.option("--to", "folder", type=click.Path(path_type=Path, file_okay=False), help="A plain folder instead.")
@click.option("--create", is_flag=True, help="Make the repository when it is not there.")
@click.option("--private", is_flag=True, help="Make it private.")
@click.option("--revision", metavar="BRANCH", help="The branch to commit to [default: main].")
@click.option("--pr", "pull_request", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--tag", help="A name for this release.")
@click.option("--adopt", is_flag=True, help="Take over a repository that another tool laid out.")
@click.option("--reports", type=click.Path(path_type=Path, file_okay=False), default=Path("evaluations"),
              show_default=True, help="Where `wkt evaluate` put its runs.")  # fmt: skip
@click.option("--reports-repo", metavar="ORG/NAME", help="A dataset repository for the reports.")
@click.option("--with-transcripts", is_flag=True, help="Publish report.html too, which shows the datasets' texts.")
@click.option(
    "--require", metavar="DATASET[,...]", default="", help="Datasets whose evaluation every bundle must have."
)
@click.option("--allow-unproven", metavar="REASON", help="Publish what lacks a proof; the reason goes into the card.")
@click.option("--device-table", type=click.Path(path_type=Path, dir_okay=False), help="A config.json to take as it is.")
@click.option("--dry-run", is_flag=True, help="Show exactly what would be added, changed and deleted.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(bundles: tuple[Path, ...], repo: str | None, folder: Path | None, dry_run: bool, as_json: bool,
            reports: Path, reports_repo: str | None, require: str, allow_unproven: str | None,
            device_table: Path | None, **how: Any) -> None:  # fmt: skip
    """Publish bundles with their reports to a model repository.

    Without BUNDLE the one made last. A bundle is published only if its manifest proves it: every hash matches,
    contract and parity are verified, and a compressed one has passed its quality gate. Each publication is one commit;
    publishing the same again makes none. --to DIR keeps the same layout in a plain folder.
    """
    from datetime import UTC, datetime

    from whisperkit_tools.bundle import Bundle, find_bundle
    from whisperkit_tools.cli.registries import open_registry, plan_json, show_plan
    from whisperkit_tools.publish.publication import PublishOptions, plan_publication

    revision = how.pop("revision")
    if (repo is None) == (folder is None):
        raise click.UsageError("say where to publish: --repo ORG/NAME, or --to DIR")
    if allow_unproven is not None and not allow_unproven.strip():
        raise click.UsageError("--allow-unproven needs a reason: it is shown to everybody who reads the card")
    registry = _folder(folder) if folder else open_registry(repo or "", revision=revision)
    options = PublishOptions(**{**how, "create": how["create"] or folder is not None},
                             device_table=_read_table(device_table))  # fmt: skip
    required = [name for name in require.split(",") if name]
    opened = [Bundle.open(path) for path in bundles] or [find_bundle()]
    evidence = [_examine(bundle, reports, required, allow_unproven) for bundle in opened]
    now = datetime.now(UTC).isoformat(timespec="seconds")

    def make_plan() -> "Plan":
        return plan_publication(registry, evidence, options, now)

    if dry_run:
        plan = make_plan()
        click.echo(json.dumps(plan_json(plan), indent=2)) if as_json else show_plan(plan)
        return
    outcome = _publish(registry, make_plan, options, reports_repo)
    if as_json:
        commit = outcome.commit
        made = None if commit is None else {"id": commit.id, "url": commit.url, "pull_request": commit.pull_request}
        click.echo(json.dumps({**plan_json(outcome.plan), "commit": made}, indent=2))
        return
    show_plan(outcome.plan)
    if outcome.commit is None:
        click.echo(f"{registry.label} has all of this already; no commit was made")
    else:
        click.echo(outcome.commit.pull_request or outcome.commit.url)


def _folder(folder: Path) -> "Registry":
    from whisperkit_tools.publish.folder import FolderRegistry

    return FolderRegistry(folder)


def _examine(bundle: Any, reports: Path, required: list[str], allow_unproven: str | None) -> "Evidence":
    from whisperkit_tools.publish.proof import examine

    return examine(bundle, reports, required, allow_unproven=allow_unproven)


def _publish(registry: "Registry", make_plan: Any, options: Any, reports_repo: str | None) -> "Outcome":
    """Commit, with the reports in a repository of their own where that was asked for."""
    from whisperkit_tools.cli.registries import open_registry
    from whisperkit_tools.publish.publication import carry_out, publish_reports, with_reports_apart

    if reports_repo is None:
        return carry_out(registry, make_plan, options)
    apart = open_registry(reports_repo, repo_type="dataset")
    _, change = with_reports_apart(make_plan())
    publish_reports(apart, change, options)
    return carry_out(registry, lambda: with_reports_apart(make_plan())[0], options)


def _read_table(path: Path | None) -> Any:
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise click.BadParameter(f"{path} is not there", param_hint="--device-table") from error
    except ValueError as error:
        raise click.BadParameter(f"{path} is not JSON: {error}", param_hint="--device-table") from error
