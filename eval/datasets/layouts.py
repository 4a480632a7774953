"""Readers of the folder layouts in which datasets are published, recognised by the folder's content."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from whisperkit_tools import limits
from whisperkit_tools.errors import DatasetError, OptionsError, option
from whisperkit_tools.eval.datasets.rows import (
    AUDIO_FIELDS,
    DURATION_FIELDS,
    ID_FIELDS,
    LANGUAGE_FIELDS,
    SPEAKER_FIELDS,
    TEXT_FIELDS,
    AudioFolder,
    Row,
    as_seconds,
    first,
    words_of,
)
from whisperkit_tools.files import read_limited
from whisperkit_tools.languages import base_language
from whisperkit_tools.paths import found_inside
from whisperkit_tools.speech import ReferenceWord
from whisperkit_tools.strict_json import parse_json

ALL = "all"
_LONGEST_FIELD = 1 << 24  # the transcript of a day. The csv module's default refuses that of two hours
METADATA_FILES = ("metadata.json", "metadata.jsonl", "metadata.csv", "metadata.tsv")
_COMMON_VOICE_SPLITS = ("test", "dev", "train", "validated", "other", "invalidated")
_NLP_COLUMNS = ("token", "speaker", "ts", "endTs", "punctuation")
_TAG = re.compile(r"<[^>]*>")  # <crosstalk>, <inaudible>, <laugh>: heard, but not to be scored


@dataclass(frozen=True, slots=True)
class LayoutOptions:
    """The part of the user's choice that a reader needs.

    Attributes:
        split: Part of the dataset. None for the only one.
        text_column: Field with the transcript. None to look for the usual names.
        language: Language of Common Voice's folders. None for the only one.
    """

    split: str | None = None
    text_column: str | None = None
    language: str | None = None


def read_folder(root: Path, options: LayoutOptions) -> list[Row] | None:
    """Read a dataset's folder.

    Returns:
        Its rows in a fixed order. None when no layout fits.

    Raises:
        DatasetError: A table is broken.
        OptionsError: The folder has several splits or languages and none was chosen, or not the chosen one.
    """
    for fits, read in _LAYOUTS:
        found = fits(root)
        if found:
            return read(root, found, options)
    return None


def has_layout(root: Path) -> bool:
    """Return whether a folder has one of the layouts."""
    return any(fits(root) for fits, _ in _LAYOUTS)


def describe_layouts() -> str:
    """Describe the supported layouts in one line."""
    return (
        "LibriSpeech (*.trans.txt), Earnings-21 and -22 (*.nlp with media/), Common Voice (*.tsv with clips/), "
        f"audio with {', '.join(METADATA_FILES)}, or parquet and arrow files"
    )


# LibriSpeech


def _transcripts(root: Path) -> list[Path]:
    return sorted(root.rglob("*.trans.txt"))


def _read_librispeech(root: Path, transcripts: Sequence[Path], options: LayoutOptions) -> list[Row]:
    by_split: dict[str, list[Path]] = {}
    for path in transcripts:
        by_split.setdefault(path.absolute().parent.parent.parent.name, []).append(path)
    chosen = _choose(by_split, options.split, f"{root}: several splits of LibriSpeech", "split")
    return [row for path in chosen for row in _librispeech_chapter(path)]


def _choose(parts: Mapping[str, Sequence[Path]], wanted: str | None, what: str, field: str) -> list[Path]:
    """Return the files of the wanted part, or of the only one."""
    names = ", ".join(sorted(parts))
    if wanted is None and len(parts) > 1:
        raise OptionsError(f"{what}: {names}; choose one with {option(field)}, or all with {option(field, ALL)}")
    if wanted not in (None, ALL) and wanted not in parts:
        raise OptionsError(f"no {field} {wanted!r} there: found {names}")
    names_chosen = [wanted] if wanted in parts and wanted is not None else sorted(parts)
    return [path for name in names_chosen for path in parts[name]]


def _librispeech_chapter(path: Path) -> Iterator[Row]:
    for line in _text(path).split("\n"):
        id, _, text = line.strip().partition(" ")
        if not id:
            continue
        names = [f"{id}{extension}" for extension in (".flac", ".wav", ".mp3")]
        audio = next((file for name in names if (file := found_inside(path.parent, name))), None)
        yield Row(id, text, audio, f"{path.parent / names[0]}", "en", speaker=id.split("-")[0])


# Earnings-21, Earnings-22


def _nlp_files(root: Path) -> list[Path]:
    found = sorted(root.rglob("*.nlp"))
    references = [path for path in found if path.parent.name == "nlp_references"]
    return references or found  # the folder also holds other systems' transcripts


def _read_earnings(root: Path, files: Sequence[Path], options: LayoutOptions) -> list[Row]:
    lengths = _earnings_lengths(root)
    audio = AudioFolder(root)
    rows = []
    for path in files:
        reference, words, ignored = _read_nlp(path)
        found = audio.find(path.stem)
        rows.append(
            Row(path.stem, reference, found, f"{path.stem}.mp3", "en", lengths.get(path.stem), None, words, ignored)
        )
    return rows


def _earnings_lengths(root: Path) -> dict[str, float]:
    """Return seconds by file id, from the tables beside the transcripts."""
    lengths = {}
    for path in sorted(root.rglob("*metadata.csv")):
        for row in _table(path, ","):
            id, seconds = first(row, ("file_id", "File ID")), first(row, ("audio_length", "File Length (seconds)"))
            if id and (value := as_seconds(seconds)):
                lengths[str(id)] = value
    return lengths


def _read_nlp(path: Path) -> tuple[str, tuple[ReferenceWord, ...], int]:
    """Read a transcript of one token a line.

    Source: the description of .nlp files in revdotcom/speech-datasets, earnings22/README.md.

    Returns:
        The text, its words with times where the file has them, and the number of omitted tags of unscored sounds.
    """
    rows = _table(path, "|", quoted=False)
    if not rows or any(column not in rows[0] for column in _NLP_COLUMNS):
        raise DatasetError(f"{path} is not a transcript: its first line must name {'|'.join(_NLP_COLUMNS)}")
    kept = [row for row in rows if row["token"] and not _TAG.fullmatch(row["token"])]
    text = " ".join(f"{row['token']}{row['punctuation'] or ''}" for row in kept)
    words = [_timed(row) for row in kept]
    left_out = sum(1 for row in rows if row["token"]) - len(kept)
    return text, tuple(word for word in words if word) if all(words) else (), left_out


def _timed(row: Mapping[str, Any]) -> ReferenceWord | None:
    try:
        return ReferenceWord(row["token"], float(row["ts"]), float(row["endTs"]) if row["endTs"] else None)
    except (TypeError, ValueError):
        return None


# Common Voice


def _common_voice_folders(root: Path) -> list[Path]:
    """Folders of one language each: tables beside `clips`."""
    return sorted(
        {
            path.parent
            for path in (root / "clips", *root.glob("*/clips"), *root.glob("*/*/clips"))
            if path.is_dir() and any((path.parent / f"{name}.tsv").is_file() for name in _COMMON_VOICE_SPLITS)
        }
    )


def _read_common_voice(root: Path, folders: Sequence[Path], options: LayoutOptions) -> list[Row]:
    languages = {folder.absolute().name: [folder] for folder in folders}
    same = [name for name in languages if base_language(name) == base_language(options.language)]
    chosen = _choose(
        languages, same[0] if len(same) == 1 else None, f"{root}: several languages of Common Voice", "language"
    )
    split = options.split or "test"
    return [row for folder in chosen for row in _common_voice_language(folder, split, options)]


def _common_voice_language(folder: Path, split: str, options: LayoutOptions) -> Iterator[Row]:
    table = folder / f"{split}.tsv"
    if not table.is_file():
        there = ", ".join(name for name in _COMMON_VOICE_SPLITS if (folder / f"{name}.tsv").is_file())
        raise OptionsError(f"no split {split!r} in {folder}: found {there}")
    rows = _table(table, "\t", quoted=False)
    column = _column(rows, options.text_column or "sentence", table)
    for row in rows:
        name = row.get("path") or ""
        name = name if PurePosixPath(name).suffix else f"{name}.mp3"
        audio = folder / "clips" / name
        yield Row(
            id=PurePosixPath(name).stem,
            reference=row[column],
            audio=found_inside(folder / "clips", name),
            audio_name=str(audio),
            language=first(row, ("locale",)) or folder.absolute().name,
            speaker=first(row, SPEAKER_FIELDS),
        )


# Audio with metadata


def _metadata_files(root: Path) -> list[Path]:
    own = [root / name for name in METADATA_FILES if (root / name).is_file()]
    below = [path for path in sorted(root.glob("*/metadata.*")) if path.name in METADATA_FILES]
    return own[:1] or below or [p for p in sorted(root.glob("*/*/metadata.*")) if p.name in METADATA_FILES]


def _read_metadata(root: Path, files: Sequence[Path], options: LayoutOptions) -> list[Row]:
    splits: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in files:
        for part, row in _metadata_rows(path):
            name = part or (path.parent.name if path.parent != root else str(row.get("split") or ""))
            splits.setdefault(name, []).append((path, row))
    if options.split in splits:
        chosen = splits[options.split]
    elif options.split in (None, ALL):
        chosen = [item for rows in splits.values() for item in rows]
    else:
        there = ", ".join(sorted(filter(None, splits))) or f"a dataset without splits; omit {option('split')}"
        raise OptionsError(f"no split {options.split!r} in {root}: found {there}")
    audio = AudioFolder(root)
    found = [_metadata_row(number, path, row, audio, options) for number, (path, row) in enumerate(chosen, start=1)]
    if found and all(row.reference is None for row in found):
        raise OptionsError(_no_text(files[0], [row for _, row in chosen], options.text_column))
    return found


def _metadata_rows(path: Path) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Yield the rows of a table, with the name of their list where a JSON object has several."""
    if path.suffix in (".csv", ".tsv"):
        yield from ((None, dict(row)) for row in _table(path, "\t" if path.suffix == ".tsv" else ","))
        return
    value = _json_lines(path) if path.suffix == ".jsonl" else _json(path)
    if isinstance(value, dict) and first(value, AUDIO_FIELDS) is not None:
        value = [value]  # lines of JSON, of which there is one
    lists: dict[str | None, Any] = {None: value} if isinstance(value, list) else dict(value)
    for name, rows in lists.items():
        if isinstance(rows, list):
            yield from ((name, row) for row in rows if isinstance(row, dict))


