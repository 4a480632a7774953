"""The chart of size against quality in the model card: an SVG file, with the same bytes for the same figures.

It is shown on light and dark pages and loads nothing, so it uses colours that suit both and system fonts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from whisperkit_tools.eval.reports.charts import Axis, Point, Scatter, scatter
from whisperkit_tools.eval.reports.format import visible
from whisperkit_tools.eval.reports.page import short_names

CHART = "size-quality.svg"
_LEFT, _TOP, _WIDTH, _HEIGHT = 64, 44, 660, 280  # the plot's, in pixels; labels are spread for this height
_WHOLE = (760, 372)
_INK, _GRID, _ACCENT = "#59636e", "#8b949e", "#2f6feb"
_COMPRESSED = re.compile(r"_\d+MB$")
_KINDS = (("wer", "Word error rate", "lower left is better"), ("qoi", "Quality of inference", "upper left is better"))


@dataclass(frozen=True, slots=True)
class ChartVariant:
    """A variant in the chart: size in bytes and its `metrics` of the index."""

    name: str
    size_bytes: int
    metrics: Mapping[str, Any]


def render_chart(variants: Sequence[ChartVariant]) -> bytes | None:
    """Draw size against the figure that the largest number of variants share, WER before QoI.

    Returns:
        The file, or None where no two variants share a figure.
    """
    kind, dataset = _shared(variants)
    shown = [item for item in variants if dataset in item.metrics.get(kind, {})]
    if len(shown) < 2:
        return None
    title, better = next((title, better) for name, title, better in _KINDS if name == kind)
    values = [float(item.metrics[kind][dataset]) for item in shown]
    bounds = [_bounds(item.metrics.get(f"{kind}_interval", {}).get(dataset)) for item in shown]
    labels = [
        (place, label, f"{item.name}: {item.size_bytes / 1e6:.1f} MB, {value:.2f} %")
        for place, (label, item, value) in enumerate(
            zip(_labels([item.name for item in shown]), shown, values, strict=True)
        )
    ]
    plot = scatter(labels, [item.size_bytes / 1e6 for item in shown], values, bounds, less_is_better=kind == "wer")
    return _svg(plot, f"{title} on {dataset} (%) by size (MB): {better}", falling=kind == "wer").encode()


def _labels(names: Sequence[str]) -> list[str]:
    """Return short distinct labels: what the names add to the uncompressed one's where all begin with it."""
    base = min(names, key=len)
    if _COMPRESSED.search(base) or not all(name.startswith(base) for name in names):
        return short_names(names)
    return [name.removeprefix(base) or "float16" for name in names]


def _shared(variants: Sequence[ChartVariant]) -> tuple[str, str]:
    """Return kind and dataset of the figure that the largest number of variants have."""
    counts = [
        (-sum(dataset in item.metrics.get(kind, {}) for item in variants), place, dataset)
        for place, (kind, _, _) in enumerate(_KINDS)
        for dataset in {name for item in variants for name in item.metrics.get(kind, {})}
    ]
    # Two are enough for a chart of word error rates. Only without them it shows the quality of inference.
    enough = [item for item in counts if item[0] <= -2] or counts
    if not enough:
        return "wer", ""
    _, place, dataset = min(enough, key=lambda item: (item[1], item[0], item[2]))
    return _KINDS[place][0], dataset


def _bounds(interval: Any) -> tuple[float, float] | None:
    return None if not isinstance(interval, list | tuple) else (float(interval[0]), float(interval[1]))


def _svg(plot: Scatter, title: str, *, falling: bool) -> str:
    width, height = _WHOLE
    path = " ".join(f"{_x(left)},{_y(top)}" for left, top in plot.frontier)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="12" fill="{_INK}">',
        "<style>@media (prefers-color-scheme: dark) { text { fill: #9198a1 } }</style>",
        f"<title>{_text(title)}</title>",
        f'<text x="{_LEFT}" y="22" font-size="14" font-weight="600">{_text(title)}</text>',
        *_axes(plot.x, plot.y),
        f'<polyline points="{path}" fill="none" stroke="{_ACCENT}" stroke-width="1.5" stroke-dasharray="4 4"/>',
        *(_point(item, falling=falling) for item in plot.points),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axes(x: Axis, y: Axis) -> list[str]:
    bottom = _TOP + _HEIGHT
    lines = [
        f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{_y(100 - place)}" y2="{_y(100 - place)}" stroke="{_GRID}" '
        f'stroke-opacity="0.3"/>'
        f'<text x="{_LEFT - 8}" y="{_y(100 - place)}" dy="4" text-anchor="end">{_text(text)}</text>'
        for place, text in y.ticks
    ]
    lines += [
        f'<line x1="{_x(place)}" x2="{_x(place)}" y1="{bottom}" y2="{bottom + 5}" stroke="{_GRID}"/>'
        f'<text x="{_x(place)}" y="{bottom + 20}" text-anchor="middle">{_text(text)}</text>'
        for place, text in x.ticks
    ]
    lines.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{bottom}" y2="{bottom}" stroke="{_GRID}"/>')
    lines.append(f'<text x="{_LEFT + _WIDTH}" y="{bottom + 38}" text-anchor="end">all files, MB</text>')
    return lines


def _point(item: Point, *, falling: bool) -> str:
    """Draw a point, its whisker, and its label on the side of the curve that is free."""
    x, y = _x(item.x), _y(item.y)
    whisker = ""
    if item.y_low is not None and item.y_high is not None:
        whisker = (
            f'<line x1="{x}" x2="{x}" y1="{_y(item.y_low)}" y2="{_y(item.y_high)}" stroke="{_ACCENT}" '
            'stroke-opacity="0.5" stroke-width="2"/>'
        )
    side = f'x="{round(x - 10, 1)}" text-anchor="end"' if item.flipped else f'x="{round(x + 10, 1)}"'
    drop = -7 if falling != item.flipped else 15
    return (
        f"<g><title>{_text(item.title)}</title>{whisker}"
        f'<circle cx="{x}" cy="{y}" r="5" fill="{_ACCENT}"/>'
        f'<text {side} y="{_y(item.label_y)}" dy="{drop}">{_text(item.label)}</text></g>'
    )


def _x(percent: float) -> float:
    return round(_LEFT + _WIDTH * percent / 100, 1)


def _y(percent: float) -> float:
    return round(_TOP + _HEIGHT * percent / 100, 1)


def _text(text: str) -> str:
    return escape(visible(" ".join(text.split())))
