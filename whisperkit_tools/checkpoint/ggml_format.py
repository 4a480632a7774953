"""whisper.cpp's `ggml-*.bin`: sizes, mel filters, tokens, then tensors under OpenAI's names.

Source: ggml-org/whisper.cpp, `models/convert-pt-to-ggml.py` for the layout; ggml-org/ggml, `ggml-quants`, for blocks.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.checkpoint.openai_format import config_of_dims, hugging_face_name
from whisperkit_tools.checkpoint.tensors import StoredTensor
from whisperkit_tools.errors import CheckpointError

_MAGIC = b"lmgg"
_DIMS = (
    "n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer", "n_text_ctx", "n_text_state",
    "n_text_head", "n_text_layer", "n_mels",
)  # fmt: skip
_MOST_DIMENSIONS, _LONGEST_NAME, _MOST_ENTRIES = 4, 256, 1 << 20

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _BlockFormat:
    """A type of tensor.

    Attributes:
        name: ggml's name.
        elements: Elements of a block.
        size: Bytes of a block.
        dense: From blocks `[n, size]` to elements `[n, elements]`.
    """

    name: str
    elements: int
    size: int
    dense: Callable[[NDArray[np.uint8]], Floats]


def _halves(blocks: NDArray[np.uint8], start: int) -> Floats:
    """Return a float16 of each block, `[n, 1]`."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _nibbles(blocks: NDArray[np.uint8], start: int) -> Floats:
    """Return 32 elements of four bits: the low halves of 16 bytes, then the high ones."""
    packed = blocks[:, start : start + 16]
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _fifth_bits(blocks: NDArray[np.uint8], start: int) -> Floats:
    """Return 16 times the fifth bit of 32 elements."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, start : start + 4]), axis=1, bitorder="little")
    return 16 * bits.astype(np.float32)


_FORMATS = {
    0: _BlockFormat("f32", 1, 4, lambda b: np.ascontiguousarray(b).view(np.float32)),
    1: _BlockFormat("f16", 1, 2, lambda b: _halves(b, 0)),
    2: _BlockFormat("q4_0", 32, 18, lambda b: _halves(b, 0) * (_nibbles(b, 2) - 8)),
    3: _BlockFormat("q4_1", 32, 20, lambda b: _halves(b, 0) * _nibbles(b, 4) + _halves(b, 2)),
    6: _BlockFormat("q5_0", 32, 22, lambda b: _halves(b, 0) * (_nibbles(b, 6) + _fifth_bits(b, 2) - 16)),
    7: _BlockFormat("q5_1", 32, 24, lambda b: _halves(b, 0) * (_nibbles(b, 8) + _fifth_bits(b, 4)) + _halves(b, 2)),
    8: _BlockFormat("q8_0", 32, 34, lambda b: _halves(b, 0) * np.ascontiguousarray(b[:, 2:]).view(np.int8)),
}
_OTHER_FORMATS = {10: "q2_k", 11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k"}


@dataclass(frozen=True, slots=True)
class GgmlModel:
    """A model of this form, not read yet.

    Attributes:
        config: A Hugging Face config made from its sizes.
        tensors: Its tensors under Hugging Face names, dequantised when they are read.
        precision: The types of its weights, for example `q5_0`.
    """

    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    precision: str


def is_ggml(file: Path) -> bool:
    """Return whether a file is of this form, by its first bytes."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(4) == _MAGIC


def read_ggml(file: Path) -> GgmlModel:
    """Read sizes and the list of tensors.

    Raises:
        CheckpointError: The file is damaged, holds no tensors, or is quantised in a form that is not known.
    """
    try:
        with file.open("rb") as stream:
            return _model(stream, file)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(f"{file} is a damaged ggml model ({error}); download or convert it again") from error


def _model(stream: BinaryIO, file: Path) -> GgmlModel:
    size = file.stat().st_size
    stream.seek(4)
    dims = dict(zip(_DIMS, _integers(stream, len(_DIMS)), strict=True))
    _integers(stream, 1)  # the type of most tensors; each tells its own
    rows, columns = _integers(stream, 2)
    _skip(stream, 4 * rows * columns, size, "mel filters")
    for _ in range(_bounded(_integers(stream, 1)[0], _MOST_ENTRIES, "tokens")):
        _skip(stream, _integers(stream, 1)[0], size, "a token")
    tensors, kinds = dict[str, StoredTensor](), set[str]()
    while stream.tell() < size:
        name, stored, kind = _tensor(stream, file, size)
        tensors[hugging_face_name(name)] = stored
        kinds |= {kind} if len(stored.shape) > 1 else set()
    if not tensors:
        raise CheckpointError(
            f"{file} holds sizes and tokens but no weights, as whisper.cpp's test models; give a model"
        )
    quantised = sorted(kinds - {"f16", "f32"})
    return GgmlModel(config_of_dims(str(file), dims), tensors, "+".join(quantised or sorted(kinds)))


def _integers(stream: BinaryIO, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}i", stream.read(4 * count))


def _bounded(value: int, most: int, what: str) -> int:
    if not 0 <= value <= most:
        raise ValueError(f"it declares {value} {what}")
    return value


def _skip(stream: BinaryIO, count: int, size: int, what: str) -> None:
    if count < 0 or stream.tell() + count > size:
        raise ValueError(f"it ends within {what}")
    stream.seek(count, 1)


def _tensor(stream: BinaryIO, file: Path, size: int) -> tuple[str, StoredTensor, str]:
    """Read the header of a tensor, and go on to the next."""
    dimensions, length, kind = _integers(stream, 3)
    shape = _integers(stream, _bounded(dimensions, _MOST_DIMENSIONS, "axes"))[::-1]
    name = stream.read(_bounded(length, _LONGEST_NAME, "letters of a name")).decode()
    if kind not in _FORMATS:
        known = ", ".join(item.name for item in _FORMATS.values())
        raise CheckpointError(
            f"{file}: {name} is stored as {_OTHER_FORMATS.get(kind, f'type {kind}')}; readable are {known}; give the "
            "model that it was quantised from"
        )
    form = _FORMATS[kind]
    if any(axis < 1 for axis in shape) or (shape[-1:] and shape[-1] % form.elements):
        raise ValueError(f"{name} has the shape {list(shape)}")
    start = stream.tell()
    nbytes = math.prod(shape) // form.elements * form.size
    _skip(stream, nbytes, size, name)
    # Biases of convolutions are stored as columns.
    final = shape[:1] if name.endswith(".bias") else shape

    def read() -> Tensor:
        blocks = np.fromfile(file, np.uint8, nbytes, offset=start).reshape(-1, form.size)
        if kind == 1:
            return torch.from_numpy(blocks.reshape(-1).view(np.float16)).reshape(final)
        return torch.from_numpy(form.dense(blocks).astype(np.float32)).reshape(final)

    return name, StoredTensor(final, "F16" if kind == 1 else "F32", read), form.name
