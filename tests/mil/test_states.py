"""States in the executor: several functions on one state, writes in place, and what must not see them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.mil_programs import save as save_program

from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.mil.graph import function_names
from whisperkit_tools.mil.program import Program


def builder():
    import_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    return mb, types


def save(function, specs, path: Path) -> Path:
    return save_program(function, specs, path, "iOS18", compute_precision=None, pass_pipeline=None)


def join(parts: dict[str, Path], path: Path, default: str) -> Path:
    ct = import_coremltools()
    functions = ct.utils.MultiFunctionDescriptor()
    for name, part in parts.items():
        functions.add_function(str(part), "main", name)
    functions.default_function_name = default
    ct.utils.save_multifunction(functions, str(path))
    return path


def specs(*shapes):
    mb, types = builder()
    return [mb.TensorSpec(shape=shape, dtype=types.fp16) for shape in shapes]


def state_spec(*shape):
    mb, types = builder()
    return mb.StateTensorSpec(shape=shape, dtype=types.fp16)


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """`put` writes a state whole, `main` adds its input to it and gives both out."""
    mb, _ = builder()
    folder = tmp_path_factory.mktemp("functions")

    def put(x, memory):
        return mb.mul(
            x=mb.coreml_update_state(state=memory, value=mb.mul(x=x, y=np.float16(2))), y=np.float16(1), name="y"
        )

    def add(x, memory):
        return mb.add(x=mb.read_state(input=memory), y=x, name="y")

    wanted = [*specs((3,)), state_spec(3)]
    parts = {name: save(made, wanted, folder / f"{name}.mlpackage") for name, made in (("put", put), ("main", add))}
    return join(parts, folder / "Both.mlpackage", "main")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_functions_of_a_package_share_a_state(package, precision):
    assert function_names(package) == ("main", "put")
    main, put = (Program.load(package, function=name, precision=precision) for name in ("main", "put"))
    state = main.make_state()
    assert main.predict({"x": [1, 1, 1]}, state=state)["y"].tolist() == [1, 1, 1]
    put.predict({"x": [1, 2, 3]}, state=state)
    assert main.predict({"x": [1, 1, 1]}, state=state)["y"].tolist() == [3, 5, 7]
    assert main.predict({"x": [1, 1, 1]}, state=put.make_state())["y"].tolist() == [1, 1, 1]


def test_a_state_can_be_read_and_written_like_coremltools_own(package):
    main = Program.load(package)
    state = main.make_state()
    given = np.array([4, 5, 6], np.float16)
    state.write_state("memory", given)
    given[:] = 0  # the state has its own copy
    assert state.read_state("memory").tolist() == [4, 5, 6]
    taken = state.read_state("memory")
    taken[:] = 0
    assert main.predict({"x": [0, 0, 0]}, state)["y"].tolist() == [4, 5, 6]
    with pytest.raises(ValueError, match=r"there is no state 'memoir'; there are memory"):
        state.read_state("memoir")
    with pytest.raises(ValueError, match=r"state 'memory' has shape \[3\], got \[2\]"):
        state.write_state("memory", np.zeros(2))


def test_states_of_another_program_are_refused(package, tmp_path):
    mb, _ = builder()

    def wider(x, memory):
        return mb.add(x=mb.read_state(input=memory), y=x, name="y")

    other = Program.load(save(wider, [*specs((4,)), state_spec(4)], tmp_path / "Wider.mlpackage"))
    main = Program.load(package)
    with pytest.raises(ValueError, match="the states have other shapes than this program's"):
        main.predict({"x": [1, 1, 1]}, other.make_state())
    with pytest.raises(ValueError, match=r"has the states \['memory'\], got \[\]; use make_state"):
        main.predict({"x": [1, 1, 1]})
    with pytest.raises(ValueError, match="the states are held in float16, the program computes in float32"):
        main.predict({"x": [1, 1, 1]}, Program.load(package, precision="float16").make_state())
    with pytest.raises(BundleError, match=r"has no function 'forget'; it has main, put"):
        Program.load(package, function="forget")


def test_a_program_without_states_takes_an_empty_one(tmp_path):
    mb, _ = builder()
    plain = Program.load(save(lambda x: mb.add(x=x, y=x, name="y"), specs((2,)), tmp_path / "Plain.mlpackage"))
    assert plain.predict({"x": [1, 2]}, plain.make_state())["y"].tolist() == [2, 4]


# --- writes in place --------------------------------------------------------------------------------------------------


def column(mb, cache, update, position):
    """`cache[..., position] = update` as the exported decoder has it."""
    one = mb.add(x=position, y=np.int32(1))
    open_axes = [True, True, True, False]
    begin, end = (mb.concat(values=[np.zeros(3, np.int32), at], axis=0) for at in (position, one))
    return mb.slice_update(x=cache, update=update, begin=begin, end=end, begin_mask=open_axes, end_mask=open_axes)


def cache_package(folder: Path, *, reads_late: bool = False, gives_out: bool = False) -> Path:
    """Write a column; what is given out is computed from the state as it was before."""
    mb, types = builder()

    def program(x, position, cache):
        before = mb.read_state(input=cache)
        early = mb.reduce_sum(x=before, axes=[3], keep_dims=True, name="early")
        mb.coreml_update_state(state=cache, value=column(mb, before, x, position))
        outputs = [early]
        if reads_late:
            outputs.append(mb.reduce_sum(x=mb.reshape(x=before, shape=[1, 2, 4, 1]), axes=[1], name="late"))
        if gives_out:
            outputs.append(mb.identity(x=before, name="whole"))
        return outputs

    wanted = [
        *specs((1, 2, 1, 1)),
        mb.TensorSpec(shape=(1,), dtype=types.int32),
        state_spec(1, 2, 1, 4),
    ]
    return save(program, wanted, folder / "Cache.mlpackage")


def fused(program: Program) -> bool:
    return any(node.type == "fused_write_state" for node in program.executor.schedule.nodes)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("more", [{}, {"reads_late": True}, {"gives_out": True}])
def test_a_column_is_written_and_what_was_read_before_stays(tmp_path, precision, more):
    program = Program.load(cache_package(tmp_path, **more), precision=precision)
    state = program.make_state()
    expected = np.zeros((1, 2, 1, 4), np.float32)
    kept = []
    for step, position in enumerate([0, 2, 1, 2]):
        x = np.full((1, 2, 1, 1), step + 1, np.float32)
        outputs = program.predict({"x": x, "position": [position]}, state=state)
        kept.append((outputs, expected.copy()))
        expected[..., position : position + 1] = x
        np.testing.assert_array_equal(state.read_state("cache"), expected)
    for outputs, before in kept:  # looked at after all writes: nothing given out shares memory with the state
        np.testing.assert_array_equal(outputs["early"], before.sum(3, keepdims=True))
        if "reads_late" in more:
            np.testing.assert_array_equal(outputs["late"].ravel(), before.sum(1).ravel())
        if "gives_out" in more:
            np.testing.assert_array_equal(outputs["whole"], before)
    assert fused(program) is (precision == "float32" and not more)


def test_written_in_place_without_a_copy_of_the_state(tmp_path):
    program = Program.load(cache_package(tmp_path))
    state = program.make_state()
    address = state["cache"].value.data_ptr()
    program.run({"x": torch.ones(1, 2, 1, 1), "position": torch.tensor([1])}, state=state)
    assert state["cache"].value.data_ptr() == address and state["cache"].value.sum() == 2


def test_an_output_that_is_the_state_does_not_change_later(tmp_path):
    mb, _ = builder()

    def program(x, memory):
        updated = mb.add(x=mb.read_state(input=memory), y=x)
        return mb.identity(x=mb.coreml_update_state(state=memory, value=updated), name="y")

    loaded = Program.load(save(program, [*specs((2,)), state_spec(2)], tmp_path / "Echo.mlpackage"))
    state = loaded.make_state()
    first = loaded.run({"x": torch.ones(2)}, state=state)["y"]
    state["memory"].value.add_(5)
    assert first.tolist() == [1, 1]


def test_a_state_keeps_its_own_copy_of_an_input(tmp_path):
    mb, _ = builder()

    def program(x, memory):
        mb.coreml_update_state(state=memory, value=mb.identity(x=x))
        return mb.add(x=x, y=x, name="y")

    loaded = Program.load(save(program, [*specs((2,)), state_spec(2)], tmp_path / "Keep.mlpackage"))
    state, given = loaded.make_state(), np.ones(2, np.float32)
    loaded.predict({"x": given}, state)
    given[:] = 7
    assert state.read_state("memory").tolist() == [1, 1]


def test_gradients_go_through_a_step_with_states(tmp_path):
    program = Program.load(cache_package(tmp_path))
    state = program.make_state()
    x = torch.ones(1, 2, 1, 1, requires_grad=True)
    program.run({"x": x, "position": torch.tensor([0])}, state=state)
    state["cache"].value.sum().backward()
    assert x.grad.tolist() == torch.ones(1, 2, 1, 1).tolist()
    with torch.no_grad():
        program.run({"x": x, "position": torch.tensor([3])}, state=state)
    assert state.read_state("cache")[0, 0, 0].tolist() == [1, 0, 0, 1]
