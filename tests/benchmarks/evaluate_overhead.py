"""What an evaluation costs around the model: loading, normalising, scoring, storing, reporting.

2,620 utterances of 7.4 s on average, as many and as long as LibriSpeech test-clean, are made of the demo's recordings
and written as FLAC in LibriSpeech's own layout; the transcriber answers at once with a text that has some errors.

    python tests/benchmarks/evaluate_overhead.py [--utterances 2620] [--workers 1] [--json FILE]
"""

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from whisperkit_tools.demo import demo_utterances
from whisperkit_tools.eval.backends.base import BackendInfo, Candidate, Hypothesis, Timings
from whisperkit_tools.eval.datasets.open import open_dataset
from whisperkit_tools.eval.reports.write import write_run_pages
from whisperkit_tools.eval.runs.engines import ProcessEngine, SerialEngine
from whisperkit_tools.eval.runs.runner import evaluate
from whisperkit_tools.eval.runs.tasks import EvaluateConfig
from whisperkit_tools.pipeline import read_audio

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

    def transcribe(self, audio: np.ndarray, *, language: str | None = None, words: bool = False) -> Hypothesis:
        """Answer; every tenth word is another than the reference's."""
        count = words_of(len(audio) / RATE_HZ)
        text = " ".join("whatever" if at % 10 == 9 else TEXT[at % len(TEXT)] for at in range(count))
        return Hypothesis(text, Timings(len(audio) / RATE_HZ, 1e-6, tokens=count), language="en")


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


class Quiet:
    """Listens to nothing."""

    def note(self, message: str) -> None:
        """Show notes."""
        print(f"note: {message}", file=sys.stderr)

    def advanced(self, status: object) -> None:
        """Show no progress."""


def measure(folder: Path, workers: int) -> dict[str, float]:
    """Seconds of each stage."""
    times = {}
    begun = time.perf_counter()
    dataset = open_dataset(str(folder / "data"))
    times["open and fingerprint the dataset"] = time.perf_counter() - begun
    begun = time.perf_counter()
    done = evaluate(
        Candidate("at-once", AtOnce(), BackendInfo("at-once", "none")),
        dataset,
        EvaluateConfig(checks_no_speech=False),
        root=folder / "out",
        engine=partial(ProcessEngine, workers=workers) if workers > 1 else SerialEngine,
        read=read_audio,
        listener=Quiet(),
    )
    times["decode, score, store, sum up"] = time.perf_counter() - begun
    begun = time.perf_counter()
    write_run_pages(done.folder)
    times["write report.md and report.html"] = time.perf_counter() - begun
    if done.report.failures or done.report.dataset.examples != len(dataset.examples):
        raise SystemExit(f"not all examples were done: {done.report.failures[:3]}")
    times["audio (hours)"] = done.report.dataset.audio_s / 3600
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=2620)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_librispeech(folder / "data", arguments.utterances)
        cpu = time.process_time()
        times = measure(folder, arguments.workers)
        cpu = time.process_time() - cpu
    total = sum(value for name, value in times.items() if not name.startswith("audio"))
    rows = {**times, "all stages, wall": total, "all stages, CPU of this process": cpu}
    for label, value in rows.items():
        print(f"{label:<36} {value:8.2f}{'' if label.startswith('audio') else ' s'}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"utterances": arguments.utterances, **rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
