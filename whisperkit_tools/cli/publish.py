"""`wkt publish`: proved bundles into a model repository."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import whisperkit_tools as wkt
from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show, show_json
from whisperkit_tools.cli.progress import ConsoleProgress

if TYPE_CHECKING:
    from whisperkit_tools.publishing.publication_plan import PublicationPlan
    from whisperkit_tools.publishing.publish import Publication


@click.command()
@click.argument("bundles", nargs=-1, metavar="[BUNDLE...]", type=options.PATH)
@click.option("--repo", metavar="ORG/NAME", help="Model repository on the Hub (HF_ENDPOINT names a mirror).")
@click.option("--to", type=options.FOLDER, help="Plain folder to publish to instead.")
@click.option("--create", is_flag=True, help="Create the repository if it does not exist.")
@click.option("--private", is_flag=True, help="Create it as a private repository.")
@options.branch
@options.pull_request
@click.option("--tag", help="Name for this release.")
@click.option("--adopt", is_flag=True, help="Take over a repository that another tool laid out.")
@click.option(
    "--reports",
    type=options.FOLDER,
    help="Folder of the runs of `wkt evaluate`.  [default: evaluations, where it exists]",
)
@click.option("--reports-repo", metavar="ORG/NAME", help="Dataset repository for the reports.")
@click.option(
    "--with-transcripts", is_flag=True, help="Publish report.html too, which contains the texts of the datasets."
)
@click.option(
    "--require",
    metavar="DATASET[,...]",
    default="",
    help="Datasets on which every bundle must have been evaluated.",
)
@click.option(
    "--allow-unproven",
    metavar="REASON",
    help="Publish a bundle that lacks a proof. The reason is shown in the model card.",
)
@click.option("--device-table", type=options.FILE, help="Device table (a config.json) to publish as it is.")
@options.dry_run
@options.json_output
def command(bundles: tuple[Path, ...], as_json: bool, **chosen: Any) -> None:
    """Publish bundles and their evaluation reports to a model repository.

    Without BUNDLE, the last converted bundle is published. The manifest of a bundle must prove it: every hash matches,
    contract and parity are verified, and a compressed bundle has passed its quality gate. Each publication is one
    commit. Publishing the same again makes no commit. --to DIR keeps the same layout in a plain folder.
    """
    with ConsoleProgress() as progress:
        done = wkt.publish(bundles, **chosen, progress=progress)
    if as_json:
        reports = {"reports": publication_json(done.reports)} if done.reports else {}
        show_json({**publication_json(done), **reports})
        return
    for one in (done.reports, done) if done.reports else (done,):
        if done.reports:
            show(f"{one.label}:")
        show_plan(one.plan)
        if one.commit is not None:
            show(one.commit.pull_request or one.commit.url)
        elif not chosen["dry_run"]:
            show(f"{one.label} has all of this already; no commit was made")


def publication_json(done: "Publication") -> dict[str, Any]:
    """Return a publication for programs."""
    commit = done.commit
    return {
        "variants": list(done.plan.variants),
        "parent": done.plan.snapshot.commit,
        "title": done.plan.change.title,
        "added": dict(done.plan.added),
        "changed": dict(done.plan.changed),
        "deleted": dict(done.plan.deleted),
        "unchanged": done.plan.unchanged,
        "commit": commit and {"id": commit.id, "url": commit.url, "pull_request": commit.pull_request},
    }


def show_plan(plan: "PublicationPlan") -> None:
    """Print a plan for people, file by file."""
    for sign, files in (("+", plan.added), ("~", plan.changed), ("-", plan.deleted)):
        for path, size in files.items():
            show(f"{sign} {shown_size(size):>10}  {path}")
    sizes = [sum(files.values()) for files in (plan.added, plan.changed, plan.deleted)]
    show(
        f"{len(plan.added)} added ({shown_size(sizes[0])}), {len(plan.changed)} changed ({shown_size(sizes[1])}), "
        f"{len(plan.deleted)} deleted ({shown_size(sizes[2])}), {plan.unchanged} unchanged"
    )


def shown_size(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.1f} kB"
