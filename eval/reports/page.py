"""The content of a report on runs and their comparisons, as rows of text and positions, before any layout."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whisperkit_tools.eval.metrics import open_asr
from whisperkit_tools.eval.reports.charts import Axis, Curves, Mark, Scatter, curves, linear_axis, scatter
from whisperkit_tools.eval.reports.comparison import Comparison
from whisperkit_tools.eval.reports.format import (
    count,
    duration,
    interval,
    megabytes,
    milliseconds,
    number,
    percent,
    points,
    points_interval,
)
from whisperkit_tools.eval.schema import Bucket, RunReport

BUCKETS_SHOWN = 15


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure of the summary."""

    label: str
    value: str
    unit: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A table cell: its text, a second line, and its sort key."""

    text: str
    detail: str = ""
    order: float | None = None


@dataclass(frozen=True, slots=True)
class TableRow:
    """A run in the table of bundles."""

    series: int
    name: str
    detail: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class BundleTable:
    """The table of bundles. `headings` are `(text, unit, explanation)` of the cells, without the name's column."""

    headings: tuple[tuple[str, str, str], ...]
    rows: tuple[TableRow, ...]


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Word error rate by part: rows of `(label, examples, marks)`, of which the page first shows some."""

    title: str
    name: str
    axis: Axis
    rows: tuple[tuple[str, int, tuple[Mark, ...]], ...]
    shown: int = BUCKETS_SHOWN


def verdict(comparison: Comparison) -> str:
    """Return one sentence on whether the candidate is worse than the baseline."""
    bounds, difference = comparison.wer_difference_interval, comparison.wer_difference
    if bounds is None or difference is None:
        return f"{comparison.candidate} and {comparison.baseline} cannot be compared: no reference has words."
    tail = f"{points(difference)} points of WER (95% interval {points_interval(bounds)})."
    if bounds[0] <= 0 <= bounds[1]:
        return f"{comparison.candidate} is not measurably different from {comparison.baseline}: {tail}"
    what = "more" if difference > 0 else "fewer"
    return f"{comparison.candidate} makes {what} errors than {comparison.baseline}: {tail}"


def tiles(runs: Sequence[RunReport], comparisons: Sequence[Comparison]) -> list[Tile]:
    """Return the summary: the figures of one run, the differences of two, the best of several."""
    if len(runs) == 1:
        return _tiles_of_one(runs[0])
    if len(runs) == 2 and comparisons:
        return _tiles_of_two(runs[0], runs[1], comparisons[0])
    return _tiles_of_many(runs)


def _tiles_of_one(run: RunReport) -> list[Tile]:
    metrics, speed = run.metrics, run.speed
    bounds = interval(metrics.wer_interval)
    made = [Tile("Word error rate", percent(metrics.wer), "%", f"95% interval {bounds}" if bounds else "")]
    if metrics.qoi is not None:
        detail = (
            f"no worse than {metrics.qoi_reference}" if metrics.qoi_reference else interval(metrics.qoi_interval, 1)
        )
        made.append(Tile("Quality of inference", percent(metrics.qoi, 1), "%", detail))
    else:
        made.append(Tile("Character error rate", percent(metrics.cer), "%", _error_kinds(run)))
    if run.bundle is not None:
        parts = ", ".join(f"{name} {megabytes(size)}" for name, size in _largest(run.bundle.component_bytes, 2))
        made.append(Tile("Size", megabytes(run.bundle.bytes), "MB", parts))
    if speed.rtfx_corpus is not None:
        detail = "" if speed.tokens_per_s is None else f"{number(speed.tokens_per_s)} tokens/s"
        made.append(Tile("Speed", number(speed.rtfx_corpus), "× real time", detail))
    made.append(Tile("Examples", f"{run.dataset.examples:,}", "", duration(run.dataset.audio_s) + " of audio"))
    return made


def _tiles_of_two(old: RunReport, new: RunReport, comparison: Comparison) -> list[Tile]:
    change = f"{percent(comparison.baseline_wer)} → {percent(comparison.candidate_wer)}%"
    made = [Tile("Word error rate", points(comparison.wer_difference), "points", change)]
    made.append(
        Tile("Quality of inference", percent(comparison.qoi, 1), "%", f"reverse {percent(comparison.qoi_reverse, 1)}%")
    )
    if old.bundle and new.bundle and 0 < old.bundle.bytes != new.bundle.bytes:
        ratio = new.bundle.bytes / old.bundle.bytes
        detail = f"{megabytes(old.bundle.bytes)} → {megabytes(new.bundle.bytes)} MB"
        made.append(Tile("Size", f"{100 * (ratio - 1):+.0f}".replace("-", "−"), "%", detail))
    if old.speed.rtfx_corpus and new.speed.rtfx_corpus:
        detail = f"{number(old.speed.rtfx_corpus)} → {number(new.speed.rtfx_corpus)}× real time"
        made.append(Tile("Speed", f"{new.speed.rtfx_corpus / old.speed.rtfx_corpus:.2f}", "×", detail))
    detail = f"and {len(comparison.improved):,} improved, of {comparison.examples:,}"
    made.append(Tile("Regressed", f"{len(comparison.regressed):,}", "", detail))
    return made


def _tiles_of_many(runs: Sequence[RunReport]) -> list[Tile]:
    made = []
    if rated := [run for run in runs if run.metrics.wer is not None]:
        best = min(rated, key=lambda run: run.metrics.wer or 0.0)
        made.append(Tile("Lowest word error rate", percent(best.metrics.wer), "%", best.name))
    sized = [(run.bundle.bytes, run.name) for run in runs if run.bundle]
    if len({size for size, _ in sized}) > 1:
        size, name = min(sized)
        made.append(Tile("Smallest", megabytes(size), "MB", name))
    if timed := [(run.speed.rtfx_corpus, run.name) for run in runs if run.speed.rtfx_corpus is not None]:
        rate, name = max(timed)
        made.append(Tile("Fastest", number(rate), "× real time", name))
    dataset = runs[0].dataset
    made.append(Tile("Examples", f"{dataset.examples:,}", "", duration(dataset.audio_s) + " of audio"))
    return made


def _largest(sizes: Mapping[str, int], how_many: int) -> list[tuple[str, int]]:
    return sorted(sizes.items(), key=lambda item: -item[1])[:how_many]


def _error_kinds(run: RunReport) -> str:
    metrics = run.metrics
    return f"{metrics.substitutions:,} sub · {metrics.deletions:,} del · {metrics.insertions:,} ins"


def table(runs: Sequence[RunReport], comparisons: Sequence[Comparison]) -> BundleTable:
    """Return the table of bundles: size, word error rate, quality of inference and speed."""
    headings = [("Size", "MB", "All files of the bundle"), ("WER", "%", "Word error rate with its 95% interval")]
    headings += [("Sub", "", "Substituted words"), ("Del", "", "Deleted words"), ("Ins", "", "Inserted words")]
    has_qoi = bool(comparisons) or any(run.metrics.qoi is not None for run in runs)
    if has_qoi:
        reference = comparisons[0].baseline if comparisons else runs[0].metrics.qoi_reference
        headings.append(("QoI", "%", f"Examples that are no worse than those of {reference}"))
    headings += [("Speed", "× real time", "Seconds of audio per second of computing")]
    headings += [("Tokens", "/s", "Decoded tokens per second"), ("First token", "ms", "Median")]
    by_key = {comparison.candidate_key: comparison for comparison in comparisons}
    rows = tuple(_table_row(place, run, by_key.get(run.key), has_qoi) for place, run in enumerate(runs))
    return BundleTable(tuple(headings), rows)


def _table_row(series: int, run: RunReport, comparison: Comparison | None, has_qoi: bool) -> TableRow:
    metrics, speed = run.metrics, run.speed
    size = run.bundle.bytes if run.bundle else None
    cells = [Cell(megabytes(size), order=size), Cell(percent(metrics.wer), interval(metrics.wer_interval), metrics.wer)]
    cells += [Cell(f"{n:,}", order=n) for n in (metrics.substitutions, metrics.deletions, metrics.insertions)]
    if has_qoi:
        qoi, bounds = quality(run, comparison)
        cells.append(Cell(percent(qoi, 1), interval(bounds, 1), qoi))
    cells += [Cell(number(speed.rtfx_corpus), order=speed.rtfx_corpus)]
    cells += [Cell(number(speed.tokens_per_s), order=speed.tokens_per_s)]
    cells += [Cell(milliseconds(speed.first_token_s), order=speed.first_token_s)]
    detail = run.backend.name if run.backend.model in run.name else f"{run.backend.name} · {run.backend.model}"
    return TableRow(series, run.name, detail, tuple(cells))


def quality(run: RunReport, comparison: Comparison | None) -> tuple[float | None, tuple[float, float] | None]:
    """Return a run's quality of inference and its interval, against the report's baseline, else the run's own."""
    if comparison is not None:
        return comparison.qoi, comparison.qoi_interval
    return run.metrics.qoi, run.metrics.qoi_interval


