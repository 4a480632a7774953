"""`wkt unpublish`: a variant out of a repository's folder, table, card and index."""

from typing import Any

import click

from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show, show_json
from whisperkit_tools.cli.publish import publication_json, show_plan


@click.command()
@click.argument("repo")
@click.argument("variant")
@options.branch
@options.pull_request
@options.dry_run
@options.json_output
def command(repo: str, variant: str, as_json: bool, **chosen: Any) -> None:
    """Remove a variant from a repository and keep its history.

    Its files, its row in the model card and its entries in the device table are removed. The index keeps its versions,
    and on the Hub earlier commits and tags keep its files.
    """
    from whisperkit_tools.pipeline.publish import unpublish

    done = unpublish(repo, variant, **chosen)
    if as_json:
        show_json({**publication_json(done), "commit": done.commit.id if done.commit else None})
        return
    show_plan(done.plan)
    if done.commit is not None:
        show(done.commit.pull_request or done.commit.url)
