"""The sparse part beside a palette."""

import numpy as np
import pytest

from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.palette import outlier_count, palettize


def test_outliers_are_those_that_the_palette_serves_worst():
    array = np.random.default_rng(0).uniform(-1, 1, (32, 32)).astype(np.float16)
    array[3, 4], array[20, 1] = 500, -700
    found = palettize(array, Compression(4, outlier_share=2 / 1024))
    np.testing.assert_array_equal(found.outlier_positions, [3 * 32 + 4, 20 * 32 + 1])
    np.testing.assert_allclose(found.dense()[[3, 20], [4, 1]], [500, -700], rtol=1e-3)
    without = array.copy()
    without[3, 4] = without[20, 1] = 0
    assert found.squared_error(without) - 500**2 - 700**2 < 1.1 * palettize(without, Compression(4)).squared_error(
        without
    )
    # A palette of everything has 14 entries left for the rest instead of 16, and the error goes with their square.
    assert found.squared_error(array) < 0.8 * palettize(array, Compression(4)).squared_error(array)


def test_the_palette_is_made_of_the_rest():
    array = np.random.default_rng(0).uniform(-1, 1, (32, 32)).astype(np.float16)
    array[3, 4] = 500
    assert np.abs(palettize(array, Compression(2, outlier_share=1 / 1024)).lut).max() < 1
    assert np.abs(palettize(array, Compression(2)).lut).max() > 400


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_the_share_is_rounded_up(share):
    array = np.random.default_rng(0).standard_normal((30, 31)).astype(np.float16)
    found = palettize(array, Compression(2, outlier_share=share))
    assert len(found.outlier_positions) == outlier_count(930, found.option) == int(np.ceil(930 * share))
    assert np.all(np.diff(found.outlier_positions) > 0)


def test_importance_chooses_outliers():
    array = np.random.default_rng(0).standard_t(3, (32, 32)).astype(np.float16)
    importance = np.full(array.shape, 1e-6, np.float32)
    importance[5] = 1
    found = palettize(array, Compression(1, outlier_share=10 / 1024), importance)
    assert set(found.outlier_positions // 32) == {5}


def test_outliers_with_groups_and_scales():
    array = np.random.default_rng(0).standard_t(2, (32, 40)).astype(np.float16)
    option = Compression(3, "per_grouped_channel", 16, per_channel_scale=True, outlier_share=0.02)
    found = palettize(array, option)
    kept = np.ravel(array)[found.outlier_positions].astype(np.float32)
    np.testing.assert_allclose(np.ravel(found.dense())[found.outlier_positions], kept, rtol=2e-3, atol=1e-4)
