"""MIL operations of a compressed weight for each deployment target, and where outliers can be added.

Up to iOS 17 packed bits and tables are attributes of one operation. From iOS 18 they are arguments written in place,
with a palette for each block. Integers with scales are one operation on each target. No target can add two compressed
weights. The operation that reads a weight with outliers therefore runs twice on the same input, on the palette and on
the outliers, and the results are added.

Source: coremltools' `ops/defs/iOS16/constexpr_ops.py`, `ops/defs/iOS18/compression.py`, and packages it writes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.mil.graph import Graph, Operation
from whisperkit_tools.mil.tensor_spec import mil_type
from whisperkit_tools.mil.weights_file import FILE_NAME, WeightsWriter, pack_bits
from whisperkit_tools.quantization.compression import MIN_BLOB_ELEMENTS, Compression, outlier_count
from whisperkit_tools.quantization.palette import Palettized

OUTLIERS, PALETTE = "_outliers", "_palette"
"""Appended to a name for the sparse part, and for the result of the palette alone."""

OUTLIER_INPUTS: Mapping[str, tuple[str, ...]] = {
    "conv": ("weight",),
    "conv_transpose": ("weight",),
    "linear": ("weight",),
    "matmul": ("x", "y"),
    "gather": ("x",),
}
"""By operation type the inputs in which the operation is linear, so that outliers can be added to its result."""

Shape = Sequence[int]


def outlier_obstacles(name: str, graph: Graph) -> list[str]:
    """Return why outliers cannot be added to a weight, one line for each reason. Empty where they can.

    Args:
        name: The weight's name in the program.
        graph: The program.
    """
    lines = []
    for operation in graph.operations:
        parameters = [key for key, values in operation.inputs.items() if any(value.name == name for value in values)]
        if parameters and not _adds_outliers(operation, parameters, graph):
            lines.append(f"{name} has outliers, and {operation.type} {operation.name!r} cannot add them")
    if name in graph.outputs:
        lines.append(f"{name} has outliers and is an output")
    return lines


def _adds_outliers(operation: Operation, parameters: Sequence[str], graph: Graph) -> bool:
    """Whether an operation that reads a weight as `parameters` is linear in it and in no other weight."""
    linear = OUTLIER_INPUTS.get(operation.type, ())
    weights = [value for key in linear for value in operation.inputs.get(key, ()) if value.name in graph.constants]
    # A product of two weights is not linear in both together.
    return set(parameters) <= set(linear) and len(weights) == 1


@dataclass(frozen=True, slots=True)
class CompressedWeight:
    """A weight to write.

    Attributes:
        name: The weight's name in the program.
        shape: The weight's shape.
        compression: How it is stored.
        palettized: Its data. None to compute sizes only.
    """

    name: str
    shape: tuple[int, ...]
    compression: Compression
    palettized: Palettized | None

    def array(self, name: str) -> NDArray[Any] | None:
        """Return an array of the data by its attribute in `Palettized`, or None without data."""
        found: NDArray[Any] | None = getattr(self.palettized, name, None)
        return found


class CompressedOpBuilder:
    """Builds the operations of weights, and writes their data to a weights file."""

    def __init__(self, spec_version: int, new_operation: Callable[[], Any], weights: WeightsWriter) -> None:
        """Choose the forms of the target.

        Args:
            spec_version: Specification version of the package.
            new_operation: Makes an empty `MILSpec.Operation`.
            weights: Takes the data.
        """
        self._with_blocks = spec_version >= 9
        self._new_operation = new_operation
        self._weights = weights

    def operations(self, weight: CompressedWeight) -> list[Any]:
        """Return the operations that compute the weight under its name, and its outliers, if any, under theirs."""
        if weight.compression.kind == "linear":
            return [self._linear_with_blocks(weight) if self._with_blocks else self._linear(weight)]
        found = self._palette_with_blocks(weight) if self._with_blocks else [self._palette_packed(weight)]
        if weight.compression.outlier_share:
            found.append(self._sparse(weight))
        return found

    # --- palettes ----------------------------------------------------------------------------------------------------

    def _palette_packed(self, weight: CompressedWeight) -> Any:
        compression, size = weight.compression, math.prod(weight.shape)
        operation = self._operation("constexpr_lut_to_dense", weight.name, weight.shape)
        attributes = operation.attributes
        packed = _packed(weight.array("indices"), compression.nbits)
        self._fill(attributes["indices"], "uint8", (-(-size * compression.nbits // 8),), packed, blob=True)
        self._fill(attributes["lut"], "float16", (compression.entries,), weight.array("lut"))
        self._fill(attributes["shape"], "uint32", (len(weight.shape),), np.array(weight.shape, np.uint32))
        return operation

    def _palette_with_blocks(self, weight: CompressedWeight) -> list[Any]:
        compression, name = weight.compression, weight.name
        scaled, vector, axis = compression.per_channel_scale, compression.cluster_dim, compression.axis
        operation = self._operation("constexpr_lut_to_dense", name + PALETTE if scaled else name, weight.shape)
        index_shape = [size // vector if at == axis else size for at, size in enumerate(weight.shape)]
        lut_shape = (*compression.palettes(weight.shape), compression.entries, vector)
        indices = weight.array("indices")
        self._argument(operation, "indices", f"uint{compression.nbits}", index_shape, indices, blob=True)
        self._argument(operation, "lut", "float16", lut_shape, weight.array("lut"))
        if vector > 1:
            self._argument(operation, "vector_axis", "int32", (), np.array(axis, np.int32))
        return [operation, self._scale(weight)] if scaled else [operation]

    def _scale(self, weight: CompressedWeight) -> Any:
        operation = self._operation("constexpr_blockwise_shift_scale", weight.name, weight.shape)
        operation.inputs["data"].arguments.add().name = weight.name + PALETTE
        self._argument(operation, "scale", "float16", _scale_shape(weight), weight.array("scale"))
        return operation

    # --- integers ----------------------------------------------------------------------------------------------------

    def _linear(self, weight: CompressedWeight) -> Any:
        axis = weight.compression.axis
        channels = weight.shape[axis]
        operation = self._operation("constexpr_affine_dequantize", weight.name, weight.shape)
        attributes = operation.attributes
        self._fill(attributes["quantized_data"], "int8", weight.shape, _integers(weight), blob=True)
        # Zeros in the program, not in the weights file, so that the weight takes as many bytes there as from iOS 18.
        self._fill(attributes["zero_point"], "int8", (channels,), None)
        self._fill(attributes["scale"], "float16", (channels,), weight.array("scale"))
        self._fill(attributes["axis"], "int32", (), np.array(axis, np.int32))
        return operation

    def _linear_with_blocks(self, weight: CompressedWeight) -> Any:
        operation = self._operation("constexpr_blockwise_shift_scale", weight.name, weight.shape)
        self._argument(operation, "data", "int8", weight.shape, _integers(weight), blob=True)
        self._argument(operation, "scale", "float16", _scale_shape(weight), weight.array("scale"))
        return operation

    # --- outliers ----------------------------------------------------------------------------------------------------

    def _sparse(self, weight: CompressedWeight) -> Any:
        size = math.prod(weight.shape)
        count = outlier_count(size, weight.compression)
        operation = self._operation("constexpr_sparse_to_dense", weight.name + OUTLIERS, weight.shape)
        values, mask = weight.array("outlier_values"), _mask(weight)
        if self._with_blocks:
            self._argument(operation, "mask", "uint1", weight.shape, mask, blob=True)
            self._argument(operation, "nonzero_data", "float16", (count,), values)
            return operation
        attributes = operation.attributes
        self._fill(attributes["mask"], "uint8", (-(-size // 8),), _packed(mask, 1), blob=True)
        self._fill(attributes["nonzero_data"], "float16", (count,), values)
        self._fill(attributes["shape"], "uint32", (len(weight.shape),), np.array(weight.shape, np.uint32))
        return operation

    # --- values ------------------------------------------------------------------------------------------------------

    def _operation(self, kind: str, name: str, shape: Shape) -> Any:
        operation = self._new_operation()
        operation.type = kind
        output = operation.outputs.add()
        output.name = name
        _set_type(output.type, "float16", shape)
        _set_label(operation, name)
        return operation

    def _argument(
        self, operation: Any, key: str, dtype: str, shape: Shape, data: NDArray[Any] | None, blob: bool = False
    ) -> None:
        self._fill(operation.inputs[key].arguments.add().value, dtype, shape, data, blob)

    def _fill(self, value: Any, dtype: str, shape: Shape, data: NDArray[Any] | None, blob: bool = False) -> None:
        """Make `value` the array: in the weights file when it is long or `blob`, else in place."""
        _set_type(value.type, dtype, shape)
        count = math.prod(shape)
        if blob or (dtype == "float16" and count >= MIN_BLOB_ELEMENTS):
            value.blobFileValue.fileName = FILE_NAME
            value.blobFileValue.offset = self._weights.add(dtype, count, data)
        elif dtype == "int32":
            value.immediateValue.tensor.ints.values.extend(np.asarray(data).reshape(-1).tolist())
        else:
            array = np.zeros(count, dtype) if data is None else data
            value.immediateValue.tensor.bytes.values = np.ascontiguousarray(array, dtype).tobytes()


def split_outlier_user(user: Any, names: Sequence[str]) -> list[Any]:
    """Split an operation that reads weights with outliers in three: on the palettes, on the outliers, and their sum.

    Args:
        user: An operation that is linear in the weights `names` that it reads. It is not changed.
        names: The weights with outliers.
    """
    base, extra, total = (type(user)() for _ in range(3))
    base.CopyFrom(user)
    extra.CopyFrom(user)
    extra.inputs.pop("bias", None)
    output, label = user.outputs[0].name, _label(user)
    for part, suffix in ((base, PALETTE), (extra, OUTLIERS)):
        part.outputs[0].name = output + suffix
        _set_label(part, label + suffix)
    for name in names:
        _rename(extra, name, name + OUTLIERS)
    total.type = "add"
    total.inputs["x"].arguments.add().name = output + PALETTE
    total.inputs["y"].arguments.add().name = output + OUTLIERS
    total.outputs.add().CopyFrom(user.outputs[0])
    _set_label(total, label)
    return [base, extra, total]


def _packed(elements: NDArray[Any] | None, width: int) -> NDArray[np.uint8] | None:
    return None if elements is None else pack_bits(elements, width)


def _integers(weight: CompressedWeight) -> NDArray[np.int8] | None:
    """Return the integers of a linear weight, whose indices count from -128."""
    indices = weight.array("indices")
    return None if indices is None else (indices ^ np.uint8(128)).view(np.int8)


def _scale_shape(weight: CompressedWeight) -> list[int]:
    return [size if at == weight.compression.axis else 1 for at, size in enumerate(weight.shape)]


def _mask(weight: CompressedWeight) -> NDArray[np.uint8] | None:
    """Return 1 where an outlier is, of the weight's shape. None without data."""
    positions = weight.array("outlier_positions")
    if positions is None:
        return None
    mask = np.zeros(math.prod(weight.shape), np.uint8)
    mask[positions] = 1
    return mask.reshape(weight.shape)


def _set_type(value_type: Any, dtype: str, shape: Shape) -> None:
    tensor = value_type.tensorType
    tensor.dataType = mil_type(dtype)
    tensor.rank = len(shape)
    for size in shape:
        tensor.dimensions.add().constant.size = size


def _label(operation: Any) -> str:
    if "name" not in operation.attributes:
        return str(operation.outputs[0].name)
    return str(operation.attributes["name"].immediateValue.tensor.strings.values[0])


def _set_label(operation: Any, label: str) -> None:
    value = operation.attributes["name"]
    value.Clear()
    value.type.tensorType.dataType = 2  # a string
    value.immediateValue.tensor.strings.values.append(label)


def _rename(operation: Any, old: str, new: str) -> None:
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name" and binding.name == old:
                binding.name = new
