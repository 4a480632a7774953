"""What a value of an ML Program is: its name, shape and element type, and how torch and NumPy hold it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

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


def dtype_name(number: int) -> str:
    """Return the name of a `MILSpec.DataType` number.

    Raises:
        ValueError: The number stands for no type that a tensor can have.
    """
    names = {
        1: "bool", 2: "string", 10: "float16", 11: "float32", 12: "float64",
        21: "int8", 22: "int16", 23: "int32", 24: "int64", 25: "int4",
        31: "uint8", 32: "uint16", 33: "uint32", 34: "uint64",
        35: "uint4", 36: "uint2", 37: "uint1", 38: "uint6", 39: "uint3",
    }  # fmt: skip
    if number not in names:
        raise ValueError(f"data type {number} is not known")
    return names[number]


def bit_width(dtype: str) -> int:
    """Return how many bits one element of `dtype` takes in a weights file."""
    if dtype == "bool":
        return 8
    return int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz"))


def is_float(dtype: str) -> bool:
    """Say whether `dtype` is a floating-point type."""
    return dtype.startswith("float")


def numpy_dtype(dtype: str) -> np.dtype[np.generic]:
    """Return the NumPy type that holds `dtype`; a type of less than eight bits takes a byte."""
    width = 8 if dtype == "bool" else bit_width(dtype)
    if width < 8:
        return np.dtype(np.int8 if dtype.startswith("int") else np.uint8)
    return np.dtype(dtype)


def storage_dtype(dtype: str, precision: Precision) -> "torch.dtype":
    """Return the torch type in which a value declared as `dtype` is held.

    float16 is held as float32 in float32 mode. Types for which torch has too few operations take the next larger.
    """
    import torch

    if dtype == "float16":
        return torch.float32 if precision == "float32" else torch.float16
    wider = {"float64": "float32", "uint16": "int32", "uint32": "int64", "uint64": "int64"}
    name = wider.get(dtype, str(numpy_dtype(dtype)))
    return cast("torch.dtype", getattr(torch, name))
