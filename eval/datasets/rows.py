"""Rows of a dataset as its tables have them, checks of them, and the search for audio files."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from whisperkit_tools.eval.datasets.dataset import Problem
from whisperkit_tools.languages import base_language
from whisperkit_tools.media import open_container
from whisperkit_tools.paths import found_inside
from whisperkit_tools.speech import AUDIO_EXTENSIONS, Recording, ReferenceWord

# The mark of NIST's scoring format, which TED-LIUM and others use as a transcript.
_IGNORED = re.compile(r"ignore[_ ]time[_ ]segment[_ ]in[_ ]scoring", re.IGNORECASE)

# Names that datasets give to the same thing: whisperkittools, Hugging Face audiofolders, NeMo manifests, the demo.
AUDIO_FIELDS = ("file_name", "audio", "path", "audio_path", "audio_filepath", "audio_file", "file", "filename")
TEXT_FIELDS = ("text", "sentence", "normalized_text", "transcript", "transcription", "reference")
ID_FIELDS = ("id", "utt_id", "utterance_id")
DURATION_FIELDS = ("duration", "duration_s", "file_length", "audio_length", "length_seconds")
LANGUAGE_FIELDS = ("language", "lang", "locale")
SPEAKER_FIELDS = ("speaker", "speaker_id", "client_id")
WORD_FIELDS = ("words", "word_timestamps")
STARTS_FIELD = "words_s"


@dataclass(frozen=True, slots=True)
class Row:
    """One example as a layout's reader found it.

    Attributes:
        id: The dataset's name of the example.
        reference: Its transcript. Empty for a recording without speech, None when the table has none.
        audio: The file. None when it was not found.
        audio_name: The dataset's name of the file, for messages.
        language: None when the dataset does not declare it.
        duration_s: None when the dataset does not declare it.
        speaker: None when the dataset does not declare it.
        words: Words with times.
        ignored: Parts of the transcript that are marked as not to be scored and were omitted.
    """

    id: str
    reference: str | None
    audio: Path | None
    audio_name: str
    language: str | None = None
    duration_s: float | None = None
    speaker: str | None = None
    words: tuple[ReferenceWord, ...] = ()
    ignored: int = 0


@dataclass(frozen=True, slots=True)
class Checked:
    """Rows that can be evaluated, problems of the others, and the number of segments that are not to be scored."""

    examples: tuple[Recording, ...]
    problems: tuple[Problem, ...]
    ignored_segments: int


class AudioFolder:
    """The audio files under a folder, found by path, by name, or by name without extension.

    A table cannot name a file elsewhere: what it names is transcribed, published and sent to services.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(self.root.rglob("*")):
            if path.suffix.lower() in AUDIO_EXTENSIONS and found_inside(self.root, str(path.absolute())):
                found[path.name].append(path)
                found[path.stem].append(path)
        return found

    def find(self, name: str, base: Path | None = None) -> Path | None:
        """Find a file.

        Args:
            name: A path, or a bare name with or without extension, which may lie in any subfolder.
            base: Relative paths start here. None for the root.

        Returns:
            The file. None when there is none in the folder, or several of that name.
        """
        direct = found_inside(self.root, name, base)
        if direct is not None:
            return direct
        pure = PurePosixPath(name.replace("\\", "/"))
        for wanted in (pure.name, pure.stem):  # published tables name the .mp3 that a .wav was made of
            found = self._by_name.get(wanted, [])
            if len(found) == 1:
                return found[0]
        return None


def first(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Return the first of several fields that is present and not empty. None when none is."""
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


def as_seconds(value: Any) -> float | None:
    """Return a duration from a table. None when it is not a positive number."""
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 < seconds < float("inf") else None


def words_of(row: Mapping[str, Any], reference: str) -> tuple[ReferenceWord, ...]:
    """Return the word times of a table's row: words with start and end, or starts of the transcript's words."""
    starts = row.get(STARTS_FIELD)
    if isinstance(starts, list) and len(starts) == len(reference.split()):
        timed = [_word({"word": word, "start": at}) for word, at in zip(reference.split(), starts, strict=True)]
        return tuple(word for word in timed if word is not None) if all(timed) else ()
    listed = first(row, WORD_FIELDS)
    if not isinstance(listed, list):
        return ()
    found = [_word(item) for item in listed if isinstance(item, dict)]
    return tuple(word for word in found if word is not None) if all(found) and len(found) == len(listed) else ()


def _word(item: Mapping[str, Any]) -> ReferenceWord | None:
    text, start, end = first(item, ("word", "text")), first(item, ("start", "start_s")), first(item, ("end", "end_s"))
    try:
        return ReferenceWord(str(text), float(start), None if end is None else float(end)) if text else None
    except (TypeError, ValueError, OverflowError):
        return None


def check(rows: Sequence[Row]) -> Checked:
    """Separate rows that cannot be evaluated, and complete durations from the audio files' headers."""
    scored = [row for row in rows if not _IGNORED.fullmatch((row.reference or "").strip())]
    ignored = len(rows) - len(scored) + sum(row.ignored for row in scored)
    repeated = Counter(row.id for row in scored)
    problems: list[Problem] = []
    examples: list[Recording] = []
    seen: set[str] = set()
    for row in scored:
        found = _problem(row, row.id in seen, repeated[row.id])
        seen.add(row.id)
        if found is None:
            row, found = _with_duration(row)
        if found is not None:
            problems.append(found)
        else:
            examples.append(_example(row))
    return Checked(tuple(examples), tuple(problems), ignored)


def _problem(row: Row, is_repeated: bool, count: int) -> Problem | None:
    if is_repeated:
        return Problem(row.id, "duplicate_id", f"{row.id}: {count} examples have this id; the first one counts")
    if row.audio is None:
        name = PurePosixPath(row.audio_name)
        outside = name.is_absolute() or ".." in name.parts
        hint = " in the dataset's folder; audio elsewhere is not read, put it there" if outside else ""
        return Problem(row.id, "missing_audio", f"{row.id}: no audio file {row.audio_name}{hint}")
    if row.reference is None:
        return Problem(row.id, "no_reference", f"{row.id}: the table has no transcript for it")
    return None


def _with_duration(row: Row) -> tuple[Row, Problem | None]:
    if row.duration_s is not None or row.audio is None:
        return row, None
    seconds = header_duration_s(row.audio)
    if seconds is None:
        return row, Problem(row.id, "unreadable_audio", f"{row.id}: {row.audio.name} is not audio that can be decoded")
    return replace(row, duration_s=seconds), None


def header_duration_s(path: Path) -> float | None:
    """Return the length that an audio file declares. None when it is not audio, or holds none."""
    import av
    import soundfile

    # libsndfile's MP3 decoder writes its own remarks to the terminal.
    if path.suffix.lower() != ".mp3":
        try:
            return float(soundfile.info(path).duration) or None
        except (soundfile.SoundFileError, ValueError):
            pass
    try:
        with open_container(path) as container:
            if not container.streams.audio or not container.duration:
                return None
            return float(container.duration / av.time_base)
    except (av.FFmpegError, OSError, ValueError):
        return None


def _example(row: Row) -> Recording:
    return Recording(
        id=row.id,
        text=(row.reference or "").strip(),
        path=row.audio,
        language=base_language(row.language),
        duration_s=row.duration_s,
        speaker=row.speaker,
        words=row.words,
    )
