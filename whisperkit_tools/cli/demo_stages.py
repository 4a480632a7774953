"""The stages of `wkt demo`: each calls what the command of its name calls, and gives its result to the next."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whisperkit_tools.eval.datasets.examples import Dataset
    from whisperkit_tools.eval.runs.runner import FinishedRun
    from whisperkit_tools.eval.schema import RunReport
    from whisperkit_tools.progress import Progress
    from whisperkit_tools.publishing.registry.folder import FolderRegistry
    from whisperkit_tools.speech import Recording
    from whisperkit_tools.transcribe.transcriber import Transcriber

DATASET = "demo"
_HALF = "TextDecoder/*"  # kept in float16, so that the careful variant has a size and a name of its own
_QUICK = {"windows": 1, "trials": 6}  # of a demo with a limit; so few examples may ask for a larger bundle by chance


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything goes."""

    root: Path

    @property
    def bundles(self) -> Path:
        """The bundles that are made."""
        return self.root / "bundles"

    @property
    def evaluations(self) -> Path:
        """The runs of the evaluation."""
        return self.root / "evaluations"

    @property
    def report(self) -> Path:
        """The report that compares them."""
        return self.root / "report"

    @property
    def published(self) -> Path:
        """The folder that they are published to; its name is the title of the card."""
        return self.root / "published" / "whisper-micro-demo-coreml"

    @property
    def pulled(self) -> Path:
        """What is pulled back."""
        return self.root / "pulled"


@dataclass(frozen=True, slots=True)
class Line:
    """One utterance of the demo, and what the bundle made of it."""

    id: str
    task: str
    reference: str
    hypothesis: str


def convert_model(places: Places, progress: "Progress", *, limit: int | None, force: bool) -> Path:
    """The embedded checkpoint as a bundle in the layout for latency, with the prefill unless there is a limit."""
    from whisperkit_tools.checkpoint import open_checkpoint
    from whisperkit_tools.conversion.convert import ConversionConfig, convert
    from whisperkit_tools.conversion.prefill.build import PrefillConfig
    from whisperkit_tools.conversion.prefill.comparison import transcripts_with
    from whisperkit_tools.demo import verification_speech

    prefill = PrefillConfig(transcripts=transcripts_with, required=False) if limit is None else None
    config = ConversionConfig(output_dir=places.bundles, turbo=True, prefill=prefill, force=force)
    return convert(open_checkpoint("demo"), config, verification_speech(), progress).path


def palettize(original: Path, progress: "Progress", *, limit: int | None, force: bool) -> list[Path]:
    """A careful variant, the encoder alone at 8 bits, and the smallest that passes the gate.

    Raises:
        QualityGateError: One does not pass.
    """
    from whisperkit_tools.bundle import Bundle
    from whisperkit_tools.compress.compressor import Palettizer
    from whisperkit_tools.compress.config import PalettizeConfig
    from whisperkit_tools.compress.planner import Aim
    from whisperkit_tools.quantization.recipe import Wishes
    from whisperkit_tools.quantization.search import SearchOptions

    smallest = PalettizeConfig(force=force)
    if limit is not None:
        search = SearchOptions(trials=_QUICK["trials"])
        smallest = replace(smallest, windows=_QUICK["windows"], gate_examples=2 * limit, search=search)
    careful = replace(smallest, aim=Aim(nbits=8), wishes=Wishes(keep=(_HALF,)))
    return [Palettizer(Bundle.open(original), config, progress).run().path for config in (careful, smallest)]


def demo_dataset(limit: int | None) -> "Dataset":
    """The demo's audio with its references; with a limit, so many short recordings of each language."""
    from whisperkit_tools.eval.datasets.examples import fingerprint
    from whisperkit_tools.eval.datasets.open import open_dataset

    whole = open_dataset(DATASET)
    if limit is None:
        return whole
    wanted = {utterance.id for utterance in first_utterances(limit)}
    examples = tuple(example for example in whole.examples if example.id in wanted)
    return replace(whole, examples=examples, options={"limit": limit}, fingerprint=fingerprint(examples))


def first_utterances(limit: int | None) -> "list[Recording]":
    """The short recordings; with a limit, so many of each language."""
    from whisperkit_tools.demo import demo_utterances

    utterances = demo_utterances()
    languages = dict.fromkeys(utterance.language for utterance in utterances)
    return [u for language in languages for u in [x for x in utterances if x.language == language][:limit]]