def scatters(runs: Sequence[RunReport], comparisons: Sequence[Comparison]) -> list[tuple[str, str, Scatter]]:
    """Return `(title, better direction, plot)` of size against word error rate and quality, where sizes differ."""
    by_key = {comparison.candidate_key: comparison for comparison in comparisons}
    wers = [(run.metrics.wer, run.metrics.wer_interval) for run in runs]
    qois = [quality(run, by_key.get(run.key)) for run in runs]
    made = []
    for title, better, values, less in (
        ("Size and word error rate", "lower left is better", wers, True),
        ("Size and quality of inference", "upper left is better", qois, False),
    ):
        plot = _scatter(runs, values, less_is_better=less)
        if plot is not None:
            made.append((title, better, plot))
    return made


def _scatter(
    runs: Sequence[RunReport],
    values: Sequence[tuple[float | None, tuple[float, float] | None]],
    *,
    less_is_better: bool,
) -> Scatter | None:
    shorter = [elided(name) for name in short_names([run.name for run in runs])]
    kept = [
        (place, run.bundle.bytes / 1e6, 100 * value, bounds and (100 * bounds[0], 100 * bounds[1]))
        for place, (run, (value, bounds)) in enumerate(zip(runs, values, strict=True))
        if run.bundle is not None and value is not None
    ]
    if len({size for _, size, _, _ in kept}) < 2:
        return None
    labels = [
        (place, shorter[place], f"{runs[place].name}: {size:.1f} MB, {value:.2f}%") for place, size, value, _ in kept
    ]
    sizes, heights = [size for _, size, _, _ in kept], [value for _, _, value, _ in kept]
    return scatter(labels, sizes, heights, [bounds for *_, bounds in kept], less_is_better=less_is_better)


