"""Audio that carries its own text, a fake transcriber that reads it, and evaluations of both.

The transcriber stands in for the model, which is not under test. It tells the clips apart by their first samples. Audio
files, datasets, processes and folders are real.
"""

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from whisperkit_tools.errors import AudioError
from whisperkit_tools.eval.backends.base import BackendInfo, EvaluationTarget, transcription
from whisperkit_tools.eval.datasets.dataset import Dataset, fingerprint
from whisperkit_tools.eval.runs.engines import SerialEngine
from whisperkit_tools.eval.runs.runner import evaluate
from whisperkit_tools.eval.runs.tasks import EvaluateConfig
from whisperkit_tools.progress import SilentProgress
from whisperkit_tools.speech import Recording, Segment, Timings

WORDS = ["red", "orange", "yellow", "green", "blue", "indigo", "violet", "black", "white", "brown", "pink", "gold"]
RATE_HZ = 16_000


def reference(number: int) -> str:
    return " ".join(WORDS[(number + step) % len(WORDS)] for step in range(3 + number % 5))


def heard(number: int) -> str:
    """Return the transcript of a clip. Every third one has a mistake."""
    words = reference(number).split()
    return " ".join(words if number % 3 else ["mauve", *words[1:]])


def read(path: Path):
    """Decode an audio file. A file whose name begins with `broken` fails half-way."""
    if path.stem.startswith("broken"):
        raise AudioError(f"{path}: broken after 0.2 s; get the file again")
    samples, _ = soundfile.read(path, dtype="float32")
    return samples


def make_dataset(folder: Path, count: int, *, broken=(), seconds: float = 0.5, language: str | None = "en") -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for number in range(count):
        name = f"{'broken' if number in broken else 'clip'}_{number:03}"
        path = folder / f"{name}.wav"
        samples = np.zeros(round(seconds * RATE_HZ), dtype=np.float32)
        samples[0] = (number + 1) / 1000
        soundfile.write(path, samples, RATE_HZ, subtype="PCM_16")  # a float file holds the time of its writing
        examples.append(
            Recording(
                name, reference(number), path, language=language, duration_s=seconds, speaker=f"speaker {number % 2}"
            )
        )
    found = tuple(examples)
    return Dataset("clips", str(folder), found, fingerprint=fingerprint(found))


@dataclass(frozen=True)
class LoadFake:
    """Loads the fake. Picklable, as the real loaders are."""

    log: str = ""
    delay_s: float = 0.0
    fails: tuple[int, ...] = ()
    kills_itself_at: int | None = None
    cannot_load: bool = False
    knows: tuple[str, ...] = ("en",)
    seen: list = field(default_factory=list, compare=False, hash=False)

    def __call__(self):
        if self.cannot_load:
            raise AudioError("the model file is damaged")
        return Fake(self)


class Fake:
    def __init__(self, settings: LoadFake) -> None:
        self._settings = settings

    def check(self, languages) -> None:
        unknown = set(languages) - set(self._settings.knows)
        if unknown:
            raise AudioError(f"the model does not know {sorted(unknown)}")

    def transcribe(self, audio, *, language=None, words=False):
        number = round(float(audio[0]) * 1000) - 1
        settings = self._settings
        if settings.log:
            with Path(settings.log).open("a") as file:
                file.write(f"{number}\n")
        time.sleep(settings.delay_s)
        if number == settings.kills_itself_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if number in settings.fails:
            raise RuntimeError(f"clip {number} is\ntoo hard")
        text = heard(number) if number >= 0 else ""
        audio_s = len(audio) / RATE_HZ
        timings = Timings(0.01, 0.001, 0.004, 0.005, 0.006, windows=1, tokens=2 * len(text.split()), fallbacks=0)
        return transcription(text, audio, timings, [Segment(0.0, audio_s, text)] if text else [], "en")


class Notes(SilentProgress):
    """Remembers the notes and counts that a run reports."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.counts: list[tuple[float, float, str]] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self, what: str, done: float, total: float, detail: str = "") -> None:
        self.counts.append((done, total, detail))


def fake_target(load: LoadFake | None = None, name: str = "fake", identity: str = "one") -> EvaluationTarget:
    return EvaluationTarget(name, load or LoadFake(), BackendInfo("fake", "fake", identity))


def run(
    root: Path, dataset: Dataset, load: LoadFake | None = None, config=None, *, engine=SerialEngine, notes=None, **of
):
    return evaluate(
        fake_target(load, **of),
        dataset,
        config or EvaluateConfig(checks_no_speech=False),
        root=root,
        engine=engine,
        read=read,
        progress=notes or Notes(),
    )


def without_times(value):
    """Return a report or row without the fields that may differ between two equal runs."""
    times = {"started", "finished", "speed", "timings", "compute_s", "compute_p95_s", "end_lag_s", "is_real_time"}
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in times and "latency" not in k}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def content(folder: Path):
    """Return a run's report and rows without times."""
    report = json.loads((folder / "report.json").read_text())
    parts = {
        path.name: [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }
    return without_times(report), parts
