"""`wkt transcribe`: audio to text by running a bundle's packages."""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whisperkit_tools.cli.sigint import check_interrupted
from whisperkit_tools.errors import AudioError

if TYPE_CHECKING:
    from whisperkit_tools.speech import Transcription
    from whisperkit_tools.transcribe.audio.load import AudioInput
    from whisperkit_tools.transcribe.options import TranscribeOptions
    from whisperkit_tools.transcribe.transcriber import Transcriber

FORMATS = ("txt", "json", "srt", "vtt")


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[float, ...]:
    """Parse comma-separated numbers."""
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 0,0.2,0.4", ctx, param) from None


def _threshold(ctx: click.Context, param: click.Parameter, value: str) -> float | None:
    """Parse a number, or `none`, which switches a check off."""
    if value.lower() == "none":
        return None
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number nor none", ctx, param) from None


@click.command()
@click.argument("audio", nargs=-1, required=True)
@click.option("--bundle", type=click.Path(), help="The bundle's folder.  [default: the one converted last]")
@click.option(
    "--bundles-dir", type=click.Path(), default="bundles", show_default=True, help="Where to look for that one."
)
@click.option("--language", help="Spoken language, as a code or a name.  [default: detected]")
@click.option(
    "--task",
    type=click.Choice(["transcribe", "translate"]),
    default="transcribe",
    show_default=True,
    help="Write down what is said, or translate it to English.",
)
@click.option("--prompt", help="Text that the audio is to continue: names, spelling, style.")
@click.option("--timestamps/--no-timestamps", default=True, show_default=True, help="Predict when phrases are said.")
@click.option("--word-timestamps", is_flag=True, help="Also tell when each word is said (in JSON).")
@click.option(
    "--temperature",
    "temperatures",
    metavar="T[,T...]",
    callback=_numbers,
    default="0,0.2,0.4,0.6,0.8,1",
    show_default=True,
    help="Tried in order while a window's result looks wrong.",
)
@click.option(
    "--compression-ratio-threshold",
    metavar="NUMBER|none",
    callback=_threshold,
    default="1.35",
    show_default=True,
    help="A result is repetitive above this ratio of token bytes to compressed bytes.",
)
@click.option(
    "--logprob-threshold",
    metavar="NUMBER|none",
    callback=_threshold,
    default="-1.0",
    show_default=True,
    help="A result is unsure below this mean log probability.",
)
@click.option(
    "--no-speech-threshold",
    metavar="NUMBER|none",
    callback=_threshold,
    default="0.6",
    show_default=True,
    help="An unsure window has no speech above this probability.",
)
@click.option(
    "--condition-on-previous-text/--no-condition-on-previous-text",
    default=False,
    show_default=True,
    help="Prompt each window with the text before it.",
)
@click.option(
    "--long-form",
    type=click.Choice(["sequential", "chunked", "vad"]),
    default="sequential",
    show_default=True,
    help="Audio of more than 30 s: window after window, overlapping chunks that are stitched, or cut in its pauses.",
)
@click.option(
    "--chunk-length",
    "chunk_length_s",
    type=float,
    metavar="SECONDS",
    help="Of a chunk; with vad, of a piece at most.  [default: 15]",
)
@click.option(
    "--stride",
    "stride_s",
    type=float,
    metavar="SECONDS",
    default=2.5,
    show_default=True,
    help="What a chunk shares with its neighbour at each end, on each side of the seam.",
)
@click.option(
    "--vad",
    type=click.Choice(["energy", "silero"]),
    default="energy",
    show_default=True,
    help="What finds the pauses; silero needs the package silero-vad.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Most tokens of a window's answer.  [default: as many as the model has places for]",
)
@click.option(
    "--features",
    type=click.Choice(["window", "file"]),
    default="window",
    show_default=True,
    help="Mel features of each window by itself, as on the device, or of the whole file, as in transformers.",
)
@click.option(
    "--prefill/--no-prefill",
    default=True,
    show_default=True,
    help="Look the first passes of each window up in the bundle's table, where it has one and there is no prompt.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of sampling at temperatures above 0.")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(FORMATS),
    default="txt",
    show_default=True,
    help="txt: the bare text.",
)
@click.option("--json", "as_json", is_flag=True, help="Print results as JSON on stdout, also beside -o.")
@click.option("-o", "--output-dir", type=click.Path(file_okay=False), help="Write a file for each audio there.")
@click.option("--force", is_flag=True, help="Replace output files that exist.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="float16 rounds as the device does; slower.",
)
@click.option(
    "--backend",
    type=click.Choice(["torch", "coreml"]),
    default="torch",
    show_default=True,
    help="coreml needs macOS.",
)
@click.option(
    "--compute-units",
    type=click.Choice(["all", "cpu_only", "cpu_and_gpu", "cpu_and_ne"]),
    help="Of Core ML.  [default: the on-device runtime's own]",
)
@click.option("--device", default="cpu", show_default=True, help="Of PyTorch: cpu, cuda or mps.")
def command(
    audio: tuple[str, ...],
    bundle: str | None,
    bundles_dir: str,
    format_name: str,
    as_json: bool,
    output_dir: str | None,
    force: bool,
    precision: Any,
    backend: str,
    compute_units: str | None,
    device: str,
    **options: Any,
) -> None:
    """Transcribe audio with a bundle.

    AUDIO is one or more files (wav, flac, mp3, m4a, ogg, ...; any rate, any channels), folders, or - for standard
    input. Texts go to stdout in the order of the inputs, one line each; with -o they go to files.
    """
    from whisperkit_tools.transcribe.audio.load import find_inputs
    from whisperkit_tools.transcribe.options import TranscribeOptions

    if as_json and output_dir is None and format_name not in ("txt", "json"):
        raise click.UsageError(f"--json and --format {format_name} both want stdout; write the latter with -o DIR")
    chosen = TranscribeOptions(**options)
    inputs = find_inputs(audio)
    if len(inputs) > 1 and output_dir is None and format_name in ("srt", "vtt"):
        raise click.UsageError(f"{len(inputs)} inputs make {len(inputs)} {format_name} files; name a folder with -o")
    targets = _targets(inputs, Path(output_dir), format_name, force) if output_dir is not None else None
    transcriber = _load(bundle, bundles_dir, precision, backend, compute_units, device)
    transcriber.check(chosen)
    _Run(inputs, targets, format_name, as_json, is_list=len(audio) > 1 or Path(audio[0]).is_dir()).all(
        transcriber, chosen
    )