def short_names(names: Sequence[str]) -> list[str]:
    """Return names without their common prefix, cut between words. Unchanged where one would be empty."""
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))
    prefix = "".join(column[0] for column in alike) if len(names) > 1 else ""
    cut = max(prefix.rfind(mark) for mark in "_-/ (") + 1
    if any(not name[cut:] for name in names):
        return list(names)
    is_within = prefix[:cut].count("(") > prefix[:cut].count(")")
    return [name[cut:].removesuffix(")") if is_within else name[cut:] for name in names]


def elided(name: str, longest: int = 22) -> str:
    """Return a name that fits into a plot. A long one keeps its beginning and its end, which names the variant."""
    return name if len(name) <= longest else f"{name[: longest // 2 - 1]}…{name[-longest // 2 :]}"


def breakdowns(runs: Sequence[RunReport]) -> list[Breakdown]:
    """Return the word error rate by duration and by speaker."""
    by_duration = _breakdown("By duration", "duration", runs, lambda run: run.by_duration)
    by_speaker = _breakdown("By speaker", "speaker", runs, lambda run: run.by_speaker, worst_first=True)
    return [made for made in (by_duration, by_speaker) if made is not None]


def _breakdown(
    title: str,
    name: str,
    runs: Sequence[RunReport],
    buckets_of: Callable[[RunReport], Sequence[Bucket]],
    *,
    worst_first: bool = False,
) -> Breakdown | None:
    parts: dict[str, dict[int, Bucket]] = {}
    for series, run in enumerate(runs):
        for bucket in buckets_of(run):
            if bucket.wer is not None:
                parts.setdefault(bucket.label, {})[series] = bucket
    if not parts or (worst_first and len(parts) < 2):
        return None
    rates = {label: max(bucket.wer or 0.0 for bucket in found.values()) for label, found in parts.items()}
    axis = linear_axis([0.0, 100 * max(rates.values()) or 1.0], from_zero=True)
    labels = sorted(parts, key=lambda label: -rates[label]) if worst_first else list(parts)
    rows = tuple(
        (label, max(it.examples for it in parts[label].values()), _marks(parts[label], axis)) for label in labels
    )
    return Breakdown(title, name, axis, rows)


