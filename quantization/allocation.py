"""Choosing one option for each tensor: the least divergence within a size, or the least size within a divergence.

This is a multiple-choice knapsack. Lagrange's multiplier solves it on the lower convex hull of all options; what it
leaves unused between two sizes can be large where tensors are, so a search over the remaining combinations follows:
options that no better solution can hold are dropped by their Lagrangian bound, then tensors are joined one by one,
keeping the undominated combinations. That is exact. Should the combinations become too many they are thinned, and the
gap to the bound, which is stated either way, is then not zero.

Source: Kellerer, Pferschy, Pisinger, "Knapsack Problems", chapter 11.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.errors import RecipeError
from whisperkit_tools.quantization.compression import Compression

_MOST_STATES = 20_000
_TIE = 1e-12

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to store one tensor.

    Attributes:
        option: The compression; None keeps float16.
        nbytes: What it takes in the weights file.
        divergence: Predicted, in nats a token.
    """

    option: Compression | None
    nbytes: int
    divergence: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """A choice for every tensor.

    Attributes:
        chosen: For each tensor the index of its candidate.
        nbytes: Sum of their sizes.
        divergence: Sum of their divergences.
        gap: How much better, relatively, the best choice could be at most; 0 when this is it.
    """

    chosen: tuple[int, ...]
    nbytes: int
    divergence: float
    gap: float


def within_size(tensors: Sequence[Sequence[Candidate]], budget_bytes: int) -> Allocation:
    """The choice of least divergence in `budget_bytes`.

    Raises:
        RecipeError: Even the smallest choice takes more.
    """
    costs = [np.array([c.nbytes for c in options], np.float64) for options in tensors]
    values = [np.array([c.divergence for c in options], np.float64) for options in tensors]
    least = sum(int(cost.min()) for cost in costs)
    if least > budget_bytes:
        raise RecipeError(
            f"the weights cannot be made smaller than {least / 1e6:.3f} MB with the options allowed, but "
            f"{budget_bytes / 1e6:.3f} MB were asked for; allow fewer bits (--allowed-nbits), keep fewer tensors "
            "(--keep), or ask for a larger size"
        )
    return _allocation(tensors, *_solve(costs, values, float(budget_bytes)))


def within_divergence(tensors: Sequence[Sequence[Candidate]], limit: float) -> Allocation:
    """The smallest choice whose predicted divergence is at most `limit`.

    Raises:
        RecipeError: No choice has so little divergence, as when float16 is not among the candidates.
    """
    costs = [np.array([c.divergence for c in options], np.float64) for options in tensors]
    values = [np.array([c.nbytes for c in options], np.float64) for options in tensors]
    least = sum(float(cost.min()) for cost in costs)
    if least > limit:
        raise RecipeError(
            f"the predicted divergence cannot be less than {least:.3g} nats a token with the options allowed, but "
            f"{limit:.3g} was asked for; allow more bits (--allowed-nbits) or a larger --max-kl"
        )
    return _allocation(tensors, *_solve(costs, values, limit))


def _allocation(tensors: Sequence[Sequence[Candidate]], chosen: list[int], gap: float) -> Allocation:
    picked = [options[at] for options, at in zip(tensors, chosen, strict=True)]
    return Allocation(tuple(chosen), sum(c.nbytes for c in picked), sum(c.divergence for c in picked), gap)


def _solve(costs: list[Floats], values: list[Floats], limit: float) -> tuple[list[int], float]:
    """Minimise the sum of values with a sum of costs of at most `limit`, which can be kept; neither is below zero.

    Returns:
        The chosen indices, and the relative gap to the bound.
    """
    if not costs:
        return [], 0.0
    # An option dearer than the whole limit is never chosen. The rest is counted in limits, and what all tensors
    # together cannot add up to a tie is nothing: a cost of 1e-300 would make the slopes below infinite.
    allowed = [np.flatnonzero(cost <= limit * (1 + _TIE)) for cost in costs]
    costs = [cost[at] / (limit or 1.0) for cost, at in zip(costs, allowed, strict=True)]
    costs = [np.where(cost * len(costs) < _TIE, 0.0, cost) for cost in costs]
    values = [value[at] for value, at in zip(values, allowed, strict=True)]
    chosen, gap = _solve_scaled(costs, values)
    return [int(at[place]) for at, place in zip(allowed, chosen, strict=True)], gap


def _solve_scaled(costs: list[Floats], values: list[Floats]) -> tuple[list[int], float]:
    """`_solve` with a limit of 1."""
    multiplier, greedy = _relaxed(costs, values)
    weighed = [value + multiplier * cost for value, cost in zip(values, costs, strict=True)]
    lowest = sum(float(w.min()) for w in weighed)
    bound = max(lowest - multiplier, sum(float(value.min()) for value in values))
    best = sum(float(value[at]) for value, at in zip(values, greedy, strict=True))
    slack = best - (lowest - multiplier) + _TIE * (best + lowest + multiplier)
    kept = [np.flatnonzero(w <= w.min() + slack) for w in weighed]
    found, exact = _join(costs, values, weighed, kept, slack)
    chosen = found if found is not None else greedy
    reached = sum(float(value[at]) for value, at in zip(values, chosen, strict=True))
    if reached > best:
        chosen, reached = greedy, best
    gap = 0.0 if exact or reached <= bound else (reached - bound) / reached
    return chosen, gap


