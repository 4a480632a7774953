"""Order in which engines run a program's operations, and the bytes that then go through memory.

A slice written into a state is counted as the slice, because it is written in place.

A tensor up to the engine's working set stays on it; a larger one is written to memory and read by each consumer, as
are the program's inputs, outputs and states, and what crosses from one engine to another. Views move nothing.

Source: ane-guide, chapters 9 and 18 (working set; operand bytes of eliminated round trips are not charged; the launch
is paid once for each program handed to an engine).
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from whisperkit_tools.compile_hints.lint.flops import (
    is_view,
    tensor_bytes,
    touches_last_axis,
    transposed_operands,
)
from whisperkit_tools.mil.graph import Graph, Operation
from whisperkit_tools.mil.tensor_spec import TensorSpec


@dataclass(frozen=True, slots=True)
class Partition:
    """Operations that run one after the other on one engine.

    Attributes:
        on_engine: On the Neural Engine.
        names: Names of the operations' first outputs.
    """

    on_engine: bool
    names: tuple[str, ...]


def operation_key(operation: Operation) -> str:
    """Return the name that identifies an operation: its first output's, else its own."""
    return operation.outputs[0].name if operation.outputs else operation.name


def runtime_operations(graph: Graph) -> list[Operation]:
    """Return the operations that run; those that expand compressed weights are part of the weight."""
    return [operation for operation in graph.operations if not operation.type.startswith("constexpr_")]


def partitions(graph: Graph, on_engine: dict[str, bool]) -> list[Partition]:
    """Order the operations so that the engine changes rarely, as a partitioner does.

    Args:
        graph: The program.
        on_engine: For each operation (by `operation_key`) whether it runs on the Neural Engine.
    """
    orders = [_ordered(graph, on_engine, start) for start in (True, False)]
    return min(orders, key=len)


def _ordered(graph: Graph, on_engine: dict[str, bool], start: bool) -> list[Partition]:
    """Take what is ready on one engine until nothing is, then change to the other."""
    operations = runtime_operations(graph)
    producer = {output.name: operation_key(operation) for operation in operations for output in operation.outputs}
    followers: dict[str, list[str]] = {operation_key(operation): [] for operation in operations}
    missing: dict[str, int] = {}
    for operation in operations:
        sources = {producer[spec.name] for spec in operation.reads if spec.name in producer}
        missing[operation_key(operation)] = len(sources)
        for source in sources:
            followers[source].append(operation_key(operation))
    ready: dict[bool, deque[str]] = {True: deque(), False: deque()}
    for name, count in missing.items():
        if not count:
            ready[on_engine[name]].append(name)
    found: list[Partition] = []
    current = start if ready[start] else not start
    while ready[current]:
        done: list[str] = []
        while ready[current]:
            name = ready[current].popleft()
            done.append(name)
            for follower in followers[name]:
                missing[follower] -= 1
                if not missing[follower]:
                    ready[on_engine[follower]].append(follower)
        found.append(Partition(current, tuple(done)))
        current = not current
    return found


def memory_bytes(graph: Graph, on_engine: dict[str, bool], working_set_bytes: int) -> dict[str, int]:
    """Return the bytes of activations that each operation (by `operation_key`) reads from and writes to memory.

    Args:
        graph: The program.
        on_engine: For each operation whether it runs on the Neural Engine.
        working_set_bytes: A tensor up to this size stays on the engine.
    """
    spilled = _spilled(graph, on_engine, working_set_bytes)
    in_place = _in_place(graph)
    return {
        operation_key(operation): _operation_bytes(operation, graph, spilled, in_place)
        for operation in runtime_operations(graph)
    }


def _spilled(graph: Graph, on_engine: dict[str, bool], working_set_bytes: int) -> set[str]:
    """Return the names of the tensors that lie in memory."""
    operations = runtime_operations(graph)
    side: dict[str, bool] = {
        out.name: on_engine[operation_key(operation)] for operation in operations for out in operation.outputs
    }
    found = set(graph.inputs) | set(graph.states) | set(graph.outputs)
    for operation in operations:
        inputs = operation.reads
        found |= {
            spec.name
            for spec in inputs
            if side.get(spec.name, on_engine[operation_key(operation)]) != on_engine[operation_key(operation)]
        }
        found |= {out.name for out in operation.outputs if tensor_bytes(out) > working_set_bytes}
        if is_view(operation, graph) and any(spec.name in found for spec in inputs):
            found |= {out.name for out in operation.outputs}
    return found


def _in_place(graph: Graph) -> set[str]:
    """Return the keys of slice updates of a state's value whose result goes into that state and nowhere else."""
    operations = runtime_operations(graph)
    states = {
        operation.outputs[0].name: operation.inputs["input"][0].name
        for operation in operations
        if operation.type == "read_state"
    }
    readers: dict[str, list[Operation]] = {}
    for operation in operations:
        for spec in _distinct(operation.reads):
            readers.setdefault(spec.name, []).append(operation)
    return {
        operation_key(operation)
        for operation in operations
        if operation.type == "slice_update"
        and (state := states.get(operation.inputs["x"][0].name)) is not None
        and operation_key(operation) not in graph.outputs
        and [_written_state(reader) for reader in readers.get(operation_key(operation), [])] == [state]
    }


def _written_state(operation: Operation) -> str:
    """Return the name of the state that an operation writes, else an empty one."""
    if operation.type not in ("write_state", "coreml_update_state"):
        return ""
    return next(specs[0].name for name, specs in operation.inputs.items() if name in ("input", "state"))


def _operation_bytes(operation: Operation, graph: Graph, spilled: set[str], in_place: set[str]) -> int:
    if is_view(operation, graph):
        return 0
    if operation_key(operation) in in_place:
        return tensor_bytes(operation.inputs["update"][0])
    inputs = [spec for spec in operation.reads if spec.name in spilled]
    written = sum(tensor_bytes(out) for out in operation.outputs if out.name in spilled)
    if operation.type in ("write_state", "coreml_update_state"):
        # The state itself is not read: the new value takes its place.
        values = (spec for spec in operation.reads if spec.name not in graph.states)
        return sum(tensor_bytes(spec) for spec in values if spec.name not in in_place)
    if operation.type in ("concat", "stack"):
        return written  # its inputs are written to their places in the result
    if operation.type in ("slice_by_index", "slice_by_size", "split"):
        return written + (sum(tensor_bytes(out) for out in operation.outputs) if inputs else 0)
    read = sum(tensor_bytes(spec) for spec in _distinct(inputs))
    # A transposed operand is rewritten in memory before the product takes it.
    copied = sum(2 * tensor_bytes(spec) for spec in transposed_operands(operation, graph) if spec.name in spilled)
    return read + written + copied


def copied_bytes(operation: Operation, graph: Graph) -> int:
    """Return the bytes that a reshape or transpose copies, read and written together; 0 when it moves nothing."""
    if not touches_last_axis(operation, graph):
        return 0
    return 2 * sum(tensor_bytes(out) for out in operation.outputs)


def _distinct(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    return list({spec.name: spec for spec in specs}.values())
