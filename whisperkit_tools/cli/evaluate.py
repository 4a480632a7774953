"""`wkt evaluate`: word error rate, quality of inference, robustness and speed of bundles and other models."""

from typing import TYPE_CHECKING, Any

import click

import whisperkit_tools as wkt
from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import column_table, show, show_json
from whisperkit_tools.cli.progress import ConsoleProgress

if TYPE_CHECKING:
    from whisperkit_tools.eval.schema import RunReport

_examples = options.options(
    click.option("--split", help="Part of the dataset, where it has several."),
    click.option("--subset", help="Configuration of a Hub dataset."),
    click.option("--text-column", help="Field with the transcript.  [default: the usual names]"),
    click.option("--revision", help="Branch, tag or commit of a Hub dataset."),
    click.option("--limit", type=click.IntRange(1), help="Number of examples to take from the start."),
    click.option("--sample", type=click.IntRange(1), help="Number of examples to draw at random."),
    click.option(
        "--seed",
        type=int,
        default=0,
        show_default=True,
        help="Seed for sampling, noise and bootstrap intervals.",
    ),
    click.option("--language", help="Code of a language. Examples in other languages are skipped."),
    click.option("--min-duration", type=float, metavar="SECONDS", help="Skip examples shorter than this."),
    click.option("--max-duration", type=float, metavar="SECONDS", help="Skip examples longer than this."),
    click.option("--skip-bad", is_flag=True, help="Skip broken examples, and list them in the report."),
)

_running = options.options(
    click.option(
        "--backend",
        multiple=True,
        metavar="NAME[:MODEL]",
        help="executor, coreml, transformers, faster-whisper, whisper.cpp, mlx-whisper, openai, or one that another "
        "package registers. Several backends are compared. Repeatable.  [default: executor]",
    ),
    click.option(
        "--backend-option",
        multiple=True,
        metavar="[BACKEND:]NAME=VALUE",
        help="Option of a backend that does not run bundles. Repeatable.",
    ),
    click.option(
        "--endpoint",
        default="",
        metavar="URL",
        help="Address of an OpenAI-compatible service (--backend openai:MODEL). Its key is read from OPENAI_API_KEY.",
    ),
    options.precision,
    options.compute_units,
    click.option("--device", default="", help="PyTorch device (cpu, cuda, mps), also for other backends."),
    options.batch_size,
    click.option(
        "--workers",
        type=click.IntRange(1),
        help="Number of processes, each with its own model, and one recording at a time.  [default: 1]",
    ),
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Transcribe on this machine, or on a Ray cluster whose machines see audio and models at the same paths.",
    ),
    click.option(
        "--address", help="Address of a running Ray cluster.  [default: a cluster is started on this machine]"
    ),
    click.option(
        "--max-failures",
        type=click.IntRange(0),
        default=10,
        show_default=True,
        help="Stop when more examples than this have failed.",
    ),
)

_decoding = options.options(
    click.option(
        "--temperature",
        metavar="T[,T...]",
        help="Temperatures to try in order while a window's result looks wrong.  [default: 0,0.2,0.4,0.6,0.8,1]",
    ),
    click.option(
        "--long-form",
        type=click.Choice(["sequential", "chunked", "vad"]),
        help="Audio of more than 30 s: window after window, in overlapping chunks, or cut at its pauses.  "
        "[default: sequential]",
    ),
    click.option("--chunk-length", type=float, metavar="SECONDS", help="Length of a chunk or piece."),
    click.option("--stride", type=float, metavar="SECONDS", help="Overlap of a chunk with each neighbour."),
    click.option("--vad", type=click.Choice(["energy", "silero"]), help="Detector of pauses."),
    click.option(
        "--features",
        type=click.Choice(["window", "file"]),
        help="Compute mel features for each window, or for the whole file.",
    ),
    click.option(
        "--condition-on-previous-text",
        is_flag=True,
        default=None,
        help="Give each window the text before it as a prompt.",
    ),
)

