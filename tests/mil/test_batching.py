"""Programs of batch 1 on several inputs at once, against the same programs on one input after another."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.mil_operations import METADATA, as_constant, inferred
from helpers.mil_programs import save, step_program

from tests.mil.test_ops import INFERRED
from whisperkit_tools.mil.graph import Graph, Operation
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.tensor_spec import TensorSpec

LANES = 3
PACKAGES = ("MelSpectrogram", "AudioEncoder", "TextDecoder", "TextDecoderContextPrefill")


def _of_one_operation(kind: str, inputs: dict[str, Any], given: tuple[str, ...], shapes: Any) -> Program:
    """A program of one operation, some parameters of which are inputs."""
    constants, specs, bound = {}, {}, {}
    for parameter, value in inputs.items():
        values = value if isinstance(value, tuple) else (value,)
        named = [as_constant(f"{parameter}{index}", item) for index, item in enumerate(values)]
        bound[parameter] = tuple(constant.spec for constant in named)
        for constant in named:
            if constant.spec.name in given:
                specs[constant.spec.name] = constant.spec
            else:
                constants[constant.spec.name] = constant
    outputs = tuple(TensorSpec(f"out{at}", shape, dtype) for at, (shape, dtype) in enumerate(shapes))
    operation = Operation(kind, "op", bound, outputs, 0)
    graph = Graph(
        Path("t"), "main", METADATA, specs, {}, {spec.name: spec for spec in outputs}, constants, (operation,)
    )
    return Program(graph)


def _lanes(program: Program, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def value(spec: TensorSpec) -> torch.Tensor:
        shape = [axis or 1 for axis in spec.shape]
        if spec.dtype in ("int32", "bool"):
            least = int(spec.name.startswith("y") and spec.dtype == "int32")  # a divisor
            return torch.randint(least, least + 2, shape, generator=generator).to(getattr(torch, spec.dtype))
        return torch.rand(shape, generator=generator) * 0.9 + 0.05  # within every function's domain

    return [{name: value(spec) for name, spec in program.inputs.items()} for _ in range(LANES)]


def _assert_same(found: list[dict[str, torch.Tensor]], wanted: list[dict[str, torch.Tensor]], tolerance: float) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert list(one) == list(other)
        for name, value in other.items():
            assert one[name].dtype == value.dtype
            scale = max(1.0, float(value.abs().max())) if value.dtype.is_floating_point else 0
            torch.testing.assert_close(one[name], value, rtol=0, atol=tolerance * scale)


def _arrays(inputs: dict[str, Any]) -> dict[str, np.ndarray]:
    """The parameters that can be inputs of a program, under the names of their constants."""
    found = {}
    for parameter, value in inputs.items():
        for at, item in enumerate(value if isinstance(value, tuple) else (value,)):
            if isinstance(item, np.ndarray) and item.dtype in (np.float32, np.int32, np.bool_):
                found[f"{parameter}{at}"] = item
    return found


def _with_rows(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same with an axis of size 1 before the others, as the programs of the runtime have it."""

    def row(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(row(item) for item in value)
        return value[None] if isinstance(value, np.ndarray) and value.ndim == rank else value

    rank = max((array.ndim for array in _arrays(inputs).values()), default=0)
    return {name: row(value) for name, value in inputs.items()}


def _takes(kind: str, inputs: dict[str, Any], given: tuple[str, ...]) -> bool:
    """Compare a batch with single runs, where the operation takes these inputs at all."""
    try:
        results = inferred(kind, inputs)
    except Exception:  # coremltools says so in many ways
        return False
    shapes = [
        (array.shape, str(array.dtype))
        for array in map(np.asarray, results if isinstance(results, tuple) else (results,))
    ]
    program = _of_one_operation(kind, inputs, given, shapes)
    lanes = _lanes(program)
    try:
        wanted = [program.run(lane) for lane in lanes]
    except RuntimeError:  # coremltools infers more than it could compute
        return False
    _assert_same(program.run_batch(lanes), wanted, 1e-5)
    return True


@pytest.mark.parametrize(("kind", "inputs"), INFERRED, ids=[kind for kind, _ in INFERRED])
def test_every_operation_computes_its_lanes_as_it_computes_them_alone(kind: str, inputs: dict[str, Any]) -> None:
    if not (names := tuple(_arrays(inputs))):
        pytest.skip("nothing of it can be an input")
    if kind == "non_zero":
        pytest.skip("its lanes have results of different sizes")
    tried = [_takes(kind, chosen, given) for chosen in (inputs, _with_rows(inputs)) for given in {names, names[:1]}]
    assert any(tried)


def test_the_demos_packages_in_both_precisions(prefill_bundle: Path) -> None:
    for name in PACKAGES:
        for precision, tolerance in (("float32", 1e-5), ("float16", 4e-3)):
            program = Program.load(prefill_bundle / f"{name}.mlpackage", precision=precision)  # type: ignore[arg-type]
            lanes = _lanes(program)
            wanted = [program.run(lane) for lane in lanes]
            _assert_same(program.run_batch(lanes), wanted, tolerance)
            _assert_same(program.run_batch(lanes[:2]), wanted[:2], tolerance)


def test_what_depends_on_one_input_alone_is_computed_again_only_where_that_changed(tmp_path: Path) -> None:
    program = Program.load(save(*step_program("fp32"), tmp_path / "step.mlpackage"))
    lanes = _lanes(program)
    batch = program.batched(LANES)
    assert batch.held == ("memory",)
    for number, lane in enumerate(lanes):
        batch.put(number, {"memory": lane["memory"]})
    tokens = torch.cat([lane["token"] for lane in lanes])
    wanted = [program.run(lane) for lane in lanes]
    found = batch.run({"token": tokens})
    for number in range(LANES):
        torch.testing.assert_close(found["mixed"][number : number + 1], wanted[number]["mixed"])
        torch.testing.assert_close(found["summary"][number], wanted[number]["summary"])
    batch.put(1, {"memory": lanes[0]["memory"]})
    batch.move(1, 2)
    again = batch.run({"token": tokens[[0, 0]]}, first=1, count=2)
    torch.testing.assert_close(again["summary"][1], wanted[0]["summary"])
    lanes[0]["memory"][0] += 1  # noticed through the tensor's version
    _assert_same(program.run_batch(lanes), [program.run(lane) for lane in lanes], 1e-5)
    lanes[0]["memory"][0] += 1
    _assert_same(program.run_batch(lanes), [program.run(lane) for lane in lanes], 1e-5)


def test_a_changed_weight_is_noticed(demo_bundle: Path) -> None:
    program = Program.load(demo_bundle / "TextDecoder.mlpackage")
    lanes = _lanes(program)
    program.run_batch(lanes)
    with torch.no_grad():
        for weight in program.weights.values():
            weight.mul_(1.01)
    for lane in lanes:
        lane["encoder_output_embeds"] = lane["encoder_output_embeds"].clone()
    _assert_same(program.run_batch(lanes), [program.run(lane) for lane in lanes], 1e-5)


def test_copies_and_no_lanes(demo_bundle: Path) -> None:
    program = Program.load(demo_bundle / "MelSpectrogram.mlpackage")
    lanes = _lanes(program)
    wanted = program.run_batch(lanes)
    _assert_same(copy.deepcopy(program).run_batch(lanes), wanted, 0)
    assert program.run_batch([]) == []


def test_a_program_with_states_runs_alone(stateful_bundle: Path) -> None:
    program = Program.load(stateful_bundle / "TextDecoder.mlpackage")
    with pytest.raises(ValueError, match="a program with states runs on one input at a time"):
        program.batched(2)
    with pytest.raises(ValueError, match="is missing"):
        Program.load(stateful_bundle / "AudioEncoder.mlpackage").run_batch([{}])
