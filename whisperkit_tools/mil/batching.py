"""Operations of a program of batch 1, rewritten so that they compute several inputs at once on the same weights.

Programs for the Neural Engine take one input at a time: their shapes are fixed. Nearly every value of such a program
has a leading axis of size 1, which is the batch that was never used. A *batch* here is several inputs side by side,
*lanes*, and a value that differs between lanes has its lanes along that leading axis. A value without one gets an axis
for the lanes before the others. What does not depend on the lanes, such as a weight, stays as it is and is shared.

Most kernels compute along a leading axis whatever its size, so they need no change. A rule for each type of operation
says when that is so, or which other values the kernel needs. An operation that no rule allows is computed lane by lane,
which is always right.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from whisperkit_tools.mil import fused_kernels as fused
from whisperkit_tools.mil.kernels import Node
from whisperkit_tools.mil.operations import Work, work_of
from whisperkit_tools.mil.tensor_spec import TensorSpec

_Shape: TypeAlias = tuple[int | None, ...]
_Rule: TypeAlias = Callable[[Node, "_Layout"], Node | None]

# They look at other elements than those at their place, or have vectors along the channels.
_NOT_ELEMENTWISE = frozenset({"cumsum", "prelu", "quantize", "dequantize", "softplus_parametric"})


def batched_nodes(
    nodes: Sequence[Node], lanes: Mapping[str, TensorSpec], shared: Mapping[str, TensorSpec]
) -> list[Node]:
    """Rewrite the calls of a program for values with several lanes.

    Args:
        nodes: The calls in order. None of them reads or writes a state.
        lanes: Values given with lanes, by name, with their shapes in the program.
        shared: All other values that are given.

    Returns:
        Calls with the same names. What depends on a value with lanes has lanes.
    """
    layout = _Layout(lanes, shared)
    found = []
    for node in nodes:
        has_lanes = any(layout.has_lanes(name) for name in node.reads)
        layout.add(node.outputs, has_lanes)
        if has_lanes:
            rule = _rule(node)
            node = (rule(node, layout) if rule is not None else None) or _lane_by_lane(node, layout)
        found.append(node)
    return found


def has_row(shape: _Shape) -> bool:
    """Return whether a value of this shape has its lanes along its leading axis, and not along one before it."""
    return shape[:1] == (1,)


def joined(values: Sequence[Tensor], shape: _Shape) -> Tensor:
    """Return the lanes of a value as one tensor.

    Args:
        values: The value of each lane.
        shape: Its shape in the program.
    """
    return torch.cat(list(values)) if has_row(shape) else torch.stack(list(values))


def lane_of(value: Tensor, lane: int, shape: _Shape) -> Tensor:
    """Return one lane of a value, in its shape in the program."""
    return value[lane : lane + 1] if has_row(shape) else value[lane]


class _Layout:
    """Which values have lanes, and where."""

    def __init__(self, lanes: Mapping[str, TensorSpec], shared: Mapping[str, TensorSpec]) -> None:
        self._shapes = {name: spec.shape for name, spec in (*shared.items(), *lanes.items())}
        self._lanes = set(lanes)

    def add(self, outputs: Sequence[TensorSpec], has_lanes: bool) -> None:
        """Note what a call computes."""
        self._shapes.update((output.name, output.shape) for output in outputs)
        if has_lanes:
            self._lanes.update(output.name for output in outputs)

    def has_lanes(self, name: str | None) -> bool:
        """Return whether a value has lanes."""
        return name in self._lanes

    def has_rows(self, name: str | None) -> bool:
        """Return whether a value has lanes along its leading axis."""
        return name in self._lanes and has_row(self.shape(name))

    def shape(self, name: str | None) -> _Shape:
        """Return the shape of a value in the program."""
        return self._shapes.get(name or "", ())


def _rule(node: Node) -> _Rule | None:
    """Return the rule for a call. There is none where a setting is only known at run time."""
    if node.dynamic:
        return None
    kind = work_of(node.type)
    if kind is Work.ELEMENTWISE and node.type not in _NOT_ELEMENTWISE:
        return _elementwise
    if kind is Work.REDUCTION:
        return _along_other_axes
    return _RULES.get(node.type)


def _gives_rows(node: Node) -> bool:
    return all(has_row(output.shape) for output in node.outputs)


# --- rules -----------------------------------------------------------------------------------------------------------


def _elementwise(node: Node, layout: _Layout) -> Node | None:
    """Broadcasting aligns last axes. A value of fewer axes gets its lanes moved before the axes that it lacks."""
    given = [name for name in node.arguments if name is not None]
    rank = len(node.outputs[0].shape)
    ranks = [len(layout.shape(name)) for name in given if layout.has_lanes(name)]
    rows = [layout.has_rows(name) for name in given if layout.has_lanes(name)]
    if not _gives_rows(node):
        is_plain = not any(rows) and set(ranks) == {rank} and all(len(layout.shape(name)) <= rank for name in given)
        return node if is_plain else None
    if not all(rows):
        return None
    if set(ranks) == {rank}:
        return node
    missing = tuple(
        rank - len(layout.shape(name)) if layout.has_lanes(name) else 0 for name in node.arguments if name is not None
    )
    return None if None in node.arguments else _with_function(node, _aligning(node.kernel.function, missing))


def _aligning(function: Callable[..., Any], missing: tuple[int, ...]) -> Callable[..., Any]:
    def run(*arguments: Tensor, **values: Any) -> Any:
        aligned = (
            x.reshape(x.shape[0], *(1,) * count, *x.shape[1:]) if count else x
            for x, count in zip(arguments, missing, strict=True)
        )
        return function(*aligned, **values)

    return run


def _first_argument(node: Node, layout: _Layout) -> Node | None:
    """A product with weights, or a norm: rows of the first argument, everything else shared."""
    first, *others = node.arguments
    is_plain = layout.has_rows(first) and not any(layout.has_lanes(name) for name in others)
    return node if is_plain and len(layout.shape(first)) > 1 and _gives_rows(node) else None


def _along_other_axes(node: Node, layout: _Layout) -> Node | None:
    """Reduce, order, join or cut along axes that are not the leading one."""
    values, default = node.values, -1 if node.type == "softmax" else None
    axes = values.get("axes", values.get("axis", default))
    weights = node.arguments[1:] if node.type == "layer_norm" else ()
    lanes = node.arguments[: len(node.arguments) - len(weights)]
    if axes is None or any(map(layout.has_lanes, weights)) or not all(map(layout.has_rows, lanes)):
        return None
    counts_in_result = node.type in ("expand_dims", "stack")
    rank = len(node.outputs[0].shape if counts_in_result else layout.shape(lanes[0]))
    touched = {axis % rank for axis in (axes if isinstance(axes, list | tuple) else [axes])}
    return node if 0 not in touched and _gives_rows(node) else None


def _reshape(node: Node, layout: _Layout) -> Node | None:
    """Elements stay in row-major order, so the lanes only have to come first."""
    sizes = node.values.get("shape")
    if not isinstance(sizes, list | tuple) or 0 in sizes:
        return None
    if has_row(node.outputs[0].shape):
        if sizes[0] != 1:
            return None
        sizes = sizes[1:]
    return _with_function(node, _reshaping(tuple(sizes)))


def _reshaping(sizes: tuple[int, ...]) -> Callable[..., Tensor]:
    def run(x: Tensor, **_: Any) -> Tensor:
        return x.reshape(x.shape[0], *sizes)

    return run


def _new_axes(node: Node, layout: _Layout) -> Node | None:
    """Add or remove axes of size 1: like a reshape where the leading one is among them."""
    plain = _along_other_axes(node, layout)
    shape = node.outputs[0].shape
    if plain is not None or None in shape:
        return plain
    sizes = shape[1:] if has_row(shape) else shape
    return _with_function(node, _reshaping(tuple(size or 0 for size in sizes)))


def _transpose(node: Node, layout: _Layout) -> Node | None:
    return node if layout.has_rows(node.arguments[0]) and node.values["perm"][0] == 0 else None


def _matmul(node: Node, layout: _Layout) -> Node | None:
    """A batch of products, or rows times a shared matrix."""
    left, right = node.arguments
    rank = len(node.outputs[0].shape)
    if rank == 2 and layout.has_rows(left) and not layout.has_lanes(right):
        return None if node.values.get("transpose_x") else node
    fits = rank > 2 and all(
        layout.has_rows(name) and len(layout.shape(name)) == rank for name in (left, right) if layout.has_lanes(name)
    )
    return node if fits and _gives_rows(node) else None


def _einsum(node: Node, layout: _Layout) -> Node | None:
    """The lanes' letter leads in the result and in every term that has lanes, and is not summed."""
    left, result = str(node.values["equation"]).replace(" ", "").split("->")
    row = result[:1]
    for term, name in zip(left.split(","), node.arguments, strict=True):
        if layout.has_lanes(name) and not (layout.has_rows(name) and term[:1] == row and row not in term[1:]):
            return None
    return node if row and row not in result[1:] and _gives_rows(node) else None


