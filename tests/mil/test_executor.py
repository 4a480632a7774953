"""What does not change from one call to the next is not computed again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.mil_programs import WEIGHT, check, expected, save, step_program

from whisperkit_tools.mil.program import Program


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The step program in float32."""
    return save(*step_program("fp32"), tmp_path_factory.mktemp("mil") / "Step.mlpackage")


@pytest.fixture
def memory() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((50, 64)).astype(np.float32)


EVERYTHING, WITHOUT_MEMORY = 8, 3
"""Operations of the step program: all, and those that depend on the token (gather, add, tanh)."""


def test_unchanged_input_is_not_computed_again(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package)
    source = torch.from_numpy(memory)
    for token, executed in ((3, EVERYTHING), (3, WITHOUT_MEMORY), (4, WITHOUT_MEMORY)):
        check(program.run(token=torch.tensor([token]), memory=source), expected(token, memory))
        assert program.executed_operations == executed
    program.run(token=torch.tensor([4]), memory=source.clone())
    assert program.executed_operations == EVERYTHING


def test_tensor_changed_in_place_is_computed_again(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package)
    source = torch.from_numpy(memory).clone()
    program.run(token=torch.tensor([3]), memory=source)
    source[0, 0] += 1
    found = program.run(token=torch.tensor([3]), memory=source)
    assert program.executed_operations == EVERYTHING
    check(found, expected(3, source.numpy()))


def test_array_changed_in_place_is_computed_again(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package)
    program.predict({"token": [3], "memory": memory})
    program.predict({"token": [4], "memory": memory})
    assert program.executed_operations == WITHOUT_MEMORY
    memory[-1, -1] += 1
    check(program.predict({"token": [4], "memory": memory}), expected(4, memory))
    assert program.executed_operations == EVERYTHING
    program.predict({"token": [5], "memory": memory.copy()})  # equal content is as good as the same object
    assert program.executed_operations == WITHOUT_MEMORY


def test_inference_tensors_have_no_version_and_count_as_changed(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package)
    with torch.inference_mode():
        source = torch.from_numpy(memory).clone()
        for _ in range(2):
            program.run(token=torch.tensor([3]), memory=source)
            assert program.executed_operations == EVERYTHING


def test_what_is_given_out_is_not_what_is_kept(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package)
    source = torch.from_numpy(memory)
    program.run(token=torch.tensor([3]), memory=source)["summary"].zero_()
    check(program.run(token=torch.tensor([3]), memory=source), expected(3, memory))
    program.predict({"token": [3], "memory": memory})["summary"][:] = 0
    check(program.predict({"token": [3], "memory": memory}), expected(3, memory))


def test_a_failed_run_leaves_nothing_behind(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package)
    source = torch.from_numpy(memory)
    program.run(token=torch.tensor([3]), memory=source)
    with pytest.raises(RuntimeError, match="operation gather"):
        program.run(token=torch.tensor([99]), memory=source.clone())
    check(program.run(token=torch.tensor([3]), memory=source), expected(3, memory))
    assert program.executed_operations == EVERYTHING


def test_cheap_results_are_not_kept(tmp_path: Path) -> None:
    program = Program.load(save(*step_program("fp32", WEIGHT[:2]), tmp_path / "Cheap.mlpackage"))
    assert not program.executor.schedule.tracked  # comparing would cost as much as computing
