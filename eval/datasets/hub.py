"""Datasets of the Hugging Face Hub and local copies of them, as folders of audio files with a table.

A Hub dataset is fetched once, row by row, into a folder `metadata.jsonl` + `audio/` in the cache. Evaluations read
that folder, work without a connection, and can be resumed. Audio is kept in its published bytes.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from whisperkit_tools.errors import DatasetError, OptionsError, option
from whisperkit_tools.eval.datasets.archive import unpack_zip
from whisperkit_tools.eval.datasets.layouts import METADATA_FILES, LayoutOptions, read_folder
from whisperkit_tools.eval.datasets.options import DatasetOptions
from whisperkit_tools.eval.datasets.rows import (
    DURATION_FIELDS,
    ID_FIELDS,
    LANGUAGE_FIELDS,
    SPEAKER_FIELDS,
    TEXT_FIELDS,
    WORD_FIELDS,
    Row,
    first,
)
from whisperkit_tools.files import first_line, put_in_place, safe_name, sha256_of_json
from whisperkit_tools.paths import found_inside
from whisperkit_tools.progress import Progress
from whisperkit_tools.speech import AUDIO_EXTENSIONS
from whisperkit_tools.strict_json import json_text, parse_json

_INFO_FILE = "dataset.json"
_AUDIO_COLUMNS = ("audio", "speech", "file")
_DATA_PATTERNS = ("*.parquet", "*.arrow")
_DEFAULT_SPLIT = "test"


def fetch_snapshot(hub_id: str, options: DatasetOptions, progress: Progress) -> Path:
    """Download a repository of audio files with a table, or find it in the Hub's cache. Zipped audio is unpacked.

    Returns:
        The folder.

    Raises:
        DatasetError: The repository cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        with progress.stage(hub_id, "downloading"):
            folder = Path(snapshot_download(hub_id, repo_type="dataset", revision=options.revision))
    except Exception as error:  # besides its own errors the client raises those of its HTTP library
        raise DatasetError(_explain(hub_id, options.revision, error)) from error
    archives = sorted(folder.glob("*.zip"))
    return _unpacked(hub_id, folder, archives, options, progress) if archives else folder


def _unpacked(hub_id: str, folder: Path, archives: list[Path], options: DatasetOptions, progress: Progress) -> Path:
    """Return a folder with the table and the unpacked audio. Its name holds the commit, so that it is made once."""
    target = cache_folder(options) / f"{safe_name(hub_id)}-{folder.name[:12]}"
    if target.is_dir():
        return target
    with progress.stage(hub_id, "unpacking"), _new_folder(target) as scratch:
        for archive in archives:
            try:
                unpack_zip(archive, scratch)
            except OSError as error:
                raise DatasetError(f"{archive} cannot be unpacked: {error}") from error
        for name in METADATA_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, scratch / name)
    return target


