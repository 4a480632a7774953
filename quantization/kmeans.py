"""k-means of a weight's values: exact for numbers through a histogram of float16, by Lloyd's steps for vectors.

A float16 weight has at most 65,536 distinct values, whatever its size. The exact algorithm therefore runs on these
values and on how often each occurs (or how important its elements are together).

Clusters of sorted numbers are runs. The best split of the first `j` numbers into `k` runs extends a best split of fewer
numbers into `k - 1` runs:

    values       v0 v1 | v2 v3 v4 | v5 v6            error[k][j] = min over i of  error[k-1][i] + cost(i, j)
    runs         ------- k-1 ------ -- last --
                                    i         j      cost(i, j) = sum of mass * (value - mean)**2 over v_i .. v_(j-1)

The best start `i` of the last run never falls as `j` grows. For each `k` a divide-and-conquer search over `j` therefore
halves the range of `i`, and examines `n log n` starts:

    j in [low, high], i in [earliest, latest]:  solve j = middle, which gives i = best
        left half:   j in [low, middle - 1],   i in [earliest, best]
        right half:  j in [middle + 1, high],  i in [best, latest]

Source: Wu, "Optimal quantization by matrix searching"; Groenlund et al., arXiv 1701.07204, section 2.2; Arthur and
Vassilvitskii, "k-means++".
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = NDArray[Any]
_SORTING_PAYS_BELOW = 16384  # elements; above, a table of all 65,536 counts is the cheaper histogram
_SAMPLE, _SEED_SAMPLE, _CHUNK = 65536, 16384, 65536  # vectors
_STARTS, _START_STEPS, _LLOYD_STEPS, _LAST_STEPS = 6, 6, 25, 3
_QUICK_SAMPLE, _QUICK_STARTS, _QUICK_LLOYD_STEPS = 16384, 1, 6
_QUICK_BINS, _QUICK_STEPS = 256, 40
_DEPTH = 128  # of the divide-and-conquer search: twice the logarithm of any length


@dataclass(frozen=True, slots=True)
class Histogram:
    """The distinct values of a weight.

    Attributes:
        values: `[n]` float64, ascending, each once.
        mass: `[n]` float64, the count or total importance of all elements with the value.
        codes: `[n]` uint16, the float16 bits of the values.
    """

    values: NDArray[np.float64]
    mass: NDArray[np.float64]
    codes: NDArray[np.uint16]


@cache
def _codes_by_value() -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
    """Return all finite float16 bit patterns by ascending value, and the values."""
    values = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64)
    order = np.argsort(values, kind="stable")
    order = order[np.isfinite(values[order])]
    return order.astype(np.uint16), values[order]


def histogram(half: NDArray[np.float16], importance: Real | None = None) -> Histogram:
    """Count the values of a float16 array, weighted by `importance` where given."""
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
    # These keys sort like the values, so that the short array is sorted once, and as integers.
    keys = np.where(codes & 0x8000, ~codes, codes | 0x8000)
    ordered = np.sort(keys)
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] ^ 1))
    found = ordered[starts]
    if weights is None:
        mass = np.diff(starts, append=len(codes)).astype(np.float64)
    else:
        rank = np.zeros(65536, np.uint16)
        rank[found] = np.arange(len(found))
        mass = np.bincount(rank[keys], weights, minlength=len(found)).astype(np.float64)
    present = np.where(found & 0x8000, found ^ 0x8000, ~found)
    return Histogram(present.view(np.float16).astype(np.float64), mass, present)


def scalar_palette(points: Histogram, entries: int, *, exact: bool = True) -> NDArray[np.float16]:
    """Return the `entries` values of minimum weighted squared error, ascending, `[entries]` float16.

    Without `exact` the search starts from a coarser histogram and improves the result by Lloyd's steps. This serves
    planning, which makes many palettes to compare them. Its squared error is up to one per cent larger.

    Elements of zero mass are ignored, unless all have zero mass. Where there are no more values than entries, these
    values are the palette, with the last one repeated.
    """
    values, mass = points.values, points.mass
    if np.any(mass > 0):
        values, mass = values[mass > 0], mass[mass > 0]
    else:
        mass = np.ones_like(values)
    if len(values) > entries:
        mass = mass / mass.max()
        labels = cluster(values, mass, entries) if exact else _approximate_labels(values, mass, entries)
        values = _centroids(values, mass, labels)
    padded = np.concatenate([values, np.full(max(0, entries - len(values)), values[-1])])
    return padded.astype(np.float16)


def nearest_entries(points: Histogram, lut: NDArray[np.float16], half: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Return for each element of `half` the index of the nearest entry of an ascending palette. Ties take the lower."""
    entries = lut.astype(np.float64)
    table = np.zeros(65536, np.uint8)
    table[points.codes] = np.searchsorted((entries[1:] + entries[:-1]) / 2, points.values)
    return table[half.view(np.uint16)]


