"""A decoder program rewritten so that all decoding steps of a transcript run as one batch, with gradients.

The caches are as long as the transcript, not as the model's context, because a step computes on every position of its
caches, also on those that nothing was written to. The operations take caches of any length except for reshapes, whose
last axis is left open instead. What depends on the audio or the weights alone is the same in every step and is used in
such a way that `torch.vmap` does not copy it for each: a product of few matrices is computed matrix by matrix with the
rows of all steps joined, and rows of tables are looked up as an embedding.

Each layer of a decoder program reads its part of a cache, and returns the column that its step adds to that part. Later
steps read the columns of earlier ones. `share_cache_columns` therefore adds an operation to every layer that writes the
columns of all steps of the batch into the part before any of them reads it. The caches need not be known in advance,
and a backward pass takes the gradient of every column to the step that made it.
"""

import graphlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.kernels import Node, bind, make_kernel
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.schedule import ExecutionTarget, Schedule
from whisperkit_tools.mil.tensor_spec import TensorSpec

_UPDATES = {contract.KEY_CACHE: contract.KEY_UPDATES, contract.VALUE_CACHE: contract.VALUE_UPDATES}
_CHANNELS = 1  # the axis of a cache along which its layers lie
_MAX_PRODUCTS = 64  # matrices of one operation that are multiplied one by one


