"""The choice of examples of a dataset, and of its source."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whisperkit_tools.errors import OptionsError, option


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """Choice of examples.

    Attributes:
        split: Part of the dataset. None for the only one, or `test` on the Hub.
        subset: Configuration of a Hub dataset.
        text_column: Field with the transcript. None to look for the usual names.
        audio_column: Field with the audio of a Hub dataset. None to look for the usual names.
        revision: Branch, tag or commit of a Hub dataset.
        streaming: Fetch a Hub dataset row by row. Otherwise whole, through the cache of `datasets`.
        limit: Take only the first examples, this many.
        sample: Draw this many examples at random, in the dataset's order.
        seed: Random seed of the draw.
        language: Take only examples in this language.
        min_duration_s: Skip shorter examples.
        max_duration_s: Skip longer examples.
        skip_bad: Continue without examples that have problems.
        cache_dir: Folder for copies of Hub datasets. None for a folder in the Hub's own cache.

    Raises:
        OptionsError: Naming all values that are out of range.
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
            f"{option(name)} is {value}; expected 1 or more"
            for name, value in (("limit", self.limit), ("sample", self.sample))
            if value is not None and value < 1
        ]
        low, high = self.min_duration_s, self.max_duration_s
        if (low is not None and low < 0) or (high is not None and high <= 0):
            problems.append("durations are seconds above 0")
        if low is not None and high is not None and low > high:
            problems.append(f"{option('min_duration_s')} {low:g} is more than {option('max_duration_s')} {high:g}")
        if problems:
            raise OptionsError("; ".join(problems))

    @property
    def rows_needed(self) -> int | None:
        """Number of rows of a stream that suffice. None when all have to be seen before choosing."""
        filters = (self.sample, self.language, self.min_duration_s, self.max_duration_s)
        return self.limit if all(value is None for value in filters) else None

    def chosen(self) -> dict[str, Any]:
        """Return the values that decide which examples are taken, JSON-ready."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("cache_dir", "streaming")}
        return {name: value for name, value in kept.items() if value not in (None, False)}
