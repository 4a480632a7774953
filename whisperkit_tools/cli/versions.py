"""`wkt versions`: what a repository holds, and held."""

from typing import Any

import click

from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show, show_json


@click.command()
@click.argument("repo")
@click.option("--revision", help="Branch, tag or commit.  [default: the present state]")
@options.json_output
def command(repo: str, revision: str | None, as_json: bool) -> None:
    """List a repository's variants and versions with their figures.

    REPO is ORG/NAME on the Hub, or a folder that `wkt publish --to` made. Variants that another tool published are
    listed with their sizes.
    """
    from whisperkit_tools.pipeline.publish import list_variants
    from whisperkit_tools.terminal_text import printable

    rows = list_variants(repo, revision=revision)
    if as_json:
        show_json(rows)
        return
    if not rows:
        show(f"{repo} holds no variants")
    for row in rows:
        show(f"{printable(row['variant']):<48} {row['size_bytes'] / 1e6:9.1f} MB  {row['state']}")
        for item in row["versions"]:
            show(printable(f"    {item['created'][:10]}  {item['content'][:12]}  {_figures(item)}"))


def _figures(item: dict[str, Any]) -> str:
    parts = [
        f"{kind.upper() if kind == 'wer' else 'QoI'} {dataset} {value:.2f} %"
        for kind in ("wer", "qoi")
        for dataset, value in sorted(item["metrics"].get(kind, {}).items())
    ]
    parts += [f"tag {item['tag']}"] if item["tag"] else []
    parts += ["unproven"] if item["unproven"] else []
    return ", ".join(parts) or "no figures"
