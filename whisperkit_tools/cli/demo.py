"""`wkt demo`: the whole way on the embedded model, with its text beside the reference."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from whisperkit_tools.demo import DemoLongform, DemoUtterance
    from whisperkit_tools.transcribe.transcriber import Transcriber


@dataclass(frozen=True, slots=True)
class Line:
    """One utterance of the demo, and what the bundle made of it."""

    id: str
    task: str
    reference: str
    hypothesis: str


@click.command(short_help="Convert the embedded model, transcribe its audio, compare.")
@click.option("-o", "--output-dir", type=click.Path(path_type=Path), default=Path("bundles"), show_default=True,
              help="The folder that holds bundles.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Transcribe only so many utterances of each language.")
@click.option("--force", is_flag=True, help="Replace the bundle of an earlier run.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def command(output_dir: Path, limit: int | None, force: bool, as_json: bool) -> None:
    """Convert the embedded model, transcribe its audio, compare.

    Everything is real: the model is a trained Whisper of 1.7 M parameters for a closed grammar of household English
    and Spanish, its packages are verified, and the transcripts are made by running those packages.
    """
    from whisperkit_tools.checkpoint import open_checkpoint
    from whisperkit_tools.cli.progress import ConsoleProgress
    from whisperkit_tools.convert.conversion import ConversionConfig, convert
    from whisperkit_tools.convert.speech import verification_speech
    from whisperkit_tools.demo import demo_longform, demo_utterances
    from whisperkit_tools.transcribe.transcriber import Transcriber

    progress = ConsoleProgress()
    config = ConversionConfig(output_dir=output_dir, force=force)
    result = convert(open_checkpoint("demo"), config, verification_speech(), progress)
    transcriber = Transcriber.load(result.path)
    with progress.stage("demo audio", "transcribe"):
        lines = [
            *_transcribe(transcriber, _first(demo_utterances(), limit)),
            *_transcribe(transcriber, demo_longform()),
        ]
    rates = _error_rates(lines)
    if as_json:
        click.echo(json.dumps({"bundle": str(result.path), "wer": rates, "lines": [asdict(line) for line in lines]}))
        return
    _print(lines, rates)
    click.echo(f"bundle: {result.path}")


def _first(utterances: "list[DemoUtterance]", limit: int | None) -> "list[DemoUtterance]":
    if limit is None:
        return utterances
    languages = dict.fromkeys(utterance.language for utterance in utterances)
    return [u for language in languages for u in [x for x in utterances if x.language == language][:limit]]


def _transcribe(transcriber: "Transcriber", utterances: "Sequence[DemoUtterance | DemoLongform]") -> list[Line]:
    from whisperkit_tools.transcribe.audio import find_inputs, load_audio
    from whisperkit_tools.transcribe.options import TranscribeOptions

    lines = []
    inputs = find_inputs([str(utterance.path) for utterance in utterances])
    for utterance, item in zip(utterances, inputs, strict=True):
        audio = load_audio(item)
        kind = "long-form" if utterance.duration_s > 30 else "transcribe"
        text = transcriber.transcribe(audio, TranscribeOptions(language=utterance.language)).text
        lines.append(Line(utterance.id, f"{kind} {utterance.language}", utterance.text, text))
        if kind == "transcribe" and utterance.language != "en":
            translate = TranscribeOptions(language=utterance.language, task="translate")
            text = transcriber.transcribe(audio, translate).text
            lines.append(Line(utterance.id, f"translate {utterance.language}", utterance.translation, text))
    return lines


def _error_rates(lines: list[Line]) -> dict[str, float]:
    """Word error rate of each task over its corpus, after Whisper's basic normalisation."""
    import jiwer
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normalise = BasicTextNormalizer()
    rates = {}
    for task in dict.fromkeys(line.task for line in lines):
        chosen = [line for line in lines if line.task == task]
        references = [normalise(line.reference) for line in chosen]
        rates[task] = float(jiwer.wer(references, [normalise(line.hypothesis) for line in chosen]))
    return rates


def _print(lines: list[Line], rates: dict[str, float]) -> None:
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
    click.echo("\nWER")
    for task, rate in rates.items():
        click.echo(f"  {task:<14} {100 * rate:6.2f} %")
