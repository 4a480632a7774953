"""The examples in the form that the page's script reads: JSON inside HTML, and audio beside the page or in it."""

import base64
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from whisperkit_tools.eval.metrics.alignment import AlignmentPiece
from whisperkit_tools.eval.reports.read import ReadRun, audio_file, relative_to_folder
from whisperkit_tools.eval.schema import ResultRow

# Audio that browsers play. Anything else is named and linked, not embedded.
MEDIA_TYPES = {
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
    ".mp3": "audio/mpeg",
    ".mp4": "audio/mp4",
    ".oga": "audio/ogg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".wav": "audio/wav",
    ".webm": "audio/webm",
}
LONG_WORDS = 120  # as in report.js, which shows longer examples as passages
_PIECE = {"equal": "=", "substitute": "s", "delete": "d", "insert": "i"}
# Only these can end a script element or begin a comment. The last two end a line in older JavaScript.
_IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True, slots=True)
class PageExamples:
    """The page's part of the examples.

    Attributes:
        data: JSON-ready.
        total: Number of examples of the runs.
        shown: Number of examples in the page.
        sounds: `(key, media type, base64)` of embedded audio.
        without_room: Examples whose audio was not embedded because the page would have grown too large.
    """

    data: dict[str, Any]
    total: int
    shown: int
    sounds: tuple[tuple[str, str, str], ...] = ()
    without_room: int = 0


@dataclass(slots=True)
class _Sounds:
    """Audio by file. The same file is embedded once."""

    budget_bytes: int
    folder: Path
    embedded: dict[Path, str] = field(default_factory=dict)
    sounds: list[tuple[str, str, str]] = field(default_factory=list)
    without_room: int = 0
    parents: dict[Path, str] = field(default_factory=dict)

    def of(self, path: Path | None) -> dict[str, str]:
        """Return how the page refers to a file: `{"k": key}` when embedded, else `{"u": address}`, else nothing."""
        if path is None:
            return {}
        media_type = MEDIA_TYPES.get(path.suffix.lower())
        if path in self.embedded:
            return {"k": self.embedded[path]}
        if media_type and self.budget_bytes > 0:
            size = path.stat().st_size
            if size <= self.budget_bytes:
                return {"k": self._embed(path, media_type, size)}
            self.without_room += 1
        if path.parent not in self.parents:  # many files lie in one folder, and resolving asks the disk
            self.parents[path.parent] = relative_to_folder(path.parent, self.folder)
        return {"u": quote(f"{self.parents[path.parent]}/{path.name}")}

    def _embed(self, path: Path, media_type: str, size: int) -> str:
        self.budget_bytes -= size
        key = self.embedded[path] = str(len(self.sounds))
        self.sounds.append((key, media_type, base64.b64encode(path.read_bytes()).decode("ascii")))
        return key


def page_examples(runs: Sequence[ReadRun], folder: Path, *, limit: int, embed_bytes: int = 0) -> PageExamples:
    """Put the runs' examples side by side, the largest number of errors first.

    Args:
        runs: Runs over the same examples.
        folder: Folder of the page, to which audio addresses are relative.
        limit: Maximum number of examples in the page.
        embed_bytes: Maximum number of bytes of embedded audio files, the worst examples first. 0 for none.
    """
    by_id: dict[str, list[ResultRow | None]] = {}
    for place, run in enumerate(runs):
        for row in run.rows:
            by_id.setdefault(row.id, [None] * len(runs))[place] = row
    order = {name: place for place, name in enumerate(by_id)}
    worst = sorted(by_id.items(), key=lambda item: -max(_weight(row) for row in item[1]))
    sounds = _Sounds(embed_bytes, folder)
    examples = [_example(name, order[name], rows, runs, sounds) for name, rows in worst[:limit]]
    speakers = sorted({example["p"] for example in examples if example["p"]})
    data = {"runs": [run.report.name for run in runs], "speakers": speakers, "examples": examples}
    return PageExamples(data, len(by_id), len(examples), tuple(sounds.sounds), sounds.without_room)


def _weight(row: ResultRow | None) -> float:
    """Return the word errors. A failed example is worse than any."""
    if row is None:
        return -1
    return float("inf") if row.error is not None else row.errors


def _example(
    name: str, order: int, rows: Sequence[ResultRow | None], runs: Sequence[ReadRun], sounds: _Sounds
) -> dict[str, Any]:
    place, first = next((place, row) for place, row in enumerate(rows) if row is not None)
    return {
        "id": name,
        "n": order,
        "t": first.reference,
        "d": first.duration_s,
        "p": first.speaker or "",
        "l": first.language or "",
        "w": first.reference_words,
        "a": {"name": first.audio, **sounds.of(audio_file(runs[place], first))},
        "r": [None if row is None else _result(row) for row in rows],
    }


def _result(row: ResultRow) -> dict[str, Any]:
    if row.error is not None:
        return {"e": row.error}
    made = {
        "t": row.hypothesis,
        "w": row.wer,
        "c": [row.substitutions, row.deletions, row.insertions],
        "o": [_operation(piece) for piece in row.alignment],
    }
    return {**made, "g": _phrase_times(row)} if row.reference_words > LONG_WORDS and row.segments else made


def _phrase_times(row: ResultRow) -> list[tuple[float, int]]:
    """Return `(start in seconds, words up to its end)` of each phrase, by which the page finds a passage."""
    words = itertools.accumulate(len(segment.text.split()) for segment in row.segments)
    return [(round(segment.start_s, 2), n) for segment, n in zip(row.segments, words, strict=True)]


def _operation(piece: AlignmentPiece) -> list[str]:
    """Return `["=", words]`, `["d", words]`, `["i", words]`, or `["s", reference words, hypothesis words]`."""
    reference, hypothesis = " ".join(piece.reference), " ".join(piece.hypothesis)
    if piece.type == "substitute":
        return ["s", reference, hypothesis]
    return [_PIECE[piece.type], hypothesis if piece.type == "insert" else reference]


def json_in_script(value: Mapping[str, Any]) -> str:
    """Return JSON that is safe inside a script element whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character, escape in _IN_SCRIPT.items():
        text = text.replace(character, escape)
    return text