def _marks(buckets: Mapping[int, Bucket], axis: Axis) -> tuple[Mark, ...]:
    return tuple(
        Mark(series, axis.place(100 * (bucket.wer or 0.0)), 50.0, percent(bucket.wer))
        for series, bucket in buckets.items()
    )


def noise_curves(runs: Sequence[RunReport]) -> list[Curves]:
    """Return the word error rate over the signal-to-noise ratio, one chart for each kind of noise, all on one scale."""
    known = {(place, point.kind, point.snr_db): point.wer for place, run in enumerate(runs) for point in run.noise}
    if not known:
        return []
    kinds = list(dict.fromkeys(kind for _, kind, _ in known))
    ratios = sorted({ratio for _, _, ratio in known}, reverse=True)
    clean = [run.metrics.wer for run in runs]
    top = 100 * max([0.01, *(wer for wer in (*known.values(), *clean) if wer is not None)])
    return [
        curves(
            _noise_name(kind),
            ["clean", *(f"{ratio:g}" for ratio in ratios)],
            [
                [_in_percent(wer) for wer in (clean[place], *(known.get((place, kind, ratio)) for ratio in ratios))]
                if run.noise
                else [None] * (1 + len(ratios))
                for place, run in enumerate(runs)
            ],
            top,
        )
        for kind in kinds
    ]


def _noise_name(kind: str) -> str:
    name = kind.replace("_", " ").capitalize()
    return name if "noise" in name.lower() else f"{name} noise"


