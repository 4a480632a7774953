"""Writing a compressed `.mlpackage` from an uncompressed one and its palettes, and checking it by reading it back.

Everything but the named weights is carried over unchanged: names, interface, metadata, other weights, the Manifest. A
weight that several operations read (the token embedding) remains one operation and one stored copy.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.errors import BundleError, RecipeError
from whisperkit_tools.mil.graph import Graph, model_file, read_graph, read_spec
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.weights_file import FILE_NAME, WeightsWriter
from whisperkit_tools.quantization.compressed_ops import (
    OUTLIERS,
    CompressedOpBuilder,
    CompressedWeight,
    outlier_obstacles,
    split_outlier_user,
)
from whisperkit_tools.quantization.compression import SPEC_VERSIONS, Compression
from whisperkit_tools.quantization.palette import Palettized

Half = NDArray[np.float16]
_ELEMENTS_AT_ONCE = 1 << 26  # made dense together when a package is checked


def write_compressed(source: Path, palettized: Mapping[str, Palettized], destination: Path) -> None:
    """Write a package with compressed weights, and check that they read back as intended.

    Equal arguments give equal bytes. The package appears at `destination` once it is whole and has been checked.

    Args:
        source: An uncompressed `.mlpackage`.
        palettized: Compressed weights by their name in the program.
        destination: Path of the new `.mlpackage`. Must not exist.

    Raises:
        BundleError: The source is damaged, the destination exists, or what was written reads back differently.
        RecipeError: A weight is missing, has another shape, is not a float16 constant, needs a later deployment
            target, or has outliers where they cannot be added. The message names all of them.
    """
    if destination.exists():
        raise BundleError(f"{destination} exists; choose another path or remove it")
    weights = [CompressedWeight(name, part.shape, part.compression, part) for name, part in palettized.items()]
    spec, model = _checked_spec(source, weights)
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial, ignore=lambda folder, _: _rewritten(Path(folder), model), copy_function=_copy)
        target = partial / model.relative_to(source)
        (target.parent / "weights").mkdir()
        with WeightsWriter(target.parent / "weights" / "weight.bin") as writer:
            _rewrite(spec, weights, writer, model.parent)
        target.write_bytes(spec.SerializeToString(deterministic=True))
        _check_written(partial, palettized)
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def compressed_nbytes(source: Path, compressions: Mapping[str, Compression]) -> int:
    """Return the bytes of all files of the package that `write_compressed` would write. Needs no palettes.

    Args:
        source: An uncompressed `.mlpackage`.
        compressions: By name of the weight in the program. Other weights stay as they are.

    Raises:
        BundleError: The source is damaged.
        RecipeError: As `write_compressed`.
    """
    constants = read_graph(source).constants
    known = {
        name: tuple(axis or 0 for axis in constants[name].spec.shape) for name in compressions if name in constants
    }
    weights = [CompressedWeight(name, known.get(name, ()), wanted, None) for name, wanted in compressions.items()]
    spec, model = _checked_spec(source, weights)
    with WeightsWriter(None) as writer:
        _rewrite(spec, weights, writer, model.parent)
    others = sum(path.stat().st_size for path in source.rglob("*") if path.is_file() and not _is_model(path, model))
    return int(others + writer.nbytes + spec.ByteSize())


def read_dense(package: Path, names: Iterable[str]) -> Iterator[tuple[str, Half]]:
    """Yield weights of a package as the executor makes them dense, compressed or not.

    Args:
        package: The `.mlpackage`.
        names: The weights' names in the program.

    Yields:
        Name and float16 array. Outliers are added in float32 and the sum is rounded.

    Raises:
        BundleError: The package has no such weight.
    """
    graph = read_graph(package)
    specs = {output.name: output for op in graph.operations for output in op.outputs}
    specs |= {name: constant.spec for name, constant in graph.constants.items()}
    wanted = list(names)
    missing = sorted(set(wanted) - set(specs))
    if missing:
        raise BundleError(f"{package} has no weights named {', '.join(missing)}")
    for names_at_once in _portions(wanted, lambda name: specs[name].size):
        parts = {part for name in names_at_once for part in (name, name + OUTLIERS) if part in specs}
        found = Program(_constant_subgraph(graph, {name: specs[name] for name in sorted(parts)})).predict({})
        for name in names_at_once:
            dense = found[name].astype(np.float16)  # float32 where a scale was multiplied: rounded here once
            if name + OUTLIERS in parts:
                dense = (dense.astype(np.float32) + found[name + OUTLIERS]).astype(np.float16)
            yield name, dense


def _portions(names: list[str], size: Callable[[str], int]) -> Iterator[list[str]]:
    portion: list[str] = []
    for name in names:
        if portion and sum(map(size, portion)) + size(name) > _ELEMENTS_AT_ONCE:
            yield portion
            portion = []
        portion.append(name)
    if portion:
        yield portion


def _constant_subgraph(graph: Graph, outputs: dict[str, Any]) -> Graph:
    """Return the program of the operations that the constant `outputs` need."""
    needed, operations = set(outputs), []
    for operation in reversed(graph.operations):
        if any(output.name in needed for output in operation.outputs):
            operations.append(operation)
            needed |= {value.name for value in operation.reads}
    return replace(graph, inputs={}, states={}, outputs=outputs, operations=tuple(reversed(operations)))


def _check_written(package: Path, palettized: Mapping[str, Palettized]) -> None:
    wrong = [
        name
        for name, dense in read_dense(package, palettized)
        if not np.array_equal(dense.view(np.uint16), palettized[name].dense().view(np.uint16))
    ]
    if wrong:
        raise BundleError(f"{package}: {', '.join(wrong)} read back differently from what was written")


# --- the program -----------------------------------------------------------------------------------------------------


def _checked_spec(source: Path, weights: list[CompressedWeight]) -> tuple[Any, Path]:
    """Return the specification and its path, after checking every weight."""
    graph = read_graph(source)
    model = model_file(source)
    problems = [line for weight in weights for line in _problems(weight, graph)]
    if problems:
        raise RecipeError(f"{source.name} cannot be compressed like this: " + "; ".join(problems))
    return read_spec(source), model


def _problems(weight: CompressedWeight, graph: Graph) -> Iterator[str]:
    name, compression, version = weight.name, weight.compression, graph.metadata.spec_version
    constant = graph.constants.get(name)
    if constant is None or not constant.in_weights_file:
        is_compressed = any(op.type.startswith("constexpr_") and op.outputs[0].name == name for op in graph.operations)
        yield f"{name} is compressed already" if is_compressed else f"there is no weight {name}"
        return
    if constant.spec.dtype != "float16":
        yield f"{name} is {constant.spec.dtype}, only float16 weights can be compressed"
    if constant.spec.shape != weight.shape:
        yield f"{name} has shape {list(constant.spec.shape)}, the palette is for {list(weight.shape)}"
    if compression.misfit(weight.shape):
        yield f"{name} with {compression}: {compression.misfit(weight.shape)}"
    if compression.spec_version > version:
        found = SPEC_VERSIONS.get(version, f"specification version {version}")
        yield f"{name} with {compression} needs {compression.target}, the package is for {found}"
    if compression.outlier_share:
        yield from outlier_obstacles(name, graph)


def _rewrite(spec: Any, weights: list[CompressedWeight], writer: WeightsWriter, folder: Path) -> None:
    """Replace constants by the weights' operations in every function of the program, and lay out the weights file."""
    rewriter = _ProgramRewriter(spec.specificationVersion, weights, writer, folder)
    for _, function in sorted(spec.mlProgram.functions.items()):
        for _, block in sorted(function.block_specializations.items()):
            rewriter.rewrite(block)


