"""Time of an evaluation around the model: loading, normalising, scoring, storing, reporting.

2,620 utterances of 7.4 s on average, as many and as long as LibriSpeech test-clean, are made of the demo's recordings
and written as FLAC in LibriSpeech's own layout; the transcriber answers at once with a text that has some errors.

    python -m tests.benchmarks evaluate-overhead [--utterances 2620] [--workers 1]
"""

import random
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from tests.benchmarks.harness import Figure, Result, Stopwatch, benchmark
from whisperkit_tools.demo import demo_utterances
from whisperkit_tools.eval.backends.base import BackendInfo, EvaluationTarget, transcription
from whisperkit_tools.eval.datasets.open import open_dataset
from whisperkit_tools.eval.reports.write import write_run_pages
from whisperkit_tools.eval.runs.engines import ProcessEngine, SerialEngine
from whisperkit_tools.eval.runs.runner import evaluate
from whisperkit_tools.eval.runs.tasks import EvaluateConfig
from whisperkit_tools.pipeline.bundle_backend import read_audio
from whisperkit_tools.progress import SilentProgress
from whisperkit_tools.speech import Timings, Transcription

RATE_HZ = 16_000
SECONDS = (1.3, 35.0, 7.4)  # shortest, longest and mean of test-clean
TEXT = [
    *("he", "hoped", "there", "would", "be", "stew", "for", "dinner", "turnips"),
    *("and", "carrots", "and", "bruised", "potatoes", "and", "fat", "mutton", "pieces"),
]


@dataclass(frozen=True)
class AtOnce:
    """Loads a transcriber that hears nothing and answers a text of the audio's length."""

    def __call__(self) -> "AtOnce":
        return self

    def check(self, languages: object) -> None:
        """Know every language."""

    def transcribe(self, audio: np.ndarray, *, language: str | None = None, words: bool = False) -> Transcription:
        """Answer; every tenth word is another than the reference's."""
        count = words_of(len(audio) / RATE_HZ)
        text = " ".join("whatever" if at % 10 == 9 else TEXT[at % len(TEXT)] for at in range(count))
        return transcription(text, audio, Timings(1e-6, tokens=count), language="en")


def words_of(seconds: float) -> int:
    """Test-clean has 2.7 words a second."""
    return max(1, round(2.7 * seconds))


def make_librispeech(folder: Path, count: int) -> None:
    """Write utterances in LibriSpeech's layout, twenty a chapter."""
    chance = random.Random(0)
    speech = np.concatenate([soundfile.read(u.path, dtype="float32")[0] for u in demo_utterances()])
    low, high, mean = SECONDS
    for chapter in range(0, count, 20):
        place = folder / "test-clean" / str(1000 + chapter // 60) / str(chapter)
        place.mkdir(parents=True)
        lines = []
        for number in range(min(20, count - chapter)):
            seconds = min(high, low + chance.expovariate(1 / (mean - low)))
            name = f"{1000 + chapter // 60}-{chapter}-{number:04}"
            samples = np.resize(np.roll(speech, -chance.randrange(len(speech))), round(seconds * RATE_HZ))
            soundfile.write(place / f"{name}.flac", samples, RATE_HZ)
            reference = [TEXT[at % len(TEXT)] for at in range(words_of(seconds))]
            lines.append(f"{name} {' '.join(reference).upper()}\n")
        (place / f"{1000 + chapter // 60}-{chapter}.trans.txt").write_text("".join(lines))


class Notes(SilentProgress):
    """Shows notes alone."""

    def note(self, message: str) -> None:
        """Show a note."""
        print(f"note: {message}", file=sys.stderr)


def measure(folder: Path, workers: int) -> tuple[dict[str, float], float]:
    """Seconds of each stage, and the audio's."""
    times = {}
    watch = Stopwatch()
    dataset = open_dataset(str(folder / "data"))
    times["open and fingerprint the dataset"] = watch.wall_s
    watch = Stopwatch()
    done = evaluate(
        EvaluationTarget("at-once", AtOnce(), BackendInfo("at-once", "none")),
        dataset,
        EvaluateConfig(checks_no_speech=False),
        root=folder / "out",
        engine=partial(ProcessEngine, workers=workers) if workers > 1 else SerialEngine,
        read=read_audio,
        progress=Notes(),
    )
    times["decode, score, store, sum up"] = watch.wall_s
    watch = Stopwatch()
    write_run_pages(done.folder)
    times["write report.md and report.html"] = watch.wall_s
    if done.report.failures or done.report.dataset.examples != len(dataset.examples):
        raise SystemExit(f"not all examples were done: {done.report.failures[:3]}")
    return times, done.report.dataset.audio_s


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--utterances", type=int, default=2620)
    parser.add_argument("--workers", type=int, default=1)


@benchmark("evaluate-overhead", options)
def evaluate_overhead(args: Namespace) -> Result:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_librispeech(folder / "data", args.utterances)
        watch = Stopwatch()
        times, audio_s = measure(folder, args.workers)
        cpu_s = watch.cpu_s
    figures = [Figure(stage, seconds, "s", spec=".2f") for stage, seconds in times.items()]
    figures += [
        Figure("all stages, wall", sum(times.values()), "s", spec=".2f"),
        Figure("all stages, processor time of this process", cpu_s, "s", spec=".1f"),
        Figure("utterances", args.utterances),
        Figure("audio", audio_s / 3600, "h", spec=".2f"),
    ]
    return Result(figures=figures)