class BatchedDecoder:
    """A decoder program for `torch.vmap` over decoding steps, on the weights of the program itself.

    The rewrite follows the structure of converted decoders. Its users verify that it computes the same.

    Attributes:
        shares_columns: Whether steps under `torch.vmap` see each other's columns of the caches.
    """

    def __init__(self, program: Program, length: int) -> None:
        """Rewrite the operations.

        Args:
            program: The decoder, in float32. Its parameters are read at every run.
            length: Positions of its caches.
        """
        self._program = program
        graph = read_graph(program.path, program.function)
        stepwise = [name for name in graph.inputs if name != contract.EMBEDS]
        nodes = [with_open_length(node, length) for node in _without_copies(bind(graph), stepwise)]
        sharing = share_cache_columns(nodes)
        self.shares_columns = sharing is not None
        nodes = sharing or nodes
        constants = sorted({name for node in nodes for name in node.reads} & program.constants().keys())
        target = ExecutionTarget("float32", program.device)
        self._schedule = Schedule(nodes, graph.inputs, program.outputs, (), constants, target)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run one step, or under `torch.vmap` a batch of them.

        Args:
            inputs: The decoder's inputs by name. Caches and masks may all have another length than the program's.

        Returns:
            The decoder's outputs by name.
        """
        return self._schedule.run({**self._program.constants(), **inputs})


# --- operations that do not copy what all steps share ----------------------------------------------------------------


def with_open_length(node: Node, length: int) -> Node:
    """Let a reshape to the caches' length take any length.

    Args:
        node: A call of a decoder program.
        length: Positions of the program's caches.
    """
    *others, last = node.outputs[0].shape or (None,)
    if node.type != "reshape" or last != length or None in others or "shape" not in node.values:
        return node
    return replace(node, values={**node.values, "shape": [*others, -1]})


def _without_copies(nodes: Sequence[Node], stepwise: Sequence[str]) -> list[Node]:
    """Replace the kernels that combine a value of each step with a value that all steps share.

    Args:
        nodes: The operations in order.
        stepwise: Inputs with another value in each step.
    """
    varying, found = set(stepwise), list[Node]()
    shapes = {out.name: out.shape for node in nodes for out in node.outputs}
    for node in nodes:
        sides = [name in varying for name in node.arguments]
        if varying.intersection(node.reads):
            varying.update(out.name for out in node.outputs)
        if node.type == "matmul" and sides.count(True) == 1 and _has_few_equal_products(node, shapes):
            node = replace(node, kernel=_SHARED_SECOND if sides[0] else _SHARED_FIRST)
        if node.type == "gather" and sides == [False, True] and _is_plain_lookup(node):
            node = replace(node, kernel=_LOOKUP)
        found.append(node)
    return found


def _is_plain_lookup(node: Node) -> bool:
    values = node.values
    return len(node.outputs[0].shape) == 2 and not values.get("axis", 0) and not values.get("batch_dims", 0)


def _has_few_equal_products(node: Node, shapes: Mapping[str, tuple[int | None, ...]]) -> bool:
    leads = [shapes.get(name or "", ())[:-2] for name in node.arguments]
    count = math.prod(size or 0 for size in leads[0])
    return bool(leads[0]) and leads[0] == leads[1] and 0 < count <= _MAX_PRODUCTS


def _shared_second(x: Tensor, y: Tensor, *, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    x, y = x.mT if transpose_x else x, y.mT if transpose_y else y
    pairs = (side.reshape(-1, *side.shape[-2:]).unbind(0) for side in (x, y))
    products = [torch.mm(one, other) for one, other in zip(*pairs, strict=True)]
    return torch.stack(products).reshape(*x.shape[:-1], y.shape[-1])


def _shared_first(x: Tensor, y: Tensor, *, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return _shared_second(y, x, transpose_x=not transpose_y, transpose_y=not transpose_x).mT


def _lookup(
    x: Tensor, indices: Tensor, *, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    return F.embedding(indices.long(), x)


_SHARED_SECOND, _SHARED_FIRST = make_kernel("matmul", _shared_second), make_kernel("matmul", _shared_first)
_LOOKUP = make_kernel("gather", _lookup)


# --- steps that see each other's columns -----------------------------------------------------------------------------


def share_cache_columns(nodes: Sequence[Node]) -> list[Node] | None:
    """Let every layer read its part of a cache only after the columns of all steps were written into it.

    Args:
        nodes: Operations of a decoder program whose caches are split into the layers' parts, and whose updates are
            concatenated from the layers' columns.

    Returns:
        The operations in an order in which they can run. None where the program has another structure.
    """
    writers: list[Node] = []
    renamed: dict[str, str] = {}
    for cache, updates in _UPDATES.items():
        pairs = parts_and_columns(nodes, cache, updates)
        if pairs is None:
            return None
        for part, column in pairs:
            renamed[part.name] = f"{part.name} with {column}"
            spec = replace(part, name=renamed[part.name])
            writers.append(
                Node("write_columns", spec.name, _WRITE_COLUMNS, (part.name, column, contract.UPDATE_MASK), (spec,))
            )
    return _sorted([*(_reading(node, renamed) for node in nodes), *writers])


def parts_and_columns(nodes: Sequence[Node], cache: str, updates: str) -> list[tuple[TensorSpec, str]] | None:
    """Return each layer's part of a cache, with the name of the column that its step adds to that part.

    Args:
        nodes: The calls of a decoder program.
        cache: Name of a cache among its inputs.
        updates: Name of the cache's updates among its outputs.

    Returns:
        The layers in order. None where the program has another structure.
    """
    readers = [node for node in nodes if cache in node.reads]
    makers = [node for node in nodes if updates in (out.name for out in node.outputs)]
    if [node.type for node in (*readers, *makers)] != ["split", "concat"]:
        return None
    (split,), (concat,) = readers, makers
    if split.values.get("axis") != _CHANNELS or concat.values.get("axis") != _CHANNELS:
        return None
    made = {out.name: out for node in nodes for out in node.outputs}
    columns = [made[name] for name in concat.reads if name in made]
    if [column.shape for column in columns] != [(*part.shape[:3], 1) for part in split.outputs]:
        return None
    return [(part, column.name) for part, column in zip(split.outputs, columns, strict=True)]


def _reading(node: Node, renamed: Mapping[str, str]) -> Node:
    arguments = tuple(name and renamed.get(name, name) for name in node.arguments)
    return replace(node, arguments=arguments, dynamic={k: renamed.get(v, v) for k, v in node.dynamic.items()})


def _sorted(nodes: Sequence[Node]) -> list[Node] | None:
    """Sort the nodes by what they read. None where one reads what is made from its own result."""
    maker = {out.name: number for number, node in enumerate(nodes) for out in node.outputs}
    before = {number: [maker[name] for name in node.reads if name in maker] for number, node in enumerate(nodes)}
    try:
        return [nodes[number] for number in graphlib.TopologicalSorter(before).static_order()]
    except graphlib.CycleError:
        return None


def _written(part: Tensor, columns: Tensor, masks: Tensor) -> Tensor:
    """Return the part `[1, C, 1, S]` with the columns `[T, 1, C, 1, 1]` where the masks `[T, 1, S]` are 1."""
    return part.index_copy(-1, masks.argmax(-1).reshape(-1), columns[..., 0].permute(1, 2, 3, 0))


class _WriteColumns(torch.autograd.Function):
    """Writing the column of one step, and under `torch.vmap` those of all steps."""

    @staticmethod
    def forward(part: Tensor, column: Tensor, mask: Tensor) -> Tensor:
        return _written(part, column[None], mask[None])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        here = ctx.saved_tensors[0][:, None, None]
        return gradients[0] * (1 - here), (gradients[0] * here).sum(-1, keepdim=True), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, None]:
        # The part comes from the cache and is the same in every step. Column and mask are each step's own.
        of_steps = (tensor.movedim(at or 0, 0) for tensor, at in zip(tensors[1:], in_dims[1:], strict=True))
        return _written(tensors[0], *of_steps), None


def write_columns(part: Tensor, column: Tensor, mask: Tensor) -> Tensor:
    """Write a step's column into a layer's part of a cache. Under `torch.vmap` over steps, write those of all steps.

    Args:
        part: `[1, C, 1, S]`, the same in all steps.
        column: `[1, C, 1, 1]`, what the step adds.
        mask: `[1, S]`, 1 at the step's position.

    Returns:
        `[1, C, 1, S]`, the same for all steps.
    """
    # Torch gives this method no types.
    found: Tensor = _WriteColumns.apply(part, column, mask)  # type: ignore[no-untyped-call]
    return found


_WRITE_COLUMNS = make_kernel("write_columns", write_columns)
