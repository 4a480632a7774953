"""`wkt demo`: the whole way on the embedded model, from its checkpoint to texts made by a published variant."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from whisperkit_tools.cli.demo_stages import Line, Places
    from whisperkit_tools.eval.schema import RunReport


@click.command()
@click.option("-o", "--output-dir", type=click.Path(path_type=Path), default=Path("demo-output"), show_default=True,
              help="The folder for everything that is made.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Take only so many utterances of each language.")
@click.option("--force", is_flag=True, help="Replace what an earlier run made.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def command(output_dir: Path, limit: int | None, force: bool, as_json: bool) -> None:
    """Run every step on the embedded demo model, from convert to transcribe.

    Converts it with --turbo, compresses it twice behind the quality gate, evaluates the three sizes, publishes them to
    a plain folder, pulls the smallest back and transcribes with that, beside the references.

    Everything is real: the model is a trained Whisper of 1.7 M parameters for a closed grammar of household English
    and Spanish, its packages are verified, and every figure and text is made by running those packages.
    """
    from whisperkit_tools.cli import demo_stages as stages
    from whisperkit_tools.cli.progress import ConsoleProgress

    places, progress = stages.Places(output_dir), ConsoleProgress()
    _say(1, "convert the embedded checkpoint")
    original = stages.convert_model(places, progress, limit=limit, force=force)
    _say(2, "compress it: the encoder alone at 8 bits, then the smallest that passes the quality gate")
    bundles = [original, *stages.palettize(original, progress, limit=limit, force=force)]
    _say(3, "evaluate the three sizes on the demo's audio")
    runs = stages.evaluate_bundles(bundles, stages.demo_dataset(limit), places)
    page = stages.write_pages(runs, places)
    _say(4, "publish them to a folder")
    with progress.stage("publish", "prove and commit"):
        registry = stages.publish(bundles, places)
    _say(5, "pull the smallest back, and transcribe with it")
    with progress.stage("pull", "check every file"):
        pulled = stages.pull_back(registry, bundles[-1].name, places, force=force)
    with progress.stage("demo audio", "transcribe"):
        lines = stages.transcribe(pulled, limit)
    rates, reports = stages.error_rates(lines), [run.report for run in runs]
    if as_json:
        found = {"bundles": str(places.bundles), "published": str(places.published), "pulled": str(pulled),
                 "report": str(page), "wer": rates, "variants": [stages.as_row(report) for report in reports],
                 "lines": [asdict(line) for line in lines]}  # fmt: skip
        click.echo(json.dumps(found))
        return
    _print_texts(lines, rates)
    _print_sizes(reports)
    _print_places(places, pulled, page)


def _say(number: int, what: str) -> None:
    click.echo(f"[{number}/5] {what}", err=True)


def _print_texts(lines: "Sequence[Line]", rates: dict[str, float]) -> None:
    for line in lines:
        if line.task.startswith("long-form"):
            continue
        same = line.reference == line.hypothesis
        click.echo(
            f"{line.id:<8} {line.task:<14} {line.hypothesis}{'' if same else f'   [reference: {line.reference}]'}"
        )
    for line in lines:
        if line.task.startswith("long-form"):
            click.echo(f"\n{line.id}  {line.task}\n  text       {line.hypothesis}\n  reference  {line.reference}")
    click.echo("\nWER of the pulled variant")
    for task, rate in rates.items():
        click.echo(f"  {task:<14} {100 * rate:6.2f} %")


def _print_sizes(reports: "Sequence[RunReport]") -> None:
    """A line for each variant; QoI is against the first."""
    width = max(len(report.name) for report in reports)
    click.echo(f"\n{'variant':<{width}}     MB  WER %  QoI %")
    for report in reports:
        size = "-" if report.bundle is None else f"{report.bundle.bytes / 1e6:.2f}"
        wer, qoi = ("-" if rate is None else f"{100 * rate:.2f}" for rate in (report.metrics.wer, report.metrics.qoi))
        click.echo(f"{report.name:<{width}}  {size:>5}  {wer:>5} {qoi:>6}")


def _print_places(places: "Places", pulled: Path, page: Path) -> None:
    from whisperkit_tools.publishing.card import CARD
    from whisperkit_tools.publishing.size_quality_chart import PICTURE

    click.echo(f"\nbundles    {places.bundles}")
    click.echo(f"published  {places.published}, its card {places.published / CARD}")
    picture = places.published / PICTURE
    if picture.is_file():
        click.echo(f"picture    {picture}")
    click.echo(f"pulled     {pulled}")
    click.echo(f"report     {page}")
