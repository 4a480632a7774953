"""A decoder program in which calls see each other, so that those of a whole transcript are one batch.

Each layer of a decoder program reads its part of a cache, and gives the column that its call adds to that part. The
columns of a transcript's calls are what later calls read. So into every layer an operation is put that writes the
columns of all calls of a batch into the part before any of them reads it. Then nothing has to be known of the caches
beforehand, and a pass backward takes the gradient of every column to the call that made it.
"""

import graphlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.mil.kernels import Node, make_kernel
from whisperkit_tools.mil.tensor_spec import TensorSpec

MASK = contract.UPDATE_MASK
UPDATES = {contract.KEY_CACHE: contract.KEY_UPDATES, contract.VALUE_CACHE: contract.VALUE_UPDATES}
_CHANNELS = 1  # the axis along which layers lie in a cache


def linked(nodes: Sequence[Node]) -> list[Node] | None:
    """Put the links in.

    Args:
        nodes: Of a decoder program, whose caches are split into layers' parts, and whose updates are joined from them.

    Returns:
        The nodes in an order in which they can run; None where the program is built in another way.
    """
    links: list[Node] = []
    renamed: dict[str, str] = {}
    for cache, updates in UPDATES.items():
        pairs = _pairs(nodes, cache, updates)
        if pairs is None:
            return None
        for part, update in pairs:
            renamed[part.name] = f"{part.name} linked to {update}"
            spec = replace(part, name=renamed[part.name])
            links.append(Node("link", spec.name, _LINK, (part.name, update, MASK), (spec,)))
    return _ordered([*(_reading(node, renamed) for node in nodes), *links])


def _pairs(nodes: Sequence[Node], cache: str, updates: str) -> list[tuple[TensorSpec, str]] | None:
    """Each layer's part of a cache, and the name of what its call adds to that part."""
    readers = [node for node in nodes if cache in node.reads]
    makers = [node for node in nodes if updates in (out.name for out in node.outputs)]
    if [node.type for node in (*readers, *makers)] != ["split", "concat"]:
        return None
    (split,), (concat,) = readers, makers
    if split.values.get("axis") != _CHANNELS or concat.values.get("axis") != _CHANNELS:
        return None
    columns = {out.name: out for node in nodes for out in node.outputs}
    added = [columns[name] for name in concat.reads if name in columns]
    column_shapes = [(*part.shape[:3], 1) for part in split.outputs]
    if [update.shape for update in added] != column_shapes:
        return None
    return [(part, update.name) for part, update in zip(split.outputs, added, strict=True)]


def _reading(node: Node, renamed: Mapping[str, str]) -> Node:
    arguments = tuple(name and renamed.get(name, name) for name in node.arguments)
    return replace(node, arguments=arguments, dynamic={k: renamed.get(v, v) for k, v in node.dynamic.items()})


def _ordered(nodes: Sequence[Node]) -> list[Node] | None:
    """Sort the nodes by what they read; None where one reads what is made from its own result."""
    maker = {out.name: number for number, node in enumerate(nodes) for out in node.outputs}
    before = {number: [maker[name] for name in node.reads if name in maker] for number, node in enumerate(nodes)}
    try:
        return [nodes[number] for number in graphlib.TopologicalSorter(before).static_order()]
    except graphlib.CycleError:
        return None


def _written(part: Tensor, updates: Tensor, masks: Tensor) -> Tensor:
    """The part `[1, C, 1, S]` with the columns `[T, 1, C, 1, 1]` where the masks `[T, 1, S]` are 1."""
    columns = updates[..., 0].permute(1, 2, 3, 0)
    return part.index_copy(-1, masks.argmax(-1).reshape(-1), columns)


class _Link(torch.autograd.Function):
    """The link of one call, and how that of many calls under `torch.vmap` is made."""

    @staticmethod
    def forward(part: Tensor, update: Tensor, mask: Tensor) -> Tensor:
        return _written(part, update[None], mask[None])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        here = ctx.saved_tensors[0][:, None, None]
        return gradients[0] * (1 - here), (gradients[0] * here).sum(-1, keepdim=True), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, None]:
        # The part is the same in every call, for it comes from the cache; the others are each call's own.
        calls = (tensor.movedim(at or 0, 0) for tensor, at in zip(tensors[1:], in_dims[1:], strict=True))
        return _written(tensors[0], *calls), None


def link(part: Tensor, update: Tensor, mask: Tensor) -> Tensor:
    """Write a call's column into a layer's part of a cache; under `torch.vmap` over calls, those of all calls.

    Args:
        part: `[1, C, 1, S]`, the same in all calls.
        update: `[1, C, 1, 1]`, the column that the call adds.
        mask: `[1, S]`, 1 where the call adds it.
    """
    # Torch gives this method no types.
    found: Tensor = _Link.apply(part, update, mask)  # type: ignore[no-untyped-call]
    return found


_LINK = make_kernel("link", link)
