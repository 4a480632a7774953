"""`wkt report` as its users call it."""

import json

import pytest

TEXT = "the quick brown fox jumps over the lazy dog"


@pytest.fixture
def two(write_run):
    base = write_run("org_base", [(TEXT, TEXT), (TEXT, TEXT.replace("fox", "box"))], key="aaaaaaaa")
    small = write_run("org_small", [(TEXT, "the dog"), (TEXT, TEXT)], key="bbbbbbbb")
    return base, small


def test_one_run_is_rebuilt_in_place(wkt, two):
    code, out, err = wkt("report", two[0])
    assert (code, err) == (0, "")
    assert out == f"{two[0] / 'report.html'}\n"
    assert (two[0] / "report.html").is_file()
    assert wkt("report", two[0])[0] == 0, "its pages are derived, so they are replaced"


def test_several_are_compared(wkt, two, tmp_path):
    code, out, _ = wkt("report", *two, "-o", tmp_path / "out")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == [
        "WER",
        "%",
        "difference",
        "95%",
        "interval",
        "QoI",
        "%",
        "reversed",
        "regressed",
        "improved",
    ]
    assert lines[1].split() == ["org_base", "5.56"]
    assert lines[2].split()[:3] == ["org_small", "38.89", "+33.33"]
    assert lines[2].split()[-4:] == ["50.0", "50.0", "1", "1"]
    assert "regressed most (word errors): utt-0000 +7" in out
    assert lines[-1] == str(tmp_path / "out" / "report.html")


def test_json_holds_the_comparisons(wkt, two, tmp_path):
    code, out, _ = wkt("report", *two, "-o", tmp_path / "out", "--json", "--samples", 200)
    found = json.loads(out)
    assert code == 0
    assert found["comparisons"][0]["candidate"] == "org_small"
    assert found["comparisons"][0]["wer_difference"] == 6 / 18
    assert found == {"report": str(tmp_path / "out" / "report.html"), "comparisons": _comparisons(tmp_path / "out")}


def _comparisons(folder):
    return json.loads((folder / "report.json").read_text())["comparisons"]


def test_the_baseline_can_be_chosen(wkt, two, tmp_path):
    assert wkt("report", *two, "--baseline", two[1], "-o", tmp_path / "out")[0] == 0
    assert [(it["baseline"], it["candidate"]) for it in _comparisons(tmp_path / "out")] == [("org_small", "org_base")]


def test_several_need_a_folder(wkt, two):
    code, _, err = wkt("report", *two)
    assert code == 2
    assert "name it with --output" in err


def test_no_run_is_wrong_usage(wkt):
    assert wkt("report")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["{tmp}/nowhere"], 1, "does not exist"),
        (["{a}", "{a}", "-o", "{tmp}/out"], 2, "the same run"),
        (["{a}", "{b}", "-o", "{a}"], 2, "whose report would be lost; choose another place with --output"),
        (["{tmp}/runs"], 1, "it holds runs, pass them"),
    ],
)
def test_mistakes_are_one_line(wkt, two, tmp_path, arguments, exit_code, message):
    places = {"tmp": tmp_path, "a": two[0], "b": two[1]}
    code, out, err = wkt("report", *(argument.format(**places) for argument in arguments))
    assert (code, out) == (exit_code, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_folder_that_exists_needs_force(wkt, two, tmp_path):
    arguments = ("report", *two, "-o", tmp_path / "out")
    assert wkt(*arguments)[0] == 0
    code, _, err = wkt(*arguments)
    assert (code, "--force" in err) == (2, True)
    assert wkt(*arguments, "--force")[0] == 0


def test_notes_go_to_stderr(wkt, write_run, tmp_path):
    runs = [write_run("org_base", [(TEXT, TEXT)], key=key) for key in ("aaaaaaaa", "bbbbbbbb")]
    path = runs[0] / "results.jsonl"
    path.write_text(path.read_text() + '{"id": "utt-00')
    code, out, err = wkt("report", *runs, "-o", tmp_path / "out")
    assert code == 0
    assert "another run is called org_base too" in err
    assert "was cut off and is omitted" in err
    assert "note:" not in out


def test_unequal_examples_need_common(wkt, write_run, tmp_path):
    runs = [
        write_run("org_base", [(TEXT, TEXT)] * 2, key="aaaaaaaa"),
        write_run("org_small", [(TEXT, TEXT)] * 3, key="bbbbbbbb"),
    ]
    code, _, err = wkt("report", *runs, "-o", tmp_path / "out")
    assert code == 2
    assert "2 in common, 0 only in the first, 1 (utt-0002) only in the second" in err
    assert not (tmp_path / "out").exists()
    assert wkt("report", *runs, "-o", tmp_path / "out", "--common")[0] == 0
    assert _comparisons(tmp_path / "out")[0]["left_out_unpaired"] == 1
