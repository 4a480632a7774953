"""Programs loaded from packages: predict and run, parameters and gradients, what is kept between calls, bad input."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.mil_programs import RNG, WEIGHT, check, expected, save, step_program

from whisperkit_tools.errors import BundleError, UnsupportedOperationError
from whisperkit_tools.mil.coreml import import_coremltools, quiet_coremltools
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.tensor_spec import TensorSpec


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The step program in float32."""
    return save(*step_program("fp32"), tmp_path_factory.mktemp("mil") / "Step.mlpackage")


@pytest.fixture(scope="module")
def half_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The step program in float16."""
    return save(*step_program("fp16"), tmp_path_factory.mktemp("mil") / "Half.mlpackage")


@pytest.fixture
def memory() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((50, 64)).astype(np.float32)


def test_interface_and_metadata(package: Path) -> None:
    program = Program.load(package)
    assert program.inputs["token"] == TensorSpec("token", (1,), "int32")
    assert program.inputs["memory"] == TensorSpec("memory", (50, 64), "float32")
    assert str(program.outputs["mixed"]) == "mixed: float32[1, 8]"
    assert [op.type for op in program.operations] == [
        "linear", "reduce_mean", "gather", "linear", "reduce_sum", "add", "tanh", "identity",
    ]  # fmt: skip
    assert program.operations[0].inputs["x"] == (program.inputs["memory"],)
    assert program.metadata.author == "A. Author"
    assert program.metadata.license == "MIT"
    assert program.metadata.user_defined["key"] == "value"
    assert program.metadata.spec_version == 7
    assert "8 operations" in repr(program)


def test_predict_takes_what_coremltools_takes(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package)
    wanted = expected(3, memory)
    found = program.predict({"token": np.array([3], np.int32), "memory": memory})
    check(found, wanted)
    assert {name: value.dtype for name, value in found.items()} == {"mixed": np.float32, "summary": np.float32}
    check(program.predict({"memory": memory.astype(np.float64), "token": np.array([3])}), wanted)
    check(program.predict({"token": [3], "memory": memory.tolist()}), wanted)
    check(program.predict({"token": torch.tensor([3]), "memory": torch.from_numpy(memory)}), wanted)
    frozen = memory.copy()
    frozen.flags.writeable = False
    check(program.predict({"token": [3], "memory": frozen}), wanted)
    check(program.predict({"token": [3], "memory": np.asfortranarray(memory)}), wanted)
    check(program.predict({"token": [3], "memory": memory[::-1][::-1]}), wanted)
    batch = program.predict([{"token": [3], "memory": memory}, {"token": [4], "memory": memory}])
    check(batch[0], wanted)
    check(batch[1], expected(4, memory))


def test_run_takes_tensors(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package)
    tensors = {"token": torch.tensor([3], dtype=torch.int32), "memory": torch.from_numpy(memory)}
    check(program.run(tensors), expected(3, memory))
    check(program.run(**tensors), expected(3, memory))
    check(program(**tensors), expected(3, memory))


@pytest.mark.parametrize("opset", ["iOS15", "iOS16", "iOS17", "iOS18"])
def test_packages_of_every_opset(opset: str, tmp_path: Path, memory: np.ndarray) -> None:
    program = Program.load(save(*step_program("fp32"), tmp_path / "Step.mlpackage", opset))
    check(program.predict({"token": [1], "memory": memory}), expected(1, memory))


def test_float32_mode_rounds_nothing(half_package: Path, memory: np.ndarray) -> None:
    program = Program.load(half_package)
    found = program.predict({"token": [2], "memory": memory})
    assert found["mixed"].dtype == np.float32
    check(found, expected(2, memory))
    assert not np.array_equal(found["summary"], found["summary"].astype(np.float16))


def test_float16_mode_returns_what_is_declared(half_package: Path, memory: np.ndarray) -> None:
    program = Program.load(half_package, precision="float16")
    found = program.predict({"token": [2], "memory": memory})
    assert {value.dtype for value in found.values()} == {np.dtype(np.float16)}
    check(found, expected(2, memory.astype(np.float16)), tolerance=2e-2)
    assert program.run(token=torch.tensor([2]), memory=torch.from_numpy(memory))["mixed"].dtype == torch.float16


def test_bad_inputs_are_named_together(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package)
    message = (
        r"'token' holds a value that is not a number of type int32; "
        r"'memory' has shape \[64, 50\], expected \[50, 64\]; "
        r"'extra' is not an input\. The inputs are token: int32\[1\], memory: float32\[50, 64\]"
    )
    with pytest.raises(ValueError, match=message):
        program.predict({"token": np.array([np.nan]), "memory": memory.T, "extra": memory})
    with pytest.raises(ValueError, match="'memory' is missing"):
        program.run(token=torch.tensor([1]))
    with pytest.raises(ValueError, match="precision is 'bfloat16', expected"):
        Program.load(package, precision="bfloat16")  # type: ignore[arg-type]


def test_floats_for_an_integer_input_lose_their_fractions_as_in_core_ml(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package)
    for given in ([2.0], np.array([2.9], np.float32), np.array([2.9], np.float16)):
        check(program.predict({"token": given, "memory": memory}), expected(2, memory))
    found = program.run(token=torch.tensor([2.9]), memory=torch.from_numpy(memory))
    check({name: value.numpy() for name, value in found.items()}, expected(2, memory))
    for value in (np.inf, np.nan, 3e9):
        with pytest.raises(ValueError, match="'token' holds a value that is not a number of type int32"):
            program.predict({"token": [value], "memory": memory})


# --- parameters and gradients ---------------------------------------------------------------------------------------


def test_weights_are_parameters_under_the_constants_names(package: Path) -> None:
    program = Program.load(package)
    names = [name for name in program.weights if "bias" not in name]
    assert names == ["project_weight", "table", "mix_weight"]
    assert {name for name, _ in program.named_parameters()} == set(program.weights)
    assert program.weights["project_weight"].shape == (3000, 64)
    assert not any(parameter.requires_grad for parameter in program.parameters())
    np.testing.assert_array_equal(program.weights["project_weight"].numpy(), WEIGHT.astype(np.float32))
    with pytest.raises(KeyError):
        program.parameter_name("nothing")


def test_names_that_torch_keeps_for_itself(package: Path) -> None:
    graph = read_graph(package)
    renamed = {"project_weight": "layers.0.weight", "table": "type", "mix_weight": "100%.run"}
    operations = [
        replace(
            op,
            inputs={
                key: tuple(replace(spec, name=renamed.get(spec.name, spec.name)) for spec in specs)
                for key, specs in op.inputs.items()
            },
        )
        for op in graph.operations
    ]
    constants = {renamed.get(name, name): constant for name, constant in graph.constants.items()}
    program = Program(replace(graph, operations=tuple(operations), constants=constants))
    for name in renamed.values():
        encoded = program.parameter_name(name)
        assert "." not in encoded
        assert Program.constant_name(encoded) == name
        assert program.get_parameter(encoded) is program.weights[name]
    assert callable(program.type)


def test_a_constant_named_as_a_method(tmp_path: Path) -> None:
    import_coremltools()
    from coremltools.converters.mil import Builder as mb

    def program(x: Any) -> Any:
        total = mb.add(x=x, y=mb.const(val=np.float32([1, 2]), name="type"))
        return mb.mul(x=total, y=mb.const(val=np.float32([3, 4]), name="run"))

    loaded = Program.load(save(program, [mb.TensorSpec(shape=(2,))], tmp_path / "Names.mlpackage"))
    assert list(loaded.weights) == ["type", "run"]
    assert [Program.constant_name(name) for name, _ in loaded.named_parameters()] == ["type", "run"]
    np.testing.assert_allclose(next(iter(loaded.predict({"x": [1.0, 1.0]}).values())), [6, 12])


def test_gradients_reach_weights_and_inputs(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package).requires_grad_(True)
    source = torch.from_numpy(memory).requires_grad_()
    program.run(token=torch.tensor([3]), memory=source)["mixed"].sum().backward()
    weight = program.weights["mix_weight"]
    derivative = (1 - expected(3, memory)["mixed"] ** 2).T * memory.sum(0)[None]
    np.testing.assert_allclose(weight.grad, derivative, rtol=1e-3, atol=1e-4)
    assert source.grad is not None
    assert program.weights["table"].grad[3].abs().sum() > 0
    assert program.weights["table"].grad[4].abs().sum() == 0


def test_gradients_agree_with_finite_differences(tmp_path: Path) -> None:
    import_coremltools()
    from coremltools.converters.mil import Builder as mb

    weight = RNG.standard_normal((2, 3, 1, 1)).astype(np.float32)

    def program(x: Any) -> Any:
        normalised = mb.layer_norm(x=x, axes=[1], epsilon=np.float32(1e-5))
        hidden = mb.gelu(x=mb.conv(x=normalised, weight=mb.const(val=weight, name="w")), mode="EXACT")
        return mb.softmax(x=hidden, axis=1)

    loaded = Program.load(save(program, [mb.TensorSpec(shape=(1, 3, 1, 2))], tmp_path / "Grad.mlpackage")).double()
    x = torch.randn(1, 3, 1, 2, dtype=torch.double, requires_grad=True)
    name = loaded.parameter_name("w")
    output = next(iter(loaded.outputs))

    def function(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        # The feed brings inputs to float32; the plain plan is what gradients run through.
        values = {"x": x.float(), name: weight.float()}
        return torch.func.functional_call(loaded, {name: values[name]}, ({"x": values["x"]},))[output].double()

    start = loaded.weights["w"].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(function, (x, start), eps=1e-2, atol=1e-2)


def test_runs_with_gradients_hold_nothing_old(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package)
    inputs = {"token": torch.tensor([3]), "memory": torch.from_numpy(memory)}
    program.run(inputs)
    program.requires_grad_(True)
    for _ in range(2):
        program.zero_grad()
        program.run(inputs)["summary"].sum().backward()  # a stale graph would raise here
    first = program.weights["project_weight"].grad.clone()
    with torch.no_grad():
        assert not program.run(inputs)["summary"].requires_grad
    torch.testing.assert_close(first, torch.from_numpy(memory).sum(0).expand(3000, 64) / 3000)


def test_a_changed_weight_is_noticed(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package)
    inputs = {"token": torch.tensor([3]), "memory": torch.from_numpy(memory)}
    program.run(inputs)
    with torch.no_grad():
        program.weights["project_weight"].mul_(2)
    check(program.run(inputs), expected(3, memory, 2 * WEIGHT.astype(np.float64)))
    state = program.state_dict()
    state[program.parameter_name("project_weight")] = torch.zeros(3000, 64)
    program.load_state_dict(state)
    assert program.run(inputs)["summary"].abs().sum() == 0
    program.weights["project_weight"].data.fill_(1)
    program.forget()
    assert program.run(inputs)["summary"].abs().sum() > 0


def test_copies_are_independent(package: Path, memory: np.ndarray) -> None:
    program = Program.load(package)
    program.predict({"token": [3], "memory": memory})
    for copied in (copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        with torch.no_grad():
            copied.weights["project_weight"].zero_()
        assert copied.predict({"token": [3], "memory": memory})["summary"].sum() == 0
    check(program.predict({"token": [3], "memory": memory}), expected(3, memory))


# --- states, functions, open shapes ---------------------------------------------------------------------------------


def test_stateful_program(tmp_path: Path) -> None:
    import_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    def program(x: Any, total: Any) -> Any:
        updated = mb.add(x=mb.read_state(input=total), y=x)
        return mb.mul(x=mb.coreml_update_state(state=total, value=updated), y=np.float16(2), name="doubled")

    specs = [
        mb.TensorSpec(shape=(2,), dtype=types.fp16),
        mb.StateTensorSpec(shape=(2,), dtype=types.fp16),
    ]
    loaded = Program.load(save(program, specs, tmp_path / "State.mlpackage", "iOS18"))
    state = loaded.make_state()
    assert [loaded.predict({"x": [1, 2]}, state)["doubled"].tolist() for _ in range(2)] == [[2, 4], [4, 8]]
    assert loaded.predict({"x": [1, 2]}, loaded.make_state())["doubled"].tolist() == [2, 4]
    with pytest.raises(ValueError, match=r"has the states \['total'\], got \[\]; use make_state"):
        loaded.predict({"x": [1, 2]})


def test_functions_are_chosen_by_name(package: Path, half_package: Path, tmp_path: Path, memory: np.ndarray) -> None:
    ct = import_coremltools()
    description = ct.utils.MultiFunctionDescriptor()
    description.add_function(str(package), "main", "single")
    description.add_function(str(half_package), "main", "half")
    description.default_function_name = "single"
    both = tmp_path / "Both.mlpackage"
    with quiet_coremltools():
        ct.utils.save_multifunction(description, str(both))
    assert Program.load(both, function="half").inputs["memory"].dtype == "float16"
    found = Program.load(both, function="single").predict({"token": [3], "memory": memory})
    check(found, expected(3, memory))
    assert Program.load(both).function == "single"
    with pytest.raises(BundleError, match="has no function 'main'; it has half, single"):
        Program.load(both, function="main")


def test_open_axes_and_shapes_known_only_at_run_time(tmp_path: Path) -> None:
    ct = import_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import get_new_symbol

    def program(x: Any) -> Any:
        rows = mb.gather(x=mb.shape(x=x), indices=[0], axis=0)
        shape = mb.concat(values=[rows, np.array([2, 2], np.int32)], axis=0)
        return mb.reshape(x=x, shape=shape, name="y")

    specs = [mb.TensorSpec(shape=(get_new_symbol(), 4))]
    inputs = [ct.TensorType("x", shape=(ct.RangeDim(1, 9, 1), 4))]
    loaded = Program.load(save(program, specs, tmp_path / "Open.mlpackage", inputs=inputs))
    assert loaded.inputs["x"].shape == (None, 4)
    for rows in (1, 3):
        x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
        np.testing.assert_array_equal(loaded.predict({"x": x})["y"], x.reshape(rows, 2, 2))
    with pytest.raises(ValueError, match=r"'x' has shape \[3, 5\], expected \[any, 4\]"):
        loaded.predict({"x": np.zeros((3, 5))})


# --- unsupported operations -----------------------------------------------------------------------------------


def test_unsupported_operations_are_named_all_together(tmp_path: Path) -> None:
    import_coremltools()
    from coremltools.converters.mil import Builder as mb

    def program(x: Any) -> Any:
        noise = mb.random_normal(shape=np.array([2], np.int32), name="noise")
        sampled = mb.random_uniform(shape=np.array([2], np.int32), name="sampled")
        return mb.add(x=mb.add(x=x, y=noise), y=sampled)

    package = save(program, [mb.TensorSpec(shape=(2,))], tmp_path / "Random.mlpackage")
    message = (
        r"(?s)Random\.mlpackage: 2 operations cannot be executed:"
        r".*random_normal: 'noise', operation 0 of function 'main'"
        r".*random_uniform: 'sampled', operation 1 .*Supported are: abs, acos"
    )
    with pytest.raises(UnsupportedOperationError, match=message):
        Program.load(package)
