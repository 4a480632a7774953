"""The rounding rules of compressed weights, against loops; each form is tested in `test_weights_file`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.mil_programs import save

from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.ops.constexpr import entry_rows, palette_to_dense
from whisperkit_tools.mil.program import Program

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


SHAPE = (2, 3)  # so few elements that coremltools keeps them in the program


def _small(kind: str, indices: np.ndarray, path: Path) -> Path:
    """Save a package that gives out a compressed constant of few elements, held in the program itself."""
    import_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    stored = indices.astype(types.nptype_from_builtin(types.string_to_builtin(kind)))

    def program(x: Any) -> Any:
        if kind == "int4":
            scale = np.full((1, 1), 0.1, np.float16)
            weight = mb.constexpr_blockwise_shift_scale(data=stored, scale=scale)
        else:
            lut = np.arange(1 << int(kind[4:]), dtype=np.float16)[None, None, :, None]
            weight = mb.constexpr_lut_to_dense(indices=stored, lut=lut)
        return mb.add(x=x, y=weight)

    specs = [mb.TensorSpec(shape=SHAPE, dtype=types.fp16)]
    return save(program, specs, path, "iOS18")


@pytest.mark.parametrize("kind", ["uint1", "uint2", "uint3", "uint4", "uint6", "int4"])
def test_small_constants_are_packed_in_the_program_itself(kind: str, tmp_path: Path) -> None:
    bits = int(kind.removeprefix("u").removeprefix("int"))
    low, high = (-8, 8) if kind == "int4" else (0, 1 << bits)
    indices = RNG.integers(low, high, SHAPE)
    indices.flat[:2] = low, high - 1
    package = _small(kind, indices, tmp_path / "Small.mlpackage")
    stored = [constant for constant in read_graph(package).constants.values() if constant.spec.dtype == kind]
    assert [constant.in_weights_file for constant in stored] == [False]
    found = Program.load(package).predict({"x": np.zeros(SHAPE, np.float16)})
    expected = (indices * np.float16(0.1)).astype(np.float16) if kind == "int4" else indices
    np.testing.assert_array_equal(next(iter(found.values())), expected)
