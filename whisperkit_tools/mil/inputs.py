"""Conversion of a caller's inputs to the tensors that a program needs, with one message for all problems."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.mil.tensor_spec import Precision, TensorSpec, is_float, numpy_dtype, storage_dtype


def tensor_view(array: NDArray[Any]) -> Tensor:
    """View an array as a tensor without a copy where memory allows; a read-only one must only be read.

    `torch.from_numpy` warns about read-only memory, and a filter against that would cost more than the call.
    """
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    if array.flags.writeable:
        return torch.from_numpy(array)
    return torch.from_numpy(np.asarray(_WritableView(array)) if array.size else array.copy())


class _WritableView:
    """An array's memory, declared writable. It keeps the array alive."""

    def __init__(self, array: NDArray[Any]) -> None:
        interface = array.__array_interface__
        address, _ = interface["data"]
        self.__array_interface__ = {**interface, "data": (address, False)}
        self._array = array


class InputConverter:
    """Checks inputs and converts them to tensors.

    For NumPy inputs that the executor tracks it keeps a copy. When an array's content is what it was in the last call,
    the same tensor is handed on, so a change in place is noticed and an equal array counts as unchanged.
    """

    def __init__(self, inputs: Mapping[str, TensorSpec], precision: Precision) -> None:
        self._specs = inputs
        self._dtypes = {name: storage_dtype(spec.dtype, precision) for name, spec in inputs.items()}
        self._shapes = {name: spec.shape for name, spec in inputs.items()}
        self._seen: dict[str, tuple[NDArray[Any], Tensor]] = {}

    def forget(self) -> None:
        """Drop the kept copies."""
        self._seen.clear()

    def tensors(self, given: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Check tensors and convert them to the program's types and device; those already right are passed on.

        Raises:
            ValueError: Inputs are missing, unknown, of the wrong shape, or not numbers of their type.
        """
        self._check(given, {name: value.is_floating_point() for name, value in given.items()})
        return {name: given[name].to(device, dtype) for name, dtype in self._dtypes.items()}

    def arrays(self, given: Mapping[str, Any], device: torch.device, tracked: Collection[str]) -> dict[str, Tensor]:
        """Check arrays and convert them.

        Args:
            given: Arrays, tensors, numbers or lists by input name.
            device: Where to put the tensors.
            tracked: Names of inputs for which equal content gives the same tensor object.

        Raises:
            ValueError: Inputs are missing, unknown, of the wrong shape, or not numbers of their type.
        """
        arrays = {name: _as_array(value) for name, value in given.items()}
        self._check(arrays, {name: array.dtype.kind not in "biu" for name, array in arrays.items()})
        return {name: self._convert(name, arrays[name], device, name in tracked) for name in self._dtypes}

    def _convert(self, name: str, array: NDArray[Any], device: torch.device, tracked: bool) -> Tensor:
        if not tracked:
            return tensor_view(array).to(device, self._dtypes[name])
        seen = self._seen.get(name)
        if seen is not None and _same(seen[0], array):
            return seen[1]
        copy = array.copy()
        tensor = torch.from_numpy(copy).to(device, self._dtypes[name])
        self._seen[name] = (copy, tensor)
        return tensor

    def _check(self, given: Mapping[str, Any], floating: Mapping[str, bool]) -> None:
        """Raise one error for all inputs that do not fit.

        Core ML takes floats for an integer input and drops their fractions, so only what no integer stands for is
        refused.
        """
        problems = []
        for name, shape in self._shapes.items():
            if name not in given:
                problems.append(f"{name!r} is missing")
                continue
            found = tuple(given[name].shape)
            if found != shape and not _fits(found, shape):
                problems.append(f"{name!r} has shape {list(found)}, expected {_readable_shape(shape)}")
            dtype = self._specs[name].dtype
            if floating[name] and not is_float(dtype) and not _are_integers(given[name], dtype):
                problems.append(f"{name!r} holds a value that is not a number of type {dtype}")
        problems += [f"{name!r} is not an input" for name in given if name not in self._shapes]
        if problems:
            expected = ", ".join(str(spec) for spec in self._specs.values())
            raise ValueError(f"{'; '.join(problems)}. The inputs are {expected}")


def _are_integers(values: Any, dtype: str) -> bool:
    """Return whether floats, without their fractions, are in the range of an integer type."""
    if dtype == "bool" or not math.prod(values.shape):
        return True
    low, high = float(values.min()), float(values.max())  # NaN, if there is one
    limits = np.iinfo(numpy_dtype(dtype).name)
    return limits.min - 1 < low and high < limits.max + 1


def _as_array(value: Any) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _fits(found: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(found) == len(shape) and all(axis in (None, size) for size, axis in zip(found, shape, strict=True))


def _readable_shape(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('any' if axis is None else str(axis) for axis in shape)}]"


def _same(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Return whether two arrays are equal bit by bit; compares the first elements, which mostly differ, first."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    bits = f"u{first.dtype.itemsize}"  # NumPy compares float16 slowly, and NaN is not equal to itself
    one, two = first.view(bits), second.view(bits)
    return bool(np.array_equal(one.flat[:64], two.flat[:64]) and np.array_equal(one, two))