def _gather(node: Node, layout: _Layout) -> Node | None:
    """Rows of a shared table."""
    table, indices = node.arguments
    is_plain = not node.values.get("axis", 0) and not node.values.get("batch_dims", 0)
    return node if is_plain and not layout.has_lanes(table) and layout.has_rows(indices) else None


def _slice_by_index(node: Node, layout: _Layout) -> Node | None:
    """A slice that takes all of the leading axis takes all lanes."""
    values, rank = node.values, len(layout.shape(node.arguments[0]))
    squeezed = values.get("squeeze_mask") or (False,) * rank
    stepping = values.get("stride") or (1,) * rank
    if not layout.has_rows(node.arguments[0]) or squeezed[0] or stepping[0] != 1 or not _gives_rows(node):
        return None
    masks = {
        name: [True, *(values.get(name) or (False,) * rank)[1:]] for name in ("begin_mask", "end_mask")
    }  # fmt: skip
    return replace(node, values={**values, **masks})


def _slice_by_size(node: Node, layout: _Layout) -> Node | None:
    if not layout.has_rows(node.arguments[0]) or not _gives_rows(node):
        return None
    begin, size = node.values["begin"], node.values["size"]
    return replace(node, values={**node.values, "begin": [0, *begin[1:]], "size": [-1, *size[1:]]})


