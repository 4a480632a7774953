"""Word error rate of long recordings by strategy: sequential, chunked, cut in pauses.

    python -m tests.benchmarks long-form BUNDLE [--folder DIR | --made N]

The embedded recordings; those of a folder with a metadata.json of entries with `audio` and `text`; or N that are made
of the embedded utterances, in random order with pauses of 0.2 to 1.2 s, 75 s or more each, for two recordings are few
to tell strategies apart. Texts are normalised as by `wkt evaluate`. Four or more words deleted in a row count as a
phrase that was lost, four or more inserted ones as one that was doubled or made up.
"""

import json
import random
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import numpy as np

from tests.benchmarks.harness import Column, Figure, Result, Table, benchmark, bundle_argument, threads_option
from whisperkit_tools.demo import demo_longform, demo_utterances
from whisperkit_tools.eval.metrics.normalize import Normalization
from whisperkit_tools.speech import SAMPLE_RATE_HZ
from whisperkit_tools.transcribe.audio.load import AudioInput, load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber

STRATEGIES = {
    "sequential": {},
    "sequential, no timestamps": {"timestamps": False},
    "chunked 15 s": {"long_form": "chunked"},
    "chunked 15 s, no timestamps": {"long_form": "chunked", "timestamps": False},
    "chunked 10 s": {"long_form": "chunked", "chunk_length_s": 10.0, "stride_s": 2.0},
    "vad 30 s": {"long_form": "vad", "chunk_length_s": 30.0},
    "vad 15 s": {"long_form": "vad"},
    "vad 10 s": {"long_form": "vad", "chunk_length_s": 10.0},
    "silero vad 15 s": {"long_form": "vad", "vad": "silero"},
}


@dataclass(frozen=True, slots=True)
class Row:
    """Counts over all recordings."""

    strategy: str
    wer: float
    substitutions: int
    deletions: int
    insertions: int
    lost: int
    made_up: int
    windows: int
    segments: int
    seconds: float


Recording = tuple[np.ndarray, str, str | None]
"""Samples, text and language."""


def read(path: Path) -> np.ndarray:
    return load_audio(AudioInput(str(path), path))


def recordings(folder: Path | None) -> list[Recording]:
    if folder is None:
        return [(read(item.path), item.text, item.language) for item in demo_longform()]
    entries = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    return [(read(folder / entry["audio"]), entry["text"], entry.get("language")) for entry in entries]


def made(count: int) -> list[Recording]:
    chance = random.Random(0)
    found = []
    for number in range(count):
        language = ("en", "es")[number % 2]
        utterances = [item for item in demo_utterances() if item.language == language]
        chance.shuffle(utterances)
        parts, texts = [], []
        while sum(map(len, parts)) < 75 * SAMPLE_RATE_HZ and utterances:
            item = utterances.pop()
            pause = np.zeros(round(chance.uniform(0.2, 1.2) * SAMPLE_RATE_HZ), dtype=np.float32)
            parts += [read(item.path), pause]
            texts.append(item.text)
        found.append((np.concatenate(parts), " ".join(texts), language))
    return found


def lost_and_made_up(words: jiwer.WordOutput) -> tuple[int, int]:
    """Runs of four or more deleted words, and of inserted ones."""
    pieces = [piece for alignment in words.alignments for piece in alignment]
    lost = sum(piece.type == "delete" and piece.ref_end_idx - piece.ref_start_idx >= 4 for piece in pieces)
    return lost, sum(piece.type == "insert" and piece.hyp_end_idx - piece.hyp_start_idx >= 4 for piece in pieces)


def measure(transcriber: Transcriber, name: str, audio: list[Recording]) -> Row:
    results = [
        transcriber.transcribe(samples, TranscribeOptions(language=language, **STRATEGIES[name]))
        for samples, _, language in audio
    ]
    normalization = Normalization()
    pairs = [
        normalization.pair(text, result.text, language)
        for (_, text, language), result in zip(audio, results, strict=True)
    ]
    words = jiwer.process_words(*map(list, zip(*pairs, strict=True)))
    windows = sum(result.timings.windows for result in results)
    seconds = sum(result.timings.total_s for result in results)
    segments = sum(len(result.segments) for result in results)
    errors = words.substitutions, words.deletions, words.insertions
    return Row(name, words.wer, *errors, *lost_and_made_up(words), windows, segments, seconds)


def options(parser: ArgumentParser) -> None:
    bundle_argument(parser)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--made", type=int)
    parser.add_argument("--only", choices=list(STRATEGIES), nargs="+", default=list(STRATEGIES))
    threads_option(parser)


@benchmark("long-form", options)
def long_form(args: Namespace) -> Result:
    audio = made(args.made) if args.made else recordings(args.folder)
    transcriber = Transcriber.load(args.bundle)
    table = Table((
        Column("strategy", "strategy"), Column("wer", "WER %", ".2f", 100), Column("substitutions", "sub"),
        Column("deletions", "del"), Column("insertions", "ins"), Column("lost", "lost"), Column("made_up", "made up"),
        Column("windows", "windows"), Column("segments", "segments"), Column("seconds", "seconds", ".1f"),
    ))  # fmt: skip
    for name in args.only:
        table.add(**asdict(measure(transcriber, name, audio)))
    seconds = sum(len(samples) for samples, _, _ in audio) / SAMPLE_RATE_HZ
    figures = [Figure(f"WER, {row['strategy']}", 100 * row["wer"], "%", spec=".1f") for row in table.rows]
    return Result([table], figures, [f"{len(audio)} recordings, {seconds:.0f} s"])