def _metadata_row(number: int, path: Path, row: Mapping[str, Any], audio: AudioFolder, options: LayoutOptions) -> Row:
    name = first(row, AUDIO_FIELDS)
    name = str(name.get("path") or "") if isinstance(name, dict) else str(name or "")
    fields = (options.text_column,) if options.text_column else TEXT_FIELDS
    text = first(row, fields)
    if text is None and any(row.get(name) == "" for name in fields):
        text = ""  # nothing is said in it
    reference = None if text is None else str(text)
    return Row(
        id=str(first(row, ID_FIELDS) or (PurePosixPath(name).with_suffix("") if name else f"row {number}")),
        reference=reference,
        audio=audio.find(name, path.parent) if name else None,
        audio_name=name or f"(none of the fields {', '.join(AUDIO_FIELDS)})",
        language=_text_or_none(first(row, LANGUAGE_FIELDS)),
        duration_s=as_seconds(first(row, DURATION_FIELDS)),
        speaker=_text_or_none(first(row, SPEAKER_FIELDS)),
        words=words_of(row, reference or ""),
    )


def _no_text(path: Path, rows: Sequence[Mapping[str, Any]], text_column: str | None) -> str:
    fields = ", ".join(sorted({str(name) for row in rows[:20] for name in row}))
    wanted = text_column or f"any of {', '.join(TEXT_FIELDS)}"
    return f"{path} has no transcripts: looked for {wanted}, found {fields}; choose one with {option('text_column')}"


