"""Reading and writing a package's weights file, one constant at a time and without a second copy.

The file is a header of 64 bytes, then for each constant a 64-byte record and its data, both 64-byte aligned. The
program refers to a constant by the offset of its record.

Source: `MILBlob/Blob/StorageFormat.hpp` and `BlobDataType.hpp` of apple/coremltools.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.tensor_spec import TensorSpec, bit_width, blob_type, numpy_dtype

FILE_NAME = "@model_path/weights/weight.bin"
_ALIGNMENT, _CHUNK = 64, 1 << 24
_HEADER = struct.Struct("<II56x")  # entries, version
_VERSION, _SENTINEL = 2, 0xDEADBEEF
_RECORD = struct.Struct("<IIQQQ32x")


class _Record(NamedTuple):
    """The record before the data of a constant.

    Attributes:
        sentinel: Always `_SENTINEL`.
        data_type: Number of the element type, see `tensor_spec.blob_type`.
        size: Bytes of the data.
        start: Offset of the data.
        unused_bits: Bits of the last byte that hold no element.
    """

    sentinel: int
    data_type: int
    size: int
    start: int
    unused_bits: int


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
        items = count if width >= 8 else packed_size(count, width)
        found: NDArray[Any] = np.fromfile(self.path, dtype, items, offset=self.start)
        if len(found) != items:
            raise BundleError(f"{self.path}: ends within constant {self.spec.name!r}; make the package again")
        if width < 8:
            found = unpack_bits(found, width, count, signed=self.spec.dtype.startswith("int"))
        return found.reshape(shape)


class BlobFile:
    """A weights file that is read."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            BundleError: It is missing or cannot be read.
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
        expected = packed_size(math.prod(axis or 0 for axis in spec.shape), bit_width(spec.dtype))
        if offset + _RECORD.size > self._total:
            raise self._damaged(spec, f"its record at byte {offset} is beyond the file's {self._total} bytes")
        record = _read_record(self._file, offset)
        if record is None:
            raise self._damaged(spec, f"there is no record at byte {offset}")
        if record.size < expected:
            raise self._damaged(spec, f"it has {record.size} bytes where the program expects {expected}")
        end = record.start + expected
        if end > self._total:
            raise self._damaged(spec, f"its data ends at byte {end}, the file at byte {self._total}")
        return Blob(self.path, record.start, spec)

    def _damaged(self, spec: TensorSpec, what: str) -> BundleError:
        return BundleError(
            f"{self.path}: constant {spec.name!r} cannot be read: {what}; the file is truncated or belongs to another "
            "package, make the package again"
        )


class WeightsWriter:
    """A weights file that is being written. Without a path nothing is written, only counted.

    Attributes:
        nbytes: Bytes of the file so far.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("wb")
        self._entries = 0
        self.nbytes = _HEADER.size

    def __enter__(self) -> "WeightsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if kind is None:
            self._file.seek(0)
            self._file.write(_HEADER.pack(self._entries, _VERSION))
        self._file.close()

    def add(self, dtype: str, count: int, data: NDArray[Any] | None) -> int:
        """Append `count` elements and return the offset of their record.

        Args:
            dtype: Name of the type, such as `float16` or `uint4`.
            count: Number of elements.
            data: The elements; None only when nothing is written.
        """
        width = bit_width(dtype)
        offset = self._begin_entry(blob_type(dtype), packed_size(count, width), -count * width % 8)
        if self._file is not None:
            if data is None or data.size != count:
                raise ValueError(f"{count} elements are to be written, got {None if data is None else data.size}")
            data = np.ascontiguousarray(data)
            packed = pack_bits(data.view(np.uint8), width) if width < 8 else data
            self._file.write(packed.tobytes())
        return offset

    def copy(self, source: Path, offset: int) -> int:
        """Append the entry whose record is at `offset` of another weights file and return its new offset.

        Raises:
            BundleError: There is no such entry.
        """
        with source.open("rb") as file:
            record = _read_record(file, offset)
            if record is None:
                raise BundleError(f"{source}: there is no record at byte {offset}; make the package again")
            new_offset = self._begin_entry(record.data_type, record.size, record.unused_bits)
            if self._file is not None:
                file.seek(record.start)
                _copy(file, self._file, record.size, source)
        return new_offset

    def _begin_entry(self, data_type: int, size: int, unused_bits: int) -> int:
        """Write an entry's record and return its offset; the file is left where the entry's data begins."""
        offset = -(-self.nbytes // _ALIGNMENT) * _ALIGNMENT
        start = offset + _RECORD.size
        if self._file is not None:
            self._file.write(b"\0" * (offset - self._file.tell() if self._entries else offset))
            self._file.write(_RECORD.pack(*_Record(_SENTINEL, data_type, size, start, unused_bits)))
        self._entries += 1
        self.nbytes = start + size
        return offset


def _read_record(file: Any, offset: int) -> _Record | None:
    """Return the record at `offset` of an open file, None when there is none."""
    file.seek(offset)
    found = file.read(_RECORD.size)
    if len(found) < _RECORD.size:
        return None
    record = _Record(*_RECORD.unpack(found))
    return record if record.sentinel == _SENTINEL else None


def _copy(source: Any, target: Any, size: int, path: Path) -> None:
    while size:
        part = source.read(min(size, _CHUNK))
        if not part:
            raise BundleError(f"{path}: the weights file is truncated; make the package again")
        target.write(part)
        size -= len(part)


def packed_size(count: int, width: int) -> int:
    """Return the bytes that `count` elements of `width` bits take."""
    return (count * width + 7) // 8


def pack_bits(elements: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Pack unsigned integers of `width` bits into bytes, least significant bit first."""
    flat = np.ascontiguousarray(elements).reshape(-1)
    if width == 8:
        return flat
    packed = np.zeros(packed_size(len(flat), width), np.uint8)
    step = _CHUNK  # a multiple of 8 elements, so that each part starts at a byte
    for start in range(0, len(flat), step):
        bits = np.unpackbits(flat[start : start + step, None], axis=1, count=width, bitorder="little")
        part = np.packbits(bits.reshape(-1), bitorder="little")
        packed[start * width // 8 :][: len(part)] = part
    return packed


def unpack_bits(packed: NDArray[np.uint8], width: int, count: int, *, signed: bool = False) -> NDArray[Any]:
    """Unpack `count` elements of `width` bits, least significant bit first; the inverse of `pack_bits`.

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
