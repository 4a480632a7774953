"""Settings of a compression, its target and its JSON form; sizes against what coremltools' writer and ours write."""

import math

import numpy as np
import pytest

from whisperkit_tools.errors import RecipeError
from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.mil.weights_file import WeightsWriter, pack_bits
from whisperkit_tools.quantization.compression import NBITS, Compression, blob_nbytes, dense_nbytes, stored_nbytes
from whisperkit_tools.quantization.palette import palettize

GROUPS = {"granularity": "per_grouped_channel", "group_size": 16}


@pytest.mark.parametrize(
    ("settings", "target"),
    [
        ({"nbits": 4}, "iOS 16"),
        ({"nbits": 1}, "iOS 16"),
        ({"nbits": 6, "outlier_share": 0.01}, "iOS 16"),
        ({"nbits": 8, "kind": "linear"}, "iOS 16"),
        ({"nbits": 3}, "iOS 18"),
        ({"nbits": 4, **GROUPS}, "iOS 18"),
        ({"nbits": 4, "cluster_dim": 2}, "iOS 18"),
        ({"nbits": 4, "per_channel_scale": True}, "iOS 18"),
    ],
)
def test_the_target_that_a_form_needs(settings, target):
    assert Compression(**settings).target.startswith(target)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nbits": 5}, "nbits is 5, allowed are 1, 2, 3, 4, 6, 8"),
        ({"nbits": 4, "cluster_dim": 3}, "cluster_dim is 3"),
        ({"nbits": 4, "granularity": "per_block"}, "granularity is 'per_block'"),
        ({"nbits": 4, "group_size": 16}, "group_size is 16 with granularity per_tensor"),
        ({"nbits": 4, "granularity": "per_grouped_channel"}, "group_size is 0"),
        ({"nbits": 4, "granularity": "per_grouped_channel", "group_size": 6, "cluster_dim": 4}, "not a multiple"),
        ({"nbits": 4, "axis": -1}, "axis is -1"),
        ({"nbits": 4, "outlier_share": 0.5}, "outlier_share is 0.5"),
        ({"nbits": 4, "outlier_share": float("nan")}, "outlier_share is nan"),
        ({"nbits": 4, "cluster_dim": 2, "per_channel_scale": True}, "does not go with"),
        ({"nbits": 8, "kind": "blocks"}, "kind is 'blocks', allowed are palette, linear"),
        ({"nbits": 4, "kind": "linear"}, "kind linear takes nbits 8"),
        ({"nbits": 8, "kind": "linear", "outlier_share": 0.01}, "no groups, vectors, scales or outliers"),
        ({"nbits": 8, "kind": "linear", **GROUPS}, "no groups, vectors, scales or outliers"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        Compression(**settings)


def test_all_problems_are_named_at_once():
    with pytest.raises(RecipeError, match=r"nbits is 7.*axis is -2"):
        Compression(7, axis=-2)


def test_palettes_along_each_axis():
    option = Compression(4, **GROUPS, axis=1)
    assert option.palettes((128, 64, 1, 1)) == (1, 4, 1, 1)
    assert Compression(4).palettes((128, 64)) == (1, 1)


@pytest.mark.parametrize(
    ("option", "shape", "message"),
    [
        (Compression(4, **GROUPS), (40, 8), "40 channels are not a multiple of 16"),
        (Compression(4, cluster_dim=4), (6, 8), "6 channels are not a multiple of 4"),
        (Compression(4, axis=2), (6, 8), "axis 2 of a weight with 2 axes"),
        (Compression(4), (), "at least one axis"),
        (Compression(4), (0, 3), "at least one axis and one element"),
        (Compression(4, **GROUPS), (32, 8), ""),
    ],
)
def test_what_fits_a_weight(option, shape, message):
    assert message in option.misfit(shape)
    assert bool(option.misfit(shape)) == bool(message)


@pytest.mark.parametrize("nbits", NBITS)
def test_the_readable_form_comes_back(nbits):
    option = Compression(nbits, **GROUPS, axis=1, per_channel_scale=True, outlier_share=0.01)
    assert Compression.from_json(option.to_json()) == option
    assert Compression(nbits).to_json() == {"nbits": nbits}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nbits": 4, "group": 2}, "unknown compression settings group"),
        ({}, "without nbits"),
        ({"nbits": "4"}, "wrong type: nbits is '4'"),
        ({"nbits": True}, "wrong type: nbits is True"),
        ({"nbits": 4, "per_channel_scale": 1}, "per_channel_scale is 1"),
    ],
)
def test_readable_forms_that_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        Compression.from_json(settings)


def test_it_says_what_it_is():
    option = Compression(3, **GROUPS, per_channel_scale=True, outlier_share=0.005)
    assert str(option) == "3 bits, groups of 16 along axis 0, scales, 0.5 % outliers"
    assert str(Compression(8, kind="linear")) == "int8, a scale for each channel of axis 0"


def test_integers_survive_json():
    option = Compression(8, kind="linear")
    assert option.to_json() == {"nbits": 8, "kind": "linear"}
    assert Compression.from_json(option.to_json()) == option


# --- sizes ----------------------------------------------------------------------------------------------------------

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
    assert found.nbytes == stored_nbytes(array.shape, found.compression) == 64 + 6144 * nbits // 8 + table
    assert stored_nbytes(array.shape, None) == dense_nbytes(array.shape) == 64 + 2 * 6144


def test_integers_take_a_byte_an_element_and_a_scale_a_channel():
    option = Compression(8, kind="linear")
    assert stored_nbytes((64, 96), option) == 64 + 6144 + 64 + 128
    assert stored_nbytes((8, 768), option) == 64 + 6144  # eight scales are in the program
    assert stored_nbytes((64, 96), Compression(8, kind="linear", axis=1)) == 64 + 6144 + 64 + 192
    assert option.table_bits((64, 96)) == pytest.approx(16 / 96)


def test_tables_cost_bits():
    assert Compression(4, **GROUPS).table_bits((64, 96)) == pytest.approx(16 * 16 / (16 * 96))
    assert Compression(4, cluster_dim=2).table_bits((64, 96)) == pytest.approx(16 * 2 * 16 / 6144)
