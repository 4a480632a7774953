"""Palettes of a weight: the values (or vectors) that represent all of its elements with the minimum squared error."""

import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from whisperkit_tools.errors import BundleError, RecipeError, option
from whisperkit_tools.mil.ops.constexpr import palette_to_dense
from whisperkit_tools.quantization.compression import Compression, outlier_count, stored_nbytes
from whisperkit_tools.quantization.kmeans import (
    Histogram,
    histogram,
    nearest_entries,
    scalar_palette,
    vector_palette,
)

Half = NDArray[np.float16]
Real = NDArray[Any]
_LARGEST, _ZERO = 127, 128  # the largest integer, and the index of the integer 0
_MAX_SCALE = np.float16(515.5)  # times 127 it is below the largest float16
_SCALE_FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)  # of the scale that spans the largest magnitude
_QUICK_SCALE_FACTORS = (1.0, 0.85)
_SCALE_STEPS = 2
_ROW_ELEMENTS = 1 << 18  # fitted together, so that they stay in the processor's cache


@dataclass(frozen=True, slots=True, eq=False)
class Palettized:
    """A compressed weight in the form in which it is written.

    Attributes:
        name: The weight's name in the program.
        shape: The weight's shape.
        compression: How it is stored.
        lut: `[G..., 2**nbits, cluster_dim]` float16, G palettes along each axis of the weight. For integers the values
            -128 to 127, which are not stored.
        indices: uint8, of the weight's shape, but shorter by the factor `cluster_dim` along `axis`.
        scale: float16, of size 1 along every axis but `axis`. None without scales.
        outlier_positions: int64, row-major, ascending. None without outliers.
        outlier_values: float16, added to the palette's entry at these positions. None without outliers.
    """

    name: str
    shape: tuple[int, ...]
    compression: Compression
    lut: Half
    indices: NDArray[np.uint8]
    scale: Half | None = None
    outlier_positions: NDArray[np.int64] | None = None
    outlier_values: Half | None = None

    def dense(self) -> Half:
        """Return the weight that the written package represents, float16, of `shape`.

        Products with scales and sums with outliers are computed in float32 and rounded.
        """
        scale = None if self.scale is None else torch.from_numpy(self.scale)
        outliers = None
        if self.outlier_positions is not None and self.outlier_values is not None:
            outliers = torch.from_numpy(self.outlier_positions), torch.from_numpy(self.outlier_values)
        indices, lut = torch.from_numpy(self.indices), torch.from_numpy(self.lut)
        dense: Half = palette_to_dense(indices, lut, self.compression.axis, scale, outliers).numpy()
        return dense

    @property
    def nbytes(self) -> int:
        """Bytes in the weights file, records and padding included."""
        return stored_nbytes(self.shape, self.compression)


def _split(shape: tuple[int, ...], compression: Compression) -> tuple[int, int, int, int]:
    """Return `shape` as (before the axis, groups, channels of a group, after the axis)."""
    axis, groups = compression.axis, math.prod(compression.palettes(shape))
    return math.prod(shape[:axis]), groups, shape[axis] // groups, math.prod(shape[axis + 1 :])


def palettize(
    weight: Real,
    compression: Compression,
    importance: Real | None = None,
    name: str = "",
    *,
    exact: bool = True,
    histograms: "GroupHistograms | None" = None,
) -> Palettized:
    """Compress one weight.

    Palettes of numbers are optimal before their entries are rounded to float16. Palettes of vectors are good ones.
    Equal arguments give equal results.

    Args:
        weight: float16, or float32 that is rounded to float16 first.
        compression: How to store it.
        importance: Of `weight`'s shape, not negative: the factor of each element's squared error. None for all 1.
        name: The weight's name, for messages and the package.
        exact: False finds nearly optimal palettes in a fraction of the time, to compare many compressions.
        histograms: Those of the same weight and importance, which saves counting again.

    Raises:
        BundleError: The weight holds NaN or infinity.
        RecipeError: The compression does not fit the weight's shape. Or importance has another shape, or values that
            are negative or not finite.
    """
    half = _checked_weight(weight, compression, name)
    if importance is not None:
        importance = _checked_importance(importance, half.shape, name)
    if compression.kind == "linear":
        return _fit_linear(half, compression, importance, name, exact)
    if not compression.outlier_share:
        return _fit(half, compression, importance, name, exact, histograms)
    return _fit_with_outliers(half, compression, importance, name, exact)


