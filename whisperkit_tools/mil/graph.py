"""An ML Program as a package holds it: constants, operations, inputs and outputs, read but not interpreted."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from whisperkit_tools import limits
from whisperkit_tools.errors import BundleError
from whisperkit_tools.files import read_json_object, read_limited
from whisperkit_tools.mil.protos import model_proto
from whisperkit_tools.mil.tensor_spec import TensorSpec, bit_width, dtype_name, numpy_dtype
from whisperkit_tools.mil.weights_file import Blob, BlobFile, packed_size, unpack_bits
from whisperkit_tools.paths import inside


@dataclass(frozen=True, slots=True)
class Constant:
    """A value stored in the program or in its weights file.

    Attributes:
        spec: Its name, shape and type.
        stored: A `str`, an array, or where to read the array.
    """

    spec: TensorSpec
    stored: Any

    @property
    def value(self) -> Any:
        """The value: `str` or an array; one from the weights file is read anew each time."""
        return self.stored.read() if isinstance(self.stored, Blob) else self.stored

    @property
    def in_weights_file(self) -> bool:
        """Whether the value lies in the weights file, not in the program."""
        return isinstance(self.stored, Blob)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a program.

    Attributes:
        type: The operation's type, such as `conv`.
        name: Its name in the program.
        inputs: For each parameter the values bound to it (several for a list parameter), constants included.
        outputs: What it computes.
        position: Its place among the function's operations, constants not counted, from 0.
        module: Path of the module it was traced from, where the package records that, else empty.
        has_blocks: It holds nested programs (control flow).
    """

    type: str
    name: str
    inputs: dict[str, tuple[TensorSpec, ...]]
    outputs: tuple[TensorSpec, ...]
    position: int
    module: str = ""
    has_blocks: bool = False

    @property
    def reads(self) -> tuple[TensorSpec, ...]:
        """All values that the operation reads, constants included, parameter by parameter."""
        return tuple(spec for specs in self.inputs.values() for spec in specs)


@dataclass(frozen=True, slots=True)
class Metadata:
    """Metadata of a package.

    Attributes:
        spec_version: Core ML specification version (7 is iOS 16, 8 iOS 17, 9 iOS 18).
        opset: The operation set of the function, such as `CoreML6`.
        user_defined: Free key-value pairs.
    """

    author: str
    license: str
    description: str
    version: str
    spec_version: int
    opset: str
    user_defined: dict[str, str]


@dataclass(slots=True)
class Graph:
    """One function of an ML Program."""

    path: Path
    function: str
    metadata: Metadata
    inputs: dict[str, TensorSpec]
    states: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    constants: dict[str, Constant] = field(repr=False)
    operations: tuple[Operation, ...] = field(repr=False)


def read_graph(path: str | Path, function: str | None = None) -> Graph:
    """Read one function of an `.mlpackage`. Weights are located and checked for presence, but not read.

    Args:
        path: The package folder.
        function: Name of the function. None for the one that Core ML runs by default.

    Raises:
        BundleError: The package is missing, damaged, not an ML Program, or has no such function.
    """
    path = Path(path)
    spec = read_spec(path)
    if spec.WhichOneof("Type") != "mlProgram":
        raise BundleError(f"{path}: is a model of type {spec.WhichOneof('Type')!r}; only ML Programs can be run")
    functions = spec.mlProgram.functions
    function = function or _default_function(spec)
    if function not in functions:
        raise BundleError(f"{path}: has no function {function!r}; it has {', '.join(sorted(functions))}")
    program = functions[function]
    block = program.block_specializations[program.opset]
    reader = _Reader(path, model_file(path).parent)
    try:
        reader.read(program, block)
        outputs = {name: reader.specs[name] for name in block.outputs}
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = error.args[0] if error.args else type(error).__name__
        raise BundleError(f"{path}: the program is damaged ({reason}); make the package again") from error
    finally:
        reader.close()
    metadata = _metadata(spec, program.opset)
    return Graph(
        path, function, metadata, reader.inputs, reader.states, outputs, reader.constants, tuple(reader.operations)
    )


