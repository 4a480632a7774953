"""Word error rate of the long recordings by strategy: sequential, chunked, cut in pauses.

    python tests/benchmarks/long_form.py BUNDLE [--folder DIR] [--json FILE]

The embedded recordings, or those of a folder with a metadata.json of entries with `audio` and `text`. Words are
compared in lower case without punctuation.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import torch

from whisperkit_tools.demo import demo_longform
from whisperkit_tools.transcribe.audio import AudioInput, load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber

STRATEGIES = {
    "sequential": {},
    "sequential, no timestamps": {"timestamps": False},
    "chunked 15 s": {"long_form": "chunked"},
    "chunked 15 s, no timestamps": {"long_form": "chunked", "timestamps": False},
    "chunked 10 s": {"long_form": "chunked", "chunk_length_s": 10.0, "stride_s": 2.0},
    "vad 30 s": {"long_form": "vad"},
    "vad 15 s": {"long_form": "vad", "chunk_length_s": 15.0},
    "vad 10 s": {"long_form": "vad", "chunk_length_s": 10.0},
}


@dataclass(frozen=True, slots=True)
class Row:
    """Counts over all recordings."""

    strategy: str
    wer: float
    substitutions: int
    deletions: int
    insertions: int
    windows: int
    segments: int
    seconds: float


def recordings(folder: Path | None) -> list[tuple[Path, str, str | None]]:
    """Path, text and language of each."""
    if folder is None:
        return [(item.path, item.text, item.language) for item in demo_longform()]
    entries = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    return [(folder / entry["audio"], entry["text"], entry.get("language")) for entry in entries]


def plain(text: str) -> str:
    return " ".join("".join(letter for letter in text.lower() if letter.isalnum() or letter.isspace()).split())


def measure(transcriber: Transcriber, name: str, audio: list[tuple[Path, str, str | None]]) -> Row:
    results = [
        transcriber.transcribe(
            load_audio(AudioInput(str(path), path)), TranscribeOptions(language=language, **STRATEGIES[name])
        )
        for path, _, language in audio
    ]
    words = jiwer.process_words([plain(text) for _, text, _ in audio], [plain(result.text) for result in results])
    windows = sum(result.timings.windows for result in results)
    seconds = sum(result.timings.total_s for result in results)
    segments = sum(len(result.segments) for result in results)
    return Row(name, words.wer, words.substitutions, words.deletions, words.insertions, windows, segments, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", choices=list(STRATEGIES), nargs="+", default=list(STRATEGIES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    audio, transcriber = recordings(args.folder), Transcriber.load(args.bundle)
    print(f"{'strategy':30}{'WER %':>8}{'sub':>6}{'del':>6}{'ins':>6}{'windows':>9}{'segments':>10}{'seconds':>9}")
    rows = []
    for name in args.only:
        row = measure(transcriber, name, audio)
        rows.append(row)
        print(
            f"{name:30}{100 * row.wer:>8.2f}{row.substitutions:>6}{row.deletions:>6}{row.insertions:>6}"
            f"{row.windows:>9}{row.segments:>10}{row.seconds:>9.1f}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