# --- exact clustering of numbers -------------------------------------------------------------------------------------


def cluster(values: Real, mass: Real, clusters: int) -> NDArray[np.int64]:
    """Cluster numbers with the minimum squared error.

    Args:
        values: `[n]` ascending.
        mass: `[n]`, positive: the factor of each value's squared error.
        clusters: Number of clusters, at most `n`.

    Returns:
        `[n]` the cluster of each value, ascending from 0. All clusters occur.
    """
    centered = np.ascontiguousarray(values, np.float64) - np.average(values, weights=mass)
    starts = compiled(cluster_starts)(centered, np.ascontiguousarray(mass, np.float64), clusters)
    labels = np.zeros(len(values), np.int64)
    labels[starts[1:]] = 1
    return labels.cumsum()


def cluster_starts(values: Real, mass: Real, clusters: int) -> NDArray[np.int64]:
    """Return the index at which each cluster starts. Written for the compiler; the module's diagram names `i`, `j`."""
    count = len(values)
    # Sums over the first i values: of their mass, of mass times value, and of mass times value squared.
    weight, first, second = np.zeros(count + 1), np.zeros(count + 1), np.zeros(count + 1)
    for i in range(count):
        weight[i + 1] = weight[i] + mass[i]
        first[i + 1] = first[i] + mass[i] * values[i]
        second[i + 1] = second[i] + mass[i] * values[i] * values[i]
    # Errors of the first j values in k - 1 clusters (`fewer`) and in k clusters (`error`).
    fewer, error = np.full(count + 1, np.inf), np.full(count + 1, np.inf)
    for j in range(1, count + 1):
        fewer[j] = second[j] - first[j] * first[j] / weight[j]
    last_start = np.zeros((clusters, count + 1), np.int32)
    todo = np.empty((_DEPTH, 4), np.int64)  # ranges of j and of i, as in the diagram
    for k in range(1, clusters):
        todo[0] = (k + 1, count, k, count - 1)
        waiting = 1
        while waiting > 0:
            waiting -= 1
            low, high, earliest, latest = todo[waiting]
            middle = (low + high) // 2
            least, best = np.inf, earliest
            for i in range(earliest, min(latest, middle - 1) + 1):
                moment = first[middle] - first[i]
                found = fewer[i] + (second[middle] - second[i] - moment * moment / (weight[middle] - weight[i]))
                if found < least:
                    least, best = found, i
            error[middle] = least
            last_start[k, middle] = best
            if low < middle:
                todo[waiting] = (low, middle - 1, earliest, best)
                waiting += 1
            if middle < high:
                todo[waiting] = (middle + 1, high, best, latest)
                waiting += 1
        fewer, error = error, fewer
        fewer[: k + 1] = np.inf
    starts = np.zeros(clusters, np.int64)
    stop = count
    for k in range(clusters - 1, 0, -1):
        stop = last_start[k, stop]
        starts[k] = stop
    return starts


@cache
def compiled(function: Callable[..., NDArray[np.int64]]) -> Callable[..., NDArray[np.int64]]:
    """Return a function as machine code, cached on disk where that is writable. It releases Python's lock."""
    import numba

    try:
        found: Callable[..., NDArray[np.int64]] = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # there is no place for the cache
        found = numba.njit(nogil=True)(function)
    return found


# --- approximate clustering of numbers -------------------------------------------------------------------------------


