"""`wkt versions`: what a repository holds, and held."""

import json
from typing import Any

import click


@click.command()
@click.argument("repo")
@click.option("--revision", help="A branch, a tag or a commit [default: what is there now].")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def command(repo: str, revision: str | None, as_json: bool) -> None:
    """List a repository's variants and versions with their figures.

    Variants that another tool published are listed with their sizes.
    """
    from whisperkit_tools.cli.registries import open_registry
    from whisperkit_tools.publishing.listing import list_variants
    from whisperkit_tools.publishing.registry.base import printable

    rows = list_variants(open_registry(repo), revision)
    if as_json:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not rows:
        click.echo(f"{repo} holds no variants")
    for row in rows:
        click.echo(f"{printable(row['variant']):<48} {row['size_bytes'] / 1e6:9.1f} MB  {row['state']}")
        for item in row["versions"]:
            click.echo(printable(f"    {item['created'][:10]}  {item['content'][:12]}  {_figures(item)}"))


def _figures(item: dict[str, Any]) -> str:
    parts = [
        f"{kind.upper() if kind == 'wer' else 'QoI'} {dataset} {value:.2f} %"
        for kind in ("wer", "qoi")
        for dataset, value in sorted(item["metrics"].get(kind, {}).items())
    ]
    parts += [f"tag {item['tag']}"] if item["tag"] else []
    parts += ["unproven"] if item["unproven"] else []
    return ", ".join(parts) or "no figures"
