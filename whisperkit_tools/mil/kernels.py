"""Kernels, the functions that compute operations, and the binding of a graph's operations to calls of them.

A kernel is a plain function. Its positional parameters are tensors and have the names of the operation's parameters.
Its keyword-only parameters are Python values, known when the program is loaded in all but unusual programs. The
schedule fills in two keyword-only names: `out_dtype`, the torch type in which the first output is held, and
`out_device`.
"""

import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from whisperkit_tools import limits
from whisperkit_tools.errors import UnsupportedOperationError
from whisperkit_tools.mil.graph import Constant, Graph, Operation
from whisperkit_tools.mil.tensor_spec import TensorSpec

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Kernel:
    """A function that computes operations of one type.

    Attributes:
        type: The operation's type.
        function: Called with tensors by position and values by keyword.
        tensors: Names of the positional parameters.
        variadic: Name of the list parameter, when the function takes any number of tensors.
        values: Names of the keyword-only parameters.
        moves_only: Every element of the result is an element of an argument, so that there is nothing to round.
    """

    type: str
    function: Callable[..., Any]
    tensors: tuple[str, ...]
    variadic: str | None
    values: tuple[str, ...]
    moves_only: bool


_KERNELS: dict[str, Kernel] = {}


def operation(*types: str, moves_only: bool = False) -> Callable[[_Function], _Function]:
    """Register a function as the kernel of these operation types.

    Args:
        types: Names of the operations.
        moves_only: The kernel only moves or selects elements.
    """

    def register(function: _Function) -> _Function:
        _KERNELS.update((name, make_kernel(name, function, moves_only=moves_only)) for name in types)
        return function

    return register


def register_functions(functions: Mapping[str, Callable[..., Any]], *tensors: str) -> None:
    """Register functions that take tensors alone, such as torch's, whose signatures cannot be inspected.

    Args:
        functions: The kernels by operation type.
        tensors: Names of the operations' parameters, all of them required.
    """
    _KERNELS.update((name, Kernel(name, function, tensors, None, (), False)) for name, function in functions.items())


@functools.cache
def kernels() -> dict[str, Kernel]:
    """Return all kernels by operation type."""
    from whisperkit_tools.mil import ops

    for module in pkgutil.iter_modules(ops.__path__):
        importlib.import_module(f"{ops.__name__}.{module.name}")
    return dict(_KERNELS)


def limited(*sizes: int) -> tuple[int, ...]:
    """Return the shape of a tensor that a kernel makes from numbers of the program.

    Raises:
        ValueError: It has more elements than `limits.TENSOR_ELEMENTS`.
    """
    elements = math.prod(max(0, int(size)) for size in sizes)
    if elements > limits.TENSOR_ELEMENTS:
        raise ValueError(f"it asks for a tensor of {elements} elements; the maximum is {limits.TENSOR_ELEMENTS}")
    return tuple(sizes)


def make_kernel(name: str, function: Callable[..., Any], *, moves_only: bool = False) -> Kernel:
    """Return the kernel that calls `function`, its parameters read off the signature."""
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    return Kernel(
        type=name,
        function=function,
        tensors=tuple(p.name for p in positional),
        variadic=variadic[0] if variadic else None,
        values=tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
        moves_only=moves_only,
    )


@dataclass(slots=True)
class Node:
    """A call of a kernel.

    Attributes:
        type: The operation's type.
        name: The operation's name, for messages.
        kernel: What computes it.
        arguments: Names of the tensors passed by position; None for an omitted one.
        outputs: What it computes.
        values: Python values passed by keyword.
        dynamic: Keyword parameters whose value is a tensor that has to be read at run time, by name.
    """

    type: str
    name: str
    kernel: Kernel
    arguments: tuple[str | None, ...]
    outputs: tuple[TensorSpec, ...]
    values: dict[str, Any] = field(default_factory=dict)
    dynamic: dict[str, str] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of all values that the call reads."""
        return (*(name for name in self.arguments if name is not None), *self.dynamic.values())

    @property
    def may_share_memory(self) -> bool:
        """Whether the results may be views of what the call reads."""
        return self.kernel.moves_only or self.type == "cast"


def bind(graph: Graph) -> list[Node]:
    """Find the kernel of each operation and bind its arguments.

    Raises:
        UnsupportedOperationError: Operations without a kernel, all of them in one message.
    """
    known = kernels()
    unknown = [op for op in graph.operations if op.type not in known or op.has_blocks]
    unknown += [op for op in graph.operations if op not in unknown and _unknown_inputs(op, known[op.type])]
    if unknown:
        raise UnsupportedOperationError(_unsupported_message(graph, unknown, known))
    return [_bind_one(op, known[op.type], graph.constants) for op in graph.operations]


def _unknown_inputs(op: Operation, kernel: Kernel) -> list[str]:
    """Return the parameters of an operation that its kernel does not have."""
    accepted = {*kernel.tensors, *kernel.values, kernel.variadic}
    return [parameter for parameter in op.inputs if parameter not in accepted]


def _bind_one(op: Operation, kernel: Kernel, constants: dict[str, Constant]) -> Node:
    inputs = op.inputs
    arguments: list[str | None]
    if kernel.variadic:
        arguments = [inputs[name][0].name for name in kernel.tensors]
        arguments.extend(source.name for source in inputs[kernel.variadic])
    else:
        arguments = [inputs[name][0].name if name in inputs else None for name in kernel.tensors]
        while arguments and arguments[-1] is None:
            arguments.pop()
    values: dict[str, Any] = {}
    dynamic: dict[str, str] = {}
    for parameter in kernel.values:
        if parameter not in inputs:
            continue
        sources = inputs[parameter]
        if all(source.name in constants for source in sources):
            found = [python_value(constants[source.name].value) for source in sources]
            values[parameter] = found[0] if len(found) == 1 else found
        else:
            dynamic[parameter] = sources[0].name
    return Node(op.type, op.name, kernel, tuple(arguments), op.outputs, values, dynamic)


def python_value(value: Any) -> Any:
    """Return a constant as `str`, number, bool or nested lists of them."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _unsupported_message(graph: Graph, unknown: Iterable[Operation], known: dict[str, Kernel]) -> str:
    """Return a message that names each unknown operation, its place, and what is supported."""
    lines = []
    for op in unknown:
        reason = "control flow" if op.has_blocks else ""
        if not reason and op.type in known:
            reason = f"with {', '.join(_unknown_inputs(op, known[op.type]))}"
        traced = f", traced from {op.module}" if op.module else ""
        what = f"{op.type}{f' ({reason})' if reason else ''}"
        lines.append(f"  {what}: {op.name!r}, operation {op.position} of function {graph.function!r}{traced}")
    count = f"{len(lines)} operation{'s' if len(lines) > 1 else ''}"
    return (
        f"{graph.path}: {count} cannot be executed:\n"
        + "\n".join(lines)
        + f"\n  Supported are: {', '.join(sorted(known))}"
    )
