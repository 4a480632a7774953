"""WAV files whose header does not tell where the audio ends: streams, recordings that were never finished.

A header is written before the length is known. Programs that write to a pipe leave a placeholder there, recorders that
crash leave 0, and recorders that update the header now and then leave an older length. In all of them everything up to
the end of the file is audio. The file is then read through a view with a right header.
"""

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_RIFF, _RF64 = (b"RIFF",), (b"RF64", b"BW64")
_CHUNK_HEADER = 8
_UNKNOWN = 0xFFFFFFFF
_LARGEST_DESCRIPTION = 1 << 20  # bytes of a chunk before the audio
_SMALLEST_REST = 4096  # bytes after the declared audio; less is a tag or padding


@dataclass(frozen=True, slots=True)
class _Layout:
    """The parts of a WAV file.

    Attributes:
        format: Content of the `fmt ` chunk.
        extents: Start and end of each stretch of audio, in bytes.
        note: How the header is wrong, or empty when it is right.
    """

    format: bytes
    extents: tuple[tuple[int, int], ...]
    note: str


def repaired(source: Path | io.BytesIO) -> tuple[BinaryIO, str] | None:
    """Return a view of a WAV file with a right header, and a note for the user.

    Args:
        source: A file, or its content.

    Returns:
        None when the header is right, or when the source is not a WAV file.
    """
    stream: BinaryIO = source.open("rb") if isinstance(source, Path) else source
    try:
        layout = _layout(stream)
    finally:
        stream.seek(0)
        if isinstance(source, Path):
            stream.close()
    if layout is None or not layout.note:
        return None
    stream = source.open("rb") if isinstance(source, Path) else io.BytesIO(source.getvalue())
    view = io.BufferedReader(_Spliced(stream, _header(layout), layout.extents))
    return view, layout.note


def _layout(stream: BinaryIO) -> _Layout | None:
    """Walk the chunks. None for what is not a WAV file or has no format before its audio."""
    total = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    kind = stream.read(12)
    if kind[:4] not in (*_RIFF, *_RF64) or kind[8:12] != b"WAVE":
        return None
    format, audio_bytes, extents, notes = b"", None, list[tuple[int, int]](), list[str]()
    at = 12
    while at + _CHUNK_HEADER <= total:
        name, size = _chunk(stream, at)
        start = at + _CHUNK_HEADER
        if name == b"data":
            if not format:
                return None
            declared = audio_bytes if audio_bytes is not None and size == _UNKNOWN else size
            end, note = _end_of_audio(stream, start, declared, total)
            extents.append((start, end))
            notes += [note] if note else []
            at = end + (end - start) % 2 if not note else total
            continue
        if start + size > total and (extents or size > _LARGEST_DESCRIPTION):
            break  # the file ends within a description after the audio
        if name in (b"fmt ", b"ds64"):
            stream.seek(start)
            content = stream.read(size)
            if name == b"fmt ":
                format = content
            elif kind[:4] in _RF64 and len(content) >= 16:
                (audio_bytes,) = struct.unpack_from("<Q", content, 8)
        at = start + size + size % 2
    if not extents:
        return None
    if len(extents) > 1:
        notes.append(f"its audio lies in {len(extents)} pieces, which are joined")
    return _Layout(format, tuple(extents), "; ".join(notes))


def _chunk(stream: BinaryIO, at: int) -> tuple[bytes, int]:
    stream.seek(at)
    name, size = struct.unpack("<4sI", stream.read(_CHUNK_HEADER))
    return name, size


def _end_of_audio(stream: BinaryIO, start: int, declared: int, total: int) -> tuple[int, str]:
    """Return where the audio ends, and a note where that is not what the header says."""
    there = total - start
    if 0 < declared <= there and (there - declared < _SMALLEST_REST or _is_chunk(stream, start + declared, total)):
        return start + declared, ""
    if declared == 0 and (not there or _is_chunk(stream, start, total)):
        return start, ""  # a finished file without audio
    if declared > there:
        said = "no length" if declared >= 0x7FFF0000 else f"{declared:,} bytes of audio"
    else:
        said = f"{declared:,} bytes of audio" if declared else "no audio"
    return total, f"its header declares {said}; all {there:,} bytes up to the end of the file are read as audio"


def _is_chunk(stream: BinaryIO, at: int, total: int) -> bool:
    """Whether chunks follow from here up to the end of the file, or no more than padding."""
    for place in (at, at + at % 2):
        here = place
        while here + _CHUNK_HEADER <= total:
            name, size = _chunk(stream, here)
            is_name = all(0x20 <= byte < 0x7F for byte in name) and any(chr(byte).isalpha() for byte in name)
            if not is_name or here + _CHUNK_HEADER + size > total + 1:
                break
            here += _CHUNK_HEADER + size + size % 2
        if total - here < _CHUNK_HEADER:
            return True
    return False


def _header(layout: _Layout) -> bytes:
    """Return a header that fits the audio: RIFF, or RF64 from 4 GiB on."""
    size = sum(end - start for start, end in layout.extents)
    format = struct.pack("<4sI", b"fmt ", len(layout.format)) + layout.format + b"\0" * (len(layout.format) % 2)
    if size + len(format) + 20 <= _UNKNOWN:
        riff = struct.pack("<4sI4s", b"RIFF", 4 + len(format) + _CHUNK_HEADER + size, b"WAVE")
        return riff + format + struct.pack("<4sI", b"data", size)
    ds64 = struct.pack("<4sIQQQI", b"ds64", 28, 4 + 36 + len(format) + _CHUNK_HEADER + size, size, 0, 0)
    riff = struct.pack("<4sI4s", b"RF64", _UNKNOWN, b"WAVE")
    return riff + ds64 + format + struct.pack("<4sI", b"data", _UNKNOWN)


class _Spliced(io.RawIOBase):
    """A header followed by stretches of a file."""

    def __init__(self, stream: BinaryIO, header: bytes, extents: tuple[tuple[int, int], ...]) -> None:
        self._stream = stream
        self._header = header
        self._extents = extents
        self._length = len(header) + sum(end - start for start, end in extents)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = len(buffer)
        data = self._piece(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _piece(self, wanted: int) -> bytes:
        """Return the bytes at the present place, up to the end of the stretch that holds it."""
        if self._at < len(self._header):
            return self._header[self._at : self._at + wanted]
        for start, end, first in self._places():
            if first <= self._at < first + end - start:
                self._stream.seek(start + self._at - first)
                return self._stream.read(min(wanted, end - start - (self._at - first)))
        return b""

    def _places(self) -> Iterator[tuple[int, int, int]]:
        first = len(self._header)
        for start, end in self._extents:
            yield start, end, first
            first += end - start

    def close(self) -> None:
        self._stream.close()
        super().close()
