"""A program made ready to run: calls with numbered places for values, sorted by what they depend on.

Calls that depend on constants alone are worked out once. Of the others, those that depend only on inputs that did not
change since the last run are left out, and what they computed for the rest of the program is kept. In Whisper's decoder
those are the keys and values that every layer projects from the audio.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from whisperkit_tools.mil.kernels import Node
from whisperkit_tools.mil.tensor_spec import Precision, TensorSpec, storage_dtype

Values: TypeAlias = list[Any]
"""What the places of a plan hold during a run; place 0 holds None, for arguments left out."""

_ALWAYS = 1  # bit of a call that has to run each time; the other bits stand for inputs
_WORTH_KEEPING = 50_000  # multiply-adds below which keeping results saves nothing
_LARGE = 1 << 16  # elements from which on a value is freed as soon as it was used for the last time


class Call(NamedTuple):
    """One kernel call: read `arguments`, write `outputs`, then forget `frees`."""

    function: Callable[..., Any]
    arguments: tuple[int, ...]
    outputs: int | tuple[int, ...]
    frees: tuple[int, ...]
    node: Node


@dataclass(frozen=True, slots=True)
class Target:
    """How and where a plan computes.

    Attributes:
        precision: See `program.Program.load`.
        device: Where tensors live.
    """

    precision: Precision
    device: torch.device


class Plan:
    """The calls of one function, for one precision and device."""

    def __init__(
        self,
        nodes: Sequence[Node],
        inputs: Mapping[str, TensorSpec],
        outputs: Iterable[str],
        states: Iterable[str],
        constants: Iterable[str],
        target: Target,
    ) -> None:
        """Sort the calls.

        Args:
            nodes: The calls, each after those whose results it reads.
            inputs: The function's inputs.
            outputs: Names of the values to give out.
            states: Names of the function's states.
            constants: Names of the values that are stored.
            target: How and where to compute.
        """
        self.target = target
        self.nodes = nodes
        self.inputs = inputs
        self.output_names = tuple(outputs)
        self.places: dict[str, int] = {}
        for name in (*inputs, *states, *constants):
            self._place(name)
        for node in nodes:
            for output in node.outputs:
                self._place(output.name)
        self.watched: dict[str, int] = {}
        masks = self._dependencies(inputs, states)
        self._masks = self._with_worth(masks, inputs)
        self.kept = self._boundary()
        self.output_places = tuple(self.places[name] for name in self.output_names)
        lasting = {*self.kept, *self.constants_needed(), *self._views_of(states)}
        self.shared = frozenset(lasting.intersection(self.output_places))
        self._variants: dict[int | None, tuple[Call, ...]] = {}

    def _place(self, name: str) -> int:
        return self.places.setdefault(name, len(self.places) + 1)

    def _dependencies(self, inputs: Mapping[str, TensorSpec], states: Iterable[str]) -> dict[str, int]:
        """Return for each value the set of inputs it depends on, as bits; none for constants."""
        masks: dict[str, int] = {name: 2 << number for number, name in enumerate(inputs)}
        masks.update(dict.fromkeys(states, _ALWAYS))
        for node in self.nodes:
            mask = 0
            for name in node.reads:
                mask |= masks.get(name, 0)
            masks.update((output.name, mask) for output in node.outputs)
        return masks

    def _with_worth(self, masks: dict[str, int], inputs: Mapping[str, TensorSpec]) -> list[int]:
        """Return each call's mask, with `_ALWAYS` added where keeping its results would not pay.

        Calls with the same mask are kept or run together. Keeping pays when they cost much more than finding out
        whether their inputs changed, and when some other input can change without them.
        """
        everything = functools.reduce(lambda mask, number: mask | 2 << number, range(len(inputs)), 0)
        costs: dict[int, int] = defaultdict(int)
        for node in self.nodes:
            costs[self._mask_of(node, masks)] += _cost(node)
        worth = {0}
        for mask, cost in costs.items():
            compared = sum(spec.size for number, spec in enumerate(inputs.values()) if mask & 2 << number)
            if mask != everything and not mask & _ALWAYS and cost > max(_WORTH_KEEPING, 8 * compared):
                worth.add(mask)
        for number, name in enumerate(inputs):
            if any(mask & 2 << number for mask in worth):
                self.watched[name] = 2 << number
        return [
            mask if mask in worth else mask | _ALWAYS for mask in (self._mask_of(node, masks) for node in self.nodes)
        ]

    @staticmethod
    def _mask_of(node: Node, masks: dict[str, int]) -> int:
        # A call without outputs (a write to a state) reads the state, so the reads always tell.
        return functools.reduce(lambda mask, name: mask | masks.get(name, 0), node.reads, 0)

    def _boundary(self) -> tuple[int, ...]:
        """Return the places of values that outlive a run: read, or given out, beyond the calls of their own mask."""
        made_by = {
            output.name: mask for node, mask in zip(self.nodes, self._masks, strict=True) for output in node.outputs
        }
        lasting = {name for name, mask in made_by.items() if mask and not mask & _ALWAYS}
        kept = lasting.intersection(self.output_names)
        for node, mask in zip(self.nodes, self._masks, strict=True):
            kept.update(name for name in node.reads if name in lasting and made_by[name] != mask)
        return tuple(sorted(self.places[name] for name in kept))

    def _views_of(self, states: Iterable[str]) -> set[int]:
        """Return the places of values that may share memory with a state, which a later run changes."""
        names = set(states)
        for node in self.nodes:
            if (node.kernel.exact or node.type == "cast") and not names.isdisjoint(node.reads):
                names.update(output.name for output in node.outputs)
        return {self.places[name] for name in names}

    def calls(self, changed: int | None) -> tuple[Call, ...]:
        """Return the calls to run, in order, those on constants not among them.

        Args:
            changed: The watched inputs that changed, as bits; None for all calls, those on constants included.
        """
        if changed not in self._variants:
            self._variants[changed] = self._select(
                lambda mask: changed is None or bool(mask & (changed | _ALWAYS)), free=changed is not None
            )
        return self._variants[changed]

    def folding(self) -> tuple[Call, ...]:
        """Return the calls on constants alone."""
        return self._select(lambda mask: mask == 0, free=True)

    def constants_needed(self) -> set[int]:
        """Return the places of constants, and of what depends on them alone, that later calls or the caller read."""
        made = {out.name for node, mask in zip(self.nodes, self._masks, strict=True) if mask for out in node.outputs}
        needed = set(self.output_names)
        for node, mask in zip(self.nodes, self._masks, strict=True):
            if mask:
                needed.update(node.reads)
        return {self.places[name] for name in needed - made - set(self.inputs)}

    def _select(self, wanted: Callable[[int], bool], *, free: bool) -> tuple[Call, ...]:
        """Return the calls whose mask is wanted; with `free`, large values are dropped after their last use."""
        chosen = [node for node, mask in zip(self.nodes, self._masks, strict=True) if wanted(mask)]
        lasting = {*self.kept, *self.constants_needed(), *(self.places[name] for name in self.output_names)}
        made = {output.name for node in chosen for output in node.outputs if output.size >= _LARGE}
        freeable = {self.places[name] for name in made} - lasting if free else set()
        calls: list[Call] = []
        for node in reversed(chosen):
            call = self._call(node)
            frees = tuple(freeable.intersection(call.arguments))
            freeable.difference_update(frees)
            calls.append(call._replace(frees=frees))
        return tuple(reversed(calls))

    def _call(self, node: Node) -> Call:
        """Make the call of a node: its constant values bound, its result rounded where the precision says so."""
        values = dict(node.values)
        if "out_dtype" in node.kernel.values:
            values["out_dtype"] = storage_dtype(node.outputs[0].dtype, self.target.precision)
        if "out_device" in node.kernel.values:
            values["out_device"] = self.target.device
        function = functools.partial(node.kernel.function, **values) if values else node.kernel.function
        arguments = tuple(0 if name is None else self.places[name] for name in node.arguments)
        if node.dynamic:
            function = _reading(function, len(arguments), tuple(node.dynamic))
            arguments += tuple(self.places[name] for name in node.dynamic.values())
        if self.target.precision == "float16":
            function = _rounding(function, node)
        outputs = tuple(self.places[output.name] for output in node.outputs)
        if not set(self.kept).isdisjoint(outputs):
            function = _contiguous(function)
        return Call(function, arguments, outputs[0] if len(outputs) == 1 else outputs, (), node)

    def empty_values(self) -> Values:
        """Return a list with a place for each value."""
        return [None] * (len(self.places) + 1)


def execute(calls: Iterable[Call], values: Values) -> None:
    """Run the calls on `values`.

    Raises:
        RuntimeError: A kernel failed; the message names the operation.
    """
    call = None
    try:
        for call in calls:
            result = call.function(*[values[place] for place in call.arguments])
            outputs = call.outputs
            if isinstance(outputs, int):
                values[outputs] = result if result.__class__ is not tuple else result[0]
            else:
                for place, part in zip(outputs, result, strict=True):
                    values[place] = part
            for place in call.frees:
                values[place] = None
    except Exception as error:
        if call is None:
            raise
        raise RuntimeError(f"operation {call.node.type} {call.node.name!r} failed: {error}") from error


def _contiguous(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lay out results that are kept in row-major order: they are read many times, and products read that fastest."""

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

    return move if node.kernel.exact else compute


def _widened(argument: Any) -> Any:
    if isinstance(argument, Tensor) and argument.dtype is torch.float16:
        return argument.float()
    return argument


_MOVING = frozenset(
    {"cast", "concat", "expand_dims", "gather", "identity", "read_state", "reshape"}
    | {"slice_by_index", "slice_by_size", "split", "squeeze", "stack", "transpose"}
)
_MULTIPLYING = frozenset({"conv", "conv_transpose", "einsum", "linear", "matmul", "scaled_dot_product_attention"})


def _cost(node: Node) -> int:
    """Return a rough count of the multiply-adds of a call; moving elements is free, a product counts 64 an element."""
    if node.type in _MOVING:
        return 0
    size = sum(output.size for output in node.outputs)
    return size * 64 if node.type.removeprefix("fused_") in _MULTIPLYING else size
