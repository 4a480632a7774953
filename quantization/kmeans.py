"""Exact k-means of numbers, weighted: the clustering of least squared error, compiled at its first use.

Clusters of sorted numbers are runs, so the best clustering of the first `j` of them into `k` runs follows from those of
fewer numbers into `k - 1`. Where the last run of the best one begins never falls as `j` grows, so a search that halves
its range looks at `n log n` beginnings for each `k`.

Source: Wu, "Optimal quantization by matrix searching"; Groenlund et al., arXiv 1701.07204, section 2.2.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Real = NDArray[Any]
_DEPTH = 128  # of the halving, twice the logarithm of any length


def cluster(values: Real, mass: Real, clusters: int) -> NDArray[np.int64]:
    """Cluster numbers.

    Args:
        values: `[n]` ascending.
        mass: `[n]`, positive: what each value's squared error counts.
        clusters: How many; at most `n`.

    Returns:
        `[n]` the cluster of each value, ascending from 0; all of them occur.
    """
    centered = np.ascontiguousarray(values, np.float64) - np.average(values, weights=mass)
    starts = _compiled()(centered, np.ascontiguousarray(mass, np.float64), clusters)
    labels = np.zeros(len(values), np.int64)
    labels[starts[1:]] = 1
    return labels.cumsum()


def _starts(values: Real, mass: Real, clusters: int) -> NDArray[np.int64]:
    """Where each cluster starts; written for the compiler."""
    count = len(values)
    # Sums over the first i values: of their mass, of mass times value, and of mass times value squared.
    weight, first, second = np.zeros(count + 1), np.zeros(count + 1), np.zeros(count + 1)
    for i in range(count):
        weight[i + 1] = weight[i] + mass[i]
        first[i + 1] = first[i] + mass[i] * values[i]
        second[i + 1] = second[i] + mass[i] * values[i] * values[i]
    # Errors of the first j values in the best clusters, one cluster less and as many as this round has.
    fewer, error = np.full(count + 1, np.inf), np.full(count + 1, np.inf)
    for j in range(1, count + 1):
        fewer[j] = second[j] - first[j] * first[j] / weight[j]
    begins = np.zeros((clusters, count + 1), np.int32)  # of the last cluster
    todo = np.empty((_DEPTH, 4), np.int64)  # from and to which j, and where their last clusters may begin
    for done in range(1, clusters):
        todo[0] = (done + 1, count, done, count - 1)
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
            begins[done, middle] = best
            if low < middle:
                todo[waiting] = (low, middle - 1, earliest, best)
                waiting += 1
            if middle < high:
                todo[waiting] = (middle + 1, high, best, latest)
                waiting += 1
        fewer, error = error, fewer
        fewer[: done + 1] = np.inf
    starts = np.zeros(clusters, np.int64)
    behind = count
    for at in range(clusters - 1, 0, -1):
        behind = begins[at, behind]
        starts[at] = behind
    return starts


@cache
def _compiled() -> Callable[[Real, Real, int], NDArray[np.int64]]:
    """`_starts` as machine code, kept on disk where that can be written; it runs without Python's lock."""
    import numba

    try:
        found: Callable[[Real, Real, int], NDArray[np.int64]] = numba.njit(nogil=True, cache=True)(_starts)
    except RuntimeError:  # there is no place for the cache
        found = numba.njit(nogil=True)(_starts)
    return found
