"""A program prepared to run: calls in order, numbered slots for values, and which calls a changed input concerns.

Every call depends on some of the program's inputs and states, directly or through other calls, and `Call.depends_on`
names them. That decides what happens to it. A call that depends on nothing works on constants alone, so it runs once. A
call whose inputs did not change since the last run need not run again, and what it computed for the rest of the program
is cached. In Whisper's decoder those are the keys and values that every layer projects from the audio. A call that
depends on a state runs every time.
"""

import functools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from whisperkit_tools.errors import BundleError
from whisperkit_tools.files import first_line
from whisperkit_tools.mil.kernels import Node
from whisperkit_tools.mil.operations import Work, work_of
from whisperkit_tools.mil.tensor_spec import Precision, TensorSpec, storage_dtype

Values: TypeAlias = list[Any]
"""The content of a schedule's slots during a run. Slot 0 holds None, for omitted arguments."""

Names: TypeAlias = frozenset[str]

_WORTH_CACHING = 50_000  # multiply-adds below which caching results saves nothing
_LARGE = 1 << 16  # elements from which on a value is freed after its last use


class OperationFailedError(BundleError, RuntimeError):
    """A kernel failed: the program is damaged, or its inputs do not fit."""


class Call(NamedTuple):
    """One kernel call: read `arguments`, write `outputs`, then drop `frees`.

    Attributes:
        function: The kernel, with its constant values bound.
        arguments: Slots of its arguments.
        outputs: Slot of its result, or slots of its results.
        frees: Slots whose values nobody reads any more.
        node: The call as it was bound.
        depends_on: Names of the inputs and states that its results depend on, directly or through other calls.
    """

    function: Callable[..., Any]
    arguments: tuple[int, ...]
    outputs: int | tuple[int, ...]
    frees: tuple[int, ...]
    node: Node
    depends_on: Names


@dataclass(frozen=True, slots=True)
class ExecutionTarget:
    """Precision and device of a schedule.

    Attributes:
        precision: See `program.Program.load`.
        device: Where tensors live.
    """

    precision: Precision
    device: torch.device


def dependencies(nodes: Iterable[Node], sources: Iterable[str]) -> list[Names]:
    """Return for each node the names among `sources` that it depends on, directly or through earlier nodes."""
    known = {name: frozenset((name,)) for name in sources}
    found = []
    for node in nodes:
        depends_on: Names = frozenset().union(*(known[name] for name in node.reads if name in known))
        found.append(depends_on)
        known.update((output.name, depends_on) for output in node.outputs)
    return found


