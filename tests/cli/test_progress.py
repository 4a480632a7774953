"""The one renderer of progress: lines now and then off a terminal, bars on one."""

import io
import itertools

import pytest
from rich.console import Console

from whisperkit_tools.cli import progress as module
from whisperkit_tools.cli.progress import ConsoleProgress, clock
from whisperkit_tools.errors import option


@pytest.fixture
def seconds(monkeypatch):
    """A clock of the module that the test sets."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_off_a_terminal_a_count_is_a_line_every_thirty_seconds(capsys, seconds):
    progress = ConsoleProgress("run: ")
    progress.advance("examples", 10, 110)  # what an earlier attempt did
    for passed, done in ((10, 20), (31, 40), (40, 50), (62, 60)):
        seconds[0] = 100 + passed
        progress.advance("examples", done, 110, "WER 5.30 %")
    progress.advance("examples", 110, 110, "WER 5.10 %")
    lines = capsys.readouterr().err.splitlines()
    # 30 of this attempt in 31 s leave 70: 72 s. 50 in 62 s leave 50: 62 s.
    assert lines == [
        "run: examples: 40/110  WER 5.30 %, 1:12 left",
        "run: examples: 60/110  WER 5.30 %, 1:02 left",
        "run: examples: 110/110  WER 5.10 %",
    ]


def test_counts_are_written_in_full(capsys, seconds):
    progress = ConsoleProgress()
    progress.advance("MB", 0, 2.5)
    seconds[0] += 31
    progress.advance("MB", 1.25, 2.5)
    progress.advance("bytes", 2_460_430, 2_460_430, "wkt.json")
    assert capsys.readouterr().err.splitlines() == [
        "MB: 1.2/2.5  0:31 left", "bytes: 2,460,430/2,460,430  wkt.json",
    ]  # fmt: skip


def test_on_a_terminal_there_are_bars_until_the_work_is_done(monkeypatch, seconds):
    shown = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=shown, force_terminal=True, width=100))
    with ConsoleProgress() as progress:
        for what, done in itertools.product(("palettes", "tuning"), (1, 2)):
            seconds[0] += 1
            progress.advance(what, done, 2, "KL 0.1")
            with progress.stage("candidate", "verify"):
                pass
        progress.advance("tuning", 1, 5)
    text = shown.getvalue()
    assert "palettes" in text
    assert "tuning" in text
    assert "2/2" in text
    assert text.count("candidate       verify") == 4


def test_a_note_and_a_stage(capsys, seconds):
    progress = ConsoleProgress()
    progress.note(f"[not markup] {option('kv_length')} was changed")
    with progress.stage("TextDecoder", "export"):
        seconds[0] += 2.5
    err = capsys.readouterr().err
    assert "note: [not markup] --kv-length was changed" in err
    assert "TextDecoder     export                 2.5 s" in err


def test_a_stage_that_fails_prints_nothing(capsys):
    with pytest.raises(ValueError, match="no"), ConsoleProgress().stage("a", "b"):
        raise ValueError("no")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("time_s", "text"), [(0, "0:00"), (61.4, "1:01"), (3599.6, "1:00:00"), (7325, "2:02:05")])
def test_clock(time_s, text):
    assert clock(time_s) == text
