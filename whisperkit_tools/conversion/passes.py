"""Passes with which coremltools 9 converts a float16 `ExportedProgram` without a float32 copy of the weights.

They work around three things: coremltools reads a Python scalar as float32 and promotes the tensor with it, makes every
quotient float32, and gives a float16 input float32 statistics in its pass `fuse_elementwise_to_batchnorm`.
"""

from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 (the name in all of coremltools)
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.helper import block_context_manager
from coremltools.converters.mil.mil.passes.pass_registry import register_pass
from torch.export import ExportedProgram

FUSE_BATCH_NORM = "common::fuse_elementwise_to_batchnorm"
FUSE_BATCH_NORM_FLOAT16 = "wkt::fuse_scale_shift_to_batch_norm"
NAME_WEIGHTS = "wkt::name_weights"
NAME_PIECES = "wkt::name_pieces"

_aten = torch.ops.aten
_BINARY = (_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor, _aten.rsub.Scalar)


def cast_scalars(program: ExportedProgram) -> None:
    """Make the float scalars of binary operations on float16 tensors float16 constants, in place."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.target in _BINARY and isinstance(value, torch.Tensor) and value.dtype == torch.float16:
            with graph.inserting_before(node):
                node.args = tuple(_constant(graph, arg) if isinstance(arg, float) else arg for arg in node.args)
    graph.lint()
    program.graph_module.recompile()


def cast_quotients(program: ExportedProgram) -> None:
    """Cast the quotients of float16 tensors back to float16, in place. The finished package has no such casts."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.target == _aten.div.Tensor and isinstance(value, torch.Tensor) and value.dtype == torch.float16:
            with graph.inserting_after(node):
                half = graph.call_function(_aten._to_copy.default, (node,), {"dtype": torch.float16})
            half.meta["val"] = value
            node.replace_all_uses_with(half, delete_user_cb=lambda user, half=half: user is not half)
    graph.lint()
    program.graph_module.recompile()


def _constant(graph: torch.fx.Graph, scalar: float) -> torch.fx.Node:
    wide = graph.call_function(_aten.scalar_tensor.default, (scalar,))
    wide.meta["val"] = torch.tensor(scalar)
    half = graph.call_function(_aten._to_copy.default, (wide,), {"dtype": torch.float16})
    half.meta["val"] = torch.tensor(scalar, dtype=torch.float16)
    return half


@register_pass(namespace="wkt")
class fuse_scale_shift_to_batch_norm(AbstractGraphPass):  # type: ignore[misc]  # noqa: N801 (the registry's names)
    """Make `x * gamma + beta` with a value per channel one `batch_norm` in the type of `x`.

    Source: coremltools' pass of the same purpose, which accepts float32 only.
    """

    def apply(self, prog: Any) -> None:
        """Rewrite every function of the program."""
        for function in prog.functions.values():
            self._fuse(function)

    @block_context_manager  # type: ignore[untyped-decorator]
    def _fuse(self, block: Any) -> None:
        for multiply in list(block.operations):
            add = _sole_consumer(multiply, "add") if multiply.op_type == "mul" else None
            if add is None:
                continue
            (x, gamma), (_, beta) = _operands(multiply), _operands(add)
            if x is not None and _per_channel(gamma) and _per_channel(beta) and x.rank == 4:
                _replace(block, multiply, add, x, gamma, beta)


def _sole_consumer(op: Any, op_type: str) -> Any:
    consumers = op.outputs[0].child_ops
    is_output = op.outputs[0] in op.enclosing_block.outputs
    return consumers[0] if len(consumers) == 1 and consumers[0].op_type == op_type and not is_output else None


def _operands(op: Any) -> tuple[Any, Any]:
    """Return the computed operand and the value of the constant one (either may be None)."""
    if op.y.val is not None:
        return op.x, op.y.val
    return (op.y, op.x.val) if op.x.val is not None else (None, None)


def _per_channel(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim in (3, 4) and 1 < value.size == value.shape[-3]


def _replace(block: Any, multiply: Any, add: Any, x: Any, gamma: Any, beta: Any) -> None:
    channels, dtype = gamma.size, gamma.dtype
    fused = mb.batch_norm(
        x=x,
        mean=np.zeros(channels, dtype),
        variance=np.ones(channels, dtype),
        gamma=gamma.reshape(channels),
        beta=beta.reshape(channels),
        epsilon=dtype.type(0),
        name=add.outputs[0].name,
        before_op=multiply,
    )
    block.replace_uses_of_var_after_op(anchor_op=add, old_var=add.outputs[0], new_var=fused)
    block.remove_ops([multiply, add])


@register_pass(namespace="wkt")
class name_pieces(AbstractGraphPass):  # type: ignore[misc]  # noqa: N801 (the registry's names)
    """Name the pieces of a split parameter by its name and their number, before they become constants of their own."""

    def apply(self, prog: Any) -> None:
        """Rename the pieces in every function."""
        for function in prog.functions.values():
            for op in function.operations:
                if op.op_type == "split" and op.x.op is not None and op.x.op.op_type == "const":
                    for number, piece in enumerate(op.outputs):
                        piece.name = f"{op.x.name}_piece_{number}"


@register_pass(namespace="wkt")
class name_weights(AbstractGraphPass):  # type: ignore[misc]  # noqa: N801 (the registry's names)
    """Name constants as their parameters, without the `p_` that `torch.export` puts before them."""

    def apply(self, prog: Any) -> None:
        """Rename the constants of every function."""
        for function in prog.functions.values():
            for op in function.operations:
                if op.op_type == "const" and op.name.startswith("p_"):
                    op.name = op.outputs[0].name = op.name.removeprefix("p_")
