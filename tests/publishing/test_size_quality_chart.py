"""The picture in the card: where points lie, what they are called, and that nothing from outside gets into it."""

import xml.etree.ElementTree as ET

import pytest

from whisperkit_tools.publishing.size_quality_chart import ChartVariant, render_chart

SVG = "{http://www.w3.org/2000/svg}"


def measured(name, megabytes, wer=None, qoi=None, dataset="demo"):
    metrics = {} if wer is None else {"wer": {dataset: wer}, "wer_interval": {dataset: [wer - 0.5, wer + 1]}}
    return ChartVariant(name, int(megabytes * 1e6), metrics | ({} if qoi is None else {"qoi": {dataset: qoi}}))


def points(picture):
    """Label, x and y of each point, and its title."""
    found = []
    for group in ET.fromstring(picture).iter(f"{SVG}g"):
        circle = group.find(f"{SVG}circle")
        place = float(circle.get("cx")), float(circle.get("cy"))
        found.append((group.find(f"{SVG}text").text, *place, group.find(f"{SVG}title").text))
    return found


def test_larger_is_further_right_and_worse_is_higher():
    variants = [measured("a_w", 100, 5.0), measured("a_w_60MB", 60, 5.5), measured("a_w_20MB", 20, 9.0)]
    picture = render_chart(variants)
    assert picture == render_chart(variants)
    (_, x_0, y_0, title), (_, x_1, y_1, _), (_, x_2, y_2, _) = points(picture)
    assert x_0 > x_1 > x_2
    assert y_0 > y_1 > y_2  # an SVG's y grows downwards
    # A line through sizes and errors keeps their ratios.
    assert (x_0 - x_1) / (x_1 - x_2) == pytest.approx(1, abs=0.01)
    assert (y_1 - y_2) / (y_0 - y_1) == pytest.approx(7, rel=0.01)
    assert [label for label, *_ in points(picture)] == ["float16", "_60MB", "_20MB"]
    assert title == "a_w: 100.0 MB, 5.00 %"
    assert "lower left is better" in picture.decode()


def test_quality_of_inference_where_there_are_no_error_rates():
    picture = render_chart([measured("a_w", 100, 5.0, qoi=100), measured("a_w_20MB", 20, qoi=96)])
    assert "upper left is better" in picture.decode()
    (_, _, better, _), (_, _, worse, _) = points(picture)
    assert better < worse


def test_names_that_share_no_beginning_are_told_apart():
    labels = [label for label, *_ in points(render_chart([measured("a_w_9MB", 9, 5), measured("b_x_8MB", 8, 6)]))]
    assert len(set(labels)) == 2


def test_one_point_is_no_picture():
    assert render_chart([]) is None
    assert render_chart([measured("a_w", 100, 5.0), measured("b_w", 50)]) is None
    assert render_chart([measured("a_w", 1, 5.0), measured("b_w", 1, 5.0, dataset="other")]) is None


def test_names_from_outside_are_text():
    evil = '</title><script>alert(1)</script>" onload="x'
    picture = render_chart([measured("a_w", 100, 5.0, dataset=evil), measured("a_w_2MB", 2, 6.0, dataset=evil)])
    assert b"<script" not in picture
    root = ET.fromstring(picture)
    assert {name for one in root.iter() for name in one.attrib if name.startswith("on")} == set()
    assert evil in root.find(f"{SVG}title").text
