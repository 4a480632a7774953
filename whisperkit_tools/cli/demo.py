"""`wkt demo`: every step on the embedded demo model."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show
from whisperkit_tools.cli.progress import ConsoleProgress
from whisperkit_tools.strict_json import json_text

if TYPE_CHECKING:
    from whisperkit_tools.eval.schema import RunReport
    from whisperkit_tools.pipeline.demo import DemoResult


@click.command()
@click.option(
    "-o",
    "--output-dir",
    type=options.PATH,
    default=Path("demo-output"),
    show_default=True,
    help="Folder for everything that is made.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Number of utterances of each language.  [default: all]")
@options.force
@options.json_output
def command(output_dir: Path, limit: int | None, force: bool, as_json: bool) -> None:
    """Run every step on the embedded demo model, from convert to transcribe.

    It is converted with --turbo and compressed twice under the quality gate. The three sizes are evaluated and
    published to a plain folder. The smallest is pulled back and transcribes the demo's audio, with the references
    beside its transcripts.

    Everything is real: the model is a trained Whisper of 1.7 M parameters for a closed grammar of household English
    and Spanish, its packages are verified, and every figure and text is made by running those packages.
    """
    from whisperkit_tools.pipeline.demo import run_demo

    def announce(step: str) -> None:
        click.echo(step, err=True)

    with ConsoleProgress() as progress:
        result = run_demo(output_dir, limit=limit, force=force, announce=announce, progress=progress)
    if as_json:
        click.echo(json_text(_as_json(result), indent=None))
        return
    _show_texts(result)
    _show_sizes(result.reports)
    _show_places(result)


def _as_json(result: "DemoResult") -> dict[str, object]:
    return {
        "bundles": str(result.places.bundles),
        "published": str(result.places.published),
        "pulled": str(result.pulled),
        "report": str(result.page),
        "wer": result.error_rates,
        "variants": [_row(report) for report in result.reports],
        "lines": [asdict(line) for line in result.lines],
    }


def _row(report: "RunReport") -> dict[str, str | int | float | None]:
    """Return the main figures of a run. Rates are fractions."""
    size = None if report.bundle is None else report.bundle.bytes
    return {"variant": report.name, "size_bytes": size, "wer": report.metrics.wer, "qoi": report.metrics.qoi}


def _show_texts(result: "DemoResult") -> None:
    for line in result.lines:
        if not line.is_long:
            note = "" if line.reference == line.hypothesis else f"   [reference: {line.reference}]"
            show(f"{line.id:<8} {line.task:<14} {line.hypothesis}{note}")
    for line in result.lines:
        if line.is_long:
            show(f"\n{line.id}  {line.task}\n  text       {line.hypothesis}\n  reference  {line.reference}")
    show("\nWER of the pulled variant")
    for task, rate in result.error_rates.items():
        show(f"  {task:<14} {100 * rate:6.2f} %")


def _show_sizes(reports: "Sequence[RunReport]") -> None:
    """Print a line for each variant. QoI is against the first."""
    width = max(len(report.name) for report in reports)
    show(f"\n{'variant':<{width}}     MB  WER %  QoI %")
    for report in reports:
        size = "-" if report.bundle is None else f"{report.bundle.bytes / 1e6:.2f}"
        wer, qoi = ("-" if rate is None else f"{100 * rate:.2f}" for rate in (report.metrics.wer, report.metrics.qoi))
        show(f"{report.name:<{width}}  {size:>5}  {wer:>5} {qoi:>6}")


def _show_places(result: "DemoResult") -> None:
    from whisperkit_tools.publishing.card import CARD
    from whisperkit_tools.publishing.size_quality_chart import CHART

    places = result.places
    show(f"\nbundles    {places.bundles}")
    show(f"published  {places.published}, its card {places.published / CARD}")
    picture = places.published / CHART
    if picture.is_file():
        show(f"picture    {picture}")
    show(f"pulled     {result.pulled}")
    show(f"report     {result.page}")
