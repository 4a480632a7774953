"""`report.md`: the figures for a model card. Without transcripts, because a dataset may not be public."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from whisperkit_tools.eval.reports import page as report_page
from whisperkit_tools.eval.reports.comparison import Comparison
from whisperkit_tools.eval.reports.format import (
    count,
    duration,
    fact,
    interval,
    markdown_text,
    percent,
    points,
    points_interval,
)
from whisperkit_tools.eval.schema import RunReport


def render_markdown(runs: Sequence[RunReport], comparisons: Sequence[Comparison], title: str | None = None) -> str:
    """Return the figures as GitHub's Markdown. Names are escaped.

    Args:
        runs: One run, or several over the same dataset. The first is the baseline.
        comparisons: Comparisons of the others with it.
        title: Heading. The dataset's name when None.
    """
    dataset = runs[0].dataset
    parts = [
        f"## {markdown_text(title or f'Evaluation on {dataset.name}')}",
        f"{count(dataset.examples, 'example')}, {duration(dataset.audio_s)} of audio.",
        _bundles(runs, comparisons),
        *_comparison(comparisons),
        *_breakdowns(runs),
        *_noise(runs),
        *_figures(runs),
        *_list("Remarks", report_page.remarks(runs)),
        *_measured(runs),
    ]
    return "\n\n".join(parts) + "\n"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose others are numbers."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bundles(runs: Sequence[RunReport], comparisons: Sequence[Comparison]) -> str:
    table = report_page.table(runs, comparisons)
    headings = [f"{text} ({unit})" if unit else text for text, unit, _ in table.headings]
    rows = [
        [markdown_text(row.name), *(f"{cell.text} ({cell.detail})" if cell.detail else cell.text for cell in row.cells)]
        for row in table.rows
    ]
    return _table(["Bundle", *headings], rows) + "\n\nIn parentheses: 95% intervals."


def _comparison(comparisons: Sequence[Comparison]) -> list[str]:
    if not comparisons:
        return []
    headings = [
        "Candidate", "WER difference (points)", "95% interval", "QoI (%)", "QoI reversed (%)", "Regressed", "Improved",
        "Examples",
    ]  # fmt: skip
    rows = [
        [
            markdown_text(it.candidate), points(it.wer_difference), points_interval(it.wer_difference_interval),
            f"{percent(it.qoi, 1)} ({interval(it.qoi_interval, 1)})",
            f"{percent(it.qoi_reverse, 1)} ({interval(it.qoi_reverse_interval, 1)})",
            f"{len(it.regressed):,}", f"{len(it.improved):,}", f"{it.examples:,}",
        ]
        for it in comparisons
    ]  # fmt: skip
    verdicts = [markdown_text(report_page.verdict(it)) for it in comparisons]
    return [
        f"### Compared with {markdown_text(comparisons[0].baseline)}",
        _table(headings, rows),
        "\n".join(f"- {verdict}" for verdict in verdicts),
        "QoI is the share of examples on which the candidate is no worse than the baseline. "
        f"Intervals of differences: paired bootstrap over examples, {comparisons[0].samples:,} samples.",
    ]


def _breakdowns(runs: Sequence[RunReport]) -> list[str]:
    """Return the table by duration only. There are many speakers, and their names may not be public."""
    made: list[str] = []
    for part in report_page.breakdowns(runs):
        if part.name == "duration":
            rows = []
            for label, examples, marks in part.rows:
                texts = {mark.series: mark.text for mark in marks}
                rows.append([markdown_text(label), f"{examples:,}", *(texts.get(i, "–") for i in range(len(runs)))])
            made += ["### WER (%) by duration", _table(["Duration", "Examples", *_names(runs)], rows)]
    return made


def _noise(runs: Sequence[RunReport]) -> list[str]:
    made: list[str] = []
    for chart in report_page.noise_curves(runs):
        texts = {(mark.series, mark.x): mark.text.removesuffix("%") for line in chart.lines for mark in line}
        rows = [
            [name, *(texts.get((place, x), "–") for x, _ in chart.x_ticks)]
            for place, name in enumerate(_names(runs))
            if runs[place].noise
        ]
        headings = [f"{text} dB" if text != "clean" else text for _, text in chart.x_ticks]
        made += [f"### WER (%) under {markdown_text(chart.title.lower())}", _table(["Bundle", *headings], rows)]
    return made


def _within_a_line(name: str) -> str:
    return name if name[1:2].isupper() else f"{name[0].lower()}{name[1:]}"  # WER stays


def _figures(runs: Sequence[RunReport]) -> list[str]:
    rows = [
        [f"{title}: {_within_a_line(name)}", *values]
        for title, lines in report_page.figures(runs)
        for name, values in lines
    ]
    return ["### Other figures", _table(["Figure", *_names(runs)], rows)] if rows else []


def _names(runs: Sequence[RunReport]) -> list[str]:
    return [markdown_text(run.name) for run in runs]


def _list(title: str, lines: Sequence[str]) -> list[str]:
    return [f"### {title}", "\n".join(f"- {markdown_text(line)}" for line in lines)] if lines else []


def _measured(runs: Sequence[RunReport]) -> list[str]:
    dataset = runs[0].dataset
    lines = [f"- Dataset: {markdown_text(dataset.name)}, fingerprint `{dataset.fingerprint[:16]}`"]
    for run in runs:
        facts = [
            f"backend {markdown_text(run.backend.name)}",
            _facts("decoding", run.backend.options),
            _facts("machine", run.machine),
            _facts("versions", {**run.versions, **run.backend.versions}),
            _facts("options", run.options),
            f"bundle sha256 `{run.bundle.sha256[:16]}`" if run.bundle else "",
            f"on {markdown_text(run.started[:10])}",
        ]
        lines.append(f"- {markdown_text(run.name)}: {'; '.join(part for part in facts if part)}")
    return ["### How it was measured", "\n".join(lines)]


def _facts(name: str, values: Mapping[str, Any]) -> str:
    known = fact(values)
    return f"{name}: {markdown_text(known)}" if known else ""
