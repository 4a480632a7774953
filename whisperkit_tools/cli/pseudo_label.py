"""`wkt pseudo-label`: labels of a teacher for speech."""

from dataclasses import asdict
from typing import Any

import click

import whisperkit_tools as wkt
from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import note, show, show_json
from whisperkit_tools.cli.progress import ConsoleProgress


@click.command()
@click.argument("audio")
@click.option(
    "--teacher",
    required=True,
    help="Bundle, checkpoint (converted into the labels' folder first), or backend as NAME:MODEL.",
)
@click.option("-o", "--output-dir", type=options.PATH, required=True, help="Folder of the labels.")
@click.option("--language", help="Spoken language, as a code.  [default: that of the dataset, or detected]")
@click.option(
    "--no-speech-share",
    type=float,
    default=0.0,
    show_default=True,
    help="Share of windows of silence and noise with empty labels that are mixed in.",
)
@click.option(
    "--long-form",
    type=click.Choice(["sequential", "chunked", "vad"]),
    help="Audio of more than 30 s.  [default: sequential]",
)
@click.option(
    "--temperature",
    metavar="T[,T...]",
    help="Temperatures to try in order while a window's result looks wrong.  [default: 0,0.2,0.4,0.6,0.8,1]",
)
@click.option(
    "--condition-on-previous-text", is_flag=True, default=None, help="Give each window the text before it as a prompt."
)
@options.precision
@click.option("--device", default="", help="PyTorch device (cpu, cuda, mps).")
@click.option("--workers", type=click.IntRange(1), help="Number of processes, each with its own teacher.  [default: 1]")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Label on this machine, or on a Ray cluster whose machines see audio and teacher at the same paths.",
)
@click.option("--address", help="Address of a running Ray cluster.  [default: a cluster is started on this machine]")
@click.option(
    "--max-failures",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Stop when more recordings than this have failed.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the windows without speech.")
@options.json_output
def command(audio: str, as_json: bool, **chosen: Any) -> None:
    """Label speech with a teacher, for distillation.

    AUDIO is a folder of audio or a dataset as `wkt evaluate` takes it. Labels are text with times, one record for each
    segment. The same command goes on with an interrupted run.
    """
    with ConsoleProgress() as progress:
        found = wkt.pseudo_label(audio, **chosen, progress=progress)
    if as_json:
        show_json({**asdict(found), "folder": str(found.folder)})
        return
    for line in found.failures:
        note(line)
    show(f"recordings  {found.recordings}")
    show(f"segments    {found.segments}, {found.empty} of them without speech")
    show(f"audio       {found.audio_s / 3600:.2f} h")
    show(found.folder)