class Schedule:
    """The calls of one function, for one precision and device.

    Attributes:
        nodes: The calls as they were bound, in order.
        slots: Slot of each value, by name.
        tracked: Inputs on which cached results depend; whoever runs the schedule tells which of them changed.
        cached: Slots of the results that are reused in later runs, as long as the inputs they depend on do not change.
        constant_results: Slots of constants, and of what depends on constants alone, that other calls or the caller
            read.
        output_slots: Slots of the outputs.
        lent_outputs: Those of them that share memory with what outlives a run, so that the caller needs a copy.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        inputs: Mapping[str, TensorSpec],
        outputs: Iterable[str],
        states: Iterable[str],
        constants: Iterable[str],
        target: ExecutionTarget,
    ) -> None:
        """Find out what every call depends on, and what to cache.

        Args:
            nodes: The calls, each after those whose results it reads.
            inputs: The function's inputs.
            outputs: Names of the values to return.
            states: Names of the function's states.
            constants: Names of the values that are stored.
            target: How and where to compute.
        """
        self.target = target
        self.nodes = nodes
        self._inputs, self._states = inputs, tuple(states)
        self._output_names = tuple(outputs)
        self._given = tuple(dict.fromkeys((*inputs, *self._states, *constants)))
        results = (output.name for node in nodes for output in node.outputs)
        self.slots = {name: slot for slot, name in enumerate(dict.fromkeys((*self._given, *results)), start=1)}
        self._depends_on = dependencies(nodes, (*inputs, *self._states))
        self._cached_groups = self._groups_worth_caching()
        self.tracked = tuple(name for name in inputs if any(name in group for group in self._cached_groups))
        self.cached = self._slots_to_cache()
        self.constant_results = self._constants_read()
        self.output_slots = tuple(self.slots[name] for name in self._output_names)
        outliving = {*self.cached, *self.constant_results, *self._views_of_states()}
        self.lent_outputs = frozenset(outliving.intersection(self.output_slots))
        self._calls: dict[Names, tuple[Call, ...]] = {}

    # --- what to run -----------------------------------------------------------------------------------------------

    def varying(self) -> list[Node]:
        """Return the calls that depend on an input or a state, in order."""
        return [node for node, depends_on in zip(self.nodes, self._depends_on, strict=True) if depends_on]

    @property
    def cached_alone(self) -> tuple[str, ...]:
        """Inputs from which alone something worth caching is computed."""
        return tuple(name for name in self._inputs if frozenset((name,)) in self._cached_groups)

    def split(self, names: Collection[str]) -> tuple[list[Node], list[Node]]:
        """Return the calls that depend on these inputs alone, and all others that depend on something."""
        parts: tuple[list[Node], list[Node]] = [], []
        for node, depends_on in zip(self.nodes, self._depends_on, strict=True):
            if depends_on:
                parts[not depends_on.issubset(names)].append(node)
        return parts

    def calls(self, changed: Collection[str]) -> tuple[Call, ...]:
        """Return the calls to run, in order, when everything else has been computed in earlier runs.

        They are those that depend on a changed input, and those that are never cached. Calls on constants alone are not
        among them.

        Args:
            changed: The tracked inputs that changed since the last run.
        """
        names = frozenset(changed)
        if names not in self._calls:
            self._calls[names] = self._select(
                lambda depends_on: bool(depends_on) and (depends_on not in self._cached_groups or depends_on & names),
            )
        return self._calls[names]

    @functools.cached_property
    def constant_calls(self) -> tuple[Call, ...]:
        """The calls on constants alone."""
        return self._select(lambda depends_on: not depends_on)

    @functools.cached_property
    def all_calls(self) -> tuple[Call, ...]:
        """All calls, those on constants included. They free nothing, because gradients need all results."""
        return tuple(self._call(node, names) for node, names in zip(self.nodes, self._depends_on, strict=True))

    def run(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Run all calls and cache nothing, so that autograd can go through the whole program.

        Args:
            values: Inputs, states and constants by name. Values with other names are ignored.

        Returns:
            The outputs by name.

        Raises:
            OperationFailedError: A kernel failed; the message names the operation.
        """
        slots = self._filled(self._given, values)
        execute(self.all_calls, slots)
        return {name: slots[self.slots[name]] for name in self._output_names}

    def fold_constants(self, constants: Mapping[str, Tensor]) -> Values:
        """Return slots that hold the constants and what depends on them alone, as far as it is read."""
        values = self._filled(constants, constants)
        execute(self.constant_calls, values)
        return [value if slot in self.constant_results else None for slot, value in enumerate(values)]

    def _filled(self, names: Iterable[str], values: Mapping[str, Any]) -> Values:
        filled: Values = [None] * (len(self.slots) + 1)
        for name in names:
            filled[self.slots[name]] = values[name]
        return filled

    # --- what to cache ---------------------------------------------------------------------------------------------

    def _groups_worth_caching(self) -> frozenset[Names]:
        """Return the sets of inputs whose calls are worth caching.

        Calls that depend on the same inputs are cached or run together. Caching pays when they cost much more than
        finding out whether their inputs changed, and when some other input can change without them.
        """
        costs: Counter[Names] = Counter()
        for node, depends_on in zip(self.nodes, self._depends_on, strict=True):
            costs[depends_on] += _cost(node)
        return frozenset(
            group
            for group, cost in costs.items()
            if group
            and group.isdisjoint(self._states)
            and group != frozenset(self._inputs)
            and cost > max(_WORTH_CACHING, 8 * sum(self._inputs[name].size for name in group))
        )

    def _slots_to_cache(self) -> tuple[int, ...]:
        """Return the slots of results that calls of other groups read, or that are outputs."""
        group_of = {
            output.name: group
            for node, group in zip(self.nodes, self._depends_on, strict=True)
            if group in self._cached_groups
            for output in node.outputs
        }
        names = {name for name in self._output_names if name in group_of}
        for node, group in zip(self.nodes, self._depends_on, strict=True):
            names.update(name for name in node.reads if group_of.get(name, group) != group)
        return tuple(sorted(self.slots[name] for name in names))

    def _constants_read(self) -> frozenset[int]:
        computed = {
            output.name
            for node, depends_on in zip(self.nodes, self._depends_on, strict=True)
            if depends_on
            for output in node.outputs
        }
        read = set(self._output_names)
        for node, depends_on in zip(self.nodes, self._depends_on, strict=True):
            if depends_on:
                read.update(node.reads)
        return frozenset(self.slots[name] for name in read.difference(computed, self._inputs, self._states))

    def _views_of_states(self) -> set[int]:
        """Return the slots of values that may share memory with a state, which a later run changes."""
        names = set(self._states)
        for node in self.nodes:
            if node.may_share_memory and not names.isdisjoint(node.reads):
                names.update(output.name for output in node.outputs)
        return {self.slots[name] for name in names}

    # --- calls -----------------------------------------------------------------------------------------------------

    def _select(self, is_wanted: Callable[[Names], object]) -> tuple[Call, ...]:
        """Return the calls whose dependencies are wanted. Large values are dropped after their last use."""
        chosen = [
            (node, depends_on)
            for node, depends_on in zip(self.nodes, self._depends_on, strict=True)
            if is_wanted(depends_on)
        ]
        large = {self.slots[output.name] for node, _ in chosen for output in node.outputs if output.size >= _LARGE}
        freeable = large.difference(self.cached, self.constant_results, self.output_slots)
        calls: list[Call] = []
        for node, depends_on in reversed(chosen):
            call = self._call(node, depends_on)
            frees = tuple(freeable.intersection(call.arguments))
            freeable.difference_update(frees)
            calls.append(call._replace(frees=frees))
        return tuple(reversed(calls))

    def _call(self, node: Node, depends_on: Names) -> Call:
        """Make the call of a node: its constant values bound, its result rounded where the precision says so."""
        values = dict(node.values)
        if "out_dtype" in node.kernel.values:
            values["out_dtype"] = storage_dtype(node.outputs[0].dtype, self.target.precision)
        if "out_device" in node.kernel.values:
            values["out_device"] = self.target.device
        function = functools.partial(node.kernel.function, **values) if values else node.kernel.function
        arguments = tuple(0 if name is None else self.slots[name] for name in node.arguments)
        if node.dynamic:
            function = _reading(function, len(arguments), tuple(node.dynamic))
            arguments += tuple(self.slots[name] for name in node.dynamic.values())
        if self.target.precision == "float16":
            function = _rounding(function, node)
        elif node.type.startswith("constexpr_"):
            function = _materialising(function, node)
        outputs = tuple(self.slots[output.name] for output in node.outputs)
        if not set(self.cached).isdisjoint(outputs):
            function = _contiguous(function)
        return Call(function, arguments, outputs[0] if len(outputs) == 1 else outputs, (), node, depends_on)