def cache_folder(options: DatasetOptions) -> Path:
    """Return the folder of fetched datasets."""
    from huggingface_hub import constants

    return options.cache_dir or Path(constants.HF_HOME) / "whisperkit-tools" / "datasets"


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Yield a scratch folder that becomes the target when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield scratch
        try:
            put_in_place(scratch, target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read_hub(hub_id: str, options: DatasetOptions, progress: Progress) -> list[Row]:
    """Return the rows of a Hub dataset, fetched on first use.

    Raises:
        DatasetError: It cannot be fetched.
        OptionsError: Its columns are not recognised.
    """
    folder = _fetched(hub_id, options)
    if folder is None:
        if _has_plain_table(hub_id, options):
            layout = LayoutOptions(options.split, options.text_column, options.language)
            return read_folder(fetch_snapshot(hub_id, options, progress), layout) or []
        folder = _target(hub_id, options)
        with progress.stage(hub_id, "fetching"):
            _materialise(folder, _hub_rows(hub_id, options), options, hub_id, _caches())
    return (read_folder(folder, LayoutOptions()) or [])[: options.rows_needed]


def _target(hub_id: str, options: DatasetOptions) -> Path:
    parts = (hub_id, options.subset, options.split or _DEFAULT_SPLIT, options.revision, options.text_column)
    return cache_folder(options) / "--".join(safe_name(part) for part in parts if part)


def _fetched(hub_id: str, options: DatasetOptions) -> Path | None:
    """Return the folder of an earlier fetch, if it has all needed rows."""
    folder = _target(hub_id, options)
    try:
        info = parse_json((folder / _INFO_FILE).read_bytes())
        complete, rows = bool(info["complete"]), int(info["rows"])
    except (OSError, ValueError, LookupError, TypeError):
        return None  # never fetched, or damaged: fetched again
    needed = options.rows_needed
    return folder if complete or (needed is not None and rows >= needed) else None


def _has_plain_table(hub_id: str, options: DatasetOptions) -> bool:
    """Return whether a repository is a folder of audio with `metadata.json`, which `datasets` does not support."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(hub_id, revision=options.revision)
    except Exception as error:  # besides its own errors the client raises those of its HTTP library
        raise DatasetError(_explain(hub_id, options.revision, error)) from error
    return any(file.rfilename == "metadata.json" for file in info.siblings or ())


def _hub_rows(hub_id: str, options: DatasetOptions) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            hub_id,
            options.subset,
            split=options.split or _DEFAULT_SPLIT,
            revision=options.revision,
            streaming=options.streaming,
        )
    except Exception as error:  # `datasets` raises what its readers raise
        raise DatasetError(_explain(hub_id, options.revision, error)) from error


def read_local_files(folder: Path, options: DatasetOptions) -> list[Row] | None:
    """Return the rows of a local copy of a Hub dataset: parquet or arrow files, `save_to_disk` folders included.

    Returns:
        None when the folder holds no such files.

    Raises:
        DatasetError: The files cannot be read.
        OptionsError: Their columns are not recognised, or there is no such split.
    """
    found = data_files(folder)
    if not found:
        return None
    target = cache_folder(options) / f"{safe_name(folder.resolve().name)}-{_digest(found, options)}"
    if not target.is_dir():
        _materialise(target, _local_rows(folder, options), options, str(folder), (folder,))
    return read_folder(target, LayoutOptions())


def data_files(folder: Path) -> list[Path]:
    """Return the parquet and arrow files below a folder."""
    return sorted(path for pattern in _DATA_PATTERNS for path in folder.rglob(pattern))


def _local_rows(folder: Path, options: DatasetOptions) -> Any:
    import datasets

    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(str(folder))
            return loaded[_split_of(list(loaded), folder, options)] if isinstance(loaded, dict) else loaded
        # `datasets` recognises the same names of files and folders here as on the Hub.
        splits = datasets.get_dataset_split_names(str(folder), options.subset)
        split = _split_of(splits, folder, options)
        return datasets.load_dataset(str(folder), options.subset, split=split, streaming=True)
    except OptionsError:
        raise
    except Exception as error:  # `datasets` raises what its readers raise
        raise DatasetError(f"{folder} cannot be read: {first_line(error)}") from error


def _split_of(splits: list[str], folder: Path, options: DatasetOptions) -> str:
    wanted = options.split or (splits[0] if len(splits) == 1 else _DEFAULT_SPLIT)
    if wanted not in splits:
        raise OptionsError(
            f"no split {wanted!r} in {folder}: found {', '.join(splits)}; choose one with {option('split')}"
        )
    return wanted


def _digest(paths: Iterable[Path], options: DatasetOptions) -> str:
    """Return the name of a local copy: a digest of its files and of the rows that are taken."""
    state = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    chosen = [options.split, options.subset, options.text_column, options.audio_column, options.rows_needed]
    return sha256_of_json([state, chosen])[:12]


def _caches() -> tuple[Path, ...]:
    """Return the folders to which the libraries download the files of a dataset."""
    import datasets
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE)


def _materialise(target: Path, rows: Any, options: DatasetOptions, source: str, homes: tuple[Path, ...]) -> None:
    """Write rows as a folder of audio files with a table.

    Args:
        target: The folder to make.
        rows: The rows.
        options: Choice of rows and columns.
        source: The dataset, for messages.
        homes: Folders in which a row may name a file of audio.

    Raises:
        OptionsError: The columns are not recognised.
        DatasetError: The rows end early.
    """
    text, audio = _columns(rows, options, source)
    needed = options.rows_needed
    count = 0
    with _new_folder(target) as scratch:
        (scratch / "audio").mkdir()
        with (scratch / "metadata.jsonl").open("w", encoding="utf-8") as table:
            for count, row in enumerate(_taken(rows, audio, needed, source), start=1):
                entry = _entry(row, count, (text, audio), scratch, homes)
                table.write(json_text(entry, indent=None) + "\n")
        info = {"source": source, "rows": count, "complete": needed is None or count < needed}
        (scratch / _INFO_FILE).write_text(json_text(info, indent=None) + "\n", encoding="utf-8")


def _columns(rows: Any, options: DatasetOptions, source: str) -> tuple[str, str]:
    """Return the columns with transcript and audio."""
    names = list(rows.column_names or next(iter(rows), {}))
    text = _pick(names, options.text_column, TEXT_FIELDS, "transcripts", "text_column", source)
    return text, _pick(names, options.audio_column, _AUDIO_COLUMNS, "audio", "audio_column", source)


def _pick(names: list[str], wanted: str | None, usual: Iterable[str], what: str, field: str, source: str) -> str:
    candidates = [wanted] if wanted else list(usual)
    found = next((name for name in candidates if name in names), None)
    if found is None:
        raise OptionsError(
            f"{source} has no column of {what}: looked for {', '.join(candidates)}, found {', '.join(names)}; "
            f"choose one with {option(field)}"
        )
    return found


def _taken(rows: Any, audio: str, needed: int | None, source: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows with audio as published bytes, so that no decoder of `datasets` is needed."""
    import datasets

    try:
        features = rows.features or {}
        if isinstance(features.get(audio), datasets.Audio):
            rows = rows.cast_column(audio, datasets.Audio(decode=False))
        yield from islice(rows, needed)
    except Exception as error:  # `datasets` raises what its readers and its HTTP library raise
        raise DatasetError(f"{source} broke off: {first_line(error)}; run the command again") from error


def _entry(
    row: Mapping[str, Any], number: int, columns: tuple[str, str], folder: Path, homes: tuple[Path, ...]
) -> dict[str, Any]:
    """Write the audio of one row and return its line of the table."""
    text, audio = columns
    value = row[audio]
    content, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
    path = str((value if isinstance(value, str) else path) or "")
    if not isinstance(content, bytes) and path:
        place = next((place for home in homes if (place := found_inside(home, path))), None)
        content = place.read_bytes() if place is not None and place.suffix.lower() in AUDIO_EXTENSIONS else None
    suffix = PurePosixPath(path).suffix.lower()
    name = f"audio/{number:07d}{suffix if suffix in AUDIO_EXTENSIONS else '.wav'}"
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    fields = {
        "id": first(row, ID_FIELDS) or PurePosixPath(path).stem or f"{number:07d}",
        "text": row[text],
        "duration": first(row, DURATION_FIELDS),
        "language": first(row, LANGUAGE_FIELDS),
        "speaker": first(row, SPEAKER_FIELDS),
    }
    entry = {"file_name": name, **{key: str(field) for key, field in fields.items() if field is not None}}
    return entry | {name: row[name] for name in WORD_FIELDS if isinstance(row.get(name), list)}


def _explain(hub_id: str, revision: str | None, error: Exception) -> str:
    """Return one line on the cause and the remedy."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    causes = list(_causes(error))
    page = f"{_endpoint()}/datasets/{hub_id}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"{hub_id} is gated: accept its terms at {page}, then {log_in}"
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return f"{hub_id} has no revision {revision!r}; give a branch, a tag or a full commit hash"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"no dataset {hub_id} on {_endpoint()}; if it is private, {log_in}"
    statuses = [cause.response.status_code for cause in causes if isinstance(cause, HfHubHTTPError) and cause.response]
    if statuses:
        return f"{_endpoint()} answers HTTP {statuses[0]} for {hub_id}; try again later"
    offline = (LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if isinstance(error, offline) or any(_is_no_connection(cause) for cause in causes):
        return (
            f"cannot reach {_endpoint()} and {hub_id} is not in the cache; to work offline download it elsewhere "
            f"(`hf download --repo-type dataset {hub_id} --local-dir DIR`) and pass {option('dataset', 'DIR')}; "
            "for a mirror set HF_ENDPOINT"
        )
    return f"{hub_id} cannot be opened: {first_line(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_no_connection(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}  # of whichever HTTP library the client uses
    return bool(names & {"ConnectionError", "ConnectError", "ConnectTimeout", "OfflineModeIsEnabled", "TransportError"})


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
