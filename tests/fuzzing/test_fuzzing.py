"""Mutated files of every kind end in a value or in one clear line. `make fuzz` reads more, in a watched process."""

import random

import pytest

from tests.fuzzing.mutation import mutated
from tests.fuzzing.targets import Target, targets
from tests.fuzzing.watchdog import attempt, audio_seeds

INPUTS = 40  # of each target
TARGETS = targets(audio_seeds())
FINE = ("accepted", "clean error")


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_mutated_files_are_read_or_refused(target, tmp_path):
    assert attempt(target, target.seed, tmp_path / "input") in FINE
    rng = random.Random(target.name)
    for _ in range(INPUTS):
        content = mutated(target.seed, rng)
        assert (attempt(target, content, tmp_path / "input"), content) in [(result, content) for result in FINE]


def test_the_harness_finds_failures(tmp_path):
    def wrong(folder):
        raise KeyError((folder / "a.json").read_text())

    def silent(folder):
        raise OSError

    broken = Target("broken", b'{"a": 1}', wrong, "a.json")
    assert attempt(broken, b"x", tmp_path / "input").startswith("internal error: KeyError")
    assert attempt(Target("silent", b"", silent, "a"), b"", tmp_path / "input").startswith("internal error")
    rng = random.Random(0)
    assert len({mutated(broken.seed, rng) for _ in range(200)}) > 100
