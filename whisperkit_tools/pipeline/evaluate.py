"""Word error rate, quality of inference, robustness and speed of bundles and other models."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

from whisperkit_tools.bundle import DEFAULT_BUNDLES_DIR, Bundle, find_bundle
from whisperkit_tools.errors import EvaluationError, OptionsError, WktError, option
from whisperkit_tools.eval.backends.base import EvaluationTarget
from whisperkit_tools.eval.datasets.dataset import Dataset
from whisperkit_tools.eval.datasets.open import open_dataset
from whisperkit_tools.eval.datasets.options import DatasetOptions
from whisperkit_tools.eval.metrics.normalize import NORMALIZERS
from whisperkit_tools.eval.reports.html import PageOptions
from whisperkit_tools.eval.reports.read import read_run
from whisperkit_tools.eval.reports.write import write_report, write_run_pages
from whisperkit_tools.eval.runs import runner
from whisperkit_tools.eval.runs.engines import ProcessEngine, SerialEngine
from whisperkit_tools.eval.runs.runner import EngineFactory, FinishedRun
from whisperkit_tools.eval.runs.summary import with_qoi
from whisperkit_tools.eval.runs.tasks import EvaluateConfig
from whisperkit_tools.eval.schema import REPORT_FILE, RESULTS_FILE, Report
from whisperkit_tools.eval.typed_json import to_json
from whisperkit_tools.files import write_json
from whisperkit_tools.mil.tensor_spec import Precision
from whisperkit_tools.pipeline.arguments import as_bundles, as_numbers, as_tuple
from whisperkit_tools.pipeline.bundle_backend import EXECUTOR, read_audio
from whisperkit_tools.pipeline.candidates import BackendChoice, CandidateOptions, candidates, require_bundle_backend
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.transcribe.many import AUTO, BatchSize, check_batch_size

DEFAULT_ROOT = Path("evaluations")
RAY, LOCAL = "ray", "local"
_SHOWN_FAILURES = 5


@dataclass(frozen=True, slots=True)
class Evaluation(Sequence[FinishedRun]):
    """The runs of one evaluation, in the order of the candidates.

    Attributes:
        runs: The runs that ended; some of their examples may have failed.
        comparison: Folder of the report that compares several runs; None for one run.
        stopped: One line for each candidate that could not be run to its end.
    """

    runs: tuple[FinishedRun, ...]
    comparison: Path | None = None
    stopped: tuple[str, ...] = ()

    @overload
    def __getitem__(self, index: int) -> FinishedRun: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[FinishedRun, ...]: ...

    def __getitem__(self, index: int | slice) -> FinishedRun | tuple[FinishedRun, ...]:
        """Return one run or some of them."""
        return self.runs[index]

    def __len__(self) -> int:
        """Return how many runs ended."""
        return len(self.runs)

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each candidate that was stopped and for each example that failed, the first few of each run."""
        lines = list(self.stopped)
        for run in self.runs:
            failed = run.report.failures
            lines += [f"{run.report.name}: {item.id}: {item.error}" for item in failed[:_SHOWN_FAILURES]]
            more = len(failed) - _SHOWN_FAILURES
            lines += [f"{run.report.name}: and {more} more, listed in its report"] if more > 0 else []
        return tuple(lines)

    def require_complete(self) -> None:
        """Check that every example of every candidate was evaluated.

        Raises:
            EvaluationError: Naming what failed.
        """
        if self.failures:
            lines = "\n  ".join(self.failures)
            raise EvaluationError(f"not all could be evaluated; the same command tries again:\n  {lines}")