_measuring = options.options(
    click.option(
        "--normalizer",
        default="auto",
        show_default=True,
        help="Text normalizer before scoring: auto (by language), english, basic, letters or none. openai-2025 is "
        "Whisper's own without the corrections of 2026.",
    ),
    click.option(
        "--scorer",
        type=click.Choice(["plain", "open-asr"]),
        default="plain",
        show_default=True,
        help="Counting of errors. open-asr adds the word error rate of the Open ASR Leaderboard, for which compounds, "
        "acronyms, names and fillers are no errors.",
    ),
    click.option("--detect-language", is_flag=True, help="Do not tell the model the language of an example."),
    click.option(
        "--word-timestamps", is_flag=True, help="Also compute word times, and compare them with the dataset's."
    ),
    click.option(
        "--noise-snr", metavar="DB[,DB...]", help="Also evaluate in noise of these ratios, for example 20,10,5,0."
    ),
    click.option(
        "--noise-kind",
        multiple=True,
        type=click.Choice(["white", "babble"]),
        help="Kind of noise. Repeatable.  [default: both]",
    ),
    click.option(
        "--check-silence/--no-check-silence",
        default=True,
        show_default=True,
        help="Also transcribe clips without speech. Any text found there is invented.",
    ),
    click.option("--streaming", is_flag=True, help="Also simulate live transcription, and measure its latency."),
    click.option(
        "--hop",
        type=float,
        default=1.0,
        show_default=True,
        metavar="SECONDS",
        help="Time between two runs of the model in live transcription.",
    ),
    click.option(
        "--reference",
        type=options.PATH,
        help="Bundle or run folder that quality of inference is measured against.  [default: the first BUNDLE]",
    ),
)


@click.command()
@click.argument("bundles", metavar="[BUNDLE]...", nargs=-1)
@click.option(
    "--dataset",
    required=True,
    help="demo, librispeech, librispeech-200, earnings22, earnings22-12hours, common_voice, a folder or a Hub id.",
)
@options.bundles_dir
@_examples
@_running
@_decoding
@_measuring
@click.option(
    "-o",
    "--output-dir",
    type=options.PATH,
    default="evaluations",
    show_default=True,
    help="Folder of all runs.",
)
@click.option("--embed-audio", is_flag=True, help="Put the audio of the worst examples into report.html.")
@options.json_output
def command(bundles: tuple[str, ...], as_json: bool, **chosen: Any) -> None:
    """Measure word error rate, quality of inference, robustness and speed.

    Every result is stored before the next one is awaited. The same command resumes an interrupted run and tries failed
    examples again. A run belongs to the content of the bundle, to the content of the dataset and to the options. When
    one of them changes, a new run begins. Each run's folder gets results.jsonl, report.json, report.md and
    report.html. Several runs also get a report that compares them.

    Exit codes: 0 success, 1 an example failed, 2 wrong usage.
    """
    with ConsoleProgress() as progress:
        runs = wkt.evaluate(bundles, **chosen, progress=progress)
    folders = [*([runs.comparison] if runs.comparison else []), *(run.folder for run in runs)]
    reports = [run.report for run in runs]
    if as_json:
        from whisperkit_tools.eval.schema import Report
        from whisperkit_tools.eval.typed_json import to_json

        show_json({"folders": [str(folder) for folder in folders], **to_json(Report(runs=tuple(reports)))})
    else:
        for line in (*table(reports), *_other_scores(reports)):
            show(line)
        for folder in folders:
            show(f"report: {folder / 'report.html'}")
    runs.require_complete()


def table(reports: "list[RunReport]") -> list[str]:
    """Return the main figures, a line for each run."""
    head = ("", "MB", "WER %", "95 %", "CER %", "QoI %", "speed", "ms/token", "s to first")
    return column_table([head, *(_cells(report) for report in reports)])


def _other_scores(reports: "list[RunReport]") -> list[str]:
    """Return a line for each figure of a second scorer."""
    return [
        f"{report.name}: WER by {score.scorer} {'-' if score.wer is None else f'{100 * score.wer:.2f} %'}"
        for report in reports
        for score in report.metrics.other_scores
    ]


def _cells(report: "RunReport") -> tuple[str, ...]:
    metrics, speed = report.metrics, report.speed

    def shown(value: float | None, scale: float, digits: int) -> str:
        return "-" if value is None else f"{scale * value:.{digits}f}"

    interval = metrics.wer_interval
    return (
        report.name,
        "-" if report.bundle is None else f"{report.bundle.bytes / 1e6:.1f}",
        shown(metrics.wer, 100, 2),
        "-" if interval is None else f"{100 * interval[0]:.2f}-{100 * interval[1]:.2f}",
        shown(metrics.cer, 100, 2),
        shown(metrics.qoi, 100, 1),
        "-" if speed.rtfx_corpus is None else f"{speed.rtfx_corpus:.1f}x",
        shown(speed.token_s, 1000, 2),
        shown(speed.first_token_s, 1, 3),
    )