# Reading


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def _text(path: Path) -> str:
    try:
        return read_limited(path, limits.JSON_LINES_BYTES, DatasetError).decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _table(path: Path, delimiter: str, quoted: bool = True) -> list[dict[str, Any]]:
    """Return the rows of a table whose first line has the names. Missing values are None."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        return list(csv.DictReader(io.StringIO(_text(path), newline=""), delimiter=delimiter, quoting=quoting))
    except csv.Error as error:
        raise DatasetError(f"{path} is not a table: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _column(rows: Sequence[Mapping[str, Any]], name: str, path: Path) -> str:
    if rows and name not in rows[0]:
        raise OptionsError(
            f"{path} has no column {name!r}: found {', '.join(filter(None, rows[0]))}; "
            f"choose one with {option('text_column')}"
        )
    return name


def _json(path: Path) -> Any:
    text = _text(path)
    try:
        value = parse_json(text)
    except ValueError as error:
        if text.lstrip().startswith("{"):
            return _json_lines(path)  # manifests of one object a line are often called .json
        raise DatasetError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, (list, dict)):
        raise DatasetError(f"{path} holds a {type(value).__name__}, expected a list of objects")
    return value


def _json_lines(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):  # a transcript may hold other line separators
        try:
            rows += [parse_json(line)] if line.strip() else []
        except ValueError as error:
            raise DatasetError(f"{path}, line {number} is not JSON: {error}") from error
    return rows


_LAYOUTS: tuple[
    tuple[Callable[[Path], list[Path]], Callable[[Path, Sequence[Path], LayoutOptions], list[Row]]], ...
] = (
    (_transcripts, _read_librispeech),
    (_nlp_files, _read_earnings),
    (_common_voice_folders, _read_common_voice),
    (_metadata_files, _read_metadata),
)