def evaluate_bundles(bundles: Sequence[Path], dataset: "Dataset", places: Places) -> "list[FinishedRun]":
    """Runs of all bundles over the dataset; those after the first know their quality of inference against it.

    Raises:
        EvaluationError: An example failed.
    """
    from whisperkit_tools.bundle import Bundle
    from whisperkit_tools.cli.run_progress import RunProgress
    from whisperkit_tools.errors import EvaluationError
    from whisperkit_tools.eval.runs.engines import SerialEngine
    from whisperkit_tools.eval.runs.runner import evaluate
    from whisperkit_tools.eval.runs.tasks import EvaluateConfig
    from whisperkit_tools.pipeline import LoadBundle, bundle_candidate, read_audio
    from whisperkit_tools.transcribe.options import TranscribeOptions

    config = EvaluateConfig(max_failures=0, checks_no_speech=not dataset.options)  # not of a few examples
    done: list[FinishedRun] = []
    for path in bundles:
        bundle = Bundle.open(path)
        candidate = bundle_candidate(bundle, LoadBundle(str(path.resolve()), TranscribeOptions()), bundle.name)
        with RunProgress(bundle.name) as listener:
            run = evaluate(candidate, dataset, config, root=places.evaluations, engine=SerialEngine, read=read_audio,
                           listener=listener)  # fmt: skip
        done.append(_judged(run, done[0]) if done else run)
    failed = [f"{run.report.name}: {item.id}: {item.error}" for run in done for item in run.report.failures]
    if failed:
        raise EvaluationError(f"not all could be evaluated: {'; '.join(failed)}")
    return done


def _judged(run: "FinishedRun", reference: "FinishedRun") -> "FinishedRun":
    """The run with its quality of inference, in its folder too."""
    from whisperkit_tools.eval.reports.read import read_run
    from whisperkit_tools.eval.runs.store import write_json
    from whisperkit_tools.eval.runs.summary import with_qoi
    from whisperkit_tools.eval.schema import REPORT_FILE, Report, to_json

    rates, base = ({row.id: row.wer for row in read_run(it.folder).rows} for it in (run, reference))
    report = with_qoi(run.report, rates, reference.report, base)
    write_json(run.folder / REPORT_FILE, to_json(Report(runs=(report,))))
    return replace(run, report=report)


def write_pages(runs: "Sequence[FinishedRun]", places: Places) -> Path:
    """Each run's pages, and the page that compares them; its path."""
    from whisperkit_tools.eval.reports.write import PAGE_FILE, write_report, write_run_pages

    for run in runs:
        write_run_pages(run.folder)
    return write_report([run.folder for run in runs], places.report, force=True).folder / PAGE_FILE


def publish(bundles: Sequence[Path], places: Places) -> "FolderRegistry":
    """All bundles with their evaluations in a folder laid out as a repository of the Hub; each is proved first.

    Raises:
        PublishError: One does not prove that it is good enough, or the folder holds something else.
    """
    from whisperkit_tools.bundle import Bundle
    from whisperkit_tools.publishing.eligibility import examine
    from whisperkit_tools.publishing.publish import PublishOptions, carry_out, plan_publication
    from whisperkit_tools.publishing.registry.folder import FolderRegistry

    registry, options = FolderRegistry(places.published), PublishOptions(create=True)
    evidence = [examine(Bundle.open(path), places.evaluations, [DATASET]) for path in bundles]
    now = datetime.now(UTC).isoformat(timespec="seconds")
    carry_out(registry, lambda: plan_publication(registry, evidence, options, now), options)
    return registry


def pull_back(registry: "FolderRegistry", variant: str, places: Places, *, force: bool) -> Path:
    """A published variant as a bundle; every file is checked."""
    from whisperkit_tools.publishing.pull import pull

    return pull(registry, variant, places.pulled, force=force).path


def transcribe(bundle: Path, limit: int | None) -> list[Line]:
    """What a bundle hears in the demo's audio: short recordings, their translations, then the long ones."""
    from whisperkit_tools.demo import demo_longform
    from whisperkit_tools.transcribe.transcriber import Transcriber

    transcriber = Transcriber.load(bundle)
    return [
        line for recording in [*first_utterances(limit), *demo_longform()] for line in _lines(transcriber, recording)
    ]


def _lines(transcriber: "Transcriber", recording: "Recording") -> list[Line]:
    from whisperkit_tools.transcribe.audio.load import find_inputs, load_audio
    from whisperkit_tools.transcribe.options import TranscribeOptions

    audio = load_audio(find_inputs([str(recording.path)])[0])
    language, long = recording.language, bool(recording.phrases)
    text = transcriber.transcribe(audio, TranscribeOptions(language=language)).text
    lines = [Line(recording.id, f"{'long-form' if long else 'transcribe'} {language}", recording.text or "", text)]
    if language != "en" and not long:
        text = transcriber.transcribe(audio, TranscribeOptions(language=language, task="translate")).text
        lines.append(Line(recording.id, f"translate {language}", recording.translation or "", text))
    return lines


def error_rates(lines: Sequence[Line]) -> dict[str, float]:
    """Word error rate of each task over its corpus, after Whisper's basic normaliser."""
    from whisperkit_tools.eval.metrics.normalize import BasicTextNormalizer
    from whisperkit_tools.eval.metrics.wer import word_error_rate

    normalize = BasicTextNormalizer()
    rates = {}
    for task in dict.fromkeys(line.task for line in lines):
        chosen = [line for line in lines if line.task == task]
        references, hypotheses = [line.reference for line in chosen], [line.hypothesis for line in chosen]
        rates[task] = word_error_rate(references, hypotheses, normalize)
    return rates


def as_row(report: "RunReport") -> dict[str, str | int | float | None]:
    """The main figures of a run for machines: rates are fractions."""
    size = None if report.bundle is None else report.bundle.bytes
    return {"variant": report.name, "size_bytes": size, "wer": report.metrics.wer, "qoi": report.metrics.qoi}
