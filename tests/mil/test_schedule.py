"""What calls depend on, and which of them a changed input concerns, on a small program written by hand.

`audio` is projected by a large matrix, which pays to cache. The rest is cheap:

    scale   = sqrt(weight)                 constants alone
    wide    = linear(audio, matrix)        audio
    keys    = square(wide)                 audio
    mixed   = add(keys, token)             audio, token
    past    = read_state(memory)           memory
    result  = add(mixed, past)             audio, token, memory
    scaled  = mul(result, scale)           audio, token, memory
              write_state(memory, result)  audio, token, memory
"""

import pytest
import torch

from whisperkit_tools.mil.executor import Executor
from whisperkit_tools.mil.kernels import Node, kernels
from whisperkit_tools.mil.ops.tensor_operation import StateBox
from whisperkit_tools.mil.schedule import ExecutionTarget, Schedule, dependencies
from whisperkit_tools.mil.tensor_spec import TensorSpec

SIZE = 256


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, shape or (8, SIZE), "float32")


def node(kind: str, arguments: tuple[str, ...], *outputs: str) -> Node:
    return Node(kind, outputs[0] if outputs else kind, kernels()[kind], arguments, tuple(map(spec, outputs)))


NODES = [
    node("sqrt", ("weight",), "scale"),
    node("linear", ("audio", "matrix"), "wide"),
    node("square", ("wide",), "keys"),
    node("add", ("keys", "token"), "mixed"),
    node("read_state", ("memory",), "past"),
    node("add", ("mixed", "past"), "result"),
    node("mul", ("result", "scale"), "scaled"),
    node("write_state", ("memory", "result")),
]
INPUTS = {"audio": spec("audio", 8, SIZE), "token": spec("token", 1, 1)}
CONSTANTS = {"matrix": torch.eye(SIZE) * 3, "weight": torch.tensor(4.0)}
EVERY_TIME = ["mixed", "past", "result", "scaled", "write_state"]


def schedule(nodes: list[Node] = NODES, outputs: tuple[str, ...] = ("scaled",)) -> Schedule:
    return Schedule(nodes, INPUTS, outputs, ("memory",), CONSTANTS, ExecutionTarget("float32", torch.device("cpu")))


def names(calls) -> list[str]:
    return [call.node.name for call in calls]


def test_dependencies_go_through_other_calls() -> None:
    found = dependencies(NODES, ("audio", "token", "memory"))
    assert dict(zip(names_of(NODES), map(set, found), strict=True)) == {
        "scale": set(),
        "wide": {"audio"},
        "keys": {"audio"},
        "mixed": {"audio", "token"},
        "past": {"memory"},
        "result": {"audio", "token", "memory"},
        "scaled": {"audio", "token", "memory"},
        "write_state": {"audio", "token", "memory"},
    }
    assert [call.depends_on for call in schedule().all_calls] == found


def names_of(nodes: list[Node]) -> list[str]:
    return [node.name for node in nodes]


def test_calls_of_a_changed_input_and_those_that_run_every_time() -> None:
    made = schedule()
    assert made.tracked == ("audio",)
    assert names(made.calls({"audio"})) == ["wide", "keys", *EVERY_TIME]
    assert names(made.calls(())) == EVERY_TIME
    assert names(made.constant_calls) == ["scale"]
    assert names(made.all_calls) == names_of(NODES)
    assert made.calls(["audio"]) is made.calls(("audio",))


def test_only_results_that_other_groups_read_are_cached() -> None:
    made = schedule()
    assert made.cached == (made.slots["keys"],)
    assert made.constant_results == {made.slots["matrix"], made.slots["scale"]}
    assert made.lent_outputs == frozenset()


def test_what_outlives_a_run_is_lent() -> None:
    made = schedule(outputs=("keys", "scale", "past", "scaled"))
    assert made.lent_outputs == {made.slots[name] for name in ("keys", "scale", "past")}


def test_what_depends_on_every_input_or_costs_little_is_not_cached() -> None:
    alone = Schedule(NODES[1:3], {"audio": INPUTS["audio"]}, ("keys",), (), ("matrix",), schedule().target)
    assert alone.tracked == ()
    assert names(alone.calls(())) == ["wide", "keys"]
    cheap = schedule([node("square", ("audio",), "keys"), *NODES[3:6]], ("result",))
    assert cheap.tracked == ()


def test_large_values_are_dropped_after_their_last_use() -> None:
    large = Node("add", "large", kernels()["add"], ("audio", "token"), (spec("large", 1 << 16),))
    last = node("add", ("large", "token"), "result")
    made = schedule([large, node("sqrt", ("large",), "root"), last], ("result", "root"))
    assert [call.frees for call in made.calls(())] == [(), (), (made.slots["large"],)]
    assert [call.frees for call in made.all_calls] == [(), (), ()]


def values(token: float) -> dict[str, torch.Tensor]:
    return {"audio": torch.ones(8, SIZE), "token": torch.full((1, 1), token)}


def test_run_computes_everything_and_executor_what_changed() -> None:
    made = schedule()
    memory = StateBox(torch.zeros(8, SIZE))
    # (9 + token + memory) * 2, and memory becomes 9 + token + memory.
    found = made.run({**CONSTANTS, **values(1), "memory": memory, "unknown": torch.ones(1)})
    assert found.keys() == {"scaled"}
    assert torch.equal(found["scaled"], torch.full((8, SIZE), 20.0))
    executor = Executor(made)
    inputs = values(2)
    for executed, expected in ((7, 42.0), (5, 64.0)):
        (result,) = executor.run(inputs, {"memory": memory}, lambda: CONSTANTS, ())
        assert executor.executed == executed
        assert torch.equal(result, torch.full((8, SIZE), expected))
    assert list(executor.cached) == [made.slots["keys"]]


def test_a_failing_call_is_named() -> None:
    with pytest.raises(RuntimeError, match="operation linear 'wide' failed"):
        schedule().run({**CONSTANTS, **values(1), "audio": torch.ones(8, 3), "memory": StateBox(torch.zeros(1))})
