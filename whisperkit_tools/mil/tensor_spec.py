"""Values of an ML Program: name, shape and element type, and how NumPy, torch and the weights file hold them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, cast

import numpy as np

if TYPE_CHECKING:  # reading a package for its listing does not wait for torch
    import torch

Precision: TypeAlias = Literal["float32", "float16"]
Shape: TypeAlias = tuple[int | None, ...]
"""Sizes of the axes; None where the program leaves one open."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A value's name, shape (None for an axis of open size) and element type as the program declares them.

    `dtype` is NumPy's name where NumPy has the type, else coremltools' (`int4`, `uint1` to `uint6`, `string`).
    """

    name: str
    shape: Shape
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements; an axis of open size counts once."""
        count = 1
        for axis in self.shape:
            count *= axis or 1
        return count

    def __str__(self) -> str:
        axes = ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name}: {self.dtype}[{axes}]"


class _ElementType(NamedTuple):
    """An element type.

    Attributes:
        mil: Number of the type in a program (`MILSpec.DataType`).
        blob: Number of the type in a weights file (`BlobDataType`), None where a weights file has no such type.
        bits: Bits of an element in a weights file.
        numpy: Name of the NumPy type that holds it.
        torch: Name of the torch type that holds it. Types for which torch has too few operations take a wider one.
    """

    mil: int
    blob: int | None
    bits: int
    numpy: str
    torch: str


# Source: `MIL.proto` (DataType) and `MILBlob/Blob/BlobDataType.hpp` of apple/coremltools.
_ELEMENT_TYPES = {
    "bool": _ElementType(1, None, 8, "bool", "bool"),
    "float16": _ElementType(10, 1, 16, "float16", "float16"),
    "float32": _ElementType(11, 2, 32, "float32", "float32"),
    "float64": _ElementType(12, None, 64, "float64", "float32"),
    "int8": _ElementType(21, 4, 8, "int8", "int8"),
    "int16": _ElementType(22, 6, 16, "int16", "int16"),
    "int32": _ElementType(23, 14, 32, "int32", "int32"),
    "int64": _ElementType(24, None, 64, "int64", "int64"),
    "int4": _ElementType(25, 8, 4, "int8", "int8"),
    "uint8": _ElementType(31, 3, 8, "uint8", "uint8"),
    "uint16": _ElementType(32, 7, 16, "uint16", "int32"),
    "uint32": _ElementType(33, 15, 32, "uint32", "int64"),
    "uint64": _ElementType(34, None, 64, "uint64", "int64"),
    "uint4": _ElementType(35, 11, 4, "uint8", "uint8"),
    "uint2": _ElementType(36, 10, 2, "uint8", "uint8"),
    "uint1": _ElementType(37, 9, 1, "uint8", "uint8"),
    "uint6": _ElementType(38, 13, 6, "uint8", "uint8"),
    "uint3": _ElementType(39, 12, 3, "uint8", "uint8"),
}
_STRING = 2
_NAMES = {_STRING: "string", **{element.mil: name for name, element in _ELEMENT_TYPES.items()}}


def _element_type(dtype: str) -> _ElementType:
    if dtype not in _ELEMENT_TYPES:
        raise ValueError(f"{dtype} is not the element type of a tensor")
    return _ELEMENT_TYPES[dtype]


def dtype_name(number: int) -> str:
    """Return the name of a `MILSpec.DataType` number.

    Raises:
        ValueError: The number stands for no type that a tensor can have.
    """
    if number not in _NAMES:
        raise ValueError(f"data type {number} is not known")
    return _NAMES[number]


def mil_type(dtype: str) -> int:
    """Return the `MILSpec.DataType` number of a type."""
    return _element_type(dtype).mil


def blob_type(dtype: str) -> int:
    """Return the number of a type in a weights file.

    Raises:
        ValueError: A weights file cannot hold the type.
    """
    number = _element_type(dtype).blob
    if number is None:
        raise ValueError(f"a weights file cannot hold {dtype}")
    return number


def bit_width(dtype: str) -> int:
    """Return how many bits one element of `dtype` takes in a weights file."""
    return _element_type(dtype).bits


def is_float(dtype: str) -> bool:
    """Return whether `dtype` is a floating-point type."""
    return dtype.startswith("float")


def numpy_dtype(dtype: str) -> np.dtype[np.generic]:
    """Return the NumPy type that holds `dtype`; a type of less than eight bits takes a byte."""
    return np.dtype(_element_type(dtype).numpy)


def storage_dtype(dtype: str, precision: Precision) -> "torch.dtype":
    """Return the torch type in which a value declared as `dtype` is held; float16 is float32 in float32 mode."""
    import torch

    name = "float32" if dtype == "float16" and precision == "float32" else _element_type(dtype).torch
    return cast("torch.dtype", getattr(torch, name))


def predicted_dtype(dtype: str, precision: Precision) -> np.dtype[np.generic]:
    """Return the NumPy type in which `predict` returns a value declared as `dtype`.

    It is the declared type, except that in float32 mode a float16 value is float32, because it was not rounded.
    """
    return np.dtype(np.float32) if dtype == "float16" and precision == "float32" else numpy_dtype(dtype)
