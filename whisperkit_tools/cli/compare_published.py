"""`wkt compare-published`: two variants of a repository side by side."""

import json

import click


@click.command("compare-published")
@click.argument("repo")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--revision", help="A branch, a tag or a commit [default: what is there now].")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def command(repo: str, first: str, second: str, revision: str | None, as_json: bool) -> None:
    """Compare two published variants by size, accuracy and speed.

    A and B are names of variants, or contents as `wkt versions` shows them (the first characters are enough).
    """
    from whisperkit_tools.cli.registries import open_registry
    from whisperkit_tools.publishing.listing import compare
    from whisperkit_tools.publishing.registry.base import printable

    rows = compare(open_registry(repo), first, second, revision)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    wide = max(12, len(first)), max(12, len(second))
    click.echo(f"{'':<32}  {first:>{wide[0]}}  {second:>{wide[1]}}  {'difference':>12}")
    for row in rows:
        cells = ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("first", "second", "difference")]
        click.echo(f"{printable(row['figure']):<32}  {cells[0]:>{wide[0]}}  {cells[1]:>{wide[1]}}  {cells[2]:>12}")
