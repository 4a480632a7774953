"""How the name of an ML Program operation leads to the function that computes it.

A kernel is a plain function. Its positional parameters are tensors and bear the names of the operation's parameters;
its keyword-only parameters are Python values, known when the program is loaded in all but unusual programs. Two
keyword-only names are filled in by the executor: `out_dtype`, the torch type in which the first output is held, and
`out_device`.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Kernel:
    """A function that computes operations of one type.

    Attributes:
        type: The operation's type.
        function: Called with tensors by position and values by keyword.
        tensors: Names of the positional parameters.
        required: Those of `tensors` without a default.
        variadic: Name of the list parameter, when the function takes any number of tensors.
        values: Names of the keyword-only parameters.
        exact: Every element of the result is an element of an argument, so that there is nothing to round.
    """

    type: str
    function: Callable[..., Any]
    tensors: tuple[str, ...]
    required: tuple[str, ...]
    variadic: str | None
    values: tuple[str, ...]
    exact: bool


def operation(*types: str, exact: bool = False) -> Callable[[_Function], _Function]:
    """Mark a function as the kernel of these operation types.

    Args:
        types: Names of the operations.
        exact: The kernel only moves or selects elements.
    """

    def mark(function: _Function) -> _Function:
        function.__dict__["mil_operations"] = (types, exact)
        return function

    return mark


@functools.cache
def kernels() -> dict[str, Kernel]:
    """Return all kernels by operation type."""
    from whisperkit_tools.mil import ops

    found: dict[str, Kernel] = {}
    for module_info in pkgutil.iter_modules(ops.__path__):
        module = importlib.import_module(f"{ops.__name__}.{module_info.name}")
        for function in vars(module).values():
            types, exact = getattr(function, "mil_operations", ((), False))
            found.update((name, make_kernel(name, function, exact=exact)) for name in types)
    return found


def make_kernel(name: str, function: Callable[..., Any], *, exact: bool = False) -> Kernel:
    """Return the kernel that calls `function`, its parameters read off the signature."""
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    return Kernel(
        type=name,
        function=function,
        tensors=tuple(p.name for p in positional),
        required=tuple(p.name for p in positional if p.default is p.empty),
        variadic=variadic[0] if variadic else None,
        values=tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
        exact=exact,
    )
