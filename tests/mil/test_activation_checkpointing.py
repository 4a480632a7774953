"""Gradients piece by piece against those of the whole program; an encoder's are in `test_sensitivity`."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.mil_programs import RNG, save

from whisperkit_tools.mil.activation_checkpointing import CheckpointedProgram
from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.mil.program import Program

LAYERS = 6


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Residual layers on `x`, each of which adds a row that is gathered by `n`."""
    import_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    weights = [RNG.standard_normal((8, 8)).astype(np.float32) / 4 for _ in range(LAYERS)]

    def build(x: Any, n: Any) -> Any:
        row = mb.gather(x=mb.const(val=weights[0], name="table"), indices=n, axis=0)
        for number, weight in enumerate(weights):
            hidden = mb.linear(x=x, weight=mb.const(val=weight, name=f"weight{number}"))
            x = mb.add(x=x, y=mb.add(x=mb.tanh(x=hidden), y=row))
        return mb.identity(x=x, name="y"), mb.reduce_sum(x=x, axes=[1], name="total")

    specs = [mb.TensorSpec(shape=(5, 8)), mb.TensorSpec(shape=(1,), dtype=types.int32)]
    path = save(build, specs, tmp_path_factory.mktemp("checkpointing") / "Layers.mlpackage")
    return Program.load(path).requires_grad_(True)


@pytest.mark.parametrize(("budget_bytes", "at_least", "at_most"), [(1, LAYERS // 2, 40), (1 << 30, 1, 1)])
def test_gradients_are_those_of_the_whole_program(
    program: Program, budget_bytes: int, at_least: int, at_most: int
) -> None:
    inputs = {"x": torch.randn(5, 8), "n": torch.tensor([3], dtype=torch.int32)}
    cotangents = {"y": torch.randn(5, 8), "total": torch.randn(5)}
    program.zero_grad()
    outputs = program.run(inputs)
    torch.autograd.backward([outputs[name] for name in cotangents], list(cotangents.values()))
    expected = {name: weight.grad.clone() for name, weight in program.weights.items() if weight.grad is not None}
    assert {"table", "weight0", f"weight{LAYERS - 1}"} <= expected.keys()
    program.zero_grad()
    pieces = CheckpointedProgram(program, budget_bytes)
    assert at_least <= len(pieces) <= at_most
    pieces.backward(inputs, cotangents)
    for name, gradient in expected.items():
        torch.testing.assert_close(program.weights[name].grad, gradient)
