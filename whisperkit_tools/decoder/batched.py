"""A decoder program made fit for all of a transcript's calls at once, with gradients.

Its caches are as long as the transcript, not as the model's context: what a call makes of the caches it makes of every
position, also of those that nothing was written to. The operations take caches of any length but for reshapes, whose
last axis is left open instead. And what comes from the audio or the weights alone, which is the same in every call, is
used in such a way that `torch.vmap` does not copy it for each: products of many matrices are made one by one, as those
of the calls' rows joined, and rows of tables are looked up as an embedding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.decoder.cache_linking import linked
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.kernels import Node, bind, make_kernel
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.schedule import Plan, Target, execute

AUDIO = contract.EMBEDS
_MOST_PRODUCTS = 64  # of one operation, made one by one


class ShortDecoder:
    """A program's operations as they stand, on its own weights. Whether it computes the same has to be tried.

    Attributes:
        is_linked: Calls under `torch.vmap` see each other's columns of the caches, see `linking`.
    """

    def __init__(self, program: Program, length: int) -> None:
        """Open the last axis of reshapes.

        Args:
            program: The decoder, in float32; its parameters are read at every run.
            length: Of its caches.
        """
        self._program = program
        graph = read_graph(program.path, program.function)
        nodes = [
            _opened(node, length) for node in _for_many_calls(bind(graph), [n for n in graph.inputs if n != AUDIO])
        ]
        with_links = linked(nodes)
        self.is_linked = with_links is not None
        nodes = with_links or nodes
        used = {name for node in nodes for name in node.reads} & self._stored().keys()
        self._constants = tuple(sorted(used))
        target = Target("float32", program.device)
        self._plan = Plan(nodes, graph.inputs, tuple(graph.outputs), (), self._constants, target)
        self._outputs = tuple(graph.outputs)

    def _stored(self) -> dict[str, Tensor]:
        named = (*self._program.named_parameters(), *self._program.named_buffers())
        return {self._program.constant_name(encoded): tensor for encoded, tensor in named}

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run it; inputs as long as the caches all have the same other length."""
        values, stored = self._plan.empty_values(), self._stored()
        for name in self._constants:
            values[self._plan.places[name]] = stored[name]
        for name, value in inputs.items():
            values[self._plan.places[name]] = value
        execute(self._plan.calls(None), values)
        return {name: values[self._plan.places[name]] for name in self._outputs}


def _opened(node: Node, length: int) -> Node:
    *others, last = node.outputs[0].shape or (None,)
    if node.type != "reshape" or last != length or None in others or "shape" not in node.values:
        return node
    return replace(node, values={**node.values, "shape": [*others, -1]})


def _for_many_calls(nodes: Sequence[Node], changing: Sequence[str]) -> list[Node]:
    """The calls of the same kernels, those in other form that read both what `changing` inputs lead to and what not."""
    varies, found = set(changing), list[Node]()
    shapes = {out.name: out.shape for node in nodes for out in node.outputs}
    for node in nodes:
        sides = [name in varies for name in node.arguments]
        if varies.intersection(node.reads):
            varies.update(out.name for out in node.outputs)
        if node.type == "matmul" and sides.count(True) == 1 and _few_equal_products(node, shapes):
            node = replace(node, kernel=_SHARED_SECOND if sides[0] else _SHARED_FIRST)
        if node.type == "gather" and sides == [False, True] and _is_plain_lookup(node):
            node = replace(node, kernel=_LOOKUP)
        found.append(node)
    return found


def _is_plain_lookup(node: Node) -> bool:
    values = node.values
    return len(node.outputs[0].shape) == 2 and not values.get("axis", 0) and not values.get("batch_dims", 0)


def _few_equal_products(node: Node, shapes: Mapping[str, tuple[int | None, ...]]) -> bool:
    leads = [shapes.get(name or "", ())[:-2] for name in node.arguments]
    count = math.prod(size or 0 for size in leads[0])
    return bool(leads[0]) and leads[0] == leads[1] and 0 < count <= _MOST_PRODUCTS


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
