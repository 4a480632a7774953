"""Labels chosen and joined to training windows, without labelling again."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whisperkit_tools.distill.label_filter import LabelFilter, join, judge, summary
from whisperkit_tools.distill.labels import read_labels, write_records
from whisperkit_tools.errors import DatasetError, OptionsError, option
from whisperkit_tools.files import write_json
from whisperkit_tools.progress import Progress, SilentProgress

WINDOWS, DROPPED, REPORT = "windows.jsonl", "dropped.jsonl", "filter.json"


@dataclass(frozen=True, slots=True)
class FilteredLabels:
    """Labels that were chosen.

    Attributes:
        folder: The folder of the windows, the dropped segments and the report.
        report: What each limit dropped, with examples, and the word error rate before and after.
    """

    folder: Path
    report: dict[str, Any]


def filter_labels(
    labels: str | Path,
    *,
    output_dir: str | Path,
    max_wer: float | None = 10.0,
    min_logprob: float | None = -1.0,
    max_repeats: int | None = 2,
    max_words_per_second: float | None = 8.0,
    agree_with: str | Path | None = None,
    max_disagreement: float | None = None,
    max_duration: float = 30.0,
    progress: Progress | None = None,
) -> FilteredLabels:
    """Choose among labels, and join what is kept to windows for training.

    Args:
        labels: A folder that `pseudo_label` wrote.
        output_dir: The folder of the result. It may be the same.
        max_wer: Maximum word error rate against the reference in percent, where there is one. None for no limit.
        min_logprob: Minimum mean log probability. None for no limit.
        max_repeats: Maximum number of repeated 5-grams. None for no limit.
        max_words_per_second: Maximum pace of the text. None for no limit.
        agree_with: Labels of another teacher for the same recordings.
        max_disagreement: Maximum word error rate against those in percent. None for 10 where `agree_with` is given.
        max_duration: Maximum length of a window in seconds, at most 30.
        progress: Told of damage in the files.

    Raises:
        DatasetError: There are no labels, or none is left.
        OptionsError: A value is out of range.

    Example:
        >>> import whisperkit_tools as wkt
        >>> labels = wkt.pseudo_label(".", teacher="bundles/acme_whisper-demo", output_dir="labels")
        >>> wkt.filter_labels(labels.folder, output_dir="chosen").report["kept"] > 0
        True
    """
    progress = progress or SilentProgress()
    if not 1 <= max_duration <= 30:
        raise OptionsError(f"{option('max_duration')} is {max_duration:g}, allowed are 1 to 30 seconds")
    if max_disagreement is not None and agree_with is None:
        raise OptionsError(
            f"{option('max_disagreement')} compares with other labels; name them as {option('agree_with')}"
        )
    if agree_with is not None and max_disagreement is None:
        max_disagreement = 10.0
    limits = LabelFilter(max_wer, min_logprob, max_repeats, max_words_per_second, max_disagreement)
    recordings, notes = read_labels(Path(labels))
    second = None
    if agree_with is not None:
        others, more = read_labels(Path(agree_with))
        second, notes = {one.id: one for one in others}, [*notes, *more]
        if not second.keys() & {one.id for one in recordings}:
            raise DatasetError(f"{agree_with} holds labels of other recordings than {labels}; none can be compared")
    for line in notes:
        progress.note(line)
    judged = judge(recordings, limits, second=second)
    windows = join(judged, max_duration)
    if not any(segment.text for window in windows for segment in window.segments):
        raise DatasetError(f"no segment of {labels} keeps all limits; widen them")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report = {"labels": str(labels), "limits": asdict(limits), **summary(judged, windows)}
    write_records(folder / DROPPED, [one for one in judged if one.reasons])
    write_json(folder / REPORT, report)
    write_records(folder / WINDOWS, windows)
    return FilteredLabels(folder, report)