def _pad(node: Node, layout: _Layout) -> Node | None:
    amounts, rank = node.values.get("pad", ()), len(node.outputs[0].shape)
    leading = amounts[:2] if len(amounts) == 2 * rank else ()
    return node if layout.has_rows(node.arguments[0]) and not any(leading) and _gives_rows(node) else None


def _attention(node: Node, layout: _Layout) -> Node | None:
    """Queries, keys and values with lanes; masks with or without."""
    is_plain = all(
        layout.has_rows(name) if at < 3 else layout.has_rows(name) or not layout.has_lanes(name)
        for at, name in enumerate(node.arguments)
    )
    ranks = {len(layout.shape(name)) for name in node.arguments}
    return node if is_plain and len(ranks) == 1 and _gives_rows(node) else None


def _cached_attention(node: Node, layout: _Layout) -> Node | None:
    *tensors, _here, _elsewhere, _mask = node.arguments
    return node if all(map(layout.has_rows, tensors)) else None


def _position_products(node: Node, layout: _Layout) -> Node | None:
    """A matrix times the vectors of all lanes is one product of matrices."""
    rows: dict[Callable[..., Any], Callable[..., Any]] = {
        fused.single_position_conv: fused.position_convs,
        fused.single_row_linear: fused.row_linears,
    }
    found = _first_argument(node, layout)
    function = rows.get(node.kernel.function)
    return found if found is None or function is None else _with_function(found, function)


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("conv", "conv_transpose", "linear", "batch_norm", "instance_norm"), _first_argument),
    **dict.fromkeys(("max_pool", "avg_pool", "l2_pool"), _first_argument),
    **dict.fromkeys(("fused_conv", "fused_linear"), _position_products),
    **dict.fromkeys(("layer_norm", "softmax", "split", "concat", "stack", "reverse", "cumsum"), _along_other_axes),
    **dict.fromkeys(("argsort", "topk"), _along_other_axes),
    **dict.fromkeys(("expand_dims", "squeeze"), _new_axes),
    **dict.fromkeys(("scaled_dot_product_attention", "fused_scaled_dot_product_attention"), _attention),
    "fused_cached_attention": _cached_attention,
    "reshape": _reshape,
    "transpose": _transpose,
    "matmul": _matmul,
    "einsum": _einsum,
    "gather": _gather,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "pad": _pad,
}


# --- lane by lane ----------------------------------------------------------------------------------------------------


def _with_function(node: Node, function: Callable[..., Any]) -> Node:
    return replace(node, kernel=replace(node.kernel, function=function))


def _lane_by_lane(node: Node, layout: _Layout) -> Node:
    """Compute every lane by itself."""
    arguments = (*node.arguments, *node.dynamic.values())
    shapes = tuple(layout.shape(name) if layout.has_lanes(name) else None for name in arguments)
    function, positional, dynamic = node.kernel.function, len(node.arguments), tuple(node.dynamic)
    outputs = tuple(output.shape for output in node.outputs)

    def one(values: Mapping[str, Any], given: Sequence[Any]) -> tuple[Tensor, ...]:
        read = {name: value.tolist() for name, value in zip(dynamic, given[positional:], strict=True)}
        result = function(*given[:positional], **values, **read)
        return result if isinstance(result, tuple) else (result,)

    def run(*arguments: Any, **values: Any) -> Any:
        count = next(x.shape[0] for x, shape in zip(arguments, shapes, strict=True) if shape is not None)
        lanes = [
            one(values, [x if s is None else lane_of(x, lane, s) for x, s in zip(arguments, shapes, strict=True)])
            for lane in range(count)
        ]
        results = tuple(joined(parts, shape) for parts, shape in zip(zip(*lanes, strict=True), outputs, strict=True))
        return results if len(results) > 1 else results[0]

    return replace(node, kernel=replace(node.kernel, function=run), arguments=arguments, dynamic={})