def function_names(path: str | Path) -> tuple[str, ...]:
    """Names of the functions of an `.mlpackage`, the one that is run by default first.

    Raises:
        BundleError: The package is missing, damaged, or not an ML Program.
    """
    spec = read_spec(Path(path))
    default = _default_function(spec)
    return tuple(sorted(spec.mlProgram.functions, key=lambda name: (name != default, name)))


def _default_function(spec: Any) -> str:
    """Return the function that is run when none is named."""
    functions = list(spec.mlProgram.functions)
    return str(spec.description.defaultFunctionName) or (functions[0] if len(functions) == 1 else "main")


def model_file(path: Path) -> Path:
    """Return the model specification inside the package `path`.

    Raises:
        BundleError: The package is missing or damaged.
    """
    if not path.exists():
        raise BundleError(f"{path}: no such package")
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        raise BundleError(f"{path}: is not an .mlpackage (it has no Manifest.json)")
    entries = read_json_object(manifest, advice="make the package again")
    try:
        relative = entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"]
    except (KeyError, TypeError) as error:
        raise BundleError(f"{path}: Manifest.json names no model; make the package again") from error
    model = inside(path, f"Data/{relative}")
    if not model.is_file():
        raise BundleError(f"{path}: Data/{relative} is missing; make the package again")
    return model


