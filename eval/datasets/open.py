"""Opening a dataset by name: well-known sets, folders, and datasets of the Hub."""

import difflib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from whisperkit_tools.errors import DatasetError, OptionsError, option
from whisperkit_tools.eval.datasets.dataset import Dataset, Problem, fingerprint
from whisperkit_tools.eval.datasets.hub import data_files, fetch_snapshot, read_hub, read_local_files
from whisperkit_tools.eval.datasets.layouts import LayoutOptions, describe_layouts, has_layout, read_folder
from whisperkit_tools.eval.datasets.options import DatasetOptions
from whisperkit_tools.eval.datasets.rows import Row, check
from whisperkit_tools.files import safe_name
from whisperkit_tools.folders import recognised
from whisperkit_tools.languages import base_language
from whisperkit_tools.paths import expanded
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.speech import Recording

DEMO = "demo"
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class NamedDataset:
    """A dataset with a short name.

    Attributes:
        hub_id: The repository that holds it: audio files beside `metadata.json`, some of them zipped.
        what: Description for people.
        language: Language of all its examples. None when its table declares it.
    """

    hub_id: str
    what: str
    language: str | None = "en"


# The sets that the figures of whisperkittools are measured on. Source: argmaxinc/whisperkittools,
# whisperkit/_constants.py (owner and names) and whisperkit/evaluate/datasets.py (their form).
NAMED_DATASETS = {
    "librispeech": NamedDataset("argmaxinc/librispeech", "LibriSpeech test-clean, 2,620 utterances, 5.4 h"),
    "librispeech-200": NamedDataset("argmaxinc/librispeech-200", "200 utterances of it"),
    "earnings22": NamedDataset("argmaxinc/earnings22", "calls of companies, English of many countries, 119 h"),
    "earnings22-12hours": NamedDataset("argmaxinc/earnings22-12hours", "12 hours of them"),
    "common_voice": NamedDataset(
        "argmaxinc/common_voice_17_0-argmax_subset-400", "Common Voice 17, up to 400 clips of each language", None
    ),
}


def is_plain_folder(spec: str) -> bool:
    """Return whether a name is that of a folder without a dataset."""
    path = expanded(spec)
    if spec == DEMO or spec in NAMED_DATASETS or not path.is_dir():
        return False
    return not has_layout(path) and not data_files(path)


def is_copied_by_row(spec: str) -> bool:
    """Return whether a dataset is copied row by row, so that a limit of rows spares the rest."""
    path = expanded(spec)
    return spec != DEMO and spec not in NAMED_DATASETS and not (path.is_dir() and has_layout(path))


def open_dataset(
    spec: str,
    options: DatasetOptions | None = None,
    progress: Progress | None = None,
    *,
    with_fingerprint: bool = True,
) -> Dataset:
    """Open a dataset.

    Args:
        spec: `demo`, one of `NAMED_DATASETS`, a folder, or a Hub id `owner/name`. A folder takes precedence.
        options: Choice of examples.
        progress: Receives the progress of downloads.
        with_fingerprint: Read all audio for the fingerprint. Otherwise it is empty.

    Returns:
        The examples with their fingerprint. All audio is on this machine.

    Raises:
        OptionsError: Unknown, or the choice leaves no example.
        DatasetError: Not reachable, not understood, empty, or with problems without `skip_bad`.
    """
    options = options or DatasetOptions()
    name, source, rows, language = _rows(spec, options, progress or SilentProgress())
    found = check(rows)
    if found.problems and not options.skip_bad:
        raise DatasetError(_describe(source, found.problems))
    examples = select([_in_language(item, language) for item in found.examples], options)
    if not examples:
        raise _empty(source, len(rows), len(found.examples), found.problems, options)
    return Dataset(
        name=name,
        source=source,
        examples=examples,
        problems=found.problems,
        ignored_segments=found.ignored_segments,
        options=options.chosen(),
        fingerprint=fingerprint(examples) if with_fingerprint else "",
    )


