"""Gradients through a program in bounded memory: piece by piece, each computed again when its turn comes.

A large encoder's activations take many times its weights' memory. So the program is cut where little is alive, the
values at the cuts are kept from a first run, and each piece is run again with gradients, from the last to the first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.kernels import Node, bind
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.schedule import Plan, Target, execute
from whisperkit_tools.mil.tensor_spec import TensorSpec

_BYTES = 4  # everything is computed in float32
_HELD = 2  # autograd holds about as much again inside of operations as their results take


@dataclass(frozen=True, slots=True)
class _Piece:
    plan: Plan
    reads: tuple[str, ...]
    gives: tuple[str, ...]


class Segments:
    """A program in pieces."""

    def __init__(self, program: Program, budget_bytes: int = 2 << 30) -> None:
        """Cut a program.

        Args:
            program: In float32; its parameters are read at every run.
            budget_bytes: What the activations of one piece may take. A piece is at least what lies between two places
                where little is alive, such as a layer.
        """
        self._program = program
        graph = read_graph(program.path, program.function)
        nodes = bind(graph)
        constants = {program.constant_name(name) for name, _ in _stored(program)}
        target = Target("float32", program.device)
        specs = {**graph.inputs, **{out.name: out for node in nodes for out in node.outputs}}
        alive = _alive(nodes, graph.inputs, tuple(graph.outputs))
        bounds = [0, *_cuts(nodes, alive, specs, budget_bytes), len(nodes)]
        self._pieces: list[_Piece] = []
        for start, stop in pairwise(bounds):
            part, gives = nodes[start:stop], alive[stop]
            reads = {name: specs[name] for name in alive[start]}
            used = sorted({name for node in part for name in node.reads} & constants)
            through = tuple(name for name in gives if name not in reads)
            self._pieces.append(_Piece(Plan(part, reads, through, (), used, target), tuple(reads), through))

    def __len__(self) -> int:
        """Number of pieces."""
        return len(self._pieces)

    def backward(self, inputs: Mapping[str, Tensor], cotangents: Mapping[str, Tensor]) -> None:
        """Add the gradient of `sum(cotangent * output)` to `.grad` of the parameters that ask for it."""
        constants = {self._program.constant_name(name): tensor for name, tensor in _stored(self._program)}
        kept: list[dict[str, Tensor]] = []
        values = {name: tensor.detach() for name, tensor in inputs.items()}
        with torch.no_grad():
            for piece in self._pieces:
                kept.append({name: values[name] for name in piece.reads})
                if piece is not self._pieces[-1]:
                    values = {**kept[-1], **_run(piece, kept[-1], constants)}
        gradients = dict(cotangents)
        for piece, start in zip(reversed(self._pieces), reversed(kept), strict=True):
            gradients = _backward(piece, start, constants, gradients)


def _stored(program: Program) -> list[tuple[str, Tensor]]:
    return [*program.named_parameters(), *program.named_buffers()]


def _run(piece: _Piece, start: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plan = piece.plan
    values = plan.empty_values()
    for name, place in plan.places.items():
        values[place] = start.get(name, constants.get(name))
    execute(plan.calls(None), values)
    return {name: values[plan.places[name]] for name in piece.gives}


def _backward(
    piece: _Piece, start: dict[str, Tensor], constants: Mapping[str, Tensor], gradients: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Take the gradients of what a piece gives to those of what it reads; both may pass values through."""
    leaves = {
        name: tensor.detach().requires_grad_(True) if tensor.is_floating_point() else tensor
        for name, tensor in start.items()
    }
    with torch.enable_grad():
        outputs = _run(piece, leaves, constants)
    chosen = [name for name in piece.gives if name in gradients and outputs[name].requires_grad]
    torch.autograd.backward([outputs[name] for name in chosen], [gradients[name] for name in chosen])
    passed = {name: gradient for name, gradient in gradients.items() if name not in outputs}
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            passed[name] = passed[name] + leaf.grad if name in passed else leaf.grad
    return passed


def _alive(nodes: list[Node], inputs: Mapping[str, TensorSpec], outputs: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Names of the values that exist before each node, and after the last, and are still to be read."""
    needed = dict.fromkeys(outputs)
    made = [set(inputs)]
    for node in nodes:
        made.append(made[-1] | {out.name for out in node.outputs})
    alive = [tuple(outputs)]
    for node, known in zip(reversed(nodes), reversed(made[:-1]), strict=True):
        needed.update(dict.fromkeys(node.reads))
        alive.append(tuple(name for name in needed if name in known))
    return alive[::-1]


def _cuts(
    nodes: list[Node], alive: list[tuple[str, ...]], specs: Mapping[str, TensorSpec], budget_bytes: int
) -> list[int]:
    """Return where to cut: at the narrowest places, as few as the budget allows."""
    widths = [sum(specs[name].size for name in names) for names in alive]
    inner = range(1, len(nodes))
    narrow = [at for at in inner if widths[at] <= 1.01 * sorted(widths[at] for at in inner)[len(nodes) // 8]]
    sizes = [sum(out.size for out in node.outputs) * _BYTES * _HELD for node in nodes]
    cuts: list[int] = []
    last, running, previous = 0, 0, 0
    for at in (*narrow, len(nodes)):
        step = sum(sizes[previous:at])
        if running and running + step > budget_bytes and previous > last:
            cuts.append(previous)
            last, running = previous, 0
        running += step
        previous = at
    return cuts
