"""Assignment to fixed palettes that makes up for its own errors: what one input rounds off, later ones take over.

The error that counts is that of the layer's output over speech, `|(W - Q) X|**2`, which the inputs' second moment
`X X'` gives. Inputs are rounded one after another; what one rounds off is compensated in those not yet rounded, along
the inverse of that matrix. Table, scales and size stay the same, only indices change.

Each layer's error falls to a third, but the divergence at the logits only at 3 bits (to two thirds), not at 4 with
palettes that know what matters (`compensation` beside this), so it stays out of the product.

Source: Frantar et al., "GPTQ", arXiv 2210.17323, algorithm 1.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.errors import RecipeError
from whisperkit_tools.mil.graph import Graph
from whisperkit_tools.mil.tensor_spec import TensorSpec
from whisperkit_tools.quantization.palette import Palettized

Real = NDArray[Any]
_BLOCK = 128  # inputs whose errors are passed on together


def compensable(graph: Graph) -> dict[str, TensorSpec]:
    """The weights that can be treated so, each with the value it multiplies: 1x1 convolutions, linear layers.

    A weight with several users (the token embedding) is left out.
    """
    users: dict[str, list[tuple[str, TensorSpec]]] = {}
    for operation in graph.operations:
        for key, values in operation.inputs.items():
            for value in values:
                kind = operation.type if key == "weight" else ""
                users.setdefault(value.name, []).append((kind, operation.inputs.get("x", (value,))[0]))
    found = {}
    for name, constant in graph.constants.items():
        if len(users.get(name, ())) == 1 and constant.in_weights_file:
            (kind, value) = users[name][0]
            if _is_plain(kind, constant.spec.shape, value.shape):
                found[name] = value
    return found


def _is_plain(kind: str, weight: tuple[int | None, ...], value: tuple[int | None, ...]) -> bool:
    if kind == "conv":
        return weight[2:] == (1, 1) and weight[1] == value[1]
    return kind == "linear" and weight[1] == value[-1]


def with_inputs(graph: Graph, names: Iterable[str]) -> Graph:
    """The program with the values that `names` (of `compensable`) multiply as further outputs."""
    known = compensable(graph)
    return replace(graph, outputs={**graph.outputs, **{known[name].name: known[name] for name in names}})


def second_moment(value: Real) -> NDArray[np.float64]:
    """`X X'` of a layer's input: `[1, C, H, W]` of a convolution, or `[..., C]` of a linear layer; `[C, C]`."""
    wide = value.astype(np.float64)
    columns = wide.reshape(wide.shape[1], -1) if wide.ndim == 4 else wide.reshape(-1, wide.shape[-1]).T
    found: NDArray[np.float64] = columns @ columns.T
    return found


def input_importance(moment: Real, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Each element's importance by its input's power alone, for the palette that `compensate` is to assign to."""
    power = np.diag(moment).astype(np.float32)
    return np.array(np.broadcast_to(power.reshape(1, -1, *[1] * (len(shape) - 2)), shape))


def compensate(palettized: Palettized, weight: Real, moment: Real, damping: float = 0.1) -> Palettized:
    """Assign a weight anew to its palette, errors passed on.

    Args:
        palettized: The weight with palettes of numbers, and no outliers.
        weight: `[O, I]` or `[O, I, 1, 1]`.
        moment: `[I, I]`, the sum of `second_moment` over speech.
        damping: What is added to the moment's diagonal, in units of its mean.

    Raises:
        RecipeError: The weight is not of that form, or the moment is not of its inputs, or not finite.
    """
    rows, inputs = _checked(palettized, weight, moment)
    power = float(np.trace(moment)) / inputs
    if power <= 0:
        return palettized
    inverse = np.linalg.inv(moment / power + damping * np.eye(inputs))
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    tables = _tables(palettized)
    left = weight.reshape(rows, inputs).astype(np.float64)
    indices = np.empty((rows, inputs), np.uint8)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = np.empty((rows, end - start))
        for at in range(start, end):
            table = tables[:, at % tables.shape[1]]
            indices[:, at] = chosen = _nearest(left[:, at], table)
            kept = table[0, chosen] if len(table) == 1 else np.take_along_axis(table, chosen[:, None], axis=1)[:, 0]
            errors[:, at - start] = (left[:, at] - kept) / upper[at, at]
            left[:, at + 1 : end] -= np.outer(errors[:, at - start], upper[at, at + 1 : end])
        left[:, end:] -= errors @ upper[start:end, end:]
    return replace(palettized, indices=indices.reshape(palettized.indices.shape))


def _checked(palettized: Palettized, weight: Real, moment: Real) -> tuple[int, int]:
    option, name, shape = palettized.compression, palettized.name, palettized.shape
    if option.cluster_dim > 1 or option.outlier_share or option.kind != "palette":
        raise RecipeError(f"{name!r} with {option}: errors are passed on for palettes of numbers without outliers only")
    if len(shape) < 2 or any(size != 1 for size in shape[2:]) or option.axis > 1 or weight.shape != shape:
        raise RecipeError(f"{name!r} {list(weight.shape)} is not the weight of a linear layer or 1x1 convolution")
    if moment.shape != (shape[1], shape[1]) or not np.all(np.isfinite(moment)):
        raise RecipeError(f"the moment of {name!r} is {list(moment.shape)}, expected finite {[shape[1], shape[1]]}")
    return shape[0], shape[1]


def _tables(palettized: Palettized) -> NDArray[np.float64]:
    """The entries for each row and input, scales multiplied in, `[1 or O, 1 or I, P]`."""
    tables = palettized.lut.astype(np.float32)[..., 0].reshape(*palettized.lut.shape[:2], -1)
    for axis in (0, 1):
        if tables.shape[axis] > 1:
            tables = np.repeat(tables, palettized.shape[axis] // tables.shape[axis], axis=axis)
    if palettized.scale is not None:
        tables = (tables * palettized.scale.reshape(*palettized.scale.shape[:2], 1).astype(np.float32)).astype(
            np.float16
        )
    return tables.astype(np.float64)


def _nearest(values: Real, table: Real) -> NDArray[np.intp]:
    """Indices of the entries nearest to `values` `[O]` in ascending tables `[1 or O, P]`."""
    middles = (table[:, 1:] + table[:, :-1]) / 2
    if len(middles) == 1:
        return np.searchsorted(middles[0], values)
    return np.asarray((values[:, None] > middles).sum(axis=1))


def output_error(difference: Real, moment: Real) -> float:
    """`|D X|**2` for a weight's difference `D` `[O, I, ...]` from the original."""
    rows = difference.reshape(len(difference), -1).astype(np.float64)
    return float(np.einsum("oi,ij,oj->", rows, moment, rows, optimize=True))
