"""`wkt filter-labels`: labels chosen and joined to training windows."""

from pathlib import Path
from typing import Any

import click

import whisperkit_tools as wkt
from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show, show_json
from whisperkit_tools.cli.progress import ConsoleProgress


def _limit(ctx: click.Context, param: click.Parameter, value: str | None) -> float | int | None:
    """Parse a number, or `none`, which switches a limit off."""
    if value is None or value.lower() == "none":
        return None
    try:
        number = float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor none", ctx, param) from None
    return int(number) if param.name == "max_repeats" and number == int(number) else number


def _limited(flag: str, default: str | None, help: str) -> options.Decorator:
    return click.option(
        flag, metavar="NUMBER|none", callback=_limit, default=default, show_default=default is not None, help=help
    )


@click.command()
@click.argument("labels", type=options.PATH)
@click.option("-o", "--output-dir", type=options.PATH, required=True, help="Folder of the result.")
@_limited("--max-wer", "10.0", "Drop segments above this word error rate in percent, where there is a reference.")
@_limited("--min-logprob", "-1.0", "Drop segments below this mean log probability.")
@_limited("--max-repeats", "2", "Drop segments with more repeated 5-grams than this.")
@_limited("--max-words-per-second", "8.0", "Drop segments with more words in a second than this.")
@click.option("--agree-with", type=options.PATH, help="Labels of another teacher for the same recordings.")
@_limited(
    "--max-disagreement", None, "Drop segments above this word error rate in percent against those.  [default: 10]"
)
@click.option(
    "--max-duration",
    type=float,
    metavar="SECONDS",
    default=30.0,
    show_default=True,
    help="Maximum length of a window that neighbours are joined to.",
)
@options.json_output
def command(labels: Path, as_json: bool, **chosen: Any) -> None:
    """Choose among labels, and join what is kept to windows for training.

    LABELS is a folder that `wkt pseudo-label` wrote. Every segment is judged alone, then neighbours of one recording
    and speaker are joined. Nothing is labelled again.
    """
    with ConsoleProgress() as progress:
        found = wkt.filter_labels(labels, **chosen, progress=progress)
    report = found.report
    if as_json:
        show_json({"folder": str(found.folder), **report})
        return
    show(f"kept      {report['kept']} of {report['segments']} segments, {report['kept_audio_s']:.0f} s of audio")
    for reason, dropped in report["dropped"].items():
        show(f"dropped   {dropped['segments']} by {reason}, {dropped['audio_s']:.0f} s")
    if report["wer"] is not None and report["kept_wer"] is not None:
        show(f"WER       {100 * report['wer']:.2f} % before, {100 * report['kept_wer']:.2f} % after")
    show(f"windows   {report['windows']}")
    show(found.folder)
