"""Geometry of the report's charts: ticks, positions in percent, labels that do not overlap.

Positions are percentages of the plot and text is set in CSS pixels, so a chart fits any width and stays legible.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

PLOT_HEIGHT_PX = 280  # as in report.css
LABEL_HEIGHT_PX = 17
TICKS_WANTED = 5
LOG_FROM_RATIO = 8.0
FLIP_LABEL_FROM = 55.0


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale with its ticks.

    Attributes:
        low: Value at 0 %.
        high: Value at 100 %.
        ticks: `(position in percent, text)`.
        is_log: Whether equal ratios are equal distances.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return the position of a value in percent, clamped to the plot."""
        return _place(value, self.low, self.high, self.is_log)


@dataclass(frozen=True, slots=True)
class Point:
    """One run in a scatter plot. Positions are in percent from the left and the top.

    Attributes:
        series: Place of the run in the report, which determines its colour and shape.
        label: The run's name, shortened.
        title: The run's name and values.
        x: Position from the left.
        y: Position from the top.
        y_low: Position of the interval's lower end. None without an interval.
        y_high: Position of the interval's upper end.
        label_y: Position of the label, moved where labels would overlap.
        flipped: Whether the label is left of the point.
    """

    series: int
    label: str
    title: str
    x: float
    y: float
    y_low: float | None
    y_high: float | None
    label_y: float
    flipped: bool


@dataclass(frozen=True, slots=True)
class Scatter:
    """A scatter plot with the line of the runs that no other run beats in both directions."""

    x: Axis
    y: Axis
    points: tuple[Point, ...]
    frontier: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """One run's value in a row or on a curve: its position in percent and its text."""

    series: int
    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Curves:
    """A line chart: for each run its marks from left to right."""

    title: str
    x_ticks: tuple[tuple[float, str], ...]
    y: Axis
    lines: tuple[tuple[Mark, ...], ...]


def linear_axis(values: Sequence[float], *, from_zero: bool = False, suffix: str = "") -> Axis:
    """Return an axis over values with round ticks, a little wider than they are.

    Raises:
        ValueError: No values.
    """
    low, high = min(values), max(values)
    if from_zero:
        low = min(0.0, low)
    margin = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    low, high = (low if from_zero else low - margin), high + margin
    if min(values) >= 0:
        low = max(0.0, low)
    step = _round_step((high - low) / TICKS_WANTED)
    digits = next(digits for digits in range(12) if abs(step * 10**digits - round(step * 10**digits)) < 1e-6)
    first = math.ceil(low / step - 1e-9)
    ticks = [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]
    return Axis(low, high, tuple((_place(tick, low, high), f"{tick:,.{digits}f}{suffix}") for tick in ticks))


def size_axis(values: Sequence[float]) -> Axis:
    """Return an axis over sizes, logarithmic where they differ by a large factor."""
    low, high = min(values), max(values)
    if low <= 0 or high / low < LOG_FROM_RATIO:
        return linear_axis(values)
    low, high = low / 1.25, high * 1.25
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [mantissa * 10.0**power for power in decades for mantissa in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    return Axis(low, high, tuple((_place(tick, low, high, True), f"{tick:,g}") for tick in inside), is_log=True)


def scatter(
    labels: Sequence[tuple[int, str, str]],
    sizes: Sequence[float],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    *,
    less_is_better: bool,
) -> Scatter:
    """Place runs by size and quality.

    Args:
        labels: `(series, short label, title)` of each run.
        sizes: Sizes in megabytes.
        values: Values in percent.
        intervals: Intervals in percent. None where there is none.
        less_is_better: Whether a low value is good.
    """
    ends = [end for bounds in intervals if bounds for end in bounds]
    x, y = size_axis(sizes), linear_axis([*values, *ends])
    tops = [100 - y.place(value) for value in values]
    lefts = [x.place(size) for size in sizes]
    label_tops = _spread(tops)
    points = tuple(
        Point(series, label, title, lefts[i], tops[i], *_whisker(intervals[i], y), label_tops[i],
              lefts[i] > FLIP_LABEL_FROM)
        for i, (series, label, title) in enumerate(labels)
    )  # fmt: skip
    order = _frontier(sizes, [value if less_is_better else -value for value in values])
    return Scatter(x, y, points, tuple((lefts[i], tops[i]) for i in order))


def curves(title: str, columns: Sequence[str], rows: Sequence[Sequence[float | None]], top: float) -> Curves:
    """Place curves over equally distant columns.

    Args:
        title: Title of the chart.
        columns: Texts below the columns.
        rows: For each series its value at each column, in percent. None is omitted.
        top: Largest value of all charts that share a scale.
    """
    y = linear_axis([0.0, top], from_zero=True, suffix="%")
    places = [round(100 * i / max(1, len(columns) - 1), 3) for i in range(len(columns))]
    lines = tuple(
        tuple(
            Mark(series, place, 100 - y.place(value), f"{value:.2f}%")
            for place, value in zip(places, values, strict=True)
            if value is not None
        )
        for series, values in enumerate(rows)
    )
    return Curves(title, tuple(zip(places, columns, strict=True)), y, lines)


def _whisker(bounds: tuple[float, float] | None, axis: Axis) -> tuple[float | None, float | None]:
    return (None, None) if bounds is None else (100 - axis.place(bounds[0]), 100 - axis.place(bounds[1]))


def _frontier(sizes: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Return the indices of the runs that no other run beats in both size and cost, by size."""
    best, kept = math.inf, []
    for index in sorted(range(len(sizes)), key=lambda i: (sizes[i], costs[i])):
        if costs[index] < best:
            best = costs[index]
            kept.append(index)
    return kept


def _spread(tops: Sequence[float]) -> list[float]:
    """Move labels down until none overlap, then the whole column up where it left the plot."""
    height = 100 * LABEL_HEIGHT_PX / PLOT_HEIGHT_PX
    placed = list(tops)
    order = sorted(range(len(tops)), key=lambda i: tops[i])
    for above, index in itertools.pairwise(order):
        placed[index] = max(placed[index], placed[above] + height)
    limit = 100.0
    for index in reversed(order):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - height
    return placed


def _place(value: float, low: float, high: float, is_log: bool = False) -> float:
    if is_log:
        value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
    return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 3)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)
