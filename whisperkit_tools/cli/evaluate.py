"""`wkt evaluate`: word error rate, quality of inference, robustness and speed of bundles and other models."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whisperkit_tools.errors import EvaluationError, WktError

if TYPE_CHECKING:
    from whisperkit_tools.cli.candidates import BackendChoice
    from whisperkit_tools.eval.backends.base import Candidate
    from whisperkit_tools.eval.datasets.examples import Dataset
    from whisperkit_tools.eval.reports.html import PageConfig
    from whisperkit_tools.eval.runs.engines import Engine
    from whisperkit_tools.eval.runs.runner import FinishedRun
    from whisperkit_tools.eval.runs.tasks import EvaluateConfig
    from whisperkit_tools.eval.runs.worker import WorkerSpec

DEFAULT_ROOT = Path("evaluations")
_SHOWN_FAILURES = 5


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Parse comma-separated numbers."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 20,10,5,0", ctx, param) from None


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator."""

    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_choosing = _options(
    click.option("--split", help="Part of the dataset, where it has several."),
    click.option("--subset", help="Configuration of a Hub dataset."),
    click.option("--text-column", help="Field with the transcript.  [default: the usual names]"),
    click.option("--revision", help="Branch, tag or commit of a Hub dataset."),
    click.option("--limit", type=click.IntRange(1), help="Take the first so many examples."),
    click.option("--sample", type=click.IntRange(1), help="Draw so many examples."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of that draw, of noise, and of intervals."),
    click.option("--language", help="Take only examples in this language, by its code."),
    click.option("--min-duration", "min_duration_s", type=float, metavar="SECONDS", help="Take none that is shorter."),
    click.option("--max-duration", "max_duration_s", type=float, metavar="SECONDS", help="Take none that is longer."),
    click.option("--skip-bad", is_flag=True, help="Go on without examples that are broken, and list them."),
)

_decoding = _options(
    click.option("--temperature", "temperatures", metavar="T[,T...]", callback=_numbers,
                 help="Tried in order while a window's result looks wrong.  [default: 0,0.2,0.4,0.6,0.8,1]"),
    click.option("--long-form", type=click.Choice(["sequential", "chunked", "vad"]),
                 help="Audio of more than 30 s: window after window, overlapping chunks, or cut in its pauses."),
    click.option("--chunk-length", "chunk_length_s", type=float, metavar="SECONDS", help="Of a chunk or piece."),
    click.option("--stride", "stride_s", type=float, metavar="SECONDS", help="What a chunk shares with its neighbour."),
    click.option("--vad", type=click.Choice(["energy", "silero"]), help="What finds the pauses."),
    click.option("--features", type=click.Choice(["window", "file"]), help="Mel features by window, or of the file."),
    click.option("--condition-on-previous-text", is_flag=True, default=None,
                 help="Prompt each window with the text before it."),
)  # fmt: skip

_measuring = _options(
    click.option("--normalizer", default="auto", show_default=True,
                 help="auto (by language), english, basic, letters or none."),
    click.option("--detect-language", is_flag=True, help="Do not tell the model the language of an example."),
    click.option("--word-timestamps", is_flag=True, help="Also time the words, and compare with the dataset's times."),
    click.option("--noise-snr", "noise_snr_db", metavar="DB[,DB...]", callback=_numbers,
                 help="Also in noise of these ratios, such as 20,10,5,0."),
    click.option("--noise-kind", "noise_kinds", multiple=True, type=click.Choice(["white", "babble"]),
                 help="Of noise.  [default: both]"),
    click.option("--check-silence/--no-check-silence", default=True, show_default=True,
                 help="Also transcribe clips without speech: what is heard there is made up."),
    click.option("--streaming", is_flag=True, help="Also simulate live transcription, and measure its latency."),
    click.option("--hop", "hop_s", type=float, default=1.0, show_default=True, metavar="SECONDS",
                 help="Of live transcription: how often the model runs."),
    click.option("--reference", type=click.Path(path_type=Path),
                 help="A bundle, or the folder of a run: quality of inference is measured against it."),
)  # fmt: skip

_running = _options(
    click.option("--backend", "backends", multiple=True, metavar="NAME[:MODEL]",
                 help="executor, coreml, transformers, faster-whisper, whisper.cpp, mlx-whisper, openai, or one that "
                      "another package brings; several are compared.  [default: executor]"),
    click.option("--backend-option", "backend_options", multiple=True, metavar="[BACKEND:]NAME=VALUE",
                 help="Of a backend that does not run bundles."),
    click.option("--endpoint", default="", metavar="URL",
                 help="Of an OpenAI-compatible service (--backend openai:MODEL); its key is read from OPENAI_API_KEY."),
    click.option("--precision", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
                 help="Of the executor; float16 rounds as the device does."),
    click.option("--compute-units", type=click.Choice(["all", "cpu_only", "cpu_and_gpu", "cpu_and_ne"]),
                 help="Of Core ML.  [default: the on-device runtime's own]"),
    click.option("--device", default="", help="Of PyTorch and backends that can choose: cpu, cuda or mps."),
    click.option("--workers", type=click.IntRange(1), help="Processes, each with its own model.  [default: 1]"),
    click.option("--engine", "engine_name", type=click.Choice(["local", "ray"]), default="local", show_default=True,
                 help="ray: a cluster, whose machines see audio and models at the same paths."),
    click.option("--address", help="Of a running Ray cluster.  [default: one is started on this machine]"),
    click.option("--max-failures", type=click.IntRange(0), default=10, show_default=True,
                 help="Stop when more examples have failed."),
)  # fmt: skip


@click.command()
@click.argument("bundles", metavar="[BUNDLE]...", nargs=-1)
@click.option("--dataset", "dataset_name", required=True,
              help="demo, librispeech, librispeech-200, earnings22, earnings22-12hours, common_voice, a folder or a "
                   "Hub id.")  # fmt: skip
@click.option("--bundles-dir", type=click.Path(path_type=Path), default=Path("bundles"), show_default=True,
              help="Where to look for the bundle that was converted last, when none is named.")  # fmt: skip
@_choosing
@_running
@_decoding
@_measuring
@click.option("-o", "--output-dir", "root", type=click.Path(path_type=Path), default=DEFAULT_ROOT, show_default=True,
              help="The folder of all runs.")  # fmt: skip
@click.option("--embed-audio", is_flag=True, help="Put the worst examples' audio into report.html.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    bundles: tuple[str, ...],
    dataset_name: str,
    bundles_dir: Path,
    root: Path,
    embed_audio: bool,
    as_json: bool,
    reference: Path | None,
    **options: Any,
) -> None:
    """Measure word error rate, quality of inference, robustness and speed.

    Every result is on the disk before the next is waited for: a run that was killed goes on where it was when the same
    command is given again, and examples that failed are tried again. A run belongs to the content of the bundle and of
    the dataset and to the options; when one changes, another run begins. Each run's folder gets results.jsonl,
    report.json, report.md and report.html; several runs also get a report that compares them.

    Exit codes: 0 done, 1 with any example that failed, 2 wrong usage.
    """
    from whisperkit_tools.cli.progress import ConsoleProgress
    from whisperkit_tools.eval.reports.html import PageConfig

    if options["address"] is not None and options["engine_name"] != "ray":
        raise click.UsageError("--address is of a Ray cluster; add --engine ray")
    config = _config(options)
    candidates, reference_run = _candidates(bundles, bundles_dir, reference, options)
    dataset = _dataset(dataset_name, options, ConsoleProgress())
    page = PageConfig(embed_audio=embed_audio)
    evaluation = _Evaluation(dataset, config, root, _engine(options), page)
    evaluation.all(candidates)
    evaluation.judge(reference_run)
    evaluation.write()
    evaluation.give_out(as_json)
    evaluation.fail_if_failed()


def _config(options: dict[str, Any]) -> "EvaluateConfig":
    from whisperkit_tools.eval.metrics.normalize import NORMALIZERS
    from whisperkit_tools.eval.runs.tasks import EvaluateConfig

    if options["normalizer"] not in NORMALIZERS:
        raise click.UsageError(f"no normalizer {options['normalizer']!r}; there are {', '.join(NORMALIZERS)}")
    kinds = {"noise_kinds": options["noise_kinds"]} if options["noise_kinds"] else {}
    return EvaluateConfig(
        normalizer=options["normalizer"],
        gives_language=not options["detect_language"],
        words=options["word_timestamps"],
        noise_snr_db=options["noise_snr_db"] or (),
        checks_no_speech=options["check_silence"],
        streaming=options["streaming"],
        hop_s=options["hop_s"],
        max_failures=options["max_failures"],
        seed=options["seed"],
        **kinds,
    )


def _candidates(
    bundles: tuple[str, ...], bundles_dir: Path, reference: Path | None, options: dict[str, Any]
) -> "tuple[list[Candidate], Path | None]":
    """What is evaluated, a reference bundle first; and the reference that is a run already."""
    from whisperkit_tools.bundle import Bundle, find_bundle
    from whisperkit_tools.cli.candidates import BUNDLE_OPTIONS, BackendChoice, CandidateOptions, candidates
    from whisperkit_tools.eval.schema import RESULTS_FILE
    from whisperkit_tools.pipeline import BUNDLE_BACKENDS

    backends = [BackendChoice.parse(text) for text in dict.fromkeys(options["backends"])]
    backends = backends or [BackendChoice("executor", None)]
    _check_used(backends, options)
    is_run = reference is not None and (reference.is_file() or (reference / RESULTS_FILE).is_file())
    named = [*([str(reference)] if reference is not None and not is_run else []), *bundles]
    opened = [Bundle.open(path) for path in named]
    needs_bundle = any(choice.name in BUNDLE_BACKENDS or choice.model is None for choice in backends)
    if not bundles and needs_bundle:
        opened.append(find_bundle(bundles_dir))
    if bundles and not needs_bundle:
        raise click.UsageError("no backend that runs bundles was named; add --backend executor")
    given = CandidateOptions(
        decoding={name: options[name] for name in ("temperatures", *BUNDLE_OPTIONS) if options[name] is not None},
        precision=options["precision"],
        compute_units=options["compute_units"],
        device=options["device"],
        endpoint=options["endpoint"],
        backend_options=options["backend_options"],
    )
    return candidates(opened, backends, given), reference if is_run else None


def _check_used(backends: "Sequence[BackendChoice]", options: dict[str, Any]) -> None:
    """Refuse options that none of the backends knows; say of the others whose they are.

    Raises:
        click.UsageError: Naming the option, and the backend that has it.
    """
    from whisperkit_tools.cli.candidates import BUNDLE_OPTIONS, unused_options
    from whisperkit_tools.pipeline import BUNDLE_BACKENDS

    refused = unused_options(backends, options)
    if refused:
        raise click.UsageError("; ".join(refused))
    others = [choice.name for choice in backends if choice.name not in BUNDLE_BACKENDS]
    given = [option for name, option in BUNDLE_OPTIONS.items() if options[name] is not None]
    if others and given:
        click.echo(f"wkt: note: {', '.join(given)} of bundles only; {', '.join(others)} decodes its own way", err=True)


def _dataset(name: str, options: dict[str, Any], progress: Any) -> "Dataset":
    from whisperkit_tools.eval.datasets.open import DatasetOptions, open_dataset

    names = ("split", "subset", "text_column", "revision", "limit", "sample", "seed", "language", "skip_bad")
    chosen = {key: options[key] for key in (*names, "min_duration_s", "max_duration_s")}
    dataset = open_dataset(name, DatasetOptions(**chosen), progress)
    if dataset.problems:
        click.echo(f"wkt: note: {len(dataset.problems)} broken examples are left out; the report lists them", err=True)
    return dataset


def _engine(options: dict[str, Any]) -> "Callable[[WorkerSpec], Engine]":
    from whisperkit_tools.eval.runs.engines import ProcessEngine, SerialEngine

    if options["engine_name"] == "ray":
        from whisperkit_tools.eval.runs.ray_engine import RayEngine

        return partial(RayEngine, address=options["address"], workers=options["workers"])
    workers = options["workers"] or 1
    return partial(ProcessEngine, workers=workers) if workers > 1 else SerialEngine


class _Evaluation:
    """Runs the candidates one after another; what stops one does not stop the others."""

    def __init__(
        self,
        dataset: "Dataset",
        config: "EvaluateConfig",
        root: Path,
        engine: "Callable[[WorkerSpec], Engine]",
        page: "PageConfig",
    ) -> None:
        self._dataset = dataset
        self._config = config
        self._root = root
        self._engine = engine
        self._page = page
        self._done: list[FinishedRun] = []
        self._first: str | None = None
        self._stopped: list[str] = []
        self._comparison: Path | None = None

    def all(self, candidates: "Sequence[Candidate]") -> None:
        """Run them.

        Raises:
            WktError: The only one was stopped.
        """
        from whisperkit_tools.cli.run_progress import RunProgress
        from whisperkit_tools.eval.runs.runner import evaluate
        from whisperkit_tools.pipeline import read_audio

        self._first = candidates[0].name
        for candidate in candidates:
            try:
                with RunProgress(candidate.name) as progress:
                    done = evaluate(
                        candidate,
                        self._dataset,
                        self._config,
                        root=self._root,
                        engine=self._engine,
                        read=read_audio,
                        listener=progress,
                    )
            except WktError as error:
                if len(candidates) == 1:
                    raise
                self._stopped.append(f"{candidate.name}: {error}")
            else:
                self._done.append(done)

    def judge(self, reference: Path | None) -> None:
        """Measure quality of inference: against the reference run, else the first of several unless it was stopped."""
        from whisperkit_tools.eval.reports.read import read_run
        from whisperkit_tools.eval.runs.store import write_json
        from whisperkit_tools.eval.runs.summary import with_qoi
        from whisperkit_tools.eval.schema import REPORT_FILE, Report, to_json

        if reference is None and (len(self._done) < 2 or self._done[0].report.name != self._first):
            return
        base = read_run(reference if reference is not None else self._done[0].folder)
        base_rates = {row.id: row.wer for row in base.rows}
        for index, done in enumerate(self._done):
            if done.folder.resolve() == base.folder.resolve():
                continue
            rates = {row.id: row.wer for row in read_run(done.folder).rows}
            report = with_qoi(done.report, rates, base.report, base_rates)
            write_json(done.folder / REPORT_FILE, to_json(Report(runs=(report,))))
            self._done[index] = replace(done, report=report)

    def write(self) -> None:
        """Write each run's pages, and the comparison of several."""
        from whisperkit_tools.eval.reports.write import write_report, write_run_pages

        for done in self._done:
            write_run_pages(done.folder, self._page)
        if len(self._done) > 1:
            keys = " ".join(done.report.key for done in self._done)
            short = hashlib.sha256(keys.encode()).hexdigest()[:8]
            self._comparison = self._done[0].folder.parent / f"comparison-{short}"
            write_report([done.folder for done in self._done], self._comparison, page=self._page, force=True)

    def give_out(self, as_json: bool) -> None:
        """Print the figures and where the reports are."""
        import json

        from whisperkit_tools.eval.schema import Report, to_json

        folders = [self._comparison, *(done.folder for done in self._done)]
        if as_json:
            report = to_json(Report(runs=tuple(done.report for done in self._done)))
            paths = [str(folder) for folder in folders if folder is not None]
            click.echo(json.dumps({"folders": paths, **report}, ensure_ascii=False, indent=2))
            return
        for line in table([done.report for done in self._done]):
            click.echo(line)
        for folder in folders:
            if folder is not None:
                click.echo(f"report: {folder / 'report.html'}")

    def fail_if_failed(self) -> None:
        """End with a failure when anything failed.

        Raises:
            EvaluationError: Naming what.
        """
        lines = list(self._stopped)
        for done in self._done:
            failures = done.report.failures
            lines += [f"{done.report.name}: {failure.id}: {failure.error}" for failure in failures[:_SHOWN_FAILURES]]
            more = len(failures) - _SHOWN_FAILURES
            lines += [f"{done.report.name}: and {more} more, listed in its report"] if more > 0 else []
        if lines:
            raise EvaluationError("not all could be evaluated; the same command tries again:\n  " + "\n  ".join(lines))


def table(reports: "Sequence[Any]") -> list[str]:
    """The main figures, a line for each run."""
    head = ("", "MB", "WER %", "95 %", "CER %", "QoI %", "speed", "ms/token", "s to first")
    rows = [head, *(_cells(report) for report in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _cells(report: Any) -> tuple[str, ...]:
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
