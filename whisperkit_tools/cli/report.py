"""`wkt report`: the pages of a run again, or several runs compared."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from whisperkit_tools.eval.reports.write import WrittenReport

IDS_SHOWN = 5


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="The folder of the report.")
@click.option(
    "--baseline", type=click.Path(path_type=Path), help="The run that the others are compared with; else the first."
)
@click.option("--common", is_flag=True, help="Compare the examples that the runs have in common.")
@click.option("--samples", type=click.IntRange(100), default=10_000, show_default=True, help="Bootstrap samples.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the bootstrap.")
@click.option("--embed-audio", is_flag=True, help="Put audio files into the page, the worst examples' first.")
@click.option(
    "--embed-limit", type=click.IntRange(1), default=64, show_default=True, metavar="MB", help="Of embedded audio."
)
@click.option(
    "--examples", "examples_limit", type=click.IntRange(1), default=20_000, show_default=True,
    help="Examples that the page holds at most, the worst first.",
)  # fmt: skip
@click.option("--title", help="Heading of the report.")
@click.option("--force", is_flag=True, help="Replace the report that is in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparisons as JSON.")
def command(
    runs: tuple[Path, ...],
    target: Path | None,
    baseline: Path | None,
    common: bool,
    samples: int,
    seed: int,
    embed_audio: bool,
    embed_limit: int,
    examples_limit: int,
    title: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Rewrite the report of a run, or compare runs.

    RUN is a folder that `wkt evaluate` made. One run without -o gets its own pages again; with -o, and always for
    several, a new folder gets report.json, report.md and report.html, with the differences to the first run, their
    bootstrap intervals, the examples that regressed, and the quality of inference in both directions.
    """
    if target is None and (len(runs) > 1 or baseline is not None):
        raise click.UsageError("several runs are compared in a folder of their own: name it with -o")
    from whisperkit_tools.eval.reports.comparison import ComparisonConfig
    from whisperkit_tools.eval.reports.html import PageConfig
    from whisperkit_tools.eval.reports.write import in_baseline_order, write_report, write_run_pages

    page = PageConfig(title, embed_audio, embed_limit * 1_000_000, examples_limit)
    if target is None:
        written = write_run_pages(runs[0], page)
    else:
        comparison = ComparisonConfig(common, samples, seed)
        ordered = in_baseline_order(runs, baseline)
        written = write_report(ordered, target, page=page, comparison=comparison, force=force)
    for note in written.notes:
        click.echo(f"note: {note}", err=True)
    _print(written, as_json)


def _print(written: "WrittenReport", as_json: bool) -> None:
    from whisperkit_tools.eval.reports.write import PAGE_FILE
    from whisperkit_tools.eval.schema import to_json

    page = written.folder / PAGE_FILE
    if as_json:
        click.echo(
            json.dumps({"report": str(page), "comparisons": [to_json(it) for it in written.comparisons]}, indent=2)
        )
        return
    if written.comparisons:
        _print_table(written)
    click.echo(page)


def _print_table(written: "WrittenReport") -> None:
    from whisperkit_tools.eval.reports.format import points, points_interval, visible
    from whisperkit_tools.eval.reports.page import verdict

    names = [visible(run.report.name) for run in written.runs]
    width = max(map(len, names))
    click.echo(f"{'':<{width}}   WER %  difference  95% interval       QoI %  reversed  regressed  improved")
    first = written.comparisons[0].baseline_wer
    click.echo(f"{names[0]:<{width}}  {_percent(first, 6)}")
    for name, it in zip(names[1:], written.comparisons, strict=True):
        click.echo(
            f"{name:<{width}}  {_percent(it.candidate_wer, 6)}  {points(it.wer_difference):>10}  "
            f"{points_interval(it.wer_difference_interval):<17}  {100 * it.qoi:5.1f}  {100 * it.qoi_reverse:8.1f}  "
            f"{len(it.regressed):9}  {len(it.improved):8}"
        )
    for it in written.comparisons:
        click.echo(f"\n{visible(verdict(it))}")
        if it.regressed:
            shown = ", ".join(f"{visible(change.id)} +{change.errors}" for change in it.regressed[:IDS_SHOWN])
            click.echo(f"regressed most (word errors): {shown}")
    click.echo()


def _percent(value: float | None, width: int) -> str:
    from whisperkit_tools.eval.reports.format import percent

    return f"{percent(value):>{width}}"
