"""`wkt report`: the pages of a run again, or several runs compared."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import whisperkit_tools as wkt
from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show, show_json

if TYPE_CHECKING:
    from whisperkit_tools.eval.reports.write import WrittenReport

IDS_SHOWN = 5


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=options.PATH)
@click.option("-o", "--output", type=options.PATH, help="Folder of the report.  [default: the run's]")
@click.option("--baseline", type=options.PATH, help="Run to compare the others with.  [default: the first RUN]")
@click.option("--common", is_flag=True, help="Compare the examples that the runs have in common.")
@click.option("--samples", type=click.IntRange(100), default=10_000, show_default=True, help="Bootstrap samples.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--embed-audio", is_flag=True, help="Put audio files into the page, those of the worst examples first.")
@click.option(
    "--embed-limit",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    metavar="MB",
    help="Maximum size of embedded audio.",
)
@click.option(
    "--examples",
    type=click.IntRange(1),
    default=20_000,
    show_default=True,
    help="Maximum number of examples in the page, the worst first.",
)
@click.option("--title", help="Heading of the report.")
@options.force
@options.json_output
def command(runs: tuple[Path, ...], as_json: bool, **chosen: Any) -> None:
    """Rewrite the report of a run, or compare runs.

    RUN is a folder that `wkt evaluate` made. One run without -o gets its own pages again. With -o, and always for
    several runs over the same examples, a new folder gets report.json, report.md and report.html. They contain the
    differences to the first run with bootstrap intervals, the examples that regressed, and the quality of inference in
    both directions.
    """
    written = wkt.report(runs, **chosen)
    for line in written.notes:
        click.echo(f"note: {line}", err=True)
    from whisperkit_tools.eval.reports.write import PAGE_FILE
    from whisperkit_tools.eval.typed_json import to_json

    page = written.folder / PAGE_FILE
    if as_json:
        show_json({"report": str(page), "comparisons": [to_json(it) for it in written.comparisons]})
        return
    if written.comparisons:
        _show_table(written)
    show(page)


def _show_table(written: "WrittenReport") -> None:
    from whisperkit_tools.eval.reports.format import percent, points, points_interval, visible
    from whisperkit_tools.eval.reports.page import verdict

    names = [visible(run.report.name) for run in written.runs]
    width = max(map(len, names))
    show(f"{'':<{width}}   WER %  difference  95% interval       QoI %  reversed  regressed  improved")
    show(f"{names[0]:<{width}}  {percent(written.comparisons[0].baseline_wer):>6}")
    for name, it in zip(names[1:], written.comparisons, strict=True):
        show(
            f"{name:<{width}}  {percent(it.candidate_wer):>6}  {points(it.wer_difference):>10}  "
            f"{points_interval(it.wer_difference_interval):<17}  {100 * it.qoi:5.1f}  {100 * it.qoi_reverse:8.1f}  "
            f"{len(it.regressed):9}  {len(it.improved):8}"
        )
    for it in written.comparisons:
        show(f"\n{visible(verdict(it))}")
        if it.regressed:
            shown = ", ".join(f"{visible(change.id)} +{change.errors}" for change in it.regressed[:IDS_SHOWN])
            show(f"regressed most (word errors): {shown}")
    show()
