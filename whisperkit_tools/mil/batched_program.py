"""A program of batch 1 that runs on several inputs at once, each in a lane of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from whisperkit_tools.mil import fused_kernels as fused
from whisperkit_tools.mil.batching import batched_nodes, has_row, joined, lane_of
from whisperkit_tools.mil.kernels import Node
from whisperkit_tools.mil.schedule import ExecutionTarget, Schedule, Values, execute
from whisperkit_tools.mil.tensor_spec import TensorSpec

_WORTH_PACKING = 1 << 17  # elements of a matrix from which products with several packed vectors are faster


class BatchedProgram:
    """The calls of a program, on as many lanes as are asked for.

    What depends on one input alone, and is worth caching between runs, is computed for one lane, when its input is put
    there, and held. In Whisper's decoder those are the keys and values that every layer projects from the audio: they
    are made once for a recording, whatever the other lanes do in the meantime. The rest runs on all lanes at once.
    Weights, and what was made of them, are the program's own, except for copies of large matrices in float16.

    A value has its lanes along its leading axis where that has the size 1 in the program, and else along an axis of
    their own before it: `[1, 384, 1, 1]` becomes `[B, 384, 1, 1]`, and `[80]` becomes `[B, 80]`.

    Attributes:
        inputs: The inputs by name, as in the program.
        outputs: The outputs by name, as in the program.
        held: Names of the inputs that are put into a lane and stay there.
        capacity: Number of lanes that there is room for.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
        target: ExecutionTarget,
        constants: Callable[[], Mapping[str, Tensor]],
        capacity: int,
    ) -> None:
        """Rewrite the calls. `Program.batched` does this for those of a program.

        Args:
            nodes: The calls that depend on an input, in order.
            inputs: The inputs by name.
            outputs: The values to return by name.
            target: How and where to compute.
            constants: Returns all other values that the calls read, by name. The same object says that none changed.
            capacity: Number of lanes.
        """
        self.inputs, self.outputs, self.capacity = dict(inputs), dict(outputs), capacity
        self._constants = constants
        self._known: Mapping[str, Tensor] | None = None
        names = tuple(constants())
        whole = Schedule(nodes, inputs, outputs, (), names, target)
        self.held = whole.cached_alone
        once, always = whole.split(self.held)
        made = {output.name: output for node in nodes for output in node.outputs}
        read = {name for node in always for name in node.reads}.union(outputs)
        results = {output.name: output for node in once for output in node.outputs if output.name in read}
        self._held_specs = {**{name: inputs[name] for name in self.held if name in read}, **results}
        self._once = Schedule(once, {name: inputs[name] for name in self.held}, tuple(results), (), names, target)
        given = {**{name: spec for name, spec in inputs.items() if name not in self.held}, **self._held_specs}
        computed = tuple(name for name in outputs if name in made and name not in results)
        batched, self._packed = _with_packed_weights(batched_nodes(always, given, {}), constants())
        self._always = Schedule(batched, given, computed, (), (*names, *self._packed), target)
        self._filled: tuple[Values, Values] = ([], [])
        self._lanes: dict[str, Tensor] = {}

    # --- lanes -------------------------------------------------------------------------------------------------------

    def put(self, lane: int, inputs: Mapping[str, Tensor]) -> None:
        """Give a lane its own `held` inputs, and compute what depends on them alone.

        Args:
            lane: Its number, below `capacity`.
            inputs: Tensors by the names in `held`, in the program's shapes and types.
        """
        values = self._prepared()[0].copy()
        schedule = self._once
        for name in self.held:
            values[schedule.slots[name]] = inputs[name]
        execute(schedule.calls(self.held), values)
        for name, spec in self._held_specs.items():
            self._store(lane, name, spec, inputs[name] if name in inputs else values[schedule.slots[name]])

    def move(self, source: int, target: int) -> None:
        """Copy what one lane holds to another."""
        for value in self._lanes.values():
            value[target] = value[source]

    def _store(self, lane: int, name: str, spec: TensorSpec, value: Tensor) -> None:
        row = value[0] if has_row(spec.shape) else value
        if name not in self._lanes:
            self._lanes[name] = row.new_empty((self.capacity, *row.shape))
        self._lanes[name][lane] = row

    def run(self, inputs: Mapping[str, Tensor], first: int = 0, count: int | None = None) -> dict[str, Tensor]:
        """Run consecutive lanes.

        Args:
            inputs: The inputs that are not `held`, by name, with the lanes' axis.
            first: Number of the first lane.
            count: Number of lanes. None for all from the first.

        Returns:
            The outputs by name, with the lanes' axis.

        Raises:
            RuntimeError: A kernel failed; the message names the operation.
        """
        stop = self.capacity if count is None else first + count
        values, schedule = self._prepared()[1].copy(), self._always
        held = {name: value[first:stop] for name, value in self._lanes.items()}
        for name, value in (*held.items(), *((name, inputs[name]) for name in inputs if name not in self.held)):
            values[schedule.slots[name]] = value
        execute(schedule.calls(tuple(schedule.tracked)), values)
        return {name: self._output(name, values, held, stop - first) for name in self.outputs}

    def _output(self, name: str, values: Values, held: Mapping[str, Tensor], count: int) -> Tensor:
        if name in held:
            return held[name].clone()
        if self._known is not None and name in self._known:
            shared, shape = self._known[name], self.outputs[name].shape
            return shared.expand(count, *shared.shape[1:]) if has_row(shape) else shared.expand(count, *shared.shape)
        found: Tensor = values[self._always.slots[name]]
        return found

    def _prepared(self) -> tuple[Values, Values]:
        """Return slots that hold the present constants, of both schedules."""
        present = self._constants()
        if present is not self._known:
            self._known = present
            packed = {name: fused.packed_half(present[weight].flatten(1)) for name, weight in self._packed.items()}
            self._filled = _filled(self._once, present), _filled(self._always, {**present, **packed})
        return self._filled


