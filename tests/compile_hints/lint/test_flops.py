"""Counts of single operations written by hand; whole programs are counted in `test_cost`."""

from pathlib import Path

import pytest
from helpers.mil_operations import METADATA

from whisperkit_tools.compile_hints.lint.flops import count_program
from whisperkit_tools.mil.graph import Graph, Operation
from whisperkit_tools.mil.tensor_spec import TensorSpec

X = TensorSpec("x", (2, 3, 4), "float16")
Y = TensorSpec("y", (2, 3, 4), "float16")


@pytest.mark.parametrize(
    ("kind", "flops"),
    [("add", 24), ("linear_activation", 24), ("softmax", 120), ("transpose", 0), ("reduce_max", 24), ("lstm", None)],
)
def test_flops_of_each_kind_of_work(kind: str, flops: int | None) -> None:
    operation = Operation(kind, kind, {"x": (X,)}, (Y,), 0)
    (count,) = count_program(Graph(Path("test"), "main", METADATA, {"x": X}, {}, {"y": Y}, {}, (operation,)))
    assert count.macs == 0
    assert count.flops == (flops or 0)
    assert count.counted == (flops is not None)
