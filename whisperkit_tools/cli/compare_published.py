"""`wkt compare-published`: two variants of a repository side by side."""

import click

from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show, show_json


@click.command("compare-published")
@click.argument("repo")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--revision", help="Branch, tag or commit.  [default: the present state]")
@options.json_output
def command(repo: str, first: str, second: str, revision: str | None, as_json: bool) -> None:
    """Compare two published variants by size, accuracy and speed.

    A and B are names of variants, or content ids as `wkt versions` prints them (the first characters are enough).
    """
    from whisperkit_tools.pipeline.publish import compare_variants
    from whisperkit_tools.terminal_text import printable

    rows = compare_variants(repo, first, second, revision=revision)
    if as_json:
        show_json(rows)
        return
    wide = max(12, len(first)), max(12, len(second))
    show(f"{'':<32}  {first:>{wide[0]}}  {second:>{wide[1]}}  {'difference':>12}")
    for row in rows:
        cells = ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("first", "second", "difference")]
        show(f"{printable(row['figure']):<32}  {cells[0]:>{wide[0]}}  {cells[1]:>{wide[1]}}  {cells[2]:>12}")
