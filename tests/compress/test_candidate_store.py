"""CandidateStore that outlive an interrupted run: found again whole or not at all, and removed when a run has ended."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from whisperkit_tools.compress.candidate_store import CandidateStore, MeasuredCandidate, candidate_name
from whisperkit_tools.quantization.gate import GateExample

EXAMPLES = [GateExample("a", 3, 1, 0, 5, 4, 0.25), GateExample("b", 2, 0, 1, 4, 4, 1e-9)]


def _kept(root, name="one", content=b"weights"):
    candidates = CandidateStore(root)
    with candidates.new(name) as folder:
        (folder / "weight.bin").write_bytes(content)
        return candidates.keep(name, MeasuredCandidate(folder, 7, {"AudioEncoder": 81.5}, (0.5, 0.25), EXAMPLES))


def _ended():
    """The number of a process that has ended."""
    return int(subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"]))


def test_a_candidate_is_found_as_it_was_measured(tmp_path):
    kept = _kept(tmp_path)
    assert (kept.folder / "weight.bin").read_bytes() == b"weights"
    assert CandidateStore(tmp_path).find("one") == kept
    assert CandidateStore(tmp_path).find("other") is None
    untuned = MeasuredCandidate(kept.folder, 7, {}, None, EXAMPLES)
    candidates = CandidateStore(tmp_path)
    with candidates.new("two"):
        candidates.keep("two", untuned)
    assert candidates.find("two").tuning is None


def test_measurements_are_added_one_by_one(tmp_path):
    kept = _kept(tmp_path)
    pending = replace(kept, examples=[*EXAMPLES, GateExample("c", 2, 0, None, 4, 4, 1e-9)])
    candidates = CandidateStore(tmp_path)
    assert candidates.update(pending) == pending == candidates.find("one")
    cut = replace(kept, examples=[*EXAMPLES, GateExample("c", 2, 0, 7, 4, 4, 1e-9, is_cut=True)])
    assert candidates.update(cut) == cut == CandidateStore(tmp_path).find("one")


def test_one_that_fails_leaves_nothing(tmp_path):
    candidates = CandidateStore(tmp_path)

    def fail():
        with candidates.new("one") as folder:
            (folder / "weight.bin").write_bytes(b"half")
            raise OSError

    with pytest.raises(OSError):
        fail()
    assert candidates.find("one") is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"examples": [{"name": 1}]}', b"\xff"])
def test_a_damaged_record_is_no_candidate(tmp_path, damage):
    kept = _kept(tmp_path)
    (kept.folder.parent / "measured.json").write_bytes(damage)
    assert CandidateStore(tmp_path).find("one") is None
    assert _kept(tmp_path, content=b"again") == CandidateStore(tmp_path).find("one")


def test_what_a_killed_run_left_half_written_goes_and_what_a_running_one_writes_stays(tmp_path):
    CandidateStore(tmp_path)
    killed, running = (tmp_path / "candidates" / f".one-{process}" for process in (_ended(), os.getppid()))
    killed.mkdir()
    running.mkdir()
    CandidateStore(tmp_path)
    assert not killed.exists()
    assert running.exists()


def test_the_end_of_a_run_clears_its_own_and_those_of_the_dead(tmp_path):
    own, dead, others = (_kept(tmp_path, name) for name in ("own", "dead", "others"))
    (dead.folder.parent / "owner").write_text(str(_ended()))
    (others.folder.parent / "owner").write_text(str(os.getppid()))
    CandidateStore(tmp_path).clear()
    assert [place.folder.exists() for place in (own, dead, others)] == [False, False, True]


def test_a_candidate_that_is_taken_up_belongs_to_who_took_it(tmp_path):
    kept = _kept(tmp_path)
    (kept.folder.parent / "owner").write_text(str(os.getppid()))
    assert CandidateStore(tmp_path).find("one") == kept
    CandidateStore(tmp_path).clear()
    assert not kept.folder.exists()


def test_a_name_stands_for_all_parts():
    parts = {"recipe": {"a": 1}, "tuning": [0, 0]}
    assert candidate_name(parts) == candidate_name(dict(reversed(parts.items())))
    assert candidate_name(parts) != candidate_name({**parts, "tuning": [1, 0]})
