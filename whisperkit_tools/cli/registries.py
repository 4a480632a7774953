"""What the publishing commands share: which registry a word names, and how a plan is shown."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from whisperkit_tools.publishing.publish import Plan
    from whisperkit_tools.publishing.registry.base import Registry


def open_registry(word: str, *, revision: str | None = None, repo_type: str = "model") -> "Registry":
    """The registry that a word names: a folder that is there or is written as a path, else a repository on the Hub."""
    from whisperkit_tools.publishing.registry.folder import FolderRegistry
    from whisperkit_tools.publishing.registry.hub import HubRegistry

    if Path(word).is_dir() or word.startswith((".", "/", "~")) or word.endswith("/"):
        if revision is not None:
            raise click.UsageError("--revision names a branch, and a folder has none; leave it away")
        return FolderRegistry(Path(word).expanduser())
    return HubRegistry(word, revision=revision, repo_type=repo_type)


def plan_json(plan: "Plan") -> dict[str, Any]:
    """A plan for machines."""
    return {
        "variants": list(plan.variants),
        "parent": plan.snapshot.commit,
        "title": plan.change.title,
        "added": dict(plan.added),
        "changed": dict(plan.changed),
        "deleted": dict(plan.deleted),
        "unchanged": plan.unchanged,
    }


def show_plan(plan: "Plan") -> None:
    """A plan for people, file by file."""
    for sign, files in (("+", plan.added), ("~", plan.changed), ("-", plan.deleted)):
        for path, size in files.items():
            click.echo(f"{sign} {shown_size(size):>10}  {path}")
    sizes = [sum(files.values()) for files in (plan.added, plan.changed, plan.deleted)]
    click.echo(
        f"{len(plan.added)} added ({shown_size(sizes[0])}), {len(plan.changed)} changed ({shown_size(sizes[1])}), "
        f"{len(plan.deleted)} deleted ({shown_size(sizes[2])}), {plan.unchanged} unchanged"
    )


def shown_size(size_bytes: int) -> str:
    """A size for people."""
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.1f} kB"
