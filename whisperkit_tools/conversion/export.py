"""Export of one PyTorch module to one `.mlpackage`.

`torch.export` records the graph without computing it, and the weights stay float16 from the checkpoint's file to the
package's, so that large-v3 needs little more memory than its weights.
"""

import json
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whisperkit_tools.compile_hints.attention import MultiHeadAttention
from whisperkit_tools.contract import DEPLOYMENT_TARGETS, STATEFUL_TARGETS, PackageInterface, TensorInterface
from whisperkit_tools.errors import ConversionError, OptionsError, option
from whisperkit_tools.files import first_line, read_json_object, write_whole
from whisperkit_tools.mil.coreml import import_coremltools

_TORCH_DTYPES = {"float16": torch.float16, "float32": torch.float32, "int32": torch.int32}
_PACKAGE_NAMESPACE = uuid.UUID("5b9ac6de-3a0f-5e9c-8a52-4f2f4f6d3c11")


@dataclass(frozen=True, slots=True)
class PackageMetadata:
    """The description that a package carries.

    Attributes:
        description: One sentence on the component.
        author: The author of the weights.
        license: Licence of the weights.
        version: The variant's version or the source's revision.
        user_defined: Further keys, shown by Xcode and by `wkt info`.
    """

    description: str
    author: str
    license: str
    version: str
    user_defined: dict[str, str]


def export_package(
    module: torch.nn.Module,
    interface: PackageInterface,
    path: Path,
    *,
    deployment_target: str,
    metadata: PackageMetadata,
    float32: bool = False,
) -> None:
    """Export a module and save it as an `.mlpackage`.

    Args:
        module: The module. Its forward takes the interface's inputs by name and returns its outputs in order. Float16
            parameters stay as they are, and nothing is rounded here.
        interface: Names, shapes and types to declare.
        path: The package. It must not exist.
        deployment_target: A key of `DEPLOYMENT_TARGETS`.
        metadata: The description that the package carries.
        float32: Compute in float32 whatever the outputs' type is.

    Raises:
        ConversionError: coremltools cannot convert the module, or returns other outputs than the interface's.
    """
    program = exported(module, interface)
    model = converted(program, interface, path, deployment_target=deployment_target, float32=float32)
    spec = model.get_spec()
    declare_output_shapes(spec.description, interface)
    describe(spec, metadata)
    make_reproducible(path, spec)


def check_stateful_target(deployment_target: str) -> None:
    """Refuse a system that has no states.

    Raises:
        OptionsError: The target is older than iOS 18 and macOS 15.
    """
    if deployment_target not in STATEFUL_TARGETS:
        raise OptionsError(
            f"{option('stateful')} needs iOS 18 or macOS 15, but {option('deployment_target')} is "
            f"{deployment_target}; choose {' or '.join(STATEFUL_TARGETS)}"
        )


def converted(
    program: torch.export.ExportedProgram,
    interface: PackageInterface,
    path: Path,
    *,
    deployment_target: str,
    float32: bool = False,
    last_passes: Sequence[str] = (),
) -> Any:
    """Convert an exported program and save it.

    Args:
        program: The result of `exported`.
        interface: Names, shapes and types to declare.
        path: The package. It must not exist.
        deployment_target: A key of `DEPLOYMENT_TARGETS`.
        float32: Compute in float32 whatever the outputs' type is.
        last_passes: Names of registered passes to run after all others.

    Returns:
        The `coremltools.models.MLModel`.

    Raises:
        ConversionError: coremltools cannot convert the program.
    """
    ct = import_coremltools()
    pipeline = _pipeline(ct, float32)
    pipeline.passes = [*pipeline.passes, *last_passes]
    try:
        return ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, DEPLOYMENT_TARGETS[deployment_target]),
            compute_precision=ct.precision.FLOAT32 if float32 else ct.precision.FLOAT16,
            outputs=[ct.TensorType(name=name, dtype=np.dtype(out.dtype)) for name, out in interface.outputs.items()],
            pass_pipeline=pipeline,
            skip_model_load=True,
            package_dir=str(path),
        )
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        reason = first_line(error) if str(error).strip() else type(error).__name__
        raise ConversionError(f"coremltools cannot convert {path.stem}: {reason}") from error


