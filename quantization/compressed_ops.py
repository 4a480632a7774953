"""The operations that a compressed weight becomes in a program, for each deployment target.

Up to iOS 17 packed bits and tables are attributes of one operation; from iOS 18 they are arguments written in place,
with a palette for each block. No target can add two compressed weights, so outliers are a second operation of the
weight's user on the same input, whose result is added.

Source: coremltools' `ops/defs/iOS16/constexpr_ops.py`, `ops/defs/iOS18/compression.py`, and packages it writes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.mil.tensor_spec import mil_type
from whisperkit_tools.mil.weights_file import FILE_NAME, WeightsWriter, pack_bits
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.palette import Palettized, outlier_count
from whisperkit_tools.quantization.sizes import MIN_BLOB_ELEMENTS

OUTLIERS, PALETTE = "_outliers", "_palette"
"""What is put behind a name for the sparse part, and for what the palette alone gives."""

Shape = Sequence[int]


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight that is to be written, or, without `palettized`, only measured."""

    name: str
    shape: tuple[int, ...]
    option: Compression
    palettized: Palettized | None

    def data(self, get: Callable[[Palettized], Any]) -> Any:
        """What `get` finds in the palettized weight, None when measuring."""
        return None if self.palettized is None else get(self.palettized)


class Forms:
    """Makes operations of weights, their data going to a weights file."""

    def __init__(self, spec_version: int, new_operation: Callable[[], Any], weights: WeightsWriter) -> None:
        """Take the target's forms.

        Args:
            spec_version: Of the package.
            new_operation: Makes an empty `MILSpec.Operation`.
            weights: Takes the data.
        """
        self._with_blocks = spec_version >= 9
        self._new_operation = new_operation
        self._weights = weights

    def operations(self, weight: Weight) -> list[Any]:
        """The operations whose results are the weight, under its name, and the outliers, if any, under theirs."""
        found = self._palette_with_blocks(weight) if self._with_blocks else [self._palette_packed(weight)]
        if weight.option.outlier_share:
            found.append(self._sparse(weight))
        return found

    # --- palettes ----------------------------------------------------------------------------------------------------

    def _palette_packed(self, weight: Weight) -> Any:
        option, size = weight.option, math.prod(weight.shape)
        operation = self._operation("constexpr_lut_to_dense", weight.name, weight.shape)
        attributes = operation.attributes
        packed = weight.data(lambda part: pack_bits(part.indices, option.nbits))
        self._fill(attributes["indices"], "uint8", (-(-size * option.nbits // 8),), packed, blob=True)
        self._fill(attributes["lut"], "float16", (option.entries,), weight.data(lambda part: part.lut))
        self._fill(attributes["shape"], "uint32", (len(weight.shape),), np.array(weight.shape, np.uint32))
        return operation

    def _palette_with_blocks(self, weight: Weight) -> list[Any]:
        option, name = weight.option, weight.name
        scaled = option.per_channel_scale
        operation = self._operation("constexpr_lut_to_dense", name + PALETTE if scaled else name, weight.shape)
        places = [size // option.cluster_dim if at == option.axis else size for at, size in enumerate(weight.shape)]
        lut_shape = (*option.palettes(weight.shape), option.entries, option.cluster_dim)
        indices = weight.data(lambda part: part.indices)
        self._argument(operation, "indices", f"uint{option.nbits}", places, indices, blob=True)
        self._argument(operation, "lut", "float16", lut_shape, weight.data(lambda part: part.lut))
        if option.cluster_dim > 1:
            self._argument(operation, "vector_axis", "int32", (), np.array(option.axis, np.int32))
        return [operation, self._scaled(weight)] if scaled else [operation]

    def _scaled(self, weight: Weight) -> Any:
        operation = self._operation("constexpr_blockwise_shift_scale", weight.name, weight.shape)
        operation.inputs["data"].arguments.add().name = weight.name + PALETTE
        shape = [size if at == weight.option.axis else 1 for at, size in enumerate(weight.shape)]
        self._argument(operation, "scale", "float16", shape, weight.data(lambda part: part.scale))
        return operation

    # --- outliers ----------------------------------------------------------------------------------------------------

    def _sparse(self, weight: Weight) -> Any:
        size, count = math.prod(weight.shape), outlier_count(math.prod(weight.shape), weight.option)
        operation = self._operation("constexpr_sparse_to_dense", weight.name + OUTLIERS, weight.shape)
        values, mask = weight.data(lambda part: part.outlier_values), weight.data(_mask)
        if self._with_blocks:
            self._argument(operation, "mask", "uint1", weight.shape, mask, blob=True)
            self._argument(operation, "nonzero_data", "float16", (count,), values)
            return operation
        packed = None if mask is None else pack_bits(mask, 1)
        self._fill(operation.attributes["mask"], "uint8", (-(-size // 8),), packed, blob=True)
        self._fill(operation.attributes["nonzero_data"], "float16", (count,), values)
        self._fill(operation.attributes["shape"], "uint32", (len(weight.shape),), np.array(weight.shape, np.uint32))
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


def second_use(user: Any, names: Sequence[str]) -> list[Any]:
    """A user of weights with outliers as three operations: on the palettes, on the outliers, and their sum.

    Args:
        user: An operation that is linear in the weights `names` that it reads; it is not changed.
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


def _mask(palettized: Palettized) -> NDArray[np.uint8]:
    mask = np.zeros(math.prod(palettized.shape), np.uint8)
    mask[palettized.outlier_positions] = 1
    return mask.reshape(palettized.shape)


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