class GroupHistograms:
    """The values of a weight, counted for the whole and for groups of its channels, weighted by their importance.

    Compressions that differ in their bits alone have the same groups, which are counted once.
    """

    def __init__(
        self, weight: Real, compressions: Iterable[Compression], importance: Real | None = None, name: str = ""
    ) -> None:
        """Count the values of the groups of `compressions`. Raises errors as `palettize` does."""
        kept = [wanted for wanted in compressions if _counts_elements(wanted)]
        for wanted in kept:
            half = _checked_weight(weight, wanted, name)
        if importance is not None:
            importance = _checked_importance(importance, weight.shape, name)
        splits = {_split(weight.shape, wanted) for wanted in kept}
        self._found = {split: _group_histograms(half, importance, split) for split in splits}

    def of(self, shape: tuple[int, ...], compression: Compression) -> Sequence[Histogram] | None:
        """Return the histogram of each group, or None where they have not been counted."""
        return self._found.get(_split(shape, compression)) if _counts_elements(compression) else None


def _counts_elements(compression: Compression) -> bool:
    """Whether palettes are made from all elements as they are."""
    return compression.cluster_dim == 1 and not compression.has_scales and not compression.outlier_share


def _group_histograms(half: Half, importance: Real | None, split: tuple[int, int, int, int]) -> list[Histogram]:
    grouped = half.reshape(split)
    weights = None if importance is None else importance.reshape(split)
    return [histogram(grouped[:, group], None if weights is None else weights[:, group]) for group in range(split[1])]


