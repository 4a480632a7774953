"""Assignment to fixed palettes that makes up for its own errors: later inputs compensate what earlier ones round off.

The error that counts is that of the layer's output over speech, `|(W - Q) X|**2`, which the second moment `X X'` of the
inputs gives. Inputs are rounded one after another, those of much power first. What one rounds off is compensated in
those that are not rounded yet, along the inverse of the moment. Palettes, scales and size stay the same. Only indices
change.

Source: Frantar et al., "GPTQ", arXiv 2210.17323, algorithm 1 and section "activation order".
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.errors import RecipeError
from whisperkit_tools.mil.graph import Graph
from whisperkit_tools.mil.tensor_spec import TensorSpec
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.palette import Palettized

Real = NDArray[Any]
_BLOCK = 128  # inputs whose errors are passed on together
_DAMPING = 0.1  # of the moment's mean diagonal, which keeps the inverse from trusting rare directions


def compensable(graph: Graph) -> dict[str, TensorSpec]:
    """Return the weights of 1x1 convolutions and linear layers, each with the value that it multiplies.

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
    """Return the program with the values that `names` (of `compensable`) multiply as further outputs."""
    known = compensable(graph)
    taps = {known[name].name: known[name] for name in names if known[name].name not in graph.inputs}
    return replace(graph, outputs={**graph.outputs, **taps})


def second_moment(value: Tensor) -> Tensor:
    """Return `X X'` of a layer's input: `[N, C, H, W]` of a convolution, or `[..., C]` of a linear layer; `[C, C]`."""
    rows = value.movedim(1, -1).reshape(-1, value.shape[1]) if value.ndim == 4 else value.reshape(-1, value.shape[-1])
    return rows.T @ rows


def accepts(compression: Compression, shape: tuple[int, ...]) -> bool:
    """Whether `compensate` takes a weight of a shape under a compression: palettes of numbers without outliers."""
    is_numbers = compression.kind == "palette" and compression.cluster_dim == 1 and not compression.outlier_share
    return is_numbers and compression.axis <= 1 and len(shape) >= 2 and all(size == 1 for size in shape[2:])


def compensate(palettized: Palettized, weight: Real, moment: Real, damping: float = _DAMPING) -> Palettized:
    """Assign a weight anew to its palettes, with errors passed on.

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
    with torch.no_grad():
        given = torch.from_numpy(np.asarray(moment, np.float64)) / power
        order = given.diagonal().argsort(descending=True, stable=True)
        upper = _inverse_factor(given[order][:, order], damping)
        left = torch.from_numpy(weight.reshape(rows, inputs).astype(np.float32))[:, order]
        found = _assign(left, upper, _tables(palettized), order)
    indices = np.empty((rows, inputs), np.uint8)
    indices[:, order.numpy()] = found.numpy()
    return replace(palettized, indices=indices.reshape(palettized.indices.shape))


def _inverse_factor(moment: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of the damped moment's inverse, float32."""
    damped = moment + damping * torch.eye(len(moment), dtype=moment.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.float()


def _assign(left: Tensor, upper: Tensor, tables: Tensor, order: Tensor) -> Tensor:
    """Return the indices `[O, I]` of a weight whose inputs are in `order`. `left` is used up."""
    rows, inputs = left.shape
    indices = torch.empty(rows, inputs, dtype=torch.uint8)
    columns = order * tables.shape[1] // inputs
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = torch.empty(rows, end - start)
        for at in range(start, end):
            chosen, kept = _nearest(left[:, at], tables[:, columns[at]])
            indices[:, at] = chosen
            errors[:, at - start] = (left[:, at] - kept) / upper[at, at]
            left[:, at + 1 : end] -= torch.outer(errors[:, at - start], upper[at, at + 1 : end])
        left[:, end:] -= errors @ upper[start:end, end:]
    return indices


def _checked(palettized: Palettized, weight: Real, moment: Real) -> tuple[int, int]:
    wanted, name, shape = palettized.compression, palettized.name, palettized.shape
    if wanted.kind != "palette" or wanted.cluster_dim > 1 or wanted.outlier_share:
        raise RecipeError(f"{name!r} with {wanted}: errors are passed on for palettes of numbers without outliers only")
    if not accepts(wanted, shape) or weight.shape != shape:
        raise RecipeError(f"{name!r} {list(weight.shape)} is not the weight of a linear layer or 1x1 convolution")
    if moment.shape != (shape[1], shape[1]) or not np.all(np.isfinite(moment)):
        raise RecipeError(f"the moment of {name!r} is {list(moment.shape)}, expected finite {[shape[1], shape[1]]}")
    return shape[0], shape[1]


def _tables(palettized: Palettized) -> Tensor:
    """Return the entries for each group of rows and of inputs, scales multiplied in, `[G, H, P]` float32."""
    tables = palettized.lut.astype(np.float32)[..., 0].reshape(*palettized.lut.shape[:2], -1)
    if palettized.scale is not None:
        scale = palettized.scale.reshape(*palettized.scale.shape[:2], 1).astype(np.float32)
        for axis in (0, 1):
            if 1 < tables.shape[axis] < scale.shape[axis]:
                tables = np.repeat(tables, scale.shape[axis] // tables.shape[axis], axis=axis)
        tables = (tables * scale).astype(np.float16).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(tables))


def _nearest(values: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices and values of the entries nearest to `values` `[O]` in ascending tables `[G, P]`."""
    grouped = values.reshape(len(table), -1).contiguous()
    chosen = torch.searchsorted(((table[:, 1:] + table[:, :-1]) / 2).contiguous(), grouped)
    return chosen.reshape(-1), table.gather(1, chosen).reshape(-1)


def output_error(difference: Real, moment: Real) -> float:
    """Return `|D X|**2` for a weight's difference `D` `[O, I, ...]` from the original."""
    rows = difference.reshape(len(difference), -1).astype(np.float64)
    return float(np.einsum("oi,ij,oj->", rows, moment, rows, optimize=True))
