"""Pseudo-labels on disk: one row for each recording as it is labelled, one record for each segment at the end.

`recordings.jsonl` is a journal. A row is on the disk before the next recording is awaited, and holds all segments of
its recording, so that a killed run goes on with the next recording. `segments.jsonl` is written from it as a whole.
Labels are text and times. Token ids stand beside them, but belong to the teacher's vocabulary.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from whisperkit_tools.errors import DatasetError, OptionsError, option
from whisperkit_tools.eval.runs.store import JsonLines
from whisperkit_tools.eval.typed_json import from_json, to_json
from whisperkit_tools.files import sha256_of_json, write_json, write_whole
from whisperkit_tools.strict_json import json_text, parse_json

JOURNAL, SEGMENTS, DESCRIPTION = "recordings.jsonl", "segments.jsonl", "labels.json"


@dataclass(frozen=True, slots=True)
class LabelledSegment:
    """A stretch of a recording with the teacher's text.

    Attributes:
        id: Recording and number of the segment.
        recording: Id of the recording.
        audio: The audio file.
        start_s: Seconds from its start.
        end_s: Seconds from its start.
        text: What the teacher wrote. Empty for a window without speech.
        language: Code of the language. None where it is not known.
        speaker: The speaker. None where it is not known.
        tokens: Ids of the teacher's vocabulary, timestamps included.
        avg_logprob: Mean log probability of the window's tokens.
        no_speech_prob: Probability that the window holds no speech.
        compression_ratio: Compression ratio of the window's tokens.
        temperature: Temperature at which the window was decoded.
        teacher: Name of the teacher.
        teacher_sha256: Digest of its content. Empty where it is not known.
    """

    id: str
    recording: str
    audio: str
    start_s: float
    end_s: float
    text: str
    language: str | None = None
    speaker: str | None = None
    tokens: tuple[int, ...] = ()
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None
    temperature: float | None = None
    teacher: str = ""
    teacher_sha256: str = ""


@dataclass(frozen=True, slots=True)
class LabelledRecording:
    """A recording that was labelled, or the reason why it was not.

    Attributes:
        id: Unique within the labels.
        audio: The audio file.
        duration_s: Its length.
        reference: What was said, where somebody wrote it down.
        language: Code of the language.
        segments: Its segments in order.
        error: Why it could not be labelled. None when it was.
    """

    id: str
    audio: str
    duration_s: float | None = None
    reference: str | None = None
    language: str | None = None
    segments: tuple[LabelledSegment, ...] = ()
    error: str | None = None


@dataclass(slots=True)
class Labels:
    """A folder of labels, held by one process at a time.

    Attributes:
        folder: The folder.
        journal: The rows so far.
    """

    folder: Path
    journal: JsonLines[LabelledRecording]
    done: dict[str, LabelledRecording] = field(init=False)

    def __post_init__(self) -> None:
        """Find the recordings that need not be labelled again."""
        self.done = {key: row for key, row in self.journal.rows.items() if row.error is None}

    def add(self, row: LabelledRecording) -> None:
        """Append a row. When this returns, it is on the disk."""
        self.journal.append(row)
        if row.error is None:
            self.done[row.id] = row

    def finish(self, order: list[str]) -> list[LabelledSegment]:
        """Write `segments.jsonl`, in the order of the recordings, and return the segments."""
        rows = [self.done[key] for key in order if key in self.done]
        segments = [segment for row in rows for segment in row.segments]
        write_records(self.folder / SEGMENTS, segments)
        return segments


@contextlib.contextmanager
def hold_labels(folder: Path, description: Mapping[str, Any]) -> Iterator[Labels]:
    """Open a folder of labels, or begin it, and keep other processes from it.

    Args:
        folder: The folder.
        description: Everything that determines the labels.

    Raises:
        OptionsError: The folder holds labels of another teacher, other audio or other options.
        DatasetError: Another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OptionsError(f"{folder} is not a folder; choose another {option('output_dir')}") from error
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DatasetError(f"another command is writing the labels in {folder}; wait for it to end") from error
    try:
        _check_same(folder / DESCRIPTION, description)
        journal = JsonLines.open(folder / JOURNAL, lambda value, where: from_json(LabelledRecording, value, where))
        try:
            yield Labels(folder, journal)
        finally:
            journal.close()
    finally:
        lock.release()


def _check_same(path: Path, description: Mapping[str, Any]) -> None:
    """Compare the description with the one that the folder was begun with."""
    key = sha256_of_json(description)
    if not path.is_file():
        write_json(path, {"key": key, **description})
        return
    try:
        found = parse_json(path.read_bytes())
    except ValueError:
        found = {}
    if not isinstance(found, dict):
        found = {}
    if found.get("key") == key:
        return
    other = [name for name in description if found.get(name) != description[name]]
    raise OptionsError(
        f"{path.parent} holds labels of another run (other {', '.join(other) or 'content'}); "
        f"choose another {option('output_dir')}"
    )


def read_labels(folder: Path) -> tuple[list[LabelledRecording], list[str]]:
    """Read the recordings of a folder of labels.

    Returns:
        The recordings that were labelled, and a line for damage of the file, such as a broken last line.

    Raises:
        DatasetError: There are no labels.
    """
    path = folder / JOURNAL
    if not path.is_file():
        raise DatasetError(f"{folder} holds no labels: it has no {JOURNAL}; make some with `wkt pseudo-label`")
    rows: dict[str, LabelledRecording] = {}
    bad = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("the line was cut off")
            row = from_json(LabelledRecording, parse_json(line), f"{path}: line {number}")
        except (ValueError, DatasetError):
            bad.append(number)
            continue
        rows[row.id] = row
    notes = [f"{path}: {len(bad)} damaged lines are left out (line {', '.join(map(str, bad[:5]))})"] if bad else []
    labelled = [row for row in rows.values() if row.error is None]
    if not labelled:
        raise DatasetError(f"{folder} holds no labelled recording; run `wkt pseudo-label` to its end")
    return labelled, notes


def write_records(path: Path, records: list[Any]) -> None:
    """Write dataclasses as JSON lines, whole or not at all."""
    write_whole(path, b"".join(json_text(to_json(one), indent=None).encode() + b"\n" for one in records))
