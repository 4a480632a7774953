"""`wkt pull`: a published variant as a bundle."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("repo")
@click.argument("variant")
@click.option("--revision", help="A tag or a commit [default: what is there now].")
@click.option("-o", "--output-dir", type=click.Path(path_type=Path), default=Path("bundles"), show_default=True,
              help="The folder that holds bundles.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(repo: str, variant: str, revision: str | None, output_dir: Path, force: bool, as_json: bool) -> None:
    """Download a published variant and verify every file.

    REPO is ORG/NAME on the Hub, or a folder that `wkt publish --to` made. The bundle appears only when size and hash of
    every file are right; `wkt transcribe --bundle` runs it.
    """
    from dataclasses import asdict

    from whisperkit_tools.cli.registries import open_registry, shown_size
    from whisperkit_tools.publishing.pull import pull

    def report(path: str, size_bytes: int) -> None:
        click.echo(f"{shown_size(size_bytes):>10}  {path}", err=True)

    pulled = pull(open_registry(repo), variant, output_dir, revision=revision, force=force, progress=report)
    if as_json:
        click.echo(json.dumps({**asdict(pulled), "path": str(pulled.path)}, indent=2))
        return
    if not pulled.has_manifest:
        click.echo("this variant was made by another tool: its files have no hashes of their own to compare", err=True)
    if not pulled.runs_here:
        click.echo("its models are compiled ones, which run on Apple's systems only; wkt cannot run them", err=True)
    click.echo(str(pulled.path))
