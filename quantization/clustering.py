"""k-means of a weight's values: exact for numbers, through a histogram of float16; good for vectors, by Lloyd.

A float16 weight has at most 65,536 values whatever its size, so the exact algorithm runs on those and how often each
occurs (or how much those elements matter together).

Source: Arthur and Vassilvitskii, "k-means++".
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.quantization.kmeans import cluster

Real = NDArray[Any]
_SORTING_PAYS_BELOW = 16384  # elements; above, a table of all 65,536 counts is the cheaper histogram
_SAMPLE, _SEED_SAMPLE, _CHUNK = 65536, 16384, 65536  # vectors
_STARTS, _START_STEPS, _LLOYD_STEPS, _LAST_STEPS = 6, 6, 25, 3
_QUICK_SAMPLE, _QUICK_STARTS, _QUICK_LLOYD_STEPS = 16384, 1, 6
_QUICK_BINS, _QUICK_STEPS = 256, 40


@dataclass(frozen=True, slots=True)
class Histogram:
    """The values of a weight.

    Attributes:
        values: `[n]` float64, ascending, each once.
        mass: `[n]` float64, what all elements of a value count together.
        codes: `[n]` the values' float16 bits, uint16.
    """

    values: NDArray[np.float64]
    mass: NDArray[np.float64]
    codes: NDArray[np.uint16]


@cache
def _codes_by_value() -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
    """All finite float16 bit patterns by ascending value, and the values."""
    values = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64)
    order = np.argsort(values, kind="stable")
    order = order[np.isfinite(values[order])]
    return order.astype(np.uint16), values[order]


def histogram(half: NDArray[np.float16], importance: Real | None = None) -> Histogram:
    """Count the values of a float16 array, elements weighted by `importance` where given."""
    codes = np.ascontiguousarray(half).reshape(-1).view(np.uint16)
    weights = None if importance is None else importance.reshape(-1)
    if len(codes) < _SORTING_PAYS_BELOW:
        return _sorted_histogram(codes, weights)
    order, values = _codes_by_value()
    counts = np.bincount(codes, minlength=65536)[order]
    present = np.flatnonzero(counts)
    mass = counts if weights is None else np.bincount(codes, weights, minlength=65536)[order]
    return Histogram(values[present], mass[present].astype(np.float64), order[present])


def _sorted_histogram(codes: NDArray[np.uint16], weights: Real | None) -> Histogram:
    found, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    mass = counts if weights is None else np.bincount(inverse.reshape(-1), weights)
    values = found.view(np.float16).astype(np.float64)
    order = np.argsort(values, kind="stable")
    return Histogram(values[order], mass[order].astype(np.float64), found[order])


def scalar_palette(points: Histogram, entries: int, *, exact: bool = True) -> NDArray[np.float16]:
    """The `entries` values of least weighted squared error, ascending, `[entries]` float16.

    Without `exact` the search starts from a coarser histogram and improves by Lloyd's steps: for planning, where many
    palettes are made to be compared. Its squared error is up to one per cent larger.

    Elements that count nothing have no say, unless none does. Where there are no more values than entries, these are
    the palette, the last one repeated.
    """
    values, mass = points.values, points.mass
    if np.any(mass > 0):
        values, mass = values[mass > 0], mass[mass > 0]
    else:
        mass = np.ones_like(values)
    if len(values) > entries:
        mass = mass / mass.max()
        labels = cluster(values, mass, entries) if exact else _quick_labels(values, mass, entries)
        values = _centroids(values, mass, labels)
    padded = np.concatenate([values, np.full(max(0, entries - len(values)), values[-1])])
    return padded.astype(np.float16)


def _centroids(values: Real, mass: Real, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Means of the clusters, which are runs of equal labels."""
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    found: NDArray[np.float64] = np.add.reduceat(values * mass, starts) / np.add.reduceat(mass, starts)
    return found


def _quick_labels(values: Real, mass: Real, clusters: int) -> NDArray[np.int64]:
    """Clusters of a coarser histogram, then Lloyd's steps on the whole one."""
    bins = _fine_bins(values, mass, max(_QUICK_BINS, (8 if clusters <= 64 else 4) * clusters))
    sums = np.bincount(bins, mass)
    labels = cluster(np.bincount(bins, mass * values) / sums, sums, clusters)[bins]
    for _ in range(_QUICK_STEPS):
        centers = _centroids(values, mass, labels)
        moved = np.searchsorted((centers[1:] + centers[:-1]) / 2, values)
        if np.array_equal(moved, labels):
            break
        labels = moved
    return labels


def _fine_bins(values: Real, mass: Real, count: int) -> NDArray[np.int64]:
    """Ascending labels of about `count` bins that are small where the best palettes have many entries.

    No bin is spent twice on one value, so that a lonely value far out gets its own and takes none from the rest.

    Source: Panter and Dite: the density of the best quantiser's entries goes with the cube root of the data's.
    """
    gaps = np.diff(values)
    widths = np.maximum(np.append(gaps, 0), np.insert(gaps, 0, 0))
    share = np.cbrt(mass * np.square(widths))
    share = np.minimum(1, share * _factor(share, count)) if len(values) > count else np.ones_like(share)
    _, labels = np.unique(np.floor(np.cumsum(share) * (1 - 1e-12)), return_inverse=True)
    return labels.reshape(-1).astype(np.int64)


