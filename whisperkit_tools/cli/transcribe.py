"""`wkt transcribe`: audio to text by running a bundle's packages."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import note, show_json
from whisperkit_tools.cli.progress import ConsoleProgress
from whisperkit_tools.errors import AudioError, option
from whisperkit_tools.files import write_whole
from whisperkit_tools.terminal_text import plain

if TYPE_CHECKING:
    from whisperkit_tools.speech import Transcription
    from whisperkit_tools.transcribe.audio.load import AudioInput

FORMATS = ("txt", "json", "srt", "vtt")


def _threshold(ctx: click.Context, param: click.Parameter, value: str) -> float | None:
    """Parse a number, or `none`, which switches a check off."""
    if value.lower() == "none":
        return None
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor none", ctx, param) from None


def _check(flag: str, default: str, help: str) -> options.Decorator:
    """Declare the threshold of a check, which `none` switches off."""
    return click.option(flag, metavar="NUMBER|none", callback=_threshold, default=default, show_default=True, help=help)


_decoding = options.options(
    click.option(
        "--language",
        help="Spoken language, as a code, a name or a tag such as pt-BR. auto detects it.  [default: the one that the "
        "model was tuned for, else detected]",
    ),
    click.option(
        "--task",
        type=click.Choice(["transcribe", "translate"]),
        help="Transcribe in the spoken language, or translate to English.  [default: the one that the model was tuned "
        "for, else transcribe]",
    ),
    click.option("--prompt", help="Text that the audio continues. It sets names, spelling and style."),
    click.option("--timestamps/--no-timestamps", default=True, show_default=True, help="Predict the times of phrases."),
    click.option("--word-timestamps", is_flag=True, help="Also compute the times of words (in JSON)."),
    click.option(
        "--temperature",
        metavar="T[,T...]",
        default="0,0.2,0.4,0.6,0.8,1",
        show_default=True,
        help="Temperatures to try in order while a window's result looks wrong.",
    ),
    _check(
        "--compression-ratio-threshold",
        "1.35",
        "Retry a window above this ratio of token bytes to compressed bytes, because its result is repetitive.",
    ),
    _check(
        "--logprob-threshold",
        "-1.0",
        "Retry a window below this mean log probability, because its result is uncertain.",
    ),
    _check(
        "--no-speech-threshold",
        "0.6",
        "Treat an uncertain window as silent above this no-speech probability.",
    ),
    click.option(
        "--condition-on-previous-text/--no-condition-on-previous-text",
        default=False,
        show_default=True,
        help="Give each window the text before it as a prompt.",
    ),
    click.option(
        "--long-form",
        type=click.Choice(["sequential", "chunked", "vad"]),
        default="sequential",
        show_default=True,
        help="Audio of more than 30 s: window after window, in overlapping chunks that are merged, or cut at its "
        "pauses.",
    ),
    click.option(
        "--chunk-length",
        type=float,
        metavar="SECONDS",
        help="Length of a chunk, or maximum length of a piece with vad.  [default: 15]",
    ),
    click.option(
        "--stride",
        type=float,
        metavar="SECONDS",
        default=2.5,
        show_default=True,
        help="Overlap of a chunk with each neighbour, on each side of the seam.",
    ),
    click.option(
        "--vad",
        type=click.Choice(["energy", "silero"]),
        default="energy",
        show_default=True,
        help="Detector of pauses. silero needs the package silero-vad.",
    ),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(1),
        help="Maximum number of tokens in a window's result.  [default: the model's limit]",
    ),
    click.option(
        "--features",
        type=click.Choice(["window", "file"]),
        default="window",
        show_default=True,
        help="Compute mel features for each window, as on the device, or for the whole file, as in transformers.",
    ),
    click.option(
        "--prefill/--no-prefill",
        default=True,
        show_default=True,
        help="Take the first decoder passes of a window from the bundle's table, if it has one and there is no prompt.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed for sampling at temperatures above 0."),
)

_running = options.options(
    options.precision,
    click.option(
        "--backend",
        type=click.Choice(["torch", "coreml"]),
        default="torch",
        show_default=True,
        help="Runtime of the packages. coreml needs macOS.",
    ),
    options.compute_units,
    click.option("--device", default="cpu", show_default=True, help="PyTorch device: cpu, cuda or mps."),
)


@click.command()
@click.argument("audio", nargs=-1, required=True)
@click.option("--bundle", type=options.PATH, help="Folder of the bundle.  [default: the last converted bundle]")
@options.bundles_dir
@click.option(
    "--draft",
    type=options.PATH,
    help="Bundle of a smaller model that writes ahead, such as a distilled one. The tokens stay the same. The bundle "
    "needs wkt convert --draft-tokens.",
)
@_decoding
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    default="txt",
    show_default=True,
    help="Format of the results. txt is the bare text.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, also when -o writes files.")
@click.option("-o", "--output-dir", type=options.FOLDER, help="Folder for one output file per audio.")
@options.force
@_running
def command(
    audio: tuple[str, ...], format: str, as_json: bool, output_dir: Path | None, force: bool, **chosen: Any
) -> None:
    """Transcribe audio with a bundle.

    AUDIO is one or more files (wav, flac, mp3, m4a, ogg, ... at any rate with any channels), folders, or - for
    standard input. Texts go to stdout in the order of the inputs, one line each. With -o they go to files.
    """
    if as_json and output_dir is None and format not in ("txt", "json"):
        raise click.UsageError(f"--json and --format {format} both want stdout; write the latter to files with -o DIR")
    from whisperkit_tools.pipeline.transcribe import transcription_job

    job = transcription_job(audio, **chosen)
    if len(job.inputs) > 1 and output_dir is None and format in ("srt", "vtt"):
        raise click.UsageError(f"{len(job.inputs)} inputs make {len(job.inputs)} {format} files; name a folder with -o")
    targets = None if output_dir is None else _targets(job.inputs, output_dir, format, force)
    prints_json = as_json or (targets is None and format == "json")
    printed: list[dict[str, Any]] = []
    try:
        with ConsoleProgress() as progress:
            for index, result in job.results(progress):
                name = job.inputs[index].name
                _give_out(name, result, format, None if targets is None else targets[index], bare=not prints_json)
                printed.append({"audio": name, **result.to_dict()})
    except AudioError:
        if prints_json and printed:
            _show_printed(printed, audio)
        raise
    if prints_json:
        _show_printed(printed, audio)


def _show_printed(printed: Sequence[dict[str, Any]], audio: Sequence[str]) -> None:
    """Print a list where several results were asked for, else one object."""
    show_json(printed if len(audio) > 1 or Path(audio[0]).is_dir() else printed[0])


def _targets(inputs: "Sequence[AudioInput]", folder: Path, format: str, force: bool) -> list[Path]:
    """Return the output path of each input.

    Raises:
        AudioError: Some exist already, or are the same for several inputs. All are named.
    """
    targets = [folder / f"{item.stem}.{format}" for item in inputs]
    same = _repeated(targets)
    # `a.wav` and `a.mp3` get files of their own.
    targets = [
        folder / f"{item.path.name}.{format}" if target in same and item.path is not None else target
        for item, target in zip(inputs, targets, strict=True)
    ]
    problems = [f"several inputs would be written to {target}" for target in sorted(_repeated(targets))]
    if not force:
        problems += [f"{target} exists; replace it with {option('force')}" for target in targets if target.exists()]
    if problems:
        raise AudioError("; ".join(dict.fromkeys(problems)))
    return targets


def _repeated(targets: Sequence[Path]) -> set[Path]:
    return {target for target, count in Counter(targets).items() if count > 1}


def _give_out(name: str, result: "Transcription", format: str, target: Path | None, *, bare: bool) -> None:
    """Write a result to its file, or print it."""
    from whisperkit_tools.transcribe.formats import render

    for notice in result.notices:
        note(f"{name}: {notice}")
    if not result.text:
        note(f"{name}: no speech was found")
    if target is not None:
        write_whole(target, render(result, format))
        click.echo(plain(f"{name} -> {target}"), err=True)
    elif bare:
        click.echo(_shown(render(result, format)), nl=False)


def _shown(text: str) -> str:
    """Return rendered results for the terminal: lines stay, what could steer it is written out."""
    return "".join(plain(line) + "\n" for line in text.removesuffix("\n").split("\n"))
