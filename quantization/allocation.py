"""Choice of one compression for each weight: minimum divergence within a size, or minimum size within a divergence.

This is a multiple-choice knapsack. Its linear relaxation has an optimal Lagrange multiplier, found on the lower convex
hull of each weight's options. The budget that the relaxation leaves unused can be large where weights are large. A
search over the remaining combinations therefore follows: options that no better solution can contain are dropped by
their Lagrangian bound, then weights are joined one by one, keeping the undominated combinations (dynamic programming).
The result is exact. If the combinations become too many, they are thinned, and the gap to the bound may be above zero.
The gap is reported in both cases.

Example: two weights and 100 bytes. The relaxation takes the steepest steps that fit: weight 0 from 20 to 40 bytes
(0.6 nats less for 20 bytes), then weight 1 from 30 to 50 bytes (0.25 nats less for 20 bytes). That makes 90 bytes and
0.45 nats, and 10 bytes remain unused. The search finds the better combination of 70 and 30 bytes:

    >>> from whisperkit_tools.quantization.allocation import StorageOption, within_size
    >>> def options(*pairs):
    ...     return [StorageOption(None, nbytes, divergence) for nbytes, divergence in pairs]
    >>> weights = [options((20, 0.9), (40, 0.3), (70, 0.0)), options((30, 0.4), (50, 0.15))]
    >>> found = within_size(weights, 100)
    >>> found.chosen, found.nbytes, round(found.divergence, 3), found.gap
    ((2, 0), 100, 0.4, 0.0)

Source: Kellerer, Pferschy, Pisinger, "Knapsack Problems", chapter 11.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.quantization.compression import Compression

_MAX_STATES = 20_000
_TIE = 1e-12

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StorageOption:
    """One way to store one weight.

    Attributes:
        compression: The compression. None keeps float16.
        nbytes: Bytes in the weights file.
        divergence: Predicted divergence in nats per token.
    """

    compression: Compression | None
    nbytes: int
    divergence: float


@dataclass(frozen=True, slots=True)
class Allocation:
    """A choice for every weight.

    Attributes:
        chosen: For each weight the index of its option.
        nbytes: Sum of their sizes.
        divergence: Sum of their divergences.
        gap: Upper bound of the relative improvement that a better choice could bring. 0 when this one is optimal.
    """

    chosen: tuple[int, ...]
    nbytes: int
    divergence: float
    gap: float


def within_size(weights: Sequence[Sequence[StorageOption]], budget_bytes: int) -> Allocation:
    """Return the choice of minimum divergence within `budget_bytes`.

    Raises:
        OptionsError: Even the smallest choice is larger.
    """
    costs = [np.array([o.nbytes for o in options], np.float64) for options in weights]
    values = [np.array([o.divergence for o in options], np.float64) for options in weights]
    least = sum(int(cost.min()) for cost in costs)
    if least > budget_bytes:
        raise OptionsError(
            f"the weights cannot be made smaller than {least / 1e6:.3f} MB with the allowed compressions, but "
            f"{budget_bytes / 1e6:.3f} MB were requested; allow fewer bits ({option('allowed_nbits')}), keep fewer "
            f"weights ({option('keep')}), or request a larger size"
        )
    return _allocation(weights, *_minimise(costs, values, float(budget_bytes)))


def within_divergence(weights: Sequence[Sequence[StorageOption]], limit: float) -> Allocation:
    """Return the smallest choice whose predicted divergence is at most `limit`.

    Raises:
        OptionsError: Every choice has a larger divergence, which needs that float16 is not among the options.
    """
    costs = [np.array([o.divergence for o in options], np.float64) for options in weights]
    values = [np.array([o.nbytes for o in options], np.float64) for options in weights]
    least = sum(float(cost.min()) for cost in costs)
    if least > limit:
        raise OptionsError(
            f"the predicted divergence cannot be less than {least:.3g} nats a token with the allowed compressions, but "
            f"{limit:.3g} was requested; allow more bits ({option('allowed_nbits')}) or a larger {option('max_kl')}"
        )
    return _allocation(weights, *_minimise(costs, values, limit))


def _allocation(weights: Sequence[Sequence[StorageOption]], chosen: list[int], gap: float) -> Allocation:
    picked = [options[at] for options, at in zip(weights, chosen, strict=True)]
    return Allocation(tuple(chosen), sum(o.nbytes for o in picked), sum(o.divergence for o in picked), gap)


def _minimise(costs: list[Floats], values: list[Floats], limit: float) -> tuple[list[int], float]:
    """Minimise the sum of values under a sum of costs of at most `limit`, which is feasible. Neither is below zero.

    Returns:
        The chosen indices, and the relative gap to the bound.
    """
    if not costs:
        return [], 0.0
    # An option that costs more than the whole limit is never chosen. The other costs are scaled to a limit of 1.
    # Costs whose sum over all weights is below a tie become zero: 1e-300 would make the slopes below infinite.
    allowed = [np.flatnonzero(cost <= limit * (1 + _TIE)) for cost in costs]
    costs = [cost[at] / (limit or 1.0) for cost, at in zip(costs, allowed, strict=True)]
    costs = [np.where(cost * len(costs) < _TIE, 0.0, cost) for cost in costs]
    values = [value[at] for value, at in zip(values, allowed, strict=True)]
    chosen, gap = _minimise_scaled(costs, values)
    return [int(at[place]) for at, place in zip(allowed, chosen, strict=True)], gap


def _minimise_scaled(costs: list[Floats], values: list[Floats]) -> tuple[list[int], float]:
    """Minimise as `_minimise` does, with a limit of 1."""
    multiplier, greedy = solve_relaxation(costs, values)
    lagrangian = [value + multiplier * cost for value, cost in zip(values, costs, strict=True)]
    lowest = sum(float(terms.min()) for terms in lagrangian)
    bound = max(lowest - multiplier, sum(float(value.min()) for value in values))
    best = sum(float(value[at]) for value, at in zip(values, greedy, strict=True))
    slack = best - (lowest - multiplier) + _TIE * (best + lowest + multiplier)
    candidates = [np.flatnonzero(terms <= terms.min() + slack) for terms in lagrangian]
    found, exact = dynamic_program(costs, values, lagrangian, candidates, slack)
    chosen = found if found is not None else greedy
    reached = sum(float(value[at]) for value, at in zip(values, chosen, strict=True))
    if reached > best:
        chosen, reached = greedy, best
    gap = 0.0 if exact or reached <= bound else (reached - bound) / reached
    return chosen, gap


# --- relaxation ------------------------------------------------------------------------------------------------------


def solve_relaxation(costs: list[Floats], values: list[Floats]) -> tuple[float, list[int]]:
    """Solve the linear relaxation, with a limit of 1.

    Returns:
        The Lagrange multiplier, and a feasible choice that takes every step down the hulls that still fits.
    """
    hulls = [_convex_hull(cost, value) for cost, value in zip(costs, values, strict=True)]
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


def _convex_hull(cost: Floats, value: Floats) -> list[int]:
    """Return the indices of the lower convex hull, from the cheapest option to the one of minimum value."""
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
    """Return the decrease of the value per unit of cost between two options."""
    return float((value[start] - value[stop]) / (cost[stop] - cost[start]))


# --- exact search ----------------------------------------------------------------------------------------------------


def dynamic_program(
    costs: list[Floats],
    values: list[Floats],
    lagrangian: list[Floats],
    candidates: list[NDArray[Any]],
    slack: float,
) -> tuple[list[int] | None, bool]:
    """Join the weights one by one, keeping the undominated combinations.

    Args:
        costs: For each weight `[options]`, scaled to a limit of 1.
        values: For each weight `[options]`.
        lagrangian: For each weight `[options]`, value plus multiplier times cost.
        candidates: For each weight the indices of the options to consider.
        slack: How far above the Lagrangian bound a combination may lie.

    Returns:
        The chosen indices, or None where no combination is within the slack. And whether nothing was thinned.
    """
    order = sorted(range(len(costs)), key=lambda item: -len(candidates[item]))
    rest = [0.0]  # from the end: minimum cost of the weights that are not joined yet
    for item in reversed(order):
        rest.append(rest[-1] + float(costs[item][candidates[item]].min()))
    rest.reverse()
    cost, value, above = np.zeros(1), np.zeros(1), np.zeros(1)
    parents: list[tuple[NDArray[np.int32], NDArray[np.int16]]] = []
    exact = True
    for place, item in enumerate(order):
        options = candidates[item]
        excess = lagrangian[item][options] - lagrangian[item].min()
        more, worth, over = (
            np.add.outer(base, part).ravel()
            for base, part in ((cost, costs[item][options]), (value, values[item][options]), (above, excess))
        )
        alive = np.flatnonzero((more + rest[place + 1] <= 1 + 2 * _TIE) & (over <= slack))
        if not len(alive):
            return None, exact
        alive = alive[_undominated(more[alive], worth[alive])]
        if len(alive) > _MAX_STATES:
            alive, exact = _thin(alive, over, more), False
        parents.append(((alive // len(options)).astype(np.int32), options[alive % len(options)].astype(np.int16)))
        cost, value, above = more[alive], worth[alive], over[alive]
    return _backtrack(parents, order, int(value.argmin())), exact


def _undominated(cost: Floats, value: Floats) -> NDArray[np.intp]:
    """Return the indices of combinations to which no other is equal or better in cost and value, by rising cost."""
    order = np.lexsort((value, cost))
    lowest = np.minimum.accumulate(value[order])
    better = np.ones(len(order), bool)
    better[1:] = value[order][1:] < lowest[:-1]
    return order[better]


def _thin(alive: NDArray[np.intp], over: Floats, cost: Floats) -> NDArray[np.intp]:
    """Keep in each of many intervals of cost the combination nearest to the bound."""
    edges = np.linspace(cost[alive].min(), cost[alive].max(), _MAX_STATES)
    interval = np.searchsorted(edges, cost[alive])
    order = np.lexsort((over[alive], interval))
    first = np.ones(len(order), bool)
    first[1:] = interval[order][1:] != interval[order][:-1]
    chosen: NDArray[np.intp] = alive[order[first]]
    return chosen


def _backtrack(parents: list[tuple[NDArray[np.int32], NDArray[np.int16]]], order: list[int], last: int) -> list[int]:
    """Follow the best combination back to the options that it was joined from."""
    chosen = [0] * len(order)
    for (previous, options), item in zip(reversed(parents), reversed(order), strict=True):
        chosen[item] = int(options[last])
        last = int(previous[last])
    return chosen
