"""docs/figures.md says what docs/figures.json holds, and nothing else between its markers."""

import json
import sys
from dataclasses import replace

import pytest

from tests.benchmarks import figures
from tests.benchmarks.__main__ import parser_of, summaries
from tests.benchmarks.figures import Record, block, load, measure, render, rewrite, store
from tests.benchmarks.harness import Figure

LIST = Record(
    "one", ("decode-speed", "--runs", "1"), "2026-01-02", "a machine", (Figure("time", 1.25, "s", spec=".1f"),)
)
MATRIX = Record(
    "two", ("long-form", "BUNDLE"), "2026-01-02", "a machine",
    (Figure("WER", 5.0, "%", "tiny", ".1f"), Figure("WER", 4.0, "%", "base", ".1f"), Figure("time", 3, "s", "base")),
    "tiny", ("--stateful",),
)  # fmt: skip


def test_the_page_is_what_the_data_renders_to():
    page = figures.PAGE.read_text(encoding="utf-8")
    assert rewrite(page, load()) == page


def test_the_data_is_written_as_it_is_read(tmp_path):
    store(load(), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == figures.DATA.read_bytes()


@pytest.mark.parametrize("record", list(load().values()), ids=lambda one: one.name)
def test_each_command_is_one_that_the_benchmark_takes(record):
    name, *arguments = record.command
    assert name in summaries()
    parser_of(name).parse_intermixed_args(arguments)
    assert ("BUNDLE" in arguments) == bool(record.source)


def test_a_list_and_a_matrix():
    assert render(LIST).splitlines() == [
        "| figure | value |",
        "|---|---|",
        "| time | 1.2 s |",
        "",
        "`python -m tests.benchmarks decode-speed --runs 1`. Measured on 2026-01-02, a machine.",
    ]
    assert render(MATRIX).splitlines()[:4] == [
        "|  | tiny | base |",
        "| --- | --- | --- |",
        "| WER | 5.0 % | 4.0 % |",
        "| time |  | 3 s |",
    ]
    assert "--make tiny DIR` and `wkt convert DIR --stateful`" in render(MATRIX)


def test_what_was_never_measured_shows_its_command():
    assert render(Record("three", ("real-curve",))) == "Not measured yet: `python -m tests.benchmarks real-curve`."


def test_only_what_is_between_markers_changes():
    page = "a\n<!-- figures:one -->\nold\n<!-- /figures -->\nb\n"
    assert rewrite(page, {"one": LIST}) == f"a\n{block(LIST)}\nb\n"


@pytest.mark.parametrize("records", [{}, {"one": LIST, "two": MATRIX}])
def test_a_block_without_figures_and_figures_without_a_block_are_refused(records):
    with pytest.raises(SystemExit, match="must have one block for each record"):
        rewrite("<!-- figures:one -->\n<!-- /figures -->", records)


def test_measuring_again_runs_the_benchmark_and_says_when_and_where(monkeypatch):
    """The entry, which would import torch in a process of its own, is stood in for by one that shows its arguments."""
    script = 'import json, sys; print(json.dumps({"figures": [{"name": " ".join(sys.argv[1:]), "value": 3}]}))'
    monkeypatch.setattr(figures, "benchmarks", lambda *arguments: [sys.executable, "-c", script, *arguments])
    found = measure(Record("x", ("mel-precision", "AUDIO"), "", "", ()), ["a.wav", "b.wav"], figures.ROOT)
    assert found.figures == (Figure("mel-precision a.wav b.wav --json -", 3),)
    assert found.measured > "2026"
    assert "cores" in found.machine
    assert Record.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_checkpoint_and_speech_are_filled_in_or_asked_for(monkeypatch):
    script = 'import json, sys; print(json.dumps({"figures": [{"name": " ".join(sys.argv[1:]), "value": 3}]}))'
    monkeypatch.setattr(figures, "benchmarks", lambda *arguments: [sys.executable, "-c", script, *arguments])
    record = Record("x", ("real-curve", "--checkpoint", "CHECKPOINT", "--speech", "AUDIO"))
    found = measure(record, ["a", "b"], figures.ROOT, "tiny.en")
    assert found.figures[0].name == "real-curve --checkpoint tiny.en --speech a b --json -"
    with pytest.raises(SystemExit, match="x needs a checkpoint: name it with --checkpoint"):
        measure(record, ["a", "b"], figures.ROOT)
    with pytest.raises(SystemExit, match="x needs speech"):
        measure(record, [], figures.ROOT, "tiny.en")


def test_a_benchmark_that_fails_is_said(monkeypatch):
    monkeypatch.setattr(figures, "benchmarks", lambda *_: [sys.executable, "-c", "import sys; sys.exit(3)"])
    with pytest.raises(SystemExit, match="x: the benchmark failed with status 3"):
        measure(replace(LIST, name="x"), [], figures.ROOT)


def test_speech_that_is_needed_must_be_named(tmp_path):
    with pytest.raises(SystemExit, match="x needs speech: name files or folders with --audio"):
        measure(Record("x", ("mel-precision", "AUDIO"), "", "", ()), [], tmp_path)


def test_names_are_checked_before_anything_is_measured(capsys):
    with pytest.raises(SystemExit) as stop:
        figures.main(["decode-sped"])
    assert stop.value.code == 2
    assert "no figures decode-sped; there are" in capsys.readouterr().err


def test_a_run_stores_what_it_measured_and_rewrites_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "PAGE", tmp_path / "figures.md")
    monkeypatch.setattr(figures, "load", lambda: {"one": LIST})
    monkeypatch.setattr(figures, "store", lambda records: store(records, tmp_path / "figures.json"))
    again = replace(LIST, measured="2026-01-03")
    monkeypatch.setattr(figures, "measure", lambda record, audio, work, checkpoint: again)
    figures.PAGE.write_text("<!-- figures:one -->\n<!-- /figures -->\n")
    assert figures.main(["one"]) == 0
    assert figures.PAGE.read_text() == f"{block(again)}\n"
    assert load(tmp_path / "figures.json") == {"one": again}