def _rows(spec: str, options: DatasetOptions, progress: Progress) -> tuple[str, str, list[Row], str | None]:
    """Return name, source, rows, and the language of rows that do not declare one."""
    layout = LayoutOptions(options.split, options.text_column, options.language)
    if spec == DEMO:
        folder = Path(str(files("whisperkit_tools") / "demo" / "audio"))
        return DEMO, "the demo's audio", read_folder(folder, layout) or [], None
    if spec in NAMED_DATASETS:
        known = NAMED_DATASETS[spec]
        folder = fetch_snapshot(known.hub_id, options, progress)
        return spec, known.hub_id, read_folder(folder, layout) or [], known.language
    path = expanded(spec)
    if path.is_dir():
        rows = read_folder(path, layout)
        rows = read_local_files(path, options) if rows is None else rows
        if rows is None:
            what = recognised(path)
            found = f"is not a dataset but {what}" if what else "does not hold a supported dataset"
            raise DatasetError(f"{path} {found}; expected {describe_layouts()}")
        return safe_name(path.resolve().name), str(path), rows, None
    if path.exists():
        raise OptionsError(f"{path} is a file; pass the folder of a dataset: {describe_layouts()}")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", spec):
        source = " ".join(part for part in (spec, options.subset, options.split) if part)
        return safe_name(source), source, read_hub(spec, options, progress), None
    raise _unknown(spec)


def _unknown(spec: str) -> DatasetError | OptionsError:
    """Return the error for a missing dataset: a path is a failure, an unknown name a wrong value."""
    if "/" in spec or spec.startswith((".", "~")):
        return DatasetError(f"no dataset at {spec}: no such folder; pass the folder of a dataset: {describe_layouts()}")
    names = [DEMO, *NAMED_DATASETS]
    close = difflib.get_close_matches(spec.lower(), names, n=2, cutoff=0.6)
    suggestion = f"did you mean {' or '.join(close)}? " if close else ""
    return OptionsError(
        f"no dataset {spec!r}: {suggestion}known: {', '.join(names)}; or pass a folder, or a Hub id owner/name"
    )


def _in_language(example: Recording, language: str | None) -> Recording:
    return replace(example, language=language) if example.language is None and language else example


def select(examples: Sequence[Recording], options: DatasetOptions) -> tuple[Recording, ...]:
    """Choose by language and duration, then draw, then cut. The dataset's order stays."""
    language = base_language(options.language)
    low, high = options.min_duration_s or 0.0, options.max_duration_s or float("inf")
    # An example without a declared language is taken, because folders of one's own audio rarely declare one.
    chosen = [
        item
        for item in examples
        if (language is None or item.language in (None, language)) and low <= (item.duration_s or 0.0) <= high
    ]
    if options.sample is not None and options.sample < len(chosen):
        drawn = set(random.Random(options.seed).sample(range(len(chosen)), options.sample))
        chosen = [item for index, item in enumerate(chosen) if index in drawn]
    return tuple(chosen[: options.limit])


def _describe(source: str, problems: Sequence[Problem]) -> str:
    lines = [f"  {problem.kind}: {problem.message}" for problem in problems[:_SHOWN]]
    lines += [f"  and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    count = "one example" if len(problems) == 1 else f"{len(problems)} examples"
    return (
        f"{source}: {count} cannot be evaluated; add {option('skip_bad', True)} to continue without "
        "and to list them in the report:\n" + "\n".join(lines)
    )


def _empty(
    source: str, rows: int, usable: int, problems: Sequence[Problem], options: DatasetOptions
) -> DatasetError | OptionsError:
    """Return the error that explains why no example is left."""
    if not rows:
        return DatasetError(f"{source} has no examples")
    if not usable:
        first = f"; the first: {problems[0].kind}: {problems[0].message}" if problems else ""
        return DatasetError(f"{source}: none of its {rows} examples can be evaluated{first}")
    asked = {name: getattr(options, name) for name in ("language", "min_duration_s", "max_duration_s")}
    wanted = ", ".join(f"{option(name)} {value}" for name, value in asked.items() if value is not None)
    return OptionsError(f"{source}: none of its {usable} examples has {wanted}")
