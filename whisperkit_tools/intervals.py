"""Confidence intervals over examples: Wilson's score interval of a proportion, and the seeded percentile bootstrap.

Also the comparison behind quality of inference (QoI): the examples on which one system is no worse than another.

Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference"; Bisani and Ney 2004,
"Bootstrap estimates for confidence intervals in ASR performance evaluation"; Efron and Tibshirani, "An Introduction to
the Bootstrap", chapter 13. QoI as published with whisperkittools.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
Interval: TypeAlias = tuple[float, float]
_TAILS = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
_Z = NormalDist().inv_cdf(_TAILS[1])
_INDICES_AT_ONCE = 1 << 22  # bounds the memory of a bootstrap to some tens of megabytes


def wilson_interval(successes: int, trials: int) -> Interval:
    """Return the 95 % score interval of a proportion. Unlike the normal approximation it stays within 0 and 1.

    Raises:
        ValueError: Without trials, or with more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is not a proportion")
    share, weight = successes / trials, _Z * _Z / trials
    middle = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    # At the ends the exact bounds are 0 and 1. Rounding must not put them beside the proportion itself.
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == trials else middle + half)


def bootstrap_draws(examples: int, *, draws: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Draw examples with replacement, in blocks that bound the memory.

    Args:
        examples: Number of examples, 1 or more.
        draws: Number of resampled corpora.
        seed: The same seed draws the same examples.

    Yields:
        `[block, examples]`, indices of the drawn examples. The blocks hold `draws` rows in all.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _INDICES_AT_ONCE // examples)
    for start in range(0, draws, block):
        yield generator.integers(examples, size=(min(block, draws - start), examples))


def bootstrap_rates(
    errors: Sequence[ArrayLike], units: ArrayLike, *, draws: int, seed: int
) -> NDArray[np.float64] | None:
    """Return the corpus error rates of resampled corpora, the same examples being drawn for all systems.

    Args:
        errors: `[systems][examples]`, errors of each example.
        units: `[examples]`, reference words or tokens of each example, the same for all systems.
        draws: Number of resampled corpora.
        seed: The same seed draws the same examples.

    Returns:
        `[systems, draws]`. None without any unit, because a rate has no meaning there.

    Raises:
        ValueError: The lengths differ.
    """
    lengths, rows = np.asarray(units), [np.asarray(row) for row in errors]
    if any(len(row) != len(lengths) for row in rows):
        found = ", ".join(str(len(row)) for row in rows)
        raise ValueError(f"errors of {found} examples, but reference words of {len(lengths)}")
    if not lengths.sum():
        return None
    blocks = []
    for drawn in bootstrap_draws(len(lengths), draws=draws, seed=seed):
        # A draw without a single unit has no rate. Its errors count as if there were one unit.
        total = np.maximum(lengths[drawn].sum(axis=1), 1)
        blocks.append(np.stack([row[drawn].sum(axis=1) / total for row in rows]))
    return np.concatenate(blocks, axis=1)


def percentile_interval(values: NDArray[Any]) -> Interval:
    """Return the middle 95 % of resampled values."""
    low, high = np.quantile(values, _TAILS)
    return float(low), float(high)


def no_worse(errors: ArrayLike, reference_errors: ArrayLike) -> NDArray[np.bool_]:
    """Mark the examples that have no more errors than in a reference system. QoI is the share of them.

    Args:
        errors: `[examples]`, errors or error rates of the system.
        reference_errors: `[examples]`, those of the reference system, over the same reference words.
    """
    return np.asarray(np.asarray(errors) <= np.asarray(reference_errors))