def _hull(cost: Floats, value: Floats) -> list[int]:
    """Indices of the lower convex hull from the cheapest option to the one of least value."""
    order = np.lexsort((value, cost))
    hull: list[int] = []
    for at in order:
        if hull and (value[at] >= value[hull[-1]] or cost[at] == cost[hull[-1]]):
            continue
        while len(hull) >= 2 and _slope(cost, value, hull[-2], hull[-1]) <= _slope(cost, value, hull[-1], int(at)):
            hull.pop()
        hull.append(int(at))
    return hull


def _slope(cost: Floats, value: Floats, start: int, stop: int) -> float:
    """What a unit of cost gains between two options."""
    return float((value[start] - value[stop]) / (cost[stop] - cost[start]))


def _relaxed(costs: list[Floats], values: list[Floats]) -> tuple[float, list[int]]:
    """Return the multiplier of the linear relaxation, and a choice that takes every step that still fits."""
    hulls = [_hull(cost, value) for cost, value in zip(costs, values, strict=True)]
    steps = [
        (_slope(costs[item], values[item], start, stop), item, place + 1)
        for item, hull in enumerate(hulls)
        for place, (start, stop) in enumerate(pairwise(hull))
    ]
    steps.sort(key=lambda step: (-step[0], step[2]))
    at = [0] * len(costs)
    used = sum(float(cost[hull[0]]) for cost, hull in zip(costs, hulls, strict=True))
    multiplier: float | None = None
    for slope, item, place in steps:
        hull, cost = hulls[item], costs[item]
        more = float(cost[hull[place]] - cost[hull[at[item]]])
        if used + more <= 1 + _TIE:
            used += more
            at[item] = place
        elif multiplier is None:
            multiplier = slope
    return multiplier or 0.0, [hull[place] for hull, place in zip(hulls, at, strict=True)]


def _join(
    costs: list[Floats],
    values: list[Floats],
    weighed: list[Floats],
    kept: list[NDArray[Any]],
    slack: float,
) -> tuple[list[int] | None, bool]:
    """Join the tensors one by one; `slack` is how far above the bound a combination may lie."""
    order = sorted(range(len(costs)), key=lambda item: -len(kept[item]))
    rest = [0.0]
    for item in reversed(order):
        rest.append(rest[-1] + float(costs[item][kept[item]].min()))
    rest.reverse()
    cost, value, above = np.zeros(1), np.zeros(1), np.zeros(1)
    trail: list[tuple[NDArray[np.int32], NDArray[np.int16]]] = []
    exact = True
    for place, item in enumerate(order):
        options = kept[item]
        excess = weighed[item][options] - weighed[item].min()
        more, worth, over = (
            np.add.outer(base, part).ravel()
            for base, part in ((cost, costs[item][options]), (value, values[item][options]), (above, excess))
        )
        alive = np.flatnonzero((more + rest[place + 1] <= 1 + 2 * _TIE) & (over <= slack))
        if not len(alive):
            return None, exact
        alive = alive[_undominated(more[alive], worth[alive])]
        if len(alive) > _MOST_STATES:
            alive, exact = _thinned(alive, over, more), False
        trail.append(((alive // len(options)).astype(np.int32), options[alive % len(options)].astype(np.int16)))
        cost, value, above = more[alive], worth[alive], over[alive]
    return _trace(trail, order, int(value.argmin())), exact


def _undominated(cost: Floats, value: Floats) -> NDArray[np.intp]:
    """Places of the combinations for which no other costs no more and is worth no less, by rising cost."""
    order = np.lexsort((value, cost))
    lowest = np.minimum.accumulate(value[order])
    better = np.ones(len(order), bool)
    better[1:] = value[order][1:] < lowest[:-1]
    return order[better]


def _thinned(alive: NDArray[np.intp], over: Floats, cost: Floats) -> NDArray[np.intp]:
    """Keep in each of many stretches of cost the combination nearest to the bound."""
    edges = np.linspace(cost[alive].min(), cost[alive].max(), _MOST_STATES)
    stretch = np.searchsorted(edges, cost[alive])
    order = np.lexsort((over[alive], stretch))
    first = np.ones(len(order), bool)
    first[1:] = stretch[order][1:] != stretch[order][:-1]
    chosen: NDArray[np.intp] = alive[order[first]]
    return chosen


def _trace(trail: list[tuple[NDArray[np.int32], NDArray[np.int16]]], order: list[int], last: int) -> list[int]:
    """Follow the best combination back to its options."""
    chosen = [0] * len(order)
    for (parents, options), item in zip(reversed(trail), reversed(order), strict=True):
        chosen[item] = int(options[last])
        last = int(parents[last])
    return chosen
