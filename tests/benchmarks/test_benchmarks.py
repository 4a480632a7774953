"""The entry to the benchmarks: its list, its options, and what a run prints and writes."""

import json
from argparse import Namespace

import pytest

from tests.benchmarks.__main__ import find, main, parser_of, summaries
from tests.benchmarks.harness import Column, Figure, Result, Table, in_turn, measured_process, numbers, wkt


def test_without_a_name_all_are_listed_with_one_line_each(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for name, summary in summaries().items():
        assert f"{name} " in out
        assert summary.endswith(".")
        assert summary in out
    assert len(summaries()) == 17


@pytest.mark.parametrize("name", summaries())
def test_each_is_declared_under_its_module_s_name_and_has_help(name):
    assert find(name).name == name
    assert f"python -m tests.benchmarks {name}" in parser_of(name).format_help()


def test_a_cheap_one_prints_its_table_and_figures_and_writes_them(capsys, tmp_path):
    arguments = ["palette-speed", "--rows", "64", "--columns", "32", "--nbits", "1", "--group-sizes", "0", "8"]
    assert main([*arguments, "--json", str(tmp_path / "found.json")]) == 0
    printed = capsys.readouterr()
    assert "coremltools s" in printed.out
    assert "exact s" in printed.err
    written = json.loads((tmp_path / "found.json").read_text())
    assert [row["group_size"] for row in written["tables"][0]["rows"]] == [0, 8]
    assert {figure["case"] for figure in written["figures"]} == {"a palette per tensor", "groups of 8 channels"}
    assert main([*arguments, "--json", "-"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [figure["name"] for figure in again["figures"]] == [figure["name"] for figure in written["figures"]]


def test_a_name_that_does_not_exist_is_refused(capsys):
    assert main(["decode-sped"]) == 2
    assert "no benchmark 'decode-sped'; there are: attention-parity, " in capsys.readouterr().err


def test_a_limit_that_does_not_hold_is_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr("tests.benchmarks.__main__.measure", lambda *_: (Result(passed=False), Namespace(json=None)))
    assert main(["mel-precision"]) == 1


def test_tables_align_texts_left_and_numbers_right(capsys):
    table = Table((Column("name", "name"), Column("s", "ms", ".1f", 1e3), Column("n", "n")), "times")
    table.add(name="one", s=0.5, n=None)
    table.add(name="three", s=0.00123, n=12)
    assert table.text() == "times\nname      ms   n\none    500.0   -\nthree    1.2  12"
    assert "ms 500.0" in capsys.readouterr().err


def test_figures_show_their_units():
    assert Figure("peak", 2.346, "GiB", spec=".1f").text() == "2.3 GiB"
    assert Figure("equal", "3 of 4").text() == "3 of 4"
    assert Figure("missing", None).text() == ""
    assert numbers("3,3.5") == [3, 3.5]


def test_ways_run_in_turn_after_one_run_to_warm_up():
    calls = []
    seconds = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert [len(values["wall"]) for values in seconds.values()] == [2, 2]


def test_the_peak_and_output_of_a_process_are_its_own():
    done = measured_process(wkt("--version"))
    assert done.output.startswith("wkt")
    assert 2**20 < done.peak_bytes < 2**32
    with pytest.raises(SystemExit, match="failed with status 2"):
        measured_process(wkt("no-such-command"))