def _centroids(values: Real, mass: Real, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the means of the clusters, which are runs of equal labels."""
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    found: NDArray[np.float64] = np.add.reduceat(values * mass, starts) / np.add.reduceat(mass, starts)
    return found


def _approximate_labels(values: Real, mass: Real, clusters: int) -> NDArray[np.int64]:
    """Cluster a coarser histogram, then take Lloyd's steps on the whole one."""
    bins = _fine_bins(values, mass, max(_QUICK_BINS, (8 if clusters <= 64 else 4) * clusters))
    sums = np.bincount(bins, mass)
    labels = cluster(np.bincount(bins, mass * values) / sums, sums, clusters)[bins]
    return compiled(refined_labels)(values, mass, labels, _QUICK_STEPS)


def refined_labels(values: Real, mass: Real, labels: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Take Lloyd's steps from a clustering of ascending values in runs. Written for the compiler."""
    count, clusters = len(values), labels[-1] + 1
    labels, centers = labels.copy(), np.empty(clusters)
    for _ in range(steps):
        found = 0  # clusters that have values
        at = 0
        while at < count:
            label, total, moment = labels[at], 0.0, 0.0
            while at < count and labels[at] == label:
                total += mass[at]
                moment += mass[at] * values[at]
                at += 1
            centers[found] = moment / total
            found += 1
        changed, nearest = False, 0
        for at in range(count):
            while nearest + 1 < found and values[at] > (centers[nearest] + centers[nearest + 1]) / 2:
                nearest += 1
            changed = changed or labels[at] != nearest
            labels[at] = nearest
        if not changed:
            break
    return labels


def _fine_bins(values: Real, mass: Real, count: int) -> NDArray[np.int64]:
    """Return ascending labels of about `count` bins, which are small where the best palettes have many entries.

    No value takes more than one bin. An isolated value far from the others therefore has its own bin and costs the
    others nothing.

    Source: Panter and Dite: the density of the best quantiser's entries grows with the cube root of the data's density.
    """
    gaps = np.diff(values)
    widths = np.maximum(np.append(gaps, 0), np.insert(gaps, 0, 0))
    share = np.cbrt(mass * np.square(widths))
    share = np.minimum(1, share * _bin_factor(share, count)) if len(values) > count else np.ones_like(share)
    numbers = np.floor(np.cumsum(share) * (1 - 1e-12))
    return np.cumsum(np.diff(numbers, prepend=numbers[0]) > 0)


def _bin_factor(share: Real, count: int) -> float:
    """Return the `c` for which `sum(min(1, c * share))` is `count`, which is less than the number of shares."""
    capped, factor = np.zeros(len(share), bool), 0.0
    while free := count - np.count_nonzero(capped):
        factor = float(free / max(share[~capped].sum(), np.finfo(np.float64).tiny))
        found = share * factor >= 1
        if not np.any(found & ~capped):
            break
        capped |= found
    return factor


# --- vectors ---------------------------------------------------------------------------------------------------------


def vector_palette(
    vectors: Real, mass: Real, entries: int, *, quick: bool = False
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Return a palette of vectors and each vector's entry, by k-means++ and Lloyd's steps with a fixed seed.

    Args:
        vectors: `[n, d]` float32.
        mass: `[n, d]` float32, the factor of the squared error of each element.
        entries: Size of the palette.
        quick: Use fewer vectors, starts and steps, for planning.

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
            centers = _lloyd_step(vectors[chosen], mass[chosen], centers)
        for _ in range(_LAST_STEPS if len(vectors) > sample and not quick else 0):
            centers = _lloyd_step(vectors, mass, centers)
    rounded = centers.astype(np.float16)
    return rounded, _assign(vectors, mass, rounded.astype(np.float32))[0].astype(np.uint8)


def _best_start(vectors: Real, mass: Real, entries: int, starts: int) -> Real:
    """Return the best of several random starts after a few steps each."""
    found = []
    for start in range(starts):
        random = np.random.default_rng(start)
        centers = _seeds(vectors[:_SEED_SAMPLE], mass[:_SEED_SAMPLE], entries, random)
        for _ in range(_START_STEPS):
            centers = _lloyd_step(vectors[:_SEED_SAMPLE], mass[:_SEED_SAMPLE], centers)
        found.append((float(_assign(vectors[:_SEED_SAMPLE], mass[:_SEED_SAMPLE], centers)[1].sum()), centers))
    return min(found, key=lambda pair: pair[0])[1]


def _seeds(vectors: Real, mass: Real, entries: int, random: np.random.Generator) -> Real:
    """Draw centers by k-means++: each with a probability that grows with the distance to those drawn before."""
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


def _lloyd_step(vectors: Real, mass: Real, centers: Real) -> Real:
    """Assign the vectors, then move each center to the mean of its own. An empty center moves to the worst vector."""
    labels, errors = _assign(vectors, mass, centers)
    moved = centers.copy()
    for axis in range(vectors.shape[1]):
        total = np.bincount(labels, mass[:, axis], minlength=len(centers))
        summed = np.bincount(labels, mass[:, axis] * vectors[:, axis], minlength=len(centers))
        np.divide(summed, total, out=moved[:, axis], where=total > 0, casting="unsafe")
    empty = np.flatnonzero(np.bincount(labels, minlength=len(centers)) == 0)
    if len(empty):
        moved[empty] = vectors[np.argsort(-errors, kind="stable")[: len(empty)]]
    return moved


def _assign(vectors: Real, mass: Real, centers: Real) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return each vector's nearest center and its weighted squared distance to it."""
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
