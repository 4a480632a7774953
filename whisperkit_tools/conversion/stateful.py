"""The decoder with its caches as states: two functions of one package, `main` (a token), `project_audio` (a window).

They are functions of one package, because a state object is made by one loaded function and accepted by another
function of the same package that declares the same states. So one function writes the keys and values of the audio and
the other reads them, without passing them through the caller. Core ML does not promise this between packages.
coremltools 9 writes such packages: `MultiFunctionDescriptor` keeps each function's states in its description, and
`save_multifunction` stores weights that functions share once.
Source: apple/coremltools, `models/utils.py` and pull request 2686 (one state shared by a prefill and a decode
function); Anemll, `tests/chat.py`, which runs language models so on the Neural Engine, writing by `slice_update`.

This module adds what coremltools' PyTorch frontend lacks: the conversion of `write_at`, float16 states that are read as
float16, and states that are read but never written.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil import register_torch_op
from coremltools.converters.mil.frontend.torch.ops import _get_inputs
from coremltools.converters.mil.mil import Builder as mb  # noqa: N813 (the name in all of coremltools)
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.helper import block_context_manager
from coremltools.converters.mil.mil.passes.pass_registry import register_pass
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, OutputSpec, TensorArgument

from whisperkit_tools.compile_hints.stateful_decoder import AudioProjection, StatefulTextDecoder
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.contract import STEP_FUNCTION, WINDOW_FUNCTION, PackageInterface
from whisperkit_tools.conversion.export import (
    PackageMetadata,
    check_stateful_target,
    converted,
    declare_output_shapes,
    describe,
    exported,
    make_reproducible,
)
from whisperkit_tools.mil.coreml import import_coremltools, quiet_coremltools

DROP_IDLE_WRITES = "wkt::drop_idle_writes"


def export_stateful(
    decoder: TextDecoder,
    interfaces: Mapping[str, PackageInterface],
    path: Path,
    *,
    deployment_target: str,
    metadata: PackageMetadata,
) -> None:
    """Export a decoder as a package with the two functions.

    Args:
        decoder: The decoder in the runtime's form, with float16 parameters.
        interfaces: The interfaces of both functions, see `stateful_interfaces`.
        path: The package. It must not exist.
        deployment_target: `ios18`, `macos15`.
        metadata: The description that the package carries.

    Raises:
        OptionsError: The target has no states.
        ConversionError: coremltools cannot convert the decoder.
    """
    check_stateful_target(deployment_target)
    ct = import_coremltools()
    halves = {STEP_FUNCTION: StatefulTextDecoder, WINDOW_FUNCTION: AudioProjection}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".stateful-") as scratch:
        functions = ct.utils.MultiFunctionDescriptor()
        for function, half in halves.items():
            part = Path(scratch) / f"{function}.mlpackage"
            _export_half(half(decoder).eval(), interfaces[function], part, deployment_target)
            functions.add_function(str(part), "main", function)
        functions.default_function_name = STEP_FUNCTION
        with quiet_coremltools():
            ct.utils.save_multifunction(functions, str(path))
    spec = ct.utils.load_spec(str(path))
    for description in spec.description.functions:
        declare_output_shapes(description, interfaces[description.name])
    describe(spec, metadata)
    make_reproducible(path, spec)


def _export_half(half: torch.nn.Module, interface: PackageInterface, path: Path, deployment_target: str) -> None:
    program = exported(half, interface)
    keep_read_states(program, interface.states)
    cast_states(program)
    converted(program, interface, path, deployment_target=deployment_target, last_passes=[DROP_IDLE_WRITES])


# --- what the frontend lacks ----------------------------------------------------------------------------------------


@register_torch_op(torch_alias=["whisperkit_tools::write_at", "whisperkit_tools.write_at"])  # type: ignore[untyped-decorator]
def write_at(context: Any, node: Any) -> None:
    """Convert to `slice_update`. The bounds of all axes except for the last are open."""
    cache, update, position = _get_inputs(context, node, expected=3)
    position = mb.cast(x=position, dtype="int32")  # the frontend holds integer constants as float32
    before = np.zeros(cache.rank - 1, np.int32)
    whole = [True] * (cache.rank - 1) + [False]
    written = mb.slice_update(
        x=cache,
        update=update,
        begin=mb.concat(values=[before, position], axis=0),
        end=mb.concat(values=[before, mb.add(x=position, y=np.int32(1))], axis=0),
        begin_mask=whole,
        end_mask=whole,
        name=node.name,
    )
    context.add(written)


def keep_read_states(program: ExportedProgram, states: Mapping[str, object]) -> None:
    """Mark states that are only read as written with their own content, in place.

    For coremltools, only buffers that are written are states, and others are constants. `drop_idle_writes` removes
    these writes from the program again.
    """
    signature = program.graph_signature
    written = set(signature.buffers_to_mutate.values())
    result = program.graph_module.graph.output_node()
    for spec in signature.input_specs:
        if spec.kind is InputKind.BUFFER and spec.target in set(states) - written:
            node = next(node for node in program.graph_module.graph.nodes if node.name == spec.arg.name)
            result.args = ((node, *result.args[0]),)
            same = OutputSpec(OutputKind.BUFFER_MUTATION, TensorArgument(name=spec.arg.name), spec.target)
            signature.output_specs.insert(0, same)
    program.graph_module.recompile()


def cast_states(program: ExportedProgram) -> None:
    """Cast values read from states to float16, in place: the frontend makes them float32, passes cancel both."""
    graph = program.graph_module.graph
    mutated = set(program.graph_signature.buffers_to_mutate.values())
    names = {spec.arg.name for spec in program.graph_signature.input_specs if spec.target in mutated}
    for node in [node for node in graph.nodes if node.op == "placeholder" and node.name in names]:
        with graph.inserting_after(node):
            half = graph.call_function(torch.ops.aten._to_copy.default, (node,), {"dtype": torch.float16})
        half.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(
            half, delete_user_cb=lambda user, half=half: user is not half and user.op != "output"
        )
    graph.lint()
    program.graph_module.recompile()


@register_pass(namespace="wkt")
class drop_idle_writes(AbstractGraphPass):  # type: ignore[misc]  # noqa: N801 (the registry's names)
    """Remove writes to a state of the value that was just read from it."""

    def apply(self, prog: Any) -> None:
        """Rewrite every function of the program."""
        for function in prog.functions.values():
            self._drop(function)

    @block_context_manager  # type: ignore[untyped-decorator]
    def _drop(self, block: Any) -> None:
        idle = [op for op in block.operations if op.op_type == "coreml_update_state" and _holds_already(op)]
        for op in idle:
            block.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=op.value)
        block.remove_ops(idle)


def _holds_already(update: Any) -> bool:
    read = update.value.op
    return read is not None and read.op_type == "read_state" and read.input is update.state
