"""Every step on the embedded demo model: convert, compress, evaluate, publish, pull, transcribe."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.contract import DECODER
from whisperkit_tools.demo import demo_longform, demo_utterances
from whisperkit_tools.eval.datasets.dataset import Dataset, fingerprint
from whisperkit_tools.eval.datasets.open import open_dataset
from whisperkit_tools.eval.metrics.normalize import BasicTextNormalizer
from whisperkit_tools.eval.metrics.wer import word_error_rate
from whisperkit_tools.eval.reports.write import PAGE_FILE
from whisperkit_tools.eval.schema import RunReport
from whisperkit_tools.pipeline.convert import convert
from whisperkit_tools.pipeline.evaluate import Evaluation, evaluate
from whisperkit_tools.pipeline.palettize import palettize
from whisperkit_tools.pipeline.publish import publish, pull
from whisperkit_tools.pipeline.report import report
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.speech import Recording
from whisperkit_tools.transcribe.audio.load import load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber

DATASET = "demo"
# Stays float16 in the careful variant, which thereby gets a size and a name of its own.
_KEPT = f"{DECODER}/*"


@dataclass(frozen=True, slots=True)
class Places:
    """Folders of everything that the demo makes.

    Attributes:
        root: The folder around them.
    """

    root: Path

    @property
    def bundles(self) -> Path:
        """The bundles."""
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
        """The folder that they are published to. Its name is the title of the card."""
        return self.root / "published" / "whisper-micro-demo-coreml"

    @property
    def pulled(self) -> Path:
        """The folder of the pulled bundle."""
        return self.root / "pulled"


@dataclass(frozen=True, slots=True)
class Line:
    """An utterance of the demo and its transcript."""

    id: str
    task: str
    reference: str
    hypothesis: str

    @property
    def is_long(self) -> bool:
        """Whether the recording is long-form."""
        return self.task.startswith("long-form")


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo made.

    Attributes:
        places: The folders.
        runs: The evaluation of the three sizes.
        page: The report that compares them.
        pulled: The bundle that was pulled back.
        lines: Transcripts of the demo's audio by that bundle.
    """

    places: Places
    runs: Evaluation
    page: Path
    pulled: Path
    lines: tuple[Line, ...]

    @property
    def reports(self) -> tuple[RunReport, ...]:
        """The figures of the three sizes."""
        return tuple(run.report for run in self.runs)

    @property
    def error_rates(self) -> dict[str, float]:
        """Word error rate of each task over its corpus, after Whisper's basic normaliser."""
        normalize = BasicTextNormalizer()
        rates = {}
        for task in dict.fromkeys(line.task for line in self.lines):
            chosen = [line for line in self.lines if line.task == task]
            references, hypotheses = [line.reference for line in chosen], [line.hypothesis for line in chosen]
            rates[task] = word_error_rate(references, hypotheses, normalize)
        return rates


def run_demo(
    output_dir: str | Path = "demo-output",
    *,
    limit: int | None = None,
    force: bool = False,
    announce: Callable[[str], None] = lambda step: None,
    progress: Progress | None = None,
) -> DemoResult:
    """Run every step on the embedded demo model.

    Args:
        output_dir: The folder for everything that is made.
        limit: Number of utterances of each language. None for all.
        force: Replace what an earlier run made.
        announce: Called with each step as it begins.
        progress: Receives stages, notes and counts.

    Raises:
        QualityGateError: A compressed variant does not pass.
        EvaluationError: An example failed.
        BundleError: An earlier run's bundles exist.
    """
    places, progress = Places(Path(output_dir)), progress or SilentProgress()
    announce("[1/5] convert the embedded checkpoint")
    # A limit is for haste: it omits the prefill, whose evidence takes most of the conversion.
    prefill = None if limit is None else False
    original = convert("demo", output_dir=places.bundles, turbo=True, prefill=prefill, force=force, progress=progress)
    announce("[2/5] compress it: the encoder alone at 8 bits, then the smallest that passes the quality gate")
    bundles = [original, *_compressed(original, limit=limit, force=force, progress=progress)]
    announce("[3/5] evaluate the three sizes on the demo's audio")
    runs = evaluate(
        bundles,
        dataset=_dataset(limit),
        max_failures=0,
        check_silence=limit is None,
        output_dir=places.evaluations,
        progress=progress,
    )
    runs.require_complete()
    page = report(runs, output=places.report, force=True).folder / PAGE_FILE
    announce("[4/5] publish them to a folder")
    with progress.stage("publish", "prove and commit"):
        publish(bundles, to=places.published, reports=places.evaluations, require=DATASET)
    announce("[5/5] pull the smallest back, and transcribe with it")
    with progress.stage("pull", "check every file"):
        pulled = pull(places.published, bundles[-1].name, output_dir=places.pulled, force=force).path
    with progress.stage("demo audio", "transcribe"):
        lines = _transcripts(pulled, limit)
    return DemoResult(places, runs, page, pulled, lines)


def _compressed(original: Bundle, *, limit: int | None, force: bool, progress: Progress) -> list[Bundle]:
    """Return the encoder alone at 8 bits, and the smallest bundle that passes the gate."""
    shared: dict[str, Any] = {"windows": 8, "trials": 8, "force": force, "progress": progress}
    if limit is not None:
        # Of two examples, one that differs by a word is half of them: where two words are equally likely, rounding
        # alone decides, and the default limits would stay closed at any size.
        shared |= {"windows": 1, "trials": 6, "gate_examples": 2 * limit, "qoi_min": 50.0, "wer_delta_max": 3.0}
    careful = palettize(original, bits=8, keep=_KEPT, **shared)
    return [careful, palettize(original, **shared)]


def _dataset(limit: int | None) -> Dataset:
    """Return the demo's audio with its references; with a limit, so many short recordings of each language."""
    whole = open_dataset(DATASET)
    if limit is None:
        return whole
    wanted = {utterance.id for utterance in _first_utterances(limit)}
    examples = tuple(example for example in whole.examples if example.id in wanted)
    return replace(whole, examples=examples, options={"limit": limit}, fingerprint=fingerprint(examples))


def _first_utterances(limit: int | None) -> list[Recording]:
    """Return the short recordings; with a limit, so many of each language."""
    utterances = demo_utterances()
    languages = dict.fromkeys(utterance.language for utterance in utterances)
    return [u for language in languages for u in [x for x in utterances if x.language == language][:limit]]


def _transcripts(bundle: Path, limit: int | None) -> tuple[Line, ...]:
    """Transcribe the demo's audio: short recordings with their translations, then the long ones."""
    transcriber = Transcriber.load(bundle)
    recordings = [*_first_utterances(limit), *demo_longform()]
    return tuple(line for recording in recordings for line in _lines(transcriber, recording))


def _lines(transcriber: Transcriber, recording: Recording) -> list[Line]:
    audio = recording.audio(load_audio)
    language, long = recording.language, bool(recording.phrases)
    text = transcriber.transcribe(audio, TranscribeOptions(language=language)).text
    task = f"{'long-form' if long else 'transcribe'} {language}"
    lines = [Line(recording.id, task, recording.text or "", text)]
    if language != "en" and not long:
        text = transcriber.transcribe(audio, TranscribeOptions(language=language, task="translate")).text
        lines.append(Line(recording.id, f"translate {language}", recording.translation or "", text))
    return lines
