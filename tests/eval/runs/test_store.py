"""The run's folder: what is written is there after any death, and what a death left behind is repaired and said."""

import json
import multiprocessing
from dataclasses import asdict, dataclass
from functools import partial

import pytest
from filelock import FileLock
from helpers.evaluation_runs import LoadFake, Notes, content, make_dataset, run

from whisperkit_tools.errors import DatasetError, OptionsError
from whisperkit_tools.eval.runs.store import JsonLines, RunStore
from whisperkit_tools.eval.typed_json import from_json
from whisperkit_tools.files import write_json


@dataclass(frozen=True)
class Line:
    id: str
    text: str = ""


@dataclass(frozen=True)
class Strict:
    id: str
    error: str | None


def _open(path, kind=Line):
    return JsonLines.open(path, partial(from_json, kind))


def _rows(count: int) -> list[Line]:
    return [Line(f"row {number}", "línea\u2028\r\n" * number) for number in range(count)]


def test_rows_come_back_as_they_were(tmp_path):
    lines = _open(tmp_path / "rows.jsonl")
    for row in _rows(4):
        lines.append(row)
    lines.close()
    again = _open(tmp_path / "rows.jsonl")
    assert list(again.rows.values()) == _rows(4)
    assert again.repairs == []


def test_an_appended_row_is_on_the_disk_before_append_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append((tmp_path / "rows.jsonl").read_bytes()))
    lines = _open(tmp_path / "rows.jsonl")
    for row in _rows(3):
        lines.append(row)
        assert [json.loads(line) for line in synced[-1].splitlines()][-1] == asdict(row)
    lines.close()
    assert len(synced) == 3


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_tail_cut_at_any_byte_is_dropped_and_said(tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    lines = _open(path)
    for row in _rows(3):
        lines.append(row)
    lines.close()
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    path.write_bytes(whole[: len(whole) - min(cut, last - 1)])
    repaired = _open(path)
    assert list(repaired.rows) == ["row 0", "row 1"]
    assert "repaired: 1 damaged line dropped (line 3)" in repaired.repairs[0]
    repaired.append(_rows(3)[2])
    repaired.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("junk", [b"\x00\x00\x00\n", b"[1]\n", b'{"text": 1}\n', b"\xff\xfe\n", b"{}\n", b"\n"])
def test_damage_in_the_middle_is_dropped_too(tmp_path, junk):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a"}\n' + junk + b'{"id": "b"}\n')
    lines = _open(path)
    assert list(lines.rows) == ["a", "b"]
    assert len(lines.repairs) == 1
    assert _open(path).repairs == []


def test_a_row_without_a_required_field_is_damaged(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "error": null}\n{"id": "b"}\n')
    assert list(_open(path, Strict).rows) == ["a"]


def test_the_last_row_of_an_id_counts(tmp_path):
    lines = _open(tmp_path / "rows.jsonl")
    lines.append(Line("a", "first"))
    lines.append(Line("a", "second"))
    lines.close()
    again = _open(tmp_path / "rows.jsonl")
    assert again.rows["a"].text == "second"
    assert again.superseded
    again.rewrite(again.rows.values())
    assert not again.superseded


def test_a_run_with_a_corrupt_tail_ends_as_if_nothing_had_been(tmp_path):
    dataset, log = make_dataset(tmp_path / "audio", 5), tmp_path / "log"
    whole = run(tmp_path / "whole", dataset)
    broken = run(tmp_path / "broken", dataset)
    path = broken.folder / "results.jsonl"
    path.write_bytes(path.read_bytes()[:-40] + b"\xff\x00")
    notes = Notes()
    run(tmp_path / "broken", dataset, LoadFake(str(log)), notes=notes)
    assert log.read_text().split() == ["4"]
    assert "repaired" in notes.notes[0]
    assert content(broken.folder) == content(whole.folder)


def test_two_processes_do_not_write_one_run(tmp_path):
    context = multiprocessing.get_context("spawn")
    taken, free = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / ".lock"), taken, free))
    process.start()
    try:
        assert taken.wait(60)
        with (
            pytest.raises(DatasetError, match="another command is writing the run"),
            RunStore.hold(tmp_path, {"key": "k"}, ()),
        ):
            pass
    finally:
        free.set()
        process.join()


def _hold(path, taken, free):
    with FileLock(path):
        taken.set()
        free.wait(60)


def test_a_folder_of_another_run_is_refused_and_a_damaged_description_replaced(tmp_path):
    with RunStore.hold(tmp_path, {"key": "a" * 64}, ()):
        pass
    with pytest.raises(OptionsError, match="holds another run"), RunStore.hold(tmp_path, {"key": "b" * 64}, ()):
        pass
    (tmp_path / "run.json").write_text("{")
    with RunStore.hold(tmp_path, {"key": "b" * 64}, ()) as store:
        assert store.description["key"] == "b" * 64
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionsError, match="is not a folder"), RunStore.hold(tmp_path / "file", {"key": "c"}, ()):
        pass


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_json(path, {"old": True})

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"new": True})
    assert json.loads(path.read_text()) == {"old": True}
    assert [item.name for item in tmp_path.iterdir()] == ["report.json"]
