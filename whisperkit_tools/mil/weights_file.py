"""Reading constants out of a package's weights file, one at a time and without a second copy.

The file is a header of 64 bytes, then for each constant a 64-byte record and its data, both 64-byte aligned. The
program refers to a constant by the offset of its record.

Source: `MILBlob/Blob/StorageFormat.hpp` and `BlobDataType.hpp` of apple/coremltools.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.tensor_spec import TensorSpec, bit_width, numpy_dtype

_RECORD = struct.Struct("<IIQQQ")  # sentinel, data type, size in bytes, offset of the data, padding in bits
_SENTINEL = 0xDEADBEEF


@dataclass(frozen=True, slots=True)
class Blob:
    """A constant in a weights file: where its data lies and what it is."""

    path: Path
    start: int
    spec: TensorSpec

    def read(self) -> NDArray[Any]:
        """Read the constant.

        Returns:
            A new array of the constant's shape; types of less than eight bits take a byte an element.

        Raises:
            BundleError: The file has been cut short meanwhile.
        """
        shape = tuple(axis or 0 for axis in self.spec.shape)
        count, width = math.prod(shape), bit_width(self.spec.dtype)
        dtype = numpy_dtype(self.spec.dtype) if width >= 8 else np.dtype(np.uint8)
        items = count if width >= 8 else (count * width + 7) // 8
        found: NDArray[Any] = np.fromfile(self.path, dtype, items, offset=self.start)
        if len(found) != items:
            raise BundleError(f"{self.path}: ends within constant {self.spec.name!r}; make the package again")
        if width < 8:
            found = unpack_bits(found, width, count, signed=self.spec.dtype.startswith("int"))
        return found.reshape(shape)


class BlobFile:
    """A weights file."""

    def __init__(self, path: Path) -> None:
        """Look at the file.

        Raises:
            BundleError: It is missing.
        """
        self.path = path
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise BundleError(f"{path}: the weights file is missing; make the package again") from None
        except OSError as error:
            raise BundleError(f"{path}: cannot read the weights file ({error.strerror})") from error
        self._total = path.stat().st_size

    def close(self) -> None:
        """Close the file; blobs that were found stay readable."""
        self._file.close()

    def find(self, offset: int, spec: TensorSpec) -> Blob:
        """Find the constant whose record is at `offset`, and check that all of it is there.

        Args:
            offset: Where its record starts, in bytes.
            spec: What the program says the constant is.

        Raises:
            BundleError: The file ends too early or holds something else at that place.
        """
        expected = (math.prod(axis or 0 for axis in spec.shape) * bit_width(spec.dtype) + 7) // 8
        if offset + _RECORD.size > self._total:
            raise self._damaged(spec, f"its record at byte {offset} is beyond the file's {self._total} bytes")
        self._file.seek(offset)
        sentinel, _, size, start, _ = _RECORD.unpack(self._file.read(_RECORD.size))
        if sentinel != _SENTINEL:
            raise self._damaged(spec, f"there is no record at byte {offset}")
        if size < expected:
            raise self._damaged(spec, f"it has {size} bytes where the program expects {expected}")
        if start + expected > self._total:
            raise self._damaged(spec, f"its data ends at byte {start + expected}, the file at byte {self._total}")
        return Blob(self.path, start, spec)

    def _damaged(self, spec: TensorSpec, what: str) -> BundleError:
        return BundleError(
            f"{self.path}: constant {spec.name!r} cannot be read: {what}; the file is truncated or belongs to another "
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