def _checked_weight(weight: Real, compression: Compression, name: str) -> Half:
    misfit = compression.misfit(weight.shape)
    if misfit:
        raise RecipeError(f"weight {name!r} {list(weight.shape)} cannot be stored with {compression}: {misfit}")
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(weight, np.float16)
    bad = int(half.size - np.isfinite(half).sum())
    if bad:
        raise BundleError(
            f"weight {name!r} holds {bad} values that are NaN or infinite in float16, so it cannot be compressed; "
            f"exclude it ({option('keep', name or None)}), or repair the checkpoint"
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


def _fit_with_outliers(
    half: Half, compression: Compression, importance: NDArray[np.float32] | None, name: str, exact: bool
) -> Palettized:
    """Fit palettes to all elements but those that a palette without them would represent worst."""
    count = outlier_count(half.size, compression)
    weights = np.ones(half.shape, np.float32) if importance is None else importance
    # The first round measures errors from the mean. A palette of everything would spend entries on outliers, and
    # would then represent them well.
    wide = half.astype(np.float32)
    represented: Real = np.asarray(np.average(wide, weights=weights if weights.any() else None))
    for last in (False, True):
        errors = np.square(wide - represented) * weights
        positions = np.sort(np.argpartition(errors.reshape(-1), half.size - count)[half.size - count :])
        rest = weights.copy()
        rest.reshape(-1)[positions] = 0
        found = _fit(half, compression, rest, name, exact and last)
        represented = found.dense()
    base = found.dense().reshape(-1)[positions].astype(np.float32)
    values = (half.reshape(-1)[positions].astype(np.float32) - base).astype(np.float16)
    return Palettized(name, half.shape, compression, found.lut, found.indices, found.scale, positions, values)


def _fit(
    half: Half,
    compression: Compression,
    importance: NDArray[np.float32] | None,
    name: str,
    exact: bool,
    histograms: GroupHistograms | None = None,
) -> Palettized:
    """Fit palettes and indices, without outliers."""
    shape, scale = half.shape, None
    if compression.per_channel_scale:
        scale = _channel_scale(half, compression.axis)
        wide = scale.astype(np.float32)
        half = (half.astype(np.float32) / wide).astype(np.float16)
        importance = np.square(wide) if importance is None else np.square(wide) * importance
    counts = compression.palettes(shape)
    split = _split(shape, compression)
    grouped = half.reshape(split)
    weights = None if importance is None else np.broadcast_to(importance, shape).reshape(split)
    counted = None if histograms is None else histograms.of(shape, compression)
    indices = np.empty((*split[:2], split[2] // compression.cluster_dim, split[3]), np.uint8)
    lut = np.empty((split[1], compression.entries, compression.cluster_dim), np.float16)

    def fit(group: int) -> None:
        part = None if weights is None else weights[:, group]
        points = None if counted is None else counted[group]
        lut[group], indices[:, group] = _fit_group(grouped[:, group], part, compression, exact, points)

    if split[1] == 1:
        fit(0)
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(fit, range(split[1])))
    vector, axis = compression.cluster_dim, compression.axis
    shorter = tuple(size // vector if at == axis else size for at, size in enumerate(shape))
    return Palettized(name, shape, compression, lut.reshape(*counts, *lut.shape[1:]), indices.reshape(shorter), scale)


def _channel_scale(half: Half, axis: int) -> Half:
    others = tuple(at for at in range(half.ndim) if at != axis)
    largest: Half = np.abs(half).max(axis=others, keepdims=True)
    largest[largest == 0] = 1
    return largest


def _fit_group(
    half: Half, importance: Real | None, compression: Compression, exact: bool, points: Histogram | None
) -> tuple[Half, NDArray[np.uint8]]:
    """Return palette `[P, V]` and indices of a group `[before, channels, after]`, fewer by V along the channels."""
    half = np.ascontiguousarray(half)
    if compression.cluster_dim == 1:
        points = points or histogram(half, importance)
        lut = scalar_palette(points, compression.entries, exact=exact)
        return lut[:, None], nearest_entries(points, lut, half)
    vectors = _vectors(half, compression.cluster_dim)
    mass = np.ones_like(vectors) if importance is None else _vectors(importance, compression.cluster_dim)
    if not mass.any():
        mass = np.ones_like(mass)
    lut, indices = vector_palette(vectors, mass, compression.entries, quick=not exact)
    before, channels, after = half.shape
    return lut, indices.reshape(before, channels // compression.cluster_dim, after)


def _vectors(array: Real, length: int) -> NDArray[np.float32]:
    """Return `[before, channels, after]` as rows of `length` neighbours along the channels, float32."""
    before, channels, after = array.shape
    parts = array.reshape(before, channels // length, length, after)
    return np.ascontiguousarray(np.moveaxis(parts, 2, 3), np.float32).reshape(-1, length)


# --- integers --------------------------------------------------------------------------------------------------------


def _fit_linear(half: Half, compression: Compression, importance: Real | None, name: str, exact: bool) -> Palettized:
    """Fit 8-bit integers and the scale of each channel, which minimises the channel's weighted squared error.

    The scale that spans the largest magnitude is the best one only for channels without tails. Smaller ones are tried,
    each improved to the best scale for its integers.
    """
    shape, axis = half.shape, compression.axis
    rows = _channel_rows(np.moveaxis(half, axis, 0))
    weights = None if importance is None else _channel_rows(np.moveaxis(importance, axis, 0))
    scale, integers = np.empty(len(rows), np.float16), np.empty(rows.shape, np.int8)
    factors = _SCALE_FACTORS if exact else _QUICK_SCALE_FACTORS
    step = max(1, _ROW_ELEMENTS // rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        mass = None if weights is None else weights[part]
        scale[part], integers[part] = _fit_rows(rows[part].astype(np.float32), mass, factors)
    moved = [shape[axis], *(size for at, size in enumerate(shape) if at != axis)]
    indices = np.moveaxis(integers.view(np.uint8).reshape(moved) ^ np.uint8(_ZERO), 0, axis)
    lut = np.arange(-_ZERO, _ZERO, dtype=np.float16).reshape(*(1 for _ in shape), -1, 1)
    along = [size if at == axis else 1 for at, size in enumerate(shape)]
    return Palettized(name, shape, compression, lut, np.ascontiguousarray(indices), scale.reshape(along))


def _channel_rows(array: Real) -> Real:
    rows: Real = array.reshape(len(array), -1)
    return rows


def _fit_rows(rows: NDArray[np.float32], mass: Real | None, factors: Sequence[float]) -> tuple[Half, NDArray[np.int8]]:
    """Return scales `[rows]` and integers of the shape of `rows`."""
    mass = np.ones_like(rows) if mass is None else np.where(mass.any(axis=1, keepdims=True), mass, np.float32(1))
    widest = np.abs(rows).max(axis=1, keepdims=True) / _LARGEST
    best, least = _rounded_scale(widest), np.full((len(rows), 1), np.inf, np.float32)
    for factor in factors:
        scale = _rounded_scale(factor * widest)
        for _ in range(_SCALE_STEPS):
            integers = _integers(rows, scale)
            error = (mass * np.square(rows - scale * integers)).sum(axis=1, keepdims=True)
            better = error < least
            best, least = np.where(better, scale, best), np.where(better, error, least)
            weighted = mass * integers
            square = (weighted * integers).sum(axis=1, keepdims=True)
            moment = (weighted * rows).sum(axis=1, keepdims=True)
            scale = _rounded_scale(np.divide(moment, square, out=scale.copy(), where=square > 0))
    return best[:, 0].astype(np.float16), _integers(rows, best).astype(np.int8)


def _integers(rows: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.clip(np.rint(rows / scale), -_LARGEST, _LARGEST)
    return found


def _rounded_scale(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round scales to float16, between its smallest positive number and the largest scale of finite products."""
    bounded = np.clip(scale.astype(np.float16), np.finfo(np.float16).smallest_subnormal, _MAX_SCALE)
    rounded: NDArray[np.float32] = bounded.astype(np.float32)
    return rounded
