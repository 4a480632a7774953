"""From what the user names to the examples that are evaluated: well-known sets, folders, and datasets of the Hub."""

import difflib
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from whisperkit_tools.errors import DatasetError
from whisperkit_tools.eval.datasets.examples import Dataset, Example, Problem, fingerprint
from whisperkit_tools.eval.datasets.layouts import LayoutOptions, describe_layouts, read_folder
from whisperkit_tools.eval.datasets.rows import Row, check
from whisperkit_tools.eval.metrics.normalize import base_language
from whisperkit_tools.progress import Progress, SilentProgress

DEMO = "demo"
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class NamedDataset:
    """A set with a short name.

    Attributes:
        hub_id: The repository that holds it: audio files beside `metadata.json`, some of them zipped.
        what: What it is, for people.
        language: Of all its examples; None when its table says.
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


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """Which examples of a dataset are taken, and from where.

    Attributes:
        split: Part of the dataset; None for the only one, or `test` on the Hub.
        subset: Configuration of a Hub dataset.
        text_column: Field with the transcript; None to look for the usual names.
        audio_column: Field with the audio of a Hub dataset; None to look for the usual names.
        revision: Branch, tag or commit of a Hub dataset.
        streaming: Fetch a Hub dataset row by row; otherwise whole, through the cache of `datasets`.
        limit: Take the first so many.
        sample: Draw so many, in the dataset's order.
        seed: Of the draw.
        language: Take only examples in this language.
        min_duration_s: Take none that is shorter.
        max_duration_s: Take none that is longer.
        skip_bad: Go on without examples that have problems.
        cache_dir: Where copies of Hub datasets are kept; None for a folder in the Hub's own cache.
    """

    split: str | None = None
    subset: str | None = None
    text_column: str | None = None
    audio_column: str | None = None
    revision: str | None = None
    streaming: bool = True
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    language: str | None = None
    min_duration_s: float | None = None
    max_duration_s: float | None = None
    skip_bad: bool = False
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}; expected 1 or more"
            for name, value in (("limit", self.limit), ("sample", self.sample))
            if value is not None and value < 1
        ]
        low, high = self.min_duration_s, self.max_duration_s
        if (low is not None and low < 0) or (high is not None and high <= 0):
            problems.append("durations are seconds above 0")
        if low is not None and high is not None and low > high:
            problems.append(f"min_duration_s {low:g} is more than max_duration_s {high:g}")
        if problems:
            raise DatasetError("; ".join(problems))

    @property
    def rows_needed(self) -> int | None:
        """How many rows of a stream are enough; None when all have to be seen before choosing."""
        filters = (self.sample, self.language, self.min_duration_s, self.max_duration_s)
        return self.limit if all(value is None for value in filters) else None

    def chosen(self) -> dict[str, Any]:
        """What decides which examples are taken, JSON-ready."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("cache_dir", "streaming")}
        return {name: value for name, value in kept.items() if value not in (None, False)}


def open_dataset(spec: str, options: DatasetOptions | None = None, progress: Progress | None = None) -> Dataset:
    """Open a dataset.

    Args:
        spec: `demo`, one of `NAMED_DATASETS`, a folder, or a Hub id `owner/name`. A folder goes before a Hub id.
        options: Which examples are taken.
        progress: Hears about downloads.

    Returns:
        The examples with their fingerprint; all audio is on this machine.

    Raises:
        DatasetError: Unknown, not reachable, not understood, empty, or with problems without `skip_bad`.
    """
    options = options or DatasetOptions()
    name, source, rows, language = _rows(spec, options, progress or SilentProgress())
    found = check(rows)
    if found.problems and not options.skip_bad:
        raise DatasetError(_describe(source, found.problems))
    examples = select([_in_language(item, language) for item in found.examples], options)
    if not examples:
        raise DatasetError(_why_empty(source, len(rows), len(found.examples), found.problems, options))
    return Dataset(
        name=name,
        source=source,
        examples=examples,
        problems=found.problems,
        ignored_segments=found.ignored_segments,
        options=options.chosen(),
        fingerprint=fingerprint(examples),
    )


def _rows(spec: str, options: DatasetOptions, progress: Progress) -> tuple[str, str, list[Row], str | None]:
    """Name, source, rows, and the language of rows that do not say."""
    from whisperkit_tools.eval.datasets.hub import fetch_snapshot, read_hub, read_local_files

    layout = LayoutOptions(options.split, options.text_column, options.language)
    if spec == DEMO:
        folder = Path(str(files("whisperkit_tools") / "demo" / "audio"))
        return DEMO, "the demo's audio", read_folder(folder, layout) or [], None
    if spec in NAMED_DATASETS:
        known = NAMED_DATASETS[spec]
        folder = fetch_snapshot(known.hub_id, options, progress)
        return spec, known.hub_id, read_folder(folder, layout) or [], known.language
    path = Path(spec).expanduser()
    if path.is_dir():
        rows = read_folder(path, layout)
        rows = read_local_files(path, options) if rows is None else rows
        if rows is None:
            raise DatasetError(f"{path} holds no dataset that is understood; expected {describe_layouts()}")
        return safe_name(path.resolve().name), str(path), rows, None
    if path.exists():
        raise DatasetError(f"{path} is a file; pass the folder of a dataset: {describe_layouts()}")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", spec):
        source = " ".join(part for part in (spec, options.subset, options.split) if part)
        return safe_name(source), source, read_hub(spec, options, progress), None
    raise DatasetError(_unknown(spec))


def _unknown(spec: str) -> str:
    names = [DEMO, *NAMED_DATASETS]
    close = difflib.get_close_matches(spec.lower(), names, n=2, cutoff=0.6)
    suggestion = f"did you mean {' or '.join(close)}? " if close else ""
    return f"no dataset {spec!r}: {suggestion}known: {', '.join(names)}; or pass a folder, or a Hub id owner/name"


def safe_name(name: str) -> str:
    """A name with everything replaced that a folder's name cannot hold."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "dataset"


def _in_language(example: Example, language: str | None) -> Example:
    return replace(example, language=language) if example.language is None and language else example


def select(examples: Sequence[Example], options: DatasetOptions) -> tuple[Example, ...]:
    """Choose by language and duration, then draw, then cut; the dataset's order stays."""
    language = base_language(options.language)
    low, high = options.min_duration_s or 0.0, options.max_duration_s or float("inf")
    # An example that does not name its language is taken: folders of one's own audio rarely do.
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
        f"{source}: {count} cannot be evaluated; pass --skip-bad to go on without, and to have them in the report:\n"
        + ("\n".join(lines))
    )


def _why_empty(source: str, rows: int, usable: int, problems: Sequence[Problem], options: DatasetOptions) -> str:
    if not rows:
        return f"{source} has no examples"
    if not usable:
        first = f"; the first: {problems[0].kind}: {problems[0].message}" if problems else ""
        return f"{source}: none of its {rows} examples can be evaluated{first}"
    asked = {name: getattr(options, name) for name in ("language", "min_duration_s", "max_duration_s")}
    wanted = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
    return f"{source}: none of its {usable} examples has {wanted}"
