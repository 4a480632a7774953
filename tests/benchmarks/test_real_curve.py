"""The short form of `real-curve`, on the demo: its table and figures, and a run that continues."""

import json

from tests.benchmarks.__main__ import main

SHORT = ("--formats", "q4_0", "--windows", "1", "--examples", "2", "--transcribe", "1", "--tune", "1")


def test_it_compares_with_a_block_format_and_keeps_what_it_measured(demo_bundle, tmp_path, capsys):
    arguments = ["real-curve", str(demo_bundle), *SHORT, "--threads", "1", "--work", str(tmp_path), "--json", "-"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    theirs, ours, tuned = found["tables"][0]["rows"]
    assert [row["size_of"] for row in (theirs, ours, tuned)] == ["q4_0"] * 3
    assert theirs["ratio"] == 1
    assert 0 < ours["nbytes"] <= theirs["nbytes"] < 2e6
    assert ours["ratio"] == ours["kl"] / theirs["kl"] > 0
    assert ours["accuracy"] == ours["predicted_kl"] / ours["kl"]
    assert tuned["predicted_kl"] is None
    assert theirs["wer_delta"] == theirs["wer"] - found_wer(tmp_path)
    names = {figure["name"] for figure in found["figures"]}
    assert names >= {"ggml: KL", "`wkt`, default target: predicted KL", "`wkt`, default target, tuned by 1 steps: KL"}

    kept = sorted((tmp_path / "measured").iterdir())
    assert len(kept) == 4  # the uncompressed one, too
    assert main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["tables"] == found["tables"]  # to the seconds that making them took
    assert sorted((tmp_path / "measured").iterdir()) == kept


def found_wer(work):
    """The uncompressed bundle's WER in percent."""
    plain = next(value for path in (work / "measured").iterdir() if "kl" not in (value := json.loads(path.read_text())))
    return 100 * plain["errors"] / plain["words"]