def exported(module: torch.nn.Module, interface: PackageInterface) -> torch.export.ExportedProgram:
    """Record the graph of a module, in the form that coremltools converts without float32 copies."""
    from whisperkit_tools.conversion.passes import cast_quotients, cast_scalars

    example = tuple(_example(tensor) for tensor in interface.inputs.values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program: torch.export.ExportedProgram = torch.export.export(
            module.eval(), example, strict=False
        ).run_decompositions({})
    cast_scalars(program)
    cast_quotients(program)
    return program


def _example(tensor: TensorInterface) -> torch.Tensor:
    return torch.zeros(tensor.shape, dtype=_TORCH_DTYPES[tensor.dtype])


def _pipeline(ct: Any, float32: bool) -> Any:
    from whisperkit_tools.conversion import passes

    pipeline = ct.PassPipeline.DEFAULT
    # `fuse_conv_scale` would multiply a scale into the weights and round them again. `fold_query_scale` does it where
    # that is exact.
    names: list[str] = [name for name in pipeline.passes if name != "common::fuse_conv_scale"]
    if not float32:
        names[names.index(passes.FUSE_BATCH_NORM)] = passes.FUSE_BATCH_NORM_FLOAT16
    names.insert(0, passes.NAME_PIECES)
    names.append(passes.NAME_WEIGHTS)
    pipeline.passes = names
    return pipeline


def fold_query_scale(module: torch.nn.Module) -> None:
    """Multiply the scale of the queries into their projection, in place, where float16 does not round it.

    This is where the scale is a power of two: for heads of 64 channels, which all of OpenAI's models have.
    """
    for attention in module.modules():
        if isinstance(attention, MultiHeadAttention) and _is_power_of_two(attention.scale):
            with torch.no_grad():
                for parameter in attention.q_proj.parameters():
                    parameter.mul_(attention.scale)
            attention.scale = 1.0


def _is_power_of_two(value: float) -> bool:
    return float(np.frexp(value)[0]) == 0.5


def describe(spec: Any, metadata: PackageMetadata) -> None:
    """Write the description of a package into its `Model` protobuf."""
    said = spec.description.metadata
    said.shortDescription = metadata.description
    said.author = metadata.author
    said.license = metadata.license
    said.versionString = metadata.version
    said.userDefined.update(metadata.user_defined)


def declare_output_shapes(description: Any, interface: PackageInterface) -> None:
    """Declare the outputs' shapes, in place: coremltools omits them, and the runtime reads them without a check.

    Args:
        description: A `ModelDescription` or `FunctionDescription` protobuf.
        interface: Names and shapes.

    Raises:
        ConversionError: The outputs are not the interface's.
    """
    declared = {feature.name: feature for feature in description.output}
    if declared.keys() != interface.outputs.keys():
        raise ConversionError(f"the export has outputs {sorted(declared)}, expected {sorted(interface.outputs)}")
    for name, feature in declared.items():
        del feature.type.multiArrayType.shape[:]
        feature.type.multiArrayType.shape.extend(interface.outputs[name].shape)


def make_reproducible(path: Path, spec: Any) -> None:
    """Write manifest and model so that two equal conversions give equal bytes: no random names, sorted maps."""
    manifest_path = path / "Manifest.json"
    manifest = read_json_object(manifest_path)
    renamed = {
        old: str(uuid.uuid5(_PACKAGE_NAMESPACE, item["path"])) for old, item in manifest["itemInfoEntries"].items()
    }
    manifest["itemInfoEntries"] = {
        renamed[old]: item
        for old, item in sorted(manifest["itemInfoEntries"].items(), key=lambda pair: pair[1]["path"])
    }
    manifest["rootModelIdentifier"] = renamed[manifest["rootModelIdentifier"]]
    write_whole(manifest_path, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    (path / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))