def _with_packed_weights(nodes: Sequence[Node], constants: Mapping[str, Tensor]) -> tuple[list[Node], dict[str, str]]:
    """Let products with several vectors read packed weights, which takes half to two thirds of the time.

    Returns:
        The calls, and the weight that each packed one is made from, both by name.
    """
    packed: dict[str, str] = {}
    found = []
    for node in nodes:
        weight = node.arguments[1] if node.kernel.function in (fused.position_convs, fused.row_linears) else None
        value = constants.get(weight or "")
        if weight is not None and isinstance(value, Tensor) and value.numel() >= _WORTH_PACKING:
            name = f"{weight}:packed rows"
            packed[name] = weight
            node = replace(node, arguments=(node.arguments[0], name, *node.arguments[2:]))
        found.append(node)
    return found, packed


def _filled(schedule: Schedule, values: Mapping[str, Any]) -> Values:
    """Return a schedule's slots with these values in them."""
    filled: Values = [None] * (len(schedule.slots) + 1)
    for name, value in values.items():
        filled[schedule.slots[name]] = value
    return filled


class LaneInputs:
    """A batched program whose callers give whole inputs, lane for lane.

    Attributes:
        program: Runs them.
    """

    def __init__(self, program: BatchedProgram) -> None:
        self.program = program
        self._seen: list[dict[str, tuple[Tensor, int]]] = [{} for _ in range(program.capacity)]

    def run(self, inputs: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Run a batch.

        Args:
            inputs: For each lane all inputs by name, in the program's shapes and types. At most `capacity` lanes.

        Returns:
            For each lane the outputs by name.
        """
        program = self.program
        for lane, given in enumerate(inputs):
            self._put(lane, {name: given[name] for name in program.held})
        free = {name: spec for name, spec in program.inputs.items() if name not in program.held}
        together = {name: joined([given[name] for given in inputs], spec.shape) for name, spec in free.items()}
        found = program.run(together, 0, len(inputs))
        return [
            {name: lane_of(value, lane, program.outputs[name].shape).clone() for name, value in found.items()}
            for lane in range(len(inputs))
        ]

    def _put(self, lane: int, held: Mapping[str, Tensor]) -> None:
        """Give a lane its held inputs, unless it has them."""
        seen = self._seen[lane]
        if held and all(_is_unchanged(value, seen.get(name)) for name, value in held.items()):
            return
        self._seen[lane] = {}
        if held:
            self.program.put(lane, held)
        self._seen[lane] = {name: (value, value._version) for name, value in held.items() if not value.is_inference()}


def _is_unchanged(value: Tensor, seen: tuple[Tensor, int] | None) -> bool:
    return seen is not None and seen[0] is value and not value.is_inference() and seen[1] == value._version
