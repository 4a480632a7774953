"""Charts and numbers of a report, as they are drawn and written."""

import itertools

import pytest

from whisperkit_tools.eval.reports import charts as report_charts
from whisperkit_tools.eval.reports import format as report_format
from whisperkit_tools.eval.reports import page as report_page


def test_ticks_are_round_and_inside():
    axis = report_charts.linear_axis([3.1, 9.7])
    assert [text for _, text in axis.ticks] == ["4", "6", "8", "10"]
    assert [text for _, text in report_charts.linear_axis([0, 10.2], from_zero=True).ticks][:3] == ["0.0", "2.5", "5.0"]
    assert all(0 <= place <= 100 for place, _ in axis.ticks)
    assert axis.place(axis.low) == 0
    assert axis.place(axis.high) == 100


def test_sizes_far_apart_are_logarithmic():
    axis = report_charts.size_axis([30, 3000])
    assert axis.is_log
    assert axis.place(300) == pytest.approx(50)
    assert [text for _, text in axis.ticks] == ["50", "100", "200", "500", "1,000", "2,000"]
    assert not report_charts.size_axis([30, 100]).is_log


def test_the_frontier_holds_what_nothing_beats():
    labels = [(i, str(i), str(i)) for i in range(4)]
    plot = report_charts.scatter(labels, [10, 20, 30, 40], [9, 5, 7, 4], [None] * 4, less_is_better=True)
    assert [(p.x, p.y) for i, p in enumerate(plot.points) if i != 2] == list(plot.frontier)


def test_labels_do_not_cover_each_other():
    labels = [(i, str(i), str(i)) for i in range(6)]
    plot = report_charts.scatter(labels, [10] * 6, [5, 5, 5.01, 5.02, 4.99, 9], [None] * 6, less_is_better=True)
    places = sorted(point.label_y * report_charts.PLOT_HEIGHT_PX / 100 for point in plot.points)
    gaps = [below - above for above, below in itertools.pairwise(places)]
    assert min(gaps) >= report_charts.LABEL_HEIGHT_PX - 0.01


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["openai_whisper-base", "openai_whisper-base_74MB"], ["base", "base_74MB"]),
        (["a", "b"], ["a", "b"]),
        (["x-", "x-y"], ["x-", "x-y"]),
        (["x (form vad)", "x (form chunked)"], ["vad", "chunked"]),
        (["x (aaaa)", "x (bbbb)"], ["aaaa", "bbbb"]),
        (["long form vad", "long form chunked"], ["vad", "chunked"]),
        (["only"], ["only"]),
    ],
)
def test_names_lose_what_all_begin_with(names, short):
    assert report_page.short_names(names) == short


def test_long_names_fit_into_a_plot():
    assert report_page.elided("base_74MB") == "base_74MB"
    short = report_page.elided("some-owner_a-very-long-name-of-a-model_626MB")
    assert (len(short), short[:4], short[-5:]) == (22, "some", "626MB")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (report_format.percent(0.04213), "4.21"),
        (report_format.percent(None), "–"),
        (report_format.points(-0.00314), "−0.31"),
        (report_format.points(0.000001), "0.00"),
        (report_format.points(-0.000001), "0.00"),
        (report_format.points_interval((-0.001, 0.0042)), "−0.10 to +0.42"),
        (report_format.megabytes(145_300_000), "145"),
        (report_format.megabytes(48_230_000), "48.2"),
        (report_format.megabytes(839_000), "0.84"),
        (report_format.milliseconds(0.0046), "4.60"),
        (report_format.duration(19440), "5.4 h"),
        (report_format.duration(12.44), "12.4 s"),
        (report_format.visible("a\u202eb"), "a[U+202E]b"),
        (report_format.fact({"a_b": None, "c": [20.0, 0.5], "d": {"e": True}}), "c 20, 0.5, d (e yes)"),
        (report_format.fact(None), "none"),
        (report_format.time_of("2026-01-02T03:04:05.678+00:00"), "2026-01-02 03:04:05 UTC"),
        (report_format.time_of("2026-01-02T03:04:05+02:00"), "2026-01-02 03:04:05 +02:00"),
        (report_format.time_of("long ago"), "long ago"),
    ],
)
def test_numbers_as_they_are_written(text, expected):
    assert text == expected