def read_spec(path: Path) -> Any:
    """Return the model specification of the package `path`, Core ML's `Model` protobuf.

    Raises:
        BundleError: The package is missing or damaged.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    file = model_file(path)
    spec = model_proto().Model()
    try:
        spec.ParseFromString(read_limited(file, limits.MODEL_BYTES, BundleError))
    except DecodeError as error:
        raise BundleError(f"{path}: {file.name} is damaged; make the package again") from error
    if not spec.specificationVersion or spec.WhichOneof("Type") is None:
        raise BundleError(f"{path}: {file.name} holds no model; make the package again")
    return spec


def _metadata(spec: Any, opset: str) -> Metadata:
    meta = spec.description.metadata
    return Metadata(
        author=meta.author,
        license=meta.license,
        description=meta.shortDescription,
        version=meta.versionString,
        spec_version=spec.specificationVersion,
        opset=opset,
        user_defined=dict(meta.userDefined),
    )


class _Reader:
    """Walks a function once, in order, so that each value is known before it is used."""

    def __init__(self, path: Path, model_dir: Path) -> None:
        self.path = path
        self.model_dir = model_dir
        self.inputs: dict[str, TensorSpec] = {}
        self.states: dict[str, TensorSpec] = {}
        self.constants: dict[str, Constant] = {}
        self.operations: list[Operation] = []
        self.specs: dict[str, TensorSpec] = {}
        self._blobs: dict[str, BlobFile] = {}

    def close(self) -> None:
        """Close the weights files."""
        for blobs in self._blobs.values():
            blobs.close()

    def read(self, program: Any, block: Any) -> None:
        """Read inputs, constants and operations."""
        for named in program.inputs:
            is_state = named.type.WhichOneof("type") == "stateType"
            spec = _value_spec(named.name, named.type.stateType.wrappedType if is_state else named.type)
            (self.states if is_state else self.inputs)[named.name] = spec
            self.specs[named.name] = spec
        for operation in block.operations:
            if operation.type == "const":
                output = operation.outputs[0]
                self._add_constant(output.name, operation.attributes["val"])
            else:
                self._add_operation(operation)

    def _add_operation(self, operation: Any) -> None:
        outputs = tuple(_value_spec(output.name, output.type) for output in operation.outputs)
        name = _operation_name(operation, outputs)
        inputs = {
            parameter: tuple(self._bind(name, parameter, argument.arguments))
            for parameter, argument in operation.inputs.items()
        }
        # Up to iOS 17 the parts of a compressed weight are attributes instead of inputs.
        for key, value in operation.attributes.items():
            if operation.type.startswith("constexpr_") and key != "name":
                inputs[key] = (self._add_constant(f"{name}:{key}", value),)
        module = _module_path(operation.attributes)
        position = len(self.operations)
        self.operations.append(
            Operation(operation.type, name, inputs, outputs, position, module, bool(operation.blocks))
        )
        self.specs.update((output.name, output) for output in outputs)

    def _bind(self, operation: str, parameter: str, bindings: Iterable[Any]) -> Iterator[TensorSpec]:
        """Yield the values bound to one parameter; a value written in place becomes a constant."""
        for index, binding in enumerate(bindings):
            if binding.WhichOneof("binding") == "name":
                if binding.name not in self.specs:
                    raise ValueError(f"{operation!r} uses {binding.name!r}, which nothing computes")
                yield self.specs[binding.name]
            else:
                yield self._add_constant(f"{operation}:{parameter}{index or ''}", binding.value)

    def _add_constant(self, name: str, value: Any) -> TensorSpec:
        spec = _value_spec(name, value.type)
        self.constants[name] = Constant(spec, self._value(spec, value))
        self.specs[name] = spec
        return spec

    def _value(self, spec: TensorSpec, value: Any) -> Any:
        """Return the stored value: `str`, an array of the declared shape, or where in a file it lies."""
        if value.WhichOneof("value") == "blobFileValue":
            return self._blob_file(value.blobFileValue.fileName).find(value.blobFileValue.offset, spec)
        tensor = value.immediateValue.tensor
        kind = tensor.WhichOneof("value")
        if kind is None:
            return np.zeros(_sizes(spec), numpy_dtype(spec.dtype))
        values = getattr(tensor, kind).values
        if kind == "strings":
            return values[0] if not spec.shape else np.array(values)
        array = _from_bytes(values, spec) if kind == "bytes" else np.array(values, numpy_dtype(spec.dtype))
        return array.reshape(_sizes(spec))

    def _blob_file(self, name: str) -> BlobFile:
        """Return the weights file `name`, written as `@model_path/weights/weight.bin`."""
        if name not in self._blobs:
            self._blobs[name] = BlobFile(inside(self.model_dir, name.removeprefix("@model_path/")))
        return self._blobs[name]


def _from_bytes(values: bytes, spec: TensorSpec) -> np.ndarray[Any, Any]:
    """Return the elements of a value that the program holds as bytes, less than eight bits packed as in a file."""
    width = bit_width(spec.dtype)
    if width >= 8:
        return np.frombuffer(values, numpy_dtype(spec.dtype))
    count = math.prod(_sizes(spec))
    if len(values) != packed_size(count, width):
        raise ValueError(f"{spec.name!r} has {len(values)} bytes for {count} elements of {width} bits")
    packed = np.frombuffer(values, np.uint8)
    return unpack_bits(packed, width, count, signed=spec.dtype.startswith("int"))


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(axis or 0 for axis in spec.shape)


def _value_spec(name: str, value_type: Any) -> TensorSpec:
    """Return what a `ValueType` declares; a list or dictionary counts as an untyped scalar."""
    if value_type.WhichOneof("type") != "tensorType":
        return TensorSpec(name, (), "string")
    tensor = value_type.tensorType
    shape = tuple(
        axis.constant.size if axis.WhichOneof("dimension") == "constant" else None for axis in tensor.dimensions
    )
    elements = math.prod(axis or 1 for axis in shape)
    if elements > limits.TENSOR_ELEMENTS:
        raise ValueError(f"{name!r} has {elements} elements; the maximum is {limits.TENSOR_ELEMENTS}")
    return TensorSpec(name, shape, dtype_name(tensor.dataType))


def _operation_name(operation: Any, outputs: tuple[TensorSpec, ...]) -> str:
    """Return the operation's recorded name, else that of its first output."""
    if "name" in operation.attributes:
        return str(operation.attributes["name"].immediateValue.tensor.strings.values[0])
    return outputs[0].name if outputs else operation.type


def _module_path(attributes: Any) -> str:
    """Return the dotted path of the module an operation was traced from, when an attribute records it."""
    for key in ("TORCHSCRIPT_MODULE_NAME", "scope", "module"):
        if key in attributes:
            value = attributes[key].immediateValue
            names = value.tensor.strings.values or list(
                itertools.chain.from_iterable(item.immediateValue.tensor.strings.values for item in value.list.values)
            )
            return ".".join(names)
    return ""