def _load(
    bundle: str | None, bundles_dir: str, precision: Any, backend: str, compute_units: str | None, device: str
) -> "Transcriber":
    from whisperkit_tools.bundle import Bundle, find_bundle
    from whisperkit_tools.transcribe.transcriber import Transcriber

    opened = find_bundle(Path(bundles_dir)) if bundle is None else Bundle.open(bundle)
    return Transcriber.load(opened, precision=precision, backend=backend, compute_units=compute_units, device=device)


def _targets(inputs: "Sequence[AudioInput]", folder: Path, format_name: str, force: bool) -> list[Path]:
    """Output paths of the inputs.

    Raises:
        AudioError: Some exist already, or are the same for several inputs; all are named.
    """
    targets = [folder / f"{item.stem}.{format_name}" for item in inputs]
    same = {target for target in targets if targets.count(target) > 1}
    if same:
        # a.wav and a.mp3 beside each other.
        targets = [
            folder / f"{item.path.name if item.path is not None else item.stem}.{format_name}"
            if target in same
            else target
            for item, target in zip(inputs, targets, strict=True)
        ]
    problems = [f"several inputs would be written to {target}" for target in sorted(_repeated(targets))]
    if not force:
        problems += [f"{target} exists; replace it with --force" for target in targets if target.exists()]
    if problems:
        raise AudioError("; ".join(dict.fromkeys(problems)))
    return targets


def _repeated(targets: Sequence[Path]) -> set[Path]:
    return {target for target in targets if targets.count(target) > 1}


class _Run:
    """Transcribes all inputs, gives out each as soon as it is done, and fails at the end when one did."""

    def __init__(
        self,
        inputs: "Sequence[AudioInput]",
        targets: Sequence[Path] | None,
        format_name: str,
        as_json: bool,
        *,
        is_list: bool,
    ) -> None:
        self._inputs = inputs
        self._targets = targets
        self._format = format_name
        self._prints_json = as_json or (targets is None and format_name == "json")
        self._is_list = is_list
        self._printed: list[dict[str, Any]] = []
        self._failed: list[str] = []

    def all(self, transcriber: "Transcriber", options: "TranscribeOptions") -> None:
        """Transcribe.

        Raises:
            AudioError: Naming all inputs that failed.
        """
        from whisperkit_tools.transcribe.audio.load import load_audio

        for number, item in enumerate(self._inputs):
            check_interrupted()
            try:
                samples = load_audio(item)
            except AudioError as error:
                if len(self._inputs) == 1:
                    raise
                self._failed.append(str(error))
                continue
            with _Progress(item.name, number, len(self._inputs)) as progress:
                result = transcriber.transcribe(samples, options, progress=progress.update)
            self._give_out(number, item.name, result)
        if self._prints_json:
            self._print_json()
        if self._failed:
            raise AudioError(
                f"{len(self._failed)} of {len(self._inputs)} inputs failed:\n"
                + "\n".join(f"  {x}" for x in self._failed)
            )

    def _give_out(self, number: int, name: str, result: "Transcription") -> None:
        from whisperkit_tools.transcribe.formats import render

        for notice in result.notices:
            click.echo(f"wkt: note: {name}: {notice}", err=True)
        if not result.text:
            click.echo(f"wkt: note: {name}: no speech was found", err=True)
        if self._targets is not None:
            _write(self._targets[number], render(result, self._format))
            click.echo(f"{name} -> {self._targets[number]}", err=True)
        if self._prints_json:
            self._printed.append({"audio": name, **result.to_dict()})
        elif self._targets is None:
            click.echo(render(result, self._format), nl=False)

    def _print_json(self) -> None:
        import json

        value: Any = self._printed if self._is_list else self._printed[0]
        click.echo(json.dumps(value, ensure_ascii=False, indent=2))


class _Progress:
    """A bar on stderr for audio of more than one window; nothing where stderr is not a terminal."""

    def __init__(self, name: str, number: int, count: int) -> None:
        self._label = f"{number + 1}/{count} {Path(name).name}" if count > 1 else Path(name).name
        self._bar: Any = None
        self._done = 0.0

    def __enter__(self) -> "_Progress":
        return self

    def update(self, done_s: float, total_s: float) -> None:
        """Show how much is done."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            self._bar = click.progressbar(length=round(total_s * 100), label=self._label, file=sys.stderr)
            self._bar.__enter__()
        self._bar.update(round((done_s - self._done) * 100))
        self._done = done_s

    def __exit__(self, *details: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(*details)


def _write(target: Path, text: str) -> None:
    """Write into a hidden sibling and rename, so that the file is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
