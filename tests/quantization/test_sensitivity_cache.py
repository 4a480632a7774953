"""The cache of sensitivities: found again by its key only, in the format of earlier versions, whatever is damaged."""

import json

import numpy as np
import pytest

from whisperkit_tools.quantization.allocation import StorageOption
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.palette import palettize
from whisperkit_tools.quantization.sensitivity import Curvature
from whisperkit_tools.quantization.sensitivity_cache import (
    SensitivityCache,
    SensitivityKey,
    decode_curvature,
    encode_curvature,
)

KEY = SensitivityKey({"AudioEncoder": "1"}, ["a", "b"], {"samples": 1})
NAME = ("AudioEncoder", "w")


def test_curvature_is_kept_to_an_eighth_of_an_octave():
    value = (10.0 ** np.random.default_rng(0).uniform(-6, 2, (50, 40))).astype(np.float32)
    value[0] = 0
    again = decode_curvature(*encode_curvature(value))
    np.testing.assert_allclose(again[1:], value[1:], rtol=0.045)
    assert not again[0].any()
    assert not decode_curvature(*encode_curvature(np.zeros((3, 3), np.float32))).any()


def test_a_cache_is_found_again_and_another_key_is_another_cache(tmp_path):
    value = np.random.default_rng(0).uniform(0, 1, (8, 6)).astype(np.float32)
    first = SensitivityCache(tmp_path, KEY)
    assert not first.has_curvature("AudioEncoder")
    first.save_curvature("AudioEncoder", Curvature({"w": value, "v": value}, {"w": value[None]}))
    row = StorageOption(Compression(4), 128, 0.5)
    first.add_options(NAME, [row])
    made = palettize(value, Compression(2, outlier_share=0.05), name="w")
    first.save_palette(NAME, made)

    again = SensitivityCache(tmp_path, KEY)
    np.testing.assert_allclose(again.curvature("AudioEncoder").read("w"), value, rtol=0.045, atol=1e-6)
    np.testing.assert_array_equal(again.curvature("AudioEncoder").gradients("w"), value[None])
    assert again.curvature("AudioEncoder").gradients("v") is None
    assert again.option(NAME, Compression(4)) == row
    assert again.option(NAME, Compression(6)) is None
    np.testing.assert_array_equal(again.palette(NAME, made.compression).dense(), made.dense())

    for key in (
        SensitivityKey({"AudioEncoder": "2"}, ["a", "b"], {"samples": 1}),
        SensitivityKey({"AudioEncoder": "1"}, ["a", "c"], {"samples": 1}),
    ):
        other = SensitivityCache(tmp_path, key)
        assert not other.has_curvature("AudioEncoder")
        assert other.option(NAME, Compression(4)) is None


def test_a_line_that_was_cut_off_costs_its_tensor_only(tmp_path):
    first = SensitivityCache(tmp_path, KEY)
    rows = [StorageOption(Compression(n), n * 100, 1.0 / n) for n in (2, 4)]
    first.add_options(NAME, rows)
    file = first.path / "candidates.jsonl"
    file.write_text(file.read_text()[:-20])
    again = SensitivityCache(tmp_path, KEY)
    assert again.option(NAME, Compression(2)) == rows[0]
    assert again.option(NAME, Compression(4)) is None
    again.add_options(NAME, rows[1:])
    assert SensitivityCache(tmp_path, KEY).option(NAME, Compression(4)) == rows[1]


def test_a_folder_of_this_format_is_read(tmp_path):
    """The key's digest and every file as format 3 writes them."""
    folder = tmp_path / "8366873db931d9ad"
    (folder / "palettes").mkdir(parents=True)
    np.savez(
        folder / "AudioEncoder.curvature.npz",
        **{"0.name": "w", "0.codes": np.array([[255, 247], [0, 239]], np.uint8), "0.top": 2.0},
        **{"0.gradients": np.ones((3, 2, 2), np.float32)},
    )
    (folder / "candidates.jsonl").write_text(
        '{"component": "AudioEncoder", "name": "w", "compression": {"nbits": 2, "outlier_share": 0.1}, '
        '"nbytes": 320, "divergence": 0.125}\n'
        '{"component": "AudioEncoder", "name": "w", "compression": {"nbits": 5}, "nbytes": 1, "divergence": 0}\n'
    )
    np.savez(
        folder / "palettes" / "e6f1f2882042ba075d80f566.npz",
        shape=[2, 2], lut=np.array([[[0], [1], [2], [3]]], np.float16).reshape(1, 1, 4, 1),
        indices=np.array([[0, 1], [2, 3]], np.uint8),
        outlier_positions=np.array([3]), outlier_values=np.array([0.5], np.float16),
    )  # fmt: skip
    cache, wanted = SensitivityCache(tmp_path, KEY), Compression(2, outlier_share=0.1)
    assert cache.path == folder
    assert cache.has_curvature("AudioEncoder")
    assert cache.curvature("AudioEncoder").read("w").tolist() == [[2, 1], [0, 0.5]]
    assert cache.curvature("AudioEncoder").gradients("w").shape == (3, 2, 2)
    assert cache.option(NAME, wanted) == StorageOption(wanted, 320, 0.125)
    assert cache.palette(NAME, wanted).dense().tolist() == [[0, 1], [2, 3.5]]
    assert json.loads((folder / "profile.json").read_text()) == KEY.to_json()


@pytest.mark.parametrize("damage", [b"", b"PK", b"not an archive", None])
def test_a_damaged_file_is_set_aside_and_made_anew(tmp_path, damage):
    notes = []
    cache = SensitivityCache(tmp_path, KEY, notes.append)
    curvature = Curvature({"w": np.ones((2, 3), np.float32)}, {})
    cache.save_curvature("AudioEncoder", curvature)
    (path,) = cache.path.glob("*.npz")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content if damage is None else damage)
    again = SensitivityCache(tmp_path, KEY, notes.append)
    assert not again.has_curvature("AudioEncoder")
    assert notes == [f"{path} is damaged; it is kept as {path.name}.damaged and made anew"]
    again.save_curvature("AudioEncoder", curvature)
    assert again.has_curvature("AudioEncoder")
