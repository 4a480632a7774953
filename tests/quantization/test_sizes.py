"""Sizes said in advance, against what coremltools' writer and ours put on disk."""

import math

import numpy as np
import pytest

from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.mil.weights_file import WeightsWriter, pack_bits
from whisperkit_tools.quantization.compression import NBITS, Compression
from whisperkit_tools.quantization.palette import palettize
from whisperkit_tools.quantization.sizes import blob_nbytes, dense_nbytes, stored_nbytes

WRITERS = {"float16": "fp16", "uint8": "uint8", **{f"uint{width}": f"uint{width}" for width in (1, 2, 3, 4, 6)}}


def entries():
    random = np.random.default_rng(1)
    for dtype in WRITERS:
        for count in (10, 63, 1000):
            if dtype == "float16":
                yield dtype, random.standard_normal(count).astype(np.float16)
            else:
                yield dtype, random.integers(0, 2 ** int(dtype[4:]), count).astype(np.uint8)


def test_the_file_is_what_coremltools_writes(tmp_path):
    import_coremltools()
    from coremltools.libmilstoragepython import _BlobStorageWriter as Writer

    theirs = Writer(str(tmp_path / "theirs.bin"))
    offsets = []
    for dtype, data in entries():
        offsets.append(
            getattr(theirs, f"write_{WRITERS[dtype]}_data")(data.view(np.uint16) if data.itemsize == 2 else data)
        )
    del theirs
    with WeightsWriter(tmp_path / "ours.bin") as ours, WeightsWriter(None) as counted:
        assert [ours.add(dtype, data.size, data) for dtype, data in entries()] == offsets
        assert [counted.add(dtype, data.size, None) for dtype, data in entries()] == offsets
    assert (tmp_path / "ours.bin").read_bytes() == (tmp_path / "theirs.bin").read_bytes()
    assert counted.nbytes == ours.nbytes == (tmp_path / "ours.bin").stat().st_size


def test_entries_are_carried_over_bit_by_bit(tmp_path):
    with WeightsWriter(tmp_path / "first.bin") as first:
        offsets = [first.add(dtype, data.size, data) for dtype, data in entries()]
    with WeightsWriter(tmp_path / "second.bin") as second:
        assert [second.copy(tmp_path / "first.bin", offset) for offset in offsets] == offsets
    assert (tmp_path / "first.bin").read_bytes() == (tmp_path / "second.bin").read_bytes()


def test_an_entry_takes_a_record_and_whole_lines(tmp_path):
    for dtype, data in entries():
        with WeightsWriter(tmp_path / "one.bin") as writer:
            writer.add(dtype, data.size, data)
            following = writer.add("uint8", 1, np.zeros(1, np.uint8))
        width = 16 if dtype == "float16" else int(dtype[4:])
        assert blob_nbytes(data.size, width) == following - 64
    assert blob_nbytes(9, 16) == 0


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 8])
def test_bits_are_packed_from_the_lowest(width):
    values = np.random.default_rng(width).integers(0, 2**width, 999).astype(np.uint8)
    whole = sum(int(value) << (width * at) for at, value in enumerate(values))
    assert pack_bits(values, width).tobytes() == whole.to_bytes(math.ceil(999 * width / 8), "little")


@pytest.mark.parametrize("nbits", NBITS)
def test_a_weight_knows_its_size(nbits):
    array = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float16)
    found = palettize(array, Compression(nbits), exact=False)
    table = 0 if 2**nbits < 10 else 64 + math.ceil(2**nbits * 2 / 64) * 64
    assert found.nbytes == stored_nbytes(array.shape, found.option) == 64 + 6144 * nbits // 8 + table
    assert stored_nbytes(array.shape, None) == dense_nbytes(array.shape) == 64 + 2 * 6144
