"""Activation checkpointing: gradients through a program in bounded memory, piece by piece.

A large encoder's activations take many times its weights' memory. So the program is cut where few values are alive, the
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
from whisperkit_tools.mil.schedule import ExecutionTarget, Schedule
from whisperkit_tools.mil.tensor_spec import TensorSpec

_BYTES = 4  # everything is computed in float32
_HELD = 2  # autograd holds about as much again inside of operations as their results take


@dataclass(frozen=True, slots=True)
class _Piece:
    """Part of a program between two cuts.

    Attributes:
        schedule: Its calls. The outputs are the values that it computes and later pieces read.
        reads: Names of the values that it or a later piece reads from earlier ones.
    """

    schedule: Schedule
    reads: tuple[str, ...]

    def run(self, start: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the values that later pieces read from this one."""
        return self.schedule.run({**constants, **start})


class CheckpointedProgram:
    """A program in pieces, whose activations are kept at the cuts alone."""

    def __init__(self, program: Program, budget_bytes: int = 2 << 30) -> None:
        """Cut a program.

        Args:
            program: In float32; its parameters are read at every run.
            budget_bytes: Memory for the activations of one piece. A piece is at least the calls between two places
                where few values are alive, such as a layer.
        """
        self._program = program
        graph = read_graph(program.path, program.function)
        nodes = bind(graph)
        constants = program.constants().keys()
        target = ExecutionTarget("float32", program.device)
        specs = {**graph.inputs, **{out.name: out for node in nodes for out in node.outputs}}
        alive = _alive(nodes, graph.inputs, tuple(graph.outputs))
        bounds = [0, *_cuts(nodes, alive, specs, budget_bytes), len(nodes)]
        self._pieces: list[_Piece] = []
        for start, stop in pairwise(bounds):
            part = nodes[start:stop]
            reads = {name: specs[name] for name in alive[start]}
            used = sorted({name for node in part for name in node.reads} & constants)
            computed = [name for name in alive[stop] if name not in reads]
            self._pieces.append(_Piece(Schedule(part, reads, computed, (), used, target), tuple(reads)))

    def __len__(self) -> int:
        """Number of pieces."""
        return len(self._pieces)

    def backward(self, inputs: Mapping[str, Tensor], cotangents: Mapping[str, Tensor]) -> None:
        """Add the gradient of `sum(cotangent * output)` to `.grad` of the parameters that require it."""
        constants = self._program.constants()
        kept: list[dict[str, Tensor]] = []
        values = {name: tensor.detach() for name, tensor in inputs.items()}
        with torch.no_grad():
            for piece in self._pieces:
                kept.append({name: values[name] for name in piece.reads})
                if piece is not self._pieces[-1]:
                    values = {**kept[-1], **piece.run(kept[-1], constants)}
        gradients = dict(cotangents)
        for piece, start in zip(reversed(self._pieces), reversed(kept), strict=True):
            gradients = _backward(piece, start, constants, gradients)


def _backward(
    piece: _Piece, start: dict[str, Tensor], constants: Mapping[str, Tensor], gradients: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the gradients of the values that a piece reads, given those of the values that later pieces read."""
    leaves = {
        name: tensor.detach().requires_grad_(True) if tensor.is_floating_point() else tensor
        for name, tensor in start.items()
    }
    with torch.enable_grad():
        outputs = piece.run(leaves, constants)
    chosen = [name for name, output in outputs.items() if name in gradients and output.requires_grad]
    torch.autograd.backward([outputs[name] for name in chosen], [gradients[name] for name in chosen])
    passed = {name: gradient for name, gradient in gradients.items() if name not in outputs}
    for name, leaf in leaves.items():
        if leaf.grad is not None:
            passed[name] = passed[name] + leaf.grad if name in passed else leaf.grad
    return passed


def _alive(nodes: list[Node], inputs: Mapping[str, TensorSpec], outputs: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the names of the values alive before each node and after the last: computed, and still to be read."""
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
    """Return where to cut: where the fewest values are alive, and as seldom as the budget allows."""
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
