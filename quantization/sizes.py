"""Bytes that a weight takes in a package's weights file, compressed or not: records and padding included."""

import math
from collections.abc import Sequence

from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.palette import outlier_count

ALIGNMENT = 64
MIN_BLOB_ELEMENTS = 10
"""Fewer elements stand in the program itself, as coremltools writes it."""


def blob_nbytes(count: int, width: int) -> int:
    """Bytes of `count` elements of `width` bits in the weights file: record and padded data; 0 when in the program."""
    if count < MIN_BLOB_ELEMENTS:
        return 0
    return _entry_nbytes(count, width)


def dense_nbytes(shape: Sequence[int]) -> int:
    """Bytes of a float16 weight in the weights file."""
    return blob_nbytes(math.prod(shape), 16)


def stored_nbytes(shape: Sequence[int], option: Compression | None) -> int:
    """Bytes of a weight in the weights file under an option; None keeps float16.

    It is the same for every deployment target that has the form.
    """
    if option is None:
        return dense_nbytes(shape)
    size = math.prod(shape)
    total = _entry_nbytes(size // option.cluster_dim, option.nbits)
    total += blob_nbytes(math.prod(option.palettes(shape)) * option.entries * option.cluster_dim, 16)
    if option.per_channel_scale:
        total += blob_nbytes(shape[option.axis], 16)
    if option.outlier_share:
        total += blob_nbytes(outlier_count(size, option), 16) + _entry_nbytes(size, 1)
    return total


def _entry_nbytes(count: int, width: int) -> int:
    """Bytes of an entry of the weights file; indices and masks are one whatever their size."""
    return ALIGNMENT + math.ceil(count * width / 8 / ALIGNMENT) * ALIGNMENT
