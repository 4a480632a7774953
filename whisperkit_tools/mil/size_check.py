"""Limits on the tensors that a program declares or computes.

A damaged or hostile program lies about its sizes: one `fill` of a few bytes can ask for all memory of a machine.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from whisperkit_tools import limits
from whisperkit_tools.errors import BundleError, WktError
from whisperkit_tools.files import first_line
from whisperkit_tools.mil.kernels import Node
from whisperkit_tools.mil.tensor_spec import TensorSpec

_MATRICES = frozenset({"matmul", "linear", "einsum", "scaled_dot_product_attention"})
_ONE_BY_ONE = frozenset({"conv", "conv_transpose", "gather", "gather_along_axis", "gather_nd", "concat", "stack"})


def check_sizes(path: Path, nodes: Iterable[Node], specs: Mapping[str, TensorSpec]) -> None:
    """Check that no operation on several tensors makes more of them than `limits` allows.

    Kernels that make a tensor from numbers check these themselves, see `kernels.limited`.

    Args:
        path: The package, for the message.
        nodes: The operations in order.
        specs: Inputs, states and constants by name.

    Raises:
        BundleError: One of them does.
    """
    known = {name: spec.shape for name, spec in specs.items()}
    for node in nodes:
        shapes = [tuple(axis or 1 for axis in known[name]) for name in node.arguments if name in known]
        known.update((output.name, output.shape) for output in node.outputs)
        size = _elements(node.type, shapes) if len(shapes) > 1 else 0
        if size > limits.TENSOR_ELEMENTS:
            raise BundleError(
                f"{path}: operation {node.type} {node.name!r} makes a tensor of {size} elements; the maximum is "
                f"{limits.TENSOR_ELEMENTS}; make the package again"
            )


def _elements(kind: str, shapes: list[tuple[int, ...]]) -> int:
    """Return the number of elements that an operation makes by stretching its arguments over each other."""
    if kind in _ONE_BY_ONE:
        return 0
    if kind in _MATRICES:
        rows = [shape[-2] if len(shape) > 1 else 1 for shape in shapes[:2]]
        columns = [shape[-1] if shape else 1 for shape in shapes[:2]]
        return min(_stretched([shape[:-2] for shape in shapes[:2]]), 1 << 62) * min(
            rows[0] * columns[1], rows[0] * rows[1], columns[0] * columns[1], columns[0] * rows[1]
        )
    return _stretched(shapes)


def _stretched(shapes: list[tuple[int, ...]]) -> int:
    try:
        return math.prod(np.broadcast_shapes(*shapes))
    except ValueError:  # they do not fit, which the run reports
        return 0


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Report what goes wrong inside as damage of a package. A program may be wrong in more ways than can be foreseen.

    Raises:
        BundleError: Something went wrong that is not an error of its own.
    """
    try:
        yield
    except (WktError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = str(error.args[0]) if isinstance(error, KeyError) and error.args else first_line(error)
        raise BundleError(
            f"{path}: the program is damaged ({type(error).__name__}: {reason}); make the package again"
        ) from error
