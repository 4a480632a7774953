"""`wkt pull`: a published variant as a bundle."""

from dataclasses import asdict
from typing import Any

import click

import whisperkit_tools as wkt
from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show, show_json
from whisperkit_tools.cli.progress import ConsoleProgress


@click.command()
@click.argument("repo")
@click.argument("variant")
@click.option("--revision", help="Tag or commit to download.  [default: the present state]")
@options.output_bundles
@options.force
@options.json_output
def command(repo: str, variant: str, as_json: bool, **chosen: Any) -> None:
    """Download a published variant and verify every file.

    REPO is ORG/NAME on the Hub, or a folder that `wkt publish --to` made. The bundle appears only when size and hash of
    every file are correct. `wkt transcribe --bundle` runs it.
    """
    with ConsoleProgress() as progress:
        pulled = wkt.pull(repo, variant, **chosen, progress=progress)
    if as_json:
        show_json({**asdict(pulled), "path": str(pulled.path)})
        return
    if not pulled.has_manifest:
        click.echo("another tool made this variant: its files have no hashes of their own to compare", err=True)
    if not pulled.runs_here:
        click.echo("its models are compiled and run on Apple's systems only; wkt cannot run them", err=True)
    show(pulled.path)