def _in_percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def figures(runs: Sequence[RunReport]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Return all other figures as groups of `(name, one text a run)`, without figures that no run has."""
    groups: list[tuple[str, Sequence[tuple[str, Callable[[RunReport], str | None]]]]] = [
        ("Errors", _ERRORS), ("Clips without speech", _NO_SPEECH), ("Word timestamps", _TIMESTAMPS),
        ("Speed", _SPEED), ("Live transcription", _STREAMING),
    ]  # fmt: skip
    made = []
    for title, lines in groups:
        rows = [(name, [value(run) or "–" for run in runs]) for name, value in lines if any(value(run) for run in runs)]
        if rows:
            made.append((title, rows))
    return made


def _known(value: Any, text: Callable[[Any], str]) -> str | None:
    return None if value is None else text(value)


def _of_part(part: str, name: str, text: Callable[[Any], str]) -> Callable[[RunReport], str | None]:
    """Return a reader of one field of a run, such as `metrics.cer`. It gives None where a part is missing."""

    def read(run: RunReport) -> str | None:
        value: Any = run
        for step in (*part.split("."), name):
            value = None if value is None else getattr(value, step)
        return _known(value, text)

    return read


def _rate(value: float) -> str:
    return f"{percent(value)}%"


def _open_asr_rate(run: RunReport) -> str | None:
    """Return the rate of the second scorer with its version, where it was asked for."""
    scores = {score.scorer: score for score in run.metrics.other_scores}
    found = scores.get(open_asr.NAME)
    return None if found is None or found.wer is None else f"{_rate(found.wer)} ({found.version})"


def _words_on_silence(run: RunReport) -> str | None:
    """Return the words that were transcribed on examples without reference words, where there are such examples."""
    metrics = run.metrics
    if not metrics.empty_references:
        return None
    return f"{_whole(metrics.inserted_on_empty)} on {count(metrics.empty_references, 'example')}"


def _ms(value: float) -> str:
    return f"{milliseconds(value)} ms"


def _s(value: float) -> str:
    return f"{value:.2f} s"


def _whole(value: int) -> str:
    return f"{value:,}"


_ERRORS = (
    ("Character error rate", _of_part("metrics", "cer", _rate)),
    ("Reference words", _of_part("metrics", "reference_words", _whole)),
    ("Insertions per reference word", _of_part("metrics", "insertion_error_rate", _rate)),
    ("Repeated 5-grams", _of_part("metrics", "repeated_5grams", _whole)),
    ("WER by open-asr, not comparable with the plain one", _open_asr_rate),
    ("Words transcribed where nothing is said", _words_on_silence),
)
_NO_SPEECH = (
    ("Clips", _of_part("metrics.no_speech", "clips", _whole)),
    ("Clips with text", _of_part("metrics.no_speech", "clips_with_text", _whole)),
    ("Hallucinated words", _of_part("metrics.no_speech", "words", _whole)),
)
_TIMESTAMPS = (
    ("Words compared", _of_part("metrics.word_timestamp_error", "words", _whole)),
    ("Mean distance of starts", _of_part("metrics.word_timestamp_error", "mean_s", _ms)),
    ("Median", _of_part("metrics.word_timestamp_error", "median_s", _ms)),
    ("90th percentile", _of_part("metrics.word_timestamp_error", "p90_s", _ms)),
    ("Within 200 ms", _of_part("metrics.word_timestamp_error", "within_200ms", _rate)),
)
_SPEED = (
    ("Encoder, one window", _of_part("speed", "encoder_s", _ms)),
    ("Decoder, one token", _of_part("speed", "token_s", _ms)),
    ("First token, median", _of_part("speed", "first_token_s", _ms)),
    ("Real time, corpus", _of_part("speed", "rtfx_corpus", lambda value: f"{number(value)}×")),
    ("Real time, median example", _of_part("speed", "rtfx_median", lambda value: f"{number(value)}×")),
    ("Fallbacks", _of_part("speed", "fallbacks", _whole)),
    ("Computing time", _of_part("speed", "total_s", duration)),
)
_STREAMING = (
    ("Word shown after, median", _of_part("streaming", "hypothesis_latency_s", _s)),
    ("Word shown after, 95th percentile", _of_part("streaming", "hypothesis_latency_p95_s", _s)),
    ("Word confirmed after, median", _of_part("streaming", "confirmed_latency_s", _s)),
    ("Word confirmed after, 95th percentile", _of_part("streaming", "confirmed_latency_p95_s", _s)),
    ("Computing time of a hop", _of_part("streaming", "compute_s", _ms)),
    ("Keeps up with speech", _of_part("streaming", "is_real_time", lambda value: "yes" if value else "no")),
    ("WER of the confirmed text", _of_part("streaming", "wer", _rate)),
)


def remarks(runs: Sequence[RunReport]) -> list[str]:
    """Return the caveats of the figures."""
    by_line: dict[str, list[str]] = {}
    for run in runs:
        if run.failures:
            verb = "failed and is" if len(run.failures) == 1 else "failed and are"
            by_line.setdefault(f"{count(len(run.failures), 'example')} {verb} not in the figures.", []).append(run.name)
        if run.problems:
            verb = "was" if len(run.problems) == 1 else "were"
            by_line.setdefault(f"{count(len(run.problems), 'example')} of the dataset {verb} skipped.", []).append(
                run.name
            )
    lines = [_attributed(line, names, len(runs)) for line, names in by_line.items()]
    if len({str(sorted(run.machine.items())) for run in runs}) > 1:
        lines.append("The runs were made on different machines: their speeds cannot be compared.")
    elif len({(run.backend.name, str(sorted(run.backend.versions.items()))) for run in runs}) > 1:
        lines.append("The runs were made by different backends or versions: compare their speeds with care.")
    return lines


def _attributed(line: str, names: Sequence[str], n_runs: int) -> str:
    if n_runs == 1:
        return line
    return f"{'All runs' if len(names) == n_runs else ', '.join(names)}: {line}"
