"""Writing a package's weights file: a header, then for each entry a record and its data, all aligned to 64 bytes.

Source: `MILBlob/Blob/StorageFormat.hpp` and `BlobDataType.hpp` of apple/coremltools.
"""

import struct
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.tensor_spec import bit_width

FILE_NAME = "@model_path/weights/weight.bin"
_ALIGNMENT, _CHUNK = 64, 1 << 24
_HEADER = struct.Struct("<II56x")  # entries, version
_RECORD = struct.Struct("<IIQQQ32x")  # sentinel, data type, bytes, where the data starts, unused bits of the last byte
_VERSION, _SENTINEL = 2, 0xDEADBEEF
_TYPES = {
    "float16": 1, "float32": 2, "uint8": 3, "int8": 4,
    "uint1": 9, "uint2": 10, "uint4": 11, "uint3": 12, "uint6": 13,
}  # fmt: skip


def pack_bits(elements: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Pack unsigned integers of `width` bits into bytes, least significant bit first."""
    flat = np.ascontiguousarray(elements).reshape(-1)
    if width == 8:
        return flat
    packed = np.zeros(-(-len(flat) * width // 8), np.uint8)
    step = _CHUNK  # a multiple of 8 elements, so that each part starts at a byte
    for start in range(0, len(flat), step):
        bits = np.unpackbits(flat[start : start + step, None], axis=1, count=width, bitorder="little")
        part = np.packbits(bits.reshape(-1), bitorder="little")
        packed[start * width // 8 :][: len(part)] = part
    return packed


class WeightsWriter:
    """A weights file under way. Entries are laid out at once; without a path nothing is written, only counted."""

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
        size, unused = -(-count * width // 8), -count * width % 8
        place = self._start(_TYPES[dtype], size, unused)
        if self._file is not None:
            if data is None or data.size != count:
                raise ValueError(f"{count} elements are to be written, got {None if data is None else data.size}")
            packed = pack_bits(data, width) if width < 8 else np.ascontiguousarray(data)
            self._file.write(packed.tobytes())
        return place

    def copy(self, source: Path, offset: int) -> int:
        """Append the entry whose record is at `offset` of another weights file and return its new offset.

        Raises:
            BundleError: There is no such entry.
        """
        with source.open("rb") as file:
            file.seek(offset)
            record = file.read(_RECORD.size)
            if len(record) < _RECORD.size or record[:4] != _SENTINEL.to_bytes(4, "little"):
                raise BundleError(f"{source}: there is no record at byte {offset}; make the package again")
            _, kind, size, start, unused = _RECORD.unpack(record)
            place = self._start(kind, size, unused)
            if self._file is not None:
                file.seek(start)
                _copy(file, self._file, size, source)
        return place

    def _start(self, kind: int, size: int, unused: int) -> int:
        """Reserve room for an entry; the file is left where its data begins."""
        place = -(-self.nbytes // _ALIGNMENT) * _ALIGNMENT
        start = place + _RECORD.size
        if self._file is not None:
            self._file.write(b"\0" * (place - self._file.tell() if self._entries else place))
            self._file.write(_RECORD.pack(_SENTINEL, kind, size, start, unused))
        self._entries += 1
        self.nbytes = start + size
        return place


def _copy(source: Any, target: Any, size: int, path: Path) -> None:
    while size:
        part = source.read(min(size, _CHUNK))
        if not part:
            raise BundleError(f"{path}: the weights file is truncated; make the package again")
        target.write(part)
        size -= len(part)
