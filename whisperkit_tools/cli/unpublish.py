"""`wkt unpublish`: a variant out of a repository's folder, table, card and index."""

import json

import click


@click.command()
@click.argument("repo")
@click.argument("variant")
@click.option("--revision", metavar="BRANCH", help="The branch to commit to [default: main].")
@click.option("--pr", "pull_request", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--dry-run", is_flag=True, help="Show exactly what would be changed and deleted.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(repo: str, variant: str, revision: str | None, pull_request: bool, dry_run: bool, as_json: bool) -> None:
    """Remove a variant from a repository and keep its history.

    Its files, its row in the card and its place in the device table go; the index remembers its versions, and on the
    Hub earlier commits and tags still have its files.
    """
    from datetime import UTC, datetime

    from whisperkit_tools.cli.registries import open_registry, plan_json, show_plan
    from whisperkit_tools.publishing.publish import Plan, PublishOptions, carry_out, plan_withdrawal

    registry = open_registry(repo, revision=revision)
    now = datetime.now(UTC).isoformat(timespec="seconds")

    def make_plan() -> Plan:
        return plan_withdrawal(registry, variant, now)

    plan, commit = make_plan(), None
    if not dry_run:
        outcome = carry_out(registry, make_plan, PublishOptions(pull_request=pull_request))
        plan, commit = outcome.plan, outcome.commit
    if as_json:
        click.echo(json.dumps({**plan_json(plan), "commit": commit.id if commit else None}, indent=2))
        return
    show_plan(plan)
    if commit is not None:
        click.echo(commit.pull_request or commit.url)