def execute(calls: Iterable[Call], values: Values) -> None:
    """Run the calls on `values`.

    Raises:
        OperationFailedError: A kernel failed; the message names the operation.
    """
    call = None
    try:
        for call in calls:
            result = call.function(*[values[slot] for slot in call.arguments])
            outputs = call.outputs
            if isinstance(outputs, int):
                values[outputs] = result if result.__class__ is not tuple else result[0]
            else:
                for slot, part in zip(outputs, result, strict=True):
                    values[slot] = part
            for slot in call.frees:
                values[slot] = None
    except Exception as error:
        if call is None:
            raise
        reason = first_line(error)
        raise OperationFailedError(f"operation {call.node.type} {call.node.name!r} failed: {reason}") from error


def _contiguous(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lay out cached results in row-major order: they are read many times, and products read that fastest."""

    def lay_out(*arguments: Any) -> Any:
        result = function(*arguments)
        return result.contiguous() if isinstance(result, Tensor) else tuple(part.contiguous() for part in result)

    return lay_out


def _reading(function: Callable[..., Any], tensors: int, names: tuple[str, ...]) -> Callable[..., Any]:
    """Let a kernel take some keyword values from tensors, which follow its `tensors` positional arguments."""

    def read(*arguments: Any) -> Any:
        values = {name: value.tolist() for name, value in zip(names, arguments[tensors:], strict=True)}
        return function(*arguments[:tensors], **values)

    return read


def _rounding(function: Callable[..., Any], node: Node) -> Callable[..., Any]:
    """Compute in float32 and round each result to its declared type, beyond float16's range to infinity."""
    dtypes = tuple(storage_dtype(output.dtype, "float16") for output in node.outputs)
    floats = tuple(dtype if dtype.is_floating_point else None for dtype in dtypes)

    def compute(*arguments: Any) -> Any:
        result = function(*[_widened(argument) for argument in arguments])
        if not isinstance(result, tuple):
            return result if floats[0] is None else result.to(floats[0])
        return tuple(part if dtype is None else part.to(dtype) for part, dtype in zip(result, floats, strict=True))

    def move(*arguments: Any) -> Any:
        if any(isinstance(argument, Tensor) and argument.dtype is torch.float32 for argument in arguments):
            return compute(*arguments)  # a stored constant, which is held as float32, among them
        return function(*arguments)

    return move if node.kernel.moves_only else compute


def _materialising(function: Callable[..., Any], node: Node) -> Callable[..., Any]:
    """Round what a compressed weight stands for to its declared type in float32 mode too.

    Such a weight is stored data and not a computation: Core ML makes it dense in the declared type before anything
    runs. Without the rounding, products with scales would be more exact than the weights that ship.
    """
    is_half = tuple(output.dtype == "float16" for output in node.outputs)

    def compute(*arguments: Any) -> Any:
        result = function(*arguments)
        parts = result if isinstance(result, tuple) else (result,)
        rounded = tuple(part.half().float() if half else part for part, half in zip(parts, is_half, strict=True))
        return rounded if isinstance(result, tuple) else rounded[0]

    return compute if any(is_half) else function


def _widened(argument: Any) -> Any:
    if isinstance(argument, Tensor) and argument.dtype is torch.float16:
        return argument.float()
    return argument


def _cost(node: Node) -> int:
    """Return a rough count of the multiply-adds of a call: none for moving elements, 64 an element for a product."""
    if node.may_share_memory:
        return 0
    size = sum(output.size for output in node.outputs)
    return size * 64 if work_of(node.type.removeprefix("fused_")) is Work.PRODUCT else size
