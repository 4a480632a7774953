"""Reading constants out of a package's weights file, mapped instead of copied.

The file is a header of 64 bytes, then for each constant a 64-byte record and its data, both 64-byte aligned. The
program refers to a constant by the offset of its record.

Source: `MILBlob/Blob/StorageFormat.hpp` and `BlobDataType.hpp` of apple/coremltools.
"""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.specs import TensorSpec, bit_width, numpy_dtype

_RECORD = struct.Struct("<IIQQQ")  # sentinel, data type, size in bytes, offset of the data, padding in bits
_SENTINEL = 0xDEADBEEF


class BlobFile:
    """A weights file."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            BundleError: It is missing or empty.
        """
        self.path = path
        try:
            self._bytes: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        except FileNotFoundError:
            raise BundleError(f"{path}: the weights file is missing; make the package again") from None
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: cannot read the weights file ({error}); make the package again") from error

    def read(self, offset: int, spec: TensorSpec) -> NDArray[Any]:
        """Return the constant whose record is at `offset`.

        Args:
            offset: Where its record starts, in bytes.
            spec: What the program says the constant is.

        Returns:
            An array of `spec.shape`: a read-only view of the file, or, for types of less than eight bits, a copy with
            one element a byte.

        Raises:
            BundleError: The file ends too early or holds something else at that place.
        """
        shape = tuple(axis or 0 for axis in spec.shape)
        count, width = math.prod(shape), bit_width(spec.dtype)
        start = self._data_start(offset, expected=(count * width + 7) // 8, name=spec.name)
        raw = self._bytes[start : start + (count * width + 7) // 8]
        if width < 8:
            return unpack_bits(raw, width, count, signed=spec.dtype.startswith("int")).reshape(shape)
        return raw.view(numpy_dtype(spec.dtype)).reshape(shape)

    def _data_start(self, offset: int, expected: int, name: str) -> int:
        """Check the record at `offset` and return where its data starts."""
        total = len(self._bytes)
        if offset + _RECORD.size > total:
            raise self._damaged(name, f"its record at byte {offset} is beyond the file's {total} bytes")
        sentinel, _, size, start, _ = _RECORD.unpack(self._bytes[offset : offset + _RECORD.size].tobytes())
        if sentinel != _SENTINEL:
            raise self._damaged(name, f"there is no record at byte {offset}")
        if size < expected:
            raise self._damaged(name, f"it has {size} bytes where the program expects {expected}")
        if start + expected > total:
            raise self._damaged(name, f"its data ends at byte {start + expected}, the file at byte {total}")
        return int(start)

    def _damaged(self, name: str, what: str) -> BundleError:
        return BundleError(
            f"{self.path}: constant {name!r} cannot be read: {what}; the file is truncated or belongs to another "
            "package, make the package again"
        )


def unpack_bits(packed: NDArray[np.uint8], width: int, count: int, *, signed: bool = False) -> NDArray[Any]:
    """Unpack `count` elements of `width` bits, least significant bit first.

    Args:
        packed: Bytes, `[ceil(count * width / 8)]`.
        width: Bits an element, 1 to 8.
        count: Number of elements.
        signed: Elements are in two's complement.

    Returns:
        `[count]`, uint8, or int8 when `signed`.
    """
    group = math.lcm(width, 8) // 8  # the fewest whole bytes that hold whole elements
    padded = np.zeros((-(-len(packed) // group), group), np.uint8)
    padded.reshape(-1)[: len(packed)] = packed
    elements = np.empty((len(padded), group * 8 // width), np.uint8)
    words = padded[:, 0].astype(np.uint32)
    for byte in range(1, group):
        words |= padded[:, byte].astype(np.uint32) << np.uint32(8 * byte)
    for index in range(elements.shape[1]):
        elements[:, index] = (words >> np.uint32(index * width)) & np.uint32((1 << width) - 1)
    flat = elements.reshape(-1)[:count]
    if not signed:
        return flat
    sign = np.uint8(1 << (width - 1))
    return ((flat ^ sign) - sign).view(np.int8)