class _ProgramRewriter:
    """Rewrites operations in one pass, in order. Each stored array is laid out once, where it is first used."""

    def __init__(self, spec_version: int, weights: list[CompressedWeight], writer: WeightsWriter, folder: Path) -> None:
        self._spec_version, self._writer, self._folder = spec_version, writer, folder
        self._weights = {weight.name: weight for weight in weights}
        self._with_outliers = {weight.name for weight in weights if weight.compression.outlier_share}
        self._made: dict[str, list[Any]] = {}
        self._moved: dict[tuple[str, int], int] = {}

    def rewrite(self, block: Any) -> None:
        """Rewrite one block in place."""
        found: list[Any] = []
        for operation in block.operations:
            name = operation.outputs[0].name if operation.outputs else ""
            if operation.type == "const" and name in self._weights:
                found += self._compressed(name, type(operation))
                continue
            self._move_arrays(operation)
            found += self._split_where_outliers(operation)
        copies = [type(operation).FromString(operation.SerializeToString()) for operation in found]
        del block.operations[:]
        block.operations.extend(copies)

    def _compressed(self, name: str, new_operation: Callable[[], Any]) -> list[Any]:
        """Return the operations of a weight. A second function with the same weight shares the stored arrays."""
        if name not in self._made:
            builder = CompressedOpBuilder(self._spec_version, new_operation, self._writer)
            self._made[name] = builder.operations(self._weights[name])
        return self._made[name]

    def _split_where_outliers(self, operation: Any) -> list[Any]:
        read = [
            binding.name
            for argument in operation.inputs.values()
            for binding in argument.arguments
            if binding.WhichOneof("binding") == "name" and binding.name in self._with_outliers
        ]
        return split_outlier_user(operation, read) if read else [operation]

    def _move_arrays(self, operation: Any) -> None:
        """Copy the arrays that an operation refers to into the new file."""
        values = list(operation.attributes.values())
        for argument in operation.inputs.values():
            values += [binding.value for binding in argument.arguments if binding.WhichOneof("binding") == "value"]
        for value in values:
            if value.WhichOneof("value") == "blobFileValue":
                value.blobFileValue.offset = self._moved_offset(value.blobFileValue)
                value.blobFileValue.fileName = FILE_NAME
        for block in operation.blocks:
            for inner in block.operations:
                self._move_arrays(inner)

    def _moved_offset(self, blob: Any) -> int:
        key = (str(blob.fileName), int(blob.offset))
        if key not in self._moved:
            path = self._folder / key[0].removeprefix("@model_path/")
            self._moved[key] = self._writer.copy(path, key[1])
        return self._moved[key]


def _is_model(path: Path, model: Path) -> bool:
    """Whether a file of a package is its program or its weights, which are written again."""
    return path == model or model.parent / "weights" in path.parents


def _rewritten(folder: Path, model: Path) -> list[str]:
    """Return the names in `folder` that are not copied."""
    return [path.name for path in folder.iterdir() if path in (model, model.parent / "weights")]


def _copy(source: str, target: str) -> None:
    """Copy content without permissions, because coremltools writes files that only their owner can read."""
    shutil.copyfile(source, target)
