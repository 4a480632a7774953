"""The rounding rules of compressed weights, against loops; each form is tested in `test_weights_file`."""

import numpy as np
import pytest
import torch

from whisperkit_tools.mil.ops.constexpr import entry_rows, palette_to_dense

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("with_outliers", [False, True])
@pytest.mark.parametrize("with_scale", [False, True])
@pytest.mark.parametrize("vector", [1, 2])
def test_products_and_sums_are_rounded_to_float16(vector: int, with_scale: bool, with_outliers: bool) -> None:
    indices = RNG.integers(0, 4, (4, 3)).astype(np.uint8)
    lut = RNG.standard_normal((2, 1, 4, vector)).astype(np.float16)  # a palette for each two rows of the indices
    scale = RNG.uniform(0.1, 3, (4 * vector, 1)).astype(np.float16)
    positions, values = np.array([0, 7]), np.array([0.3, -2.0], np.float16)
    expected = np.empty((4 * vector, 3), np.float16)
    for row in range(4):
        for column in range(3):
            for part in range(vector):
                entry = lut[row // 2, 0, indices[row, column], part]
                place = row * vector + part
                if with_scale:
                    entry = np.float16(np.float32(entry) * np.float32(scale[place, 0]))
                expected[place, column] = entry
    if with_outliers:
        for position, value in zip(positions, values, strict=True):
            expected.flat[position] = np.float16(np.float32(expected.flat[position]) + np.float32(value))
    found = palette_to_dense(
        torch.from_numpy(indices),
        torch.from_numpy(lut),
        0,
        torch.from_numpy(scale) if with_scale else None,
        (torch.from_numpy(positions), torch.from_numpy(values)) if with_outliers else None,
    )
    np.testing.assert_array_equal(found.numpy(), expected)


def test_rows_of_entries_count_through_the_palettes() -> None:
    indices = torch.tensor([[0, 3], [1, 2]], dtype=torch.uint8)
    assert entry_rows(indices, (2, 1, 4, 1)).tolist() == [[0, 3], [5, 6]]
    assert entry_rows(indices, (1, 1, 4, 1)).tolist() == [[0, 3], [1, 2]]
