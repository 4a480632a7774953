"""Caches whose gradients go on to the calls that wrote them, so that one pass backward through all calls is exact.

In a decoder program each layer reads its part of a cache and gives the column that its call adds to that part. When all
calls of a transcript run at once on the finished caches, that column is one of the part that other calls read. So into
every layer an operation is put that gives the part unchanged, and backward hands each of its columns' gradients to the
call that wrote the column, before the pass gets to how the column was made.
"""

import graphlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from whisperkit_tools.mil.binding import Node
from whisperkit_tools.mil.registry import make_kernel
from whisperkit_tools.mil.specs import TensorSpec

MASK = "kv_cache_update_mask"
UPDATES = {"key_cache": "key_cache_updates", "value_cache": "value_cache_updates"}
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


class _LinkCalls(torch.autograd.Function):
    """The link of many calls: `part [1, C, 1, S]`, `updates [T, 1, C, 1, 1]`, `masks [T, 1, S]`."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, updates: Tensor, masks: Tensor) -> Tensor:
        ctx.save_for_backward(masks)
        return part.view_as(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (masks,), (gradient,) = ctx.saved_tensors, gradients
        written = torch.einsum("bchs,tbs->tbch", gradient, masks)
        return gradient, written[..., None], None


class _Link(torch.autograd.Function):
    """The link of one call under `torch.vmap`, and how it is that of many."""

    @staticmethod
    def forward(part: Tensor, update: Tensor, mask: Tensor) -> Tensor:
        return part.view_as(part)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        gradient = gradients[0]
        return gradient, torch.einsum("bchs,bs->bch", gradient, ctx.saved_tensors[0])[..., None], None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, None]:
        # The part is the same in every call, for it comes from the finished cache; the others are each call's own.
        calls = (tensor.movedim(at or 0, 0) for tensor, at in zip(tensors[1:], in_dims[1:], strict=True))
        return _LinkCalls.apply(tensors[0], *calls), None  # type: ignore[no-untyped-call]


def link(part: Tensor, update: Tensor, mask: Tensor) -> Tensor:
    """Give a layer's part of a finished cache, alone or under `torch.vmap` over the calls that wrote it.

    Args:
        part: `[1, C, 1, S]`, the same in all calls.
        update: `[1, C, 1, 1]`, the column that the call adds.
        mask: `[1, S]`, 1 where the call adds it.
    """
    return _Link.apply(part, update, mask)  # type: ignore[no-any-return, no-untyped-call]


_LINK = make_kernel("link", link)