def evaluate(
    bundles: Bundle | str | Path | Iterable[Bundle | str | Path] = (),
    *,
    dataset: str | Path | Dataset,
    bundles_dir: str | Path = DEFAULT_BUNDLES_DIR,
    split: str | None = None,
    subset: str | None = None,
    text_column: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    language: str | None = None,
    min_duration: float | None = None,
    max_duration: float | None = None,
    skip_bad: bool = False,
    backend: str | Sequence[str] = (),
    backend_option: str | Sequence[str] = (),
    endpoint: str = "",
    precision: Precision = "float32",
    compute_units: str | None = None,
    device: str = "",
    batch_size: BatchSize = AUTO,
    workers: int | None = None,
    engine: str = LOCAL,
    address: str | None = None,
    max_failures: int = 10,
    temperature: str | float | Sequence[float] | None = None,
    long_form: str | None = None,
    chunk_length: float | None = None,
    stride: float | None = None,
    vad: str | None = None,
    features: str | None = None,
    condition_on_previous_text: bool | None = None,
    normalizer: str = "auto",
    scorer: str = "plain",
    detect_language: bool = False,
    word_timestamps: bool = False,
    noise_snr: str | float | Sequence[float] | None = None,
    noise_kind: str | Sequence[str] = (),
    check_silence: bool = True,
    streaming: bool = False,
    hop: float = 1.0,
    reference: Bundle | str | Path | None = None,
    output_dir: str | Path = DEFAULT_ROOT,
    embed_audio: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Transcribe a dataset with bundles or other models, and score the transcripts.

    Every result is stored before the next one is awaited. The same call resumes an interrupted run, and tries failed
    examples again.

    Args:
        bundles: One or several bundles, opened or by folder. None are needed for backends with models of their own.
        dataset: `demo`, a named set (`librispeech-200`), a folder, a Hub id, or an opened dataset.
        bundles_dir: The folder in which to look for the last converted bundle, when none is named.
        split: Part of the dataset, where it has several.
        subset: Configuration of a Hub dataset.
        text_column: Field with the transcript. None for the usual names.
        revision: Branch, tag or commit of a Hub dataset.
        limit: Number of examples to take from the start.
        sample: Number of examples to draw at random.
        seed: Seed for sampling, noise and bootstrap intervals.
        language: Code of a language. Other examples are skipped.
        min_duration: Shorter examples are skipped, in seconds.
        max_duration: Longer examples are skipped, in seconds.
        skip_bad: Skip broken examples, and list them in the report.
        backend: One or several of `executor`, `coreml`, `transformers`, `faster-whisper`, `whisper.cpp`,
            `mlx-whisper`, `openai`, or a registered one, each as `NAME` or `NAME:MODEL`. Empty for the executor.
        backend_option: Options of backends that do not run bundles, as `NAME=VALUE` or `BACKEND:NAME=VALUE`.
        endpoint: Address of an OpenAI-compatible service. Its key is read from `OPENAI_API_KEY`.
        precision: `float32` or `float16`, which rounds as the device does. For the executor.
        compute_units: Core ML compute units. None for those of the on-device runtime.
        device: PyTorch device. Empty for the backend's choice.
        batch_size: Number of recordings that a bundle decodes at once in one process, or `auto`. Results do not depend
            on it.
        workers: Number of processes, each with its own model, which transcribe one recording at a time. None for 1.
        engine: `local`, or `ray` for a cluster whose machines see audio and models at the same paths.
        address: Address of a running Ray cluster. None starts one on this machine.
        max_failures: The run stops when more examples than this fail.
        temperature: Temperatures to try in order while the result of a window looks wrong. None for 0 to 1.
        long_form: `sequential`, `chunked` or `vad`, for audio of more than 30 s. None for `sequential`.
        chunk_length: Length of a chunk or piece in seconds.
        stride: Overlap of a chunk with each neighbour, in seconds.
        vad: Detector of pauses, `energy` or `silero`.
        features: Mel features of each `window` or of the whole `file`.
        condition_on_previous_text: Give each window the text before it as a prompt.
        normalizer: `auto` (by language), `english`, `basic`, `letters`, `none`, or `openai-2025`, which is `auto` with
            Whisper's own rules of 2025.
        scorer: `plain`, or `open-asr` for the word errors of the Open ASR Leaderboard beside the plain ones.
        detect_language: Do not tell the model the language of an example.
        word_timestamps: Also compute word times, and compare them with the dataset's.
        noise_snr: Signal-to-noise ratios in dB at which the examples are evaluated as well.
        noise_kind: `white`, `babble`, or both. Empty for both.
        check_silence: Also transcribe clips without speech. Text found there is invented.
        streaming: Also simulate live transcription, and measure its latency.
        hop: Seconds between two runs of the model in that simulation.
        reference: A bundle or a run's folder that quality of inference is measured against. None for the first
            candidate.
        output_dir: The folder of all runs.
        embed_audio: Put the audio of the worst examples into `report.html`.
        progress: Receives notes and counts.

    Returns:
        The runs. Those after the reference know their quality of inference.

    Raises:
        OptionsError: A value is unknown, out of range, or not used by any chosen backend.
        DatasetError: The dataset cannot be found or read.
        EvaluationError: The only candidate cannot be run.

    Example:
        >>> import whisperkit_tools as wkt
        >>> runs = wkt.evaluate("bundles/acme_whisper-demo", dataset="demo", limit=2, check_silence=False)
        >>> runs[0].report.metrics.wer < 0.2
        True
    """
    progress = progress or SilentProgress()
    performer = evaluation_engine(engine, address, workers)
    check_batch_size(batch_size)
    config = _config(
        normalizer=normalizer,
        scorer=scorer,
        gives_language=not detect_language,
        words=word_timestamps,
        noise_snr_db=as_numbers("noise_snr", noise_snr, "20,10,5,0") or (),
        checks_no_speech=check_silence,
        streaming=streaming,
        hop_s=hop,
        max_failures=max_failures,
        seed=seed,
        **({"noise_kinds": as_tuple(noise_kind)} if noise_kind else {}),
    )
    decoding = {
        "temperatures": as_numbers("temperature", temperature, "0,0.2,0.4"),
        "long_form": long_form,
        "chunk_length_s": chunk_length,
        "stride_s": stride,
        "vad": vad,
        "features": features,
        "condition_on_previous_text": condition_on_previous_text,
    }
    options = CandidateOptions(
        decoding={name: value for name, value in decoding.items() if value is not None},
        precision=precision,
        compute_units=compute_units,
        device=device,
        endpoint=endpoint,
        backend_options=as_tuple(backend_option),
        batch_size=batch_size,
    )
    backends = [BackendChoice.parse(text) for text in dict.fromkeys(as_tuple(backend) or (EXECUTOR,))]
    chosen, base = _candidates(as_bundles(bundles), Path(bundles_dir), reference, backends, options, progress)
    if not isinstance(dataset, Dataset):
        wanted = DatasetOptions(
            split=split,
            subset=subset,
            text_column=text_column,
            revision=revision,
            limit=limit,
            sample=sample,
            seed=seed,
            language=language,
            min_duration_s=min_duration,
            max_duration_s=max_duration,
            skip_bad=skip_bad,
        )
        dataset = _opened(str(dataset), wanted, progress)
    work = _Evaluation(dataset, config, Path(output_dir), performer, progress)
    return work.finished(chosen, base, PageOptions(embed_audio=embed_audio))


def _config(**values: Any) -> EvaluateConfig:
    """Return what is asked of every example.

    Raises:
        OptionsError: A value is unknown or out of range.
    """
    if values["normalizer"] not in NORMALIZERS:
        known = ", ".join(NORMALIZERS)
        raise OptionsError(f"{option('normalizer')}: no normalizer {values['normalizer']!r}; choose from {known}")
    return EvaluateConfig(**values)


def _candidates(
    bundles: Sequence[Bundle],
    bundles_dir: Path,
    reference: Bundle | str | Path | None,
    backends: Sequence[BackendChoice],
    options: CandidateOptions,
    progress: Progress,
) -> tuple[list[EvaluationTarget], Path | None]:
    """Return what is evaluated, a reference bundle first, and the folder of a reference that is a run already."""
    options.check_used(backends)
    others = [choice.name for choice in backends if not choice.runs_bundles]
    if others and options.own:
        flags = ", ".join(option(name) for name in options.own)
        progress.note(f"{flags} apply to bundles only; {', '.join(others)} decodes in its own way")
    run = None if isinstance(reference, Bundle) or reference is None else Path(reference)
    if run is not None and not (run.is_file() or (run / RESULTS_FILE).is_file()):
        run = None
    opened = [*(as_bundles(reference) if reference is not None and run is None else ()), *bundles]
    if bundles:
        require_bundle_backend(backends)
    elif any(choice.runs_bundles or choice.model is None for choice in backends):
        opened.append(find_bundle(bundles_dir))
    return candidates(opened, backends, options), run


def _opened(name: str, options: DatasetOptions, progress: Progress) -> Dataset:
    dataset = open_dataset(name, options, progress)
    if dataset.problems:
        progress.note(f"{len(dataset.problems)} broken examples are left out; the report lists them")
    return dataset


def evaluation_engine(name: str, address: str | None, workers: int | None) -> EngineFactory:
    """Return what makes the engine of a run: worker processes here, or on a Ray cluster.

    Args:
        name: `local` or `ray`.
        address: Address of a running Ray cluster.
        workers: Number of processes. None for 1.

    Raises:
        OptionsError: There is no such engine, or the values do not go together.
    """
    if address is not None and name != RAY:
        raise OptionsError(f"{option('address')} names a Ray cluster; add {option('engine', RAY)}")
    if name == RAY:
        from whisperkit_tools.eval.runs.ray_engine import RayEngine  # an optional dependency

        return partial(RayEngine, address=address, workers=workers)
    if name != LOCAL:
        raise OptionsError(f"{option('engine')} is {name!r}; choose from {LOCAL}, {RAY}")
    if workers is not None and workers < 1:
        raise OptionsError(f"{option('workers')} is {workers}; the minimum is 1")
    return partial(ProcessEngine, workers=workers) if workers is not None and workers > 1 else SerialEngine


@dataclass(slots=True)
class _Evaluation:
    """Runs candidates one after another. One that is stopped does not stop the others."""

    dataset: Dataset
    config: EvaluateConfig
    root: Path
    engine: EngineFactory
    progress: Progress
    runs: list[FinishedRun] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def finished(self, chosen: Sequence[EvaluationTarget], reference: Path | None, page: PageOptions) -> Evaluation:
        """Run all candidates, judge them against the reference, and write their pages.

        Args:
            chosen: The candidates. The first one is the reference, unless `reference` is given.
            reference: Folder of the run to judge against.
            page: Settings of the pages.

        Raises:
            WktError: The only candidate was stopped.
        """
        for candidate in chosen:
            self._run(candidate, alone=len(chosen) == 1)
        # When the first candidate was stopped, no other takes its place as the reference.
        if reference is None and len(self.runs) > 1 and self.runs[0].report.name == chosen[0].name:
            reference = self.runs[0].folder
        if reference is not None:
            self.runs = judged(self.runs, reference)
        for run in self.runs:
            write_run_pages(run.folder, page)
        return Evaluation(tuple(self.runs), self._compared(page), tuple(self.stopped))

    def _run(self, candidate: EvaluationTarget, *, alone: bool) -> None:
        try:
            run = runner.evaluate(
                candidate,
                self.dataset,
                self.config,
                root=self.root,
                engine=self.engine,
                read=read_audio,
                progress=self.progress,
            )
        except WktError as error:
            if alone:
                raise
            self.stopped.append(f"{candidate.name}: {error.message}")
        else:
            self.runs.append(run)

    def _compared(self, page: PageOptions) -> Path | None:
        """Write the report that compares several runs, and return its folder."""
        if len(self.runs) < 2:
            return None
        keys = " ".join(run.report.key for run in self.runs)
        short = hashlib.sha256(keys.encode()).hexdigest()[:8]
        folder = self.runs[0].folder.parent / f"comparison-{short}"
        write_report([run.folder for run in self.runs], folder, page=page, force=True)
        return folder


def judged(runs: Sequence[FinishedRun], reference: Path) -> list[FinishedRun]:
    """Return runs with their quality of inference against a run, which is also written into their `report.json`.

    Args:
        runs: The runs. The reference itself stays as it is.
        reference: Folder of the run to compare with.

    Raises:
        DatasetError: The reference cannot be read.
        OptionsError: A run has other examples than the reference.
    """
    base = read_run(reference)
    base_rates = {row.id: row.wer for row in base.rows}
    return [
        run if run.folder.resolve() == base.folder.resolve() else _with_qoi(run, base.report, base_rates)
        for run in runs
    ]


def _with_qoi(run: FinishedRun, base: Any, base_rates: dict[str, float | None]) -> FinishedRun:
    rates = {row.id: row.wer for row in read_run(run.folder).rows}
    report = with_qoi(run.report, rates, base, base_rates)
    write_json(run.folder / REPORT_FILE, to_json(Report(runs=(report,))))
    return replace(run, report=report)
