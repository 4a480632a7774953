"""Palettes of a weight: the k values (or vectors) that stand for all of its elements at the least squared error."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from whisperkit_tools.errors import BundleError, RecipeError
from whisperkit_tools.mil.ops.constexpr import palette_to_dense
from whisperkit_tools.quantization.clustering import Histogram, histogram, nearest, scalar_palette, vector_palette
from whisperkit_tools.quantization.compression import Compression

Half = NDArray[np.float16]
Real = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Palettized:
    """A compressed weight, as it is written.

    Attributes:
        name: The weight's name in the program.
        shape: The weight's shape.
        option: How it is stored.
        lut: `[G..., 2**nbits, cluster_dim]` float16, G palettes along each axis of the weight.
        indices: uint8, the weight's shape but for `axis`, which is shorter by `cluster_dim`.
        scale: float16, 1 along every axis but `axis`; None without scales.
        outlier_positions: int64, row-major, ascending; None without outliers.
        outlier_values: float16, what is added to the palette's entry at these positions.
    """

    name: str
    shape: tuple[int, ...]
    option: Compression
    lut: Half
    indices: NDArray[np.uint8]
    scale: Half | None = None
    outlier_positions: NDArray[np.int64] | None = None
    outlier_values: Half | None = None

    def dense(self) -> Half:
        """The weight that the written package stands for, float16, of `shape`.

        Products with scales and sums with outliers are computed in float32 and rounded.
        """
        scale = None if self.scale is None else torch.from_numpy(self.scale)
        outliers = None
        if self.outlier_positions is not None and self.outlier_values is not None:
            outliers = torch.from_numpy(self.outlier_positions), torch.from_numpy(self.outlier_values)
        indices, lut = torch.from_numpy(self.indices), torch.from_numpy(self.lut)
        dense: Half = palette_to_dense(indices, lut, self.option.axis, scale, outliers).numpy()
        return dense

    @property
    def nbytes(self) -> int:
        """Bytes in the weights file, records and padding included; more stands in the program, see `sizes`."""
        from whisperkit_tools.quantization.sizes import stored_nbytes

        return stored_nbytes(self.shape, self.option)

    def squared_error(self, weight: Real, importance: Real | None = None) -> float:
        """`sum(importance * (weight - dense)**2)` in float64."""
        squares = np.square(weight.astype(np.float64) - self.dense())
        return float(squares.sum() if importance is None else (squares * importance).sum())


def _split(shape: tuple[int, ...], axis: int, groups: int) -> tuple[int, int, int, int]:
    """`shape` as (before the axis, groups, channels of a group, behind the axis)."""
    return math.prod(shape[:axis]), groups, shape[axis] // groups, math.prod(shape[axis + 1 :])


def palettize(
    weight: Real,
    option: Compression,
    importance: Real | None = None,
    name: str = "",
    *,
    exact: bool = True,
    points: Histogram | None = None,
) -> Palettized:
    """Compress one weight.

    Palettes of numbers are the best there are (before entries are rounded to float16); those of vectors are good ones.
    Equal arguments give equal results.

    Args:
        weight: float16, or float32 that is rounded to float16 first.
        option: How.
        importance: Of `weight`'s shape, not negative: the squared error of each element counts so much. None for all 1.
        name: The weight's name, for messages and the package.
        exact: False finds nearly the best palettes in a fraction of the time, for comparing many options.
        points: `whole_histogram` of the same weight and importance, which a single palette then need not count.

    Raises:
        BundleError: The weight holds NaN or infinity.
        RecipeError: The option does not fit the weight's shape, or importance is not of its shape, negative or not
            finite.
    """
    half = _checked(weight, option, name)
    if importance is not None:
        importance = _checked_importance(importance, half.shape, name)
    if not option.outlier_share:
        return _fitted(half, option, importance, name, exact, points)
    return _with_outliers(half, option, importance, name, exact)


def whole_histogram(weight: Real, importance: Real | None = None, name: str = "") -> Histogram:
    """All values of a weight, elements weighted by their importance; errors as for `palettize`."""
    half = _checked(weight, Compression(1), name)
    return histogram(half, None if importance is None else _checked_importance(importance, half.shape, name))


def _checked(weight: Real, option: Compression, name: str) -> Half:
    misfit = option.misfit(weight.shape)
    if misfit:
        raise RecipeError(f"weight {name!r} {list(weight.shape)} cannot be stored with {option}: {misfit}")
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(weight, np.float16)
    bad = int(half.size - np.isfinite(half).sum())
    if bad:
        raise BundleError(
            f"weight {name!r} holds {bad} values that are NaN or infinite in float16, so it cannot be compressed; "
            "keep it, or repair the checkpoint"
        )
    return half


def _checked_importance(importance: Real, shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    if importance.shape != shape:
        raise RecipeError(f"importance of {name!r} has shape {list(importance.shape)}, the weight {list(shape)}")
    if not np.all(np.isfinite(importance)) or np.any(importance < 0):
        raise RecipeError(f"importance of {name!r} has values that are negative, NaN or infinite")
    largest = float(importance.max())
    scaled = importance / largest if largest > 0 else importance
    return np.ascontiguousarray(scaled, np.float32)


def _with_outliers(
    half: Half, option: Compression, importance: NDArray[np.float32] | None, name: str, exact: bool
) -> Palettized:
    """Palettes for all but those elements that a palette without them would serve worst."""
    count = outlier_count(half.size, option)
    weights = np.ones(half.shape, np.float32) if importance is None else importance
    # From the mean at first: a palette of everything spends entries on outliers, which then look well served.
    wide = half.astype(np.float32)
    served: Real = np.asarray(np.average(wide, weights=weights if weights.any() else None))
    for last in (False, True):
        errors = np.square(wide - served) * weights
        positions = np.sort(np.argpartition(errors.reshape(-1), half.size - count)[half.size - count :])
        rest = weights.copy()
        rest.reshape(-1)[positions] = 0
        found = _fitted(half, option, rest, name, exact and last)
        served = found.dense()
    base = found.dense().reshape(-1)[positions].astype(np.float32)
    values = (half.reshape(-1)[positions].astype(np.float32) - base).astype(np.float16)
    return Palettized(name, half.shape, option, found.lut, found.indices, found.scale, positions, values)


def outlier_count(size: int, option: Compression) -> int:
    """How many of `size` elements are outliers."""
    return math.ceil(size * option.outlier_share)


def _fitted(
    half: Half,
    option: Compression,
    importance: NDArray[np.float32] | None,
    name: str,
    exact: bool,
    points: Histogram | None = None,
) -> Palettized:
    """Palettes and indices, outliers left aside."""
    shape, scale = half.shape, None
    if option.per_channel_scale:
        scale = _channel_scale(half, option.axis)
        wide = scale.astype(np.float32)
        half = (half.astype(np.float32) / wide).astype(np.float16)
        importance = np.square(wide) if importance is None else np.square(wide) * importance
    counts = option.palettes(shape)
    split = _split(shape, option.axis, math.prod(counts))
    grouped = half.reshape(split)
    weights = None if importance is None else np.broadcast_to(importance, shape).reshape(split)
    if split[1] > 1 or scale is not None:
        points = None  # of one group they are not, nor of scaled values
    indices = np.empty((*split[:2], split[2] // option.cluster_dim, split[3]), np.uint8)
    lut = np.empty((split[1], option.entries, option.cluster_dim), np.float16)

    def fit(group: int) -> None:
        part = None if weights is None else weights[:, group]
        lut[group], indices[:, group] = _fit_group(grouped[:, group], part, option, exact, points)

    if split[1] == 1:
        fit(0)
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(fit, range(split[1])))
    shorter = tuple(size // option.cluster_dim if at == option.axis else size for at, size in enumerate(shape))
    return Palettized(name, shape, option, lut.reshape(*counts, *lut.shape[1:]), indices.reshape(shorter), scale)


def _channel_scale(half: Half, axis: int) -> Half:
    others = tuple(at for at in range(half.ndim) if at != axis)
    largest: Half = np.abs(half).max(axis=others, keepdims=True)
    largest[largest == 0] = 1
    return largest


def _fit_group(
    half: Half, importance: Real | None, option: Compression, exact: bool, points: Histogram | None
) -> tuple[Half, NDArray[np.uint8]]:
    """The palette `[P, V]` of a group `[before, channels, behind]`, and its indices, fewer by V along the channels."""
    half = np.ascontiguousarray(half)
    if option.cluster_dim == 1:
        points = points or histogram(half, importance)
        lut = scalar_palette(points, option.entries, exact=exact)
        return lut[:, None], nearest(points, lut, half)
    vectors = _vectors(half, option.cluster_dim)
    mass = np.ones_like(vectors) if importance is None else _vectors(importance, option.cluster_dim)
    if not mass.any():
        mass = np.ones_like(mass)
    lut, indices = vector_palette(vectors, mass, option.entries, quick=not exact)
    before, channels, behind = half.shape
    return lut, indices.reshape(before, channels // option.cluster_dim, behind)


def _vectors(array: Real, length: int) -> NDArray[np.float32]:
    """`[before, channels, behind]` as rows of `length` neighbours along the channels, float32."""
    before, channels, behind = array.shape
    parts = array.reshape(before, channels // length, length, behind)
    return np.ascontiguousarray(np.moveaxis(parts, 2, 3), np.float32).reshape(-1, length)