def _factor(share: Real, count: int) -> float:
    """The `c` for which `sum(min(1, c * share))` is `count`."""
    ordered = np.sort(share)[::-1]
    rest = np.append(np.cumsum(ordered[::-1])[::-1], 0)  # what the shares from each place on sum to
    for capped in range(count):
        if rest[capped] > 0 and ordered[capped] * (count - capped) <= rest[capped]:
            return float((count - capped) / rest[capped])
    return float(1 / max(ordered[-1], np.finfo(np.float64).tiny))


def nearest(points: Histogram, lut: NDArray[np.float16], half: NDArray[np.float16]) -> NDArray[np.uint8]:
    """For each element of `half` the index of the nearest entry of an ascending palette; the lower one in a tie."""
    entries = lut.astype(np.float64)
    table = np.zeros(65536, np.uint8)
    table[points.codes] = np.searchsorted((entries[1:] + entries[:-1]) / 2, points.values)
    return table[half.view(np.uint16)]


# --- vectors ---------------------------------------------------------------------------------------------------------


def vector_palette(
    vectors: Real, mass: Real, entries: int, *, quick: bool = False
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """A palette of vectors and each vector's entry, by k-means++ and Lloyd's steps with a fixed seed.

    Args:
        vectors: `[n, d]` float32.
        mass: `[n, d]` float32, what the squared error of each element counts.
        entries: Size of the palette.
        quick: From fewer vectors, with fewer starts and steps: for planning.

    Returns:
        `[entries, d]` float16 and `[n]` uint8.
    """
    distinct = np.unique(vectors, axis=0) if len(vectors) <= _SAMPLE else vectors
    if len(distinct) <= entries:
        centers = np.concatenate([distinct, np.repeat(distinct[-1:], entries - len(distinct), axis=0)])
    else:
        sample, starts, steps = (
            (_QUICK_SAMPLE, _QUICK_STARTS, _QUICK_LLOYD_STEPS) if quick else (_SAMPLE, _STARTS, _LLOYD_STEPS)
        )
        chosen = np.random.default_rng(0).permutation(len(vectors))[:sample]
        centers = _best_start(vectors[chosen], mass[chosen], entries, starts)
        for _ in range(steps):
            centers = _lloyd(vectors[chosen], mass[chosen], centers)
        for _ in range(_LAST_STEPS if len(vectors) > sample and not quick else 0):
            centers = _lloyd(vectors, mass, centers)
    rounded = centers.astype(np.float16)
    return rounded, _assigned(vectors, mass, rounded.astype(np.float32))[0].astype(np.uint8)


def _best_start(vectors: Real, mass: Real, entries: int, starts: int) -> Real:
    """The best of several random starts after a few steps each."""
    found = []
    for start in range(starts):
        random = np.random.default_rng(start)
        centers = _seeds(vectors[:_SEED_SAMPLE], mass[:_SEED_SAMPLE], entries, random)
        for _ in range(_START_STEPS):
            centers = _lloyd(vectors[:_SEED_SAMPLE], mass[:_SEED_SAMPLE], centers)
        found.append((float(_assigned(vectors[:_SEED_SAMPLE], mass[:_SEED_SAMPLE], centers)[1].sum()), centers))
    return min(found, key=lambda pair: pair[0])[1]


def _seeds(vectors: Real, mass: Real, entries: int, random: np.random.Generator) -> Real:
    weight = mass.sum(axis=1, dtype=np.float64)
    distance = np.ones(len(vectors))
    centers = np.empty((entries, vectors.shape[1]), np.float32)
    for number in range(entries):
        chances = np.cumsum(distance if weight.sum() == 0 else distance * (weight if number == 0 else 1))
        at = int(np.searchsorted(chances, random.random() * chances[-1]))
        centers[number] = vectors[min(at, len(vectors) - 1)]
        step = ((vectors - centers[number]) ** 2 * mass).sum(axis=1, dtype=np.float64)
        distance = step if number == 0 else np.minimum(distance, step)
    return centers


def _lloyd(vectors: Real, mass: Real, centers: Real) -> Real:
    """One step: assign, then move each center to the mean of its own; an empty one goes to the worst vector."""
    labels, errors = _assigned(vectors, mass, centers)
    moved = centers.copy()
    for axis in range(vectors.shape[1]):
        total = np.bincount(labels, mass[:, axis], minlength=len(centers))
        summed = np.bincount(labels, mass[:, axis] * vectors[:, axis], minlength=len(centers))
        np.divide(summed, total, out=moved[:, axis], where=total > 0, casting="unsafe")
    empty = np.flatnonzero(np.bincount(labels, minlength=len(centers)) == 0)
    if len(empty):
        moved[empty] = vectors[np.argsort(-errors, kind="stable")[: len(empty)]]
    return moved


def _assigned(vectors: Real, mass: Real, centers: Real) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Each vector's nearest center and its weighted squared distance to it."""
    labels, errors = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    squares = (centers**2).T
    for start in range(0, len(vectors), _CHUNK):
        part = slice(start, start + _CHUNK)
        weighted = mass[part] * vectors[part]
        scores = mass[part] @ squares - 2 * weighted @ centers.T
        labels[part] = scores.argmin(axis=1)
        best = np.take_along_axis(scores, labels[part, None], axis=1)[:, 0]
        errors[part] = best + (weighted * vectors[part]).sum(axis=1)
    return labels, errors
