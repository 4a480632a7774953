"""The knapsack, against trying everything and against SciPy's integer programming."""

import doctest
import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from whisperkit_tools.errors import OptionsError
from whisperkit_tools.quantization import allocation
from whisperkit_tools.quantization.allocation import StorageOption, within_divergence, within_size

costs = st.integers(1, 40)
values = st.floats(0, 10, allow_nan=False)
tensor = st.lists(st.builds(lambda c, v: StorageOption(None, c, v), costs, values), min_size=1, max_size=4)


def _everything(tensors):
    for picks in itertools.product(*[range(len(options)) for options in tensors]):
        picked = [options[at] for options, at in zip(tensors, picks, strict=True)]
        yield sum(c.nbytes for c in picked), sum(c.divergence for c in picked)


@settings(max_examples=150, deadline=None)
@given(st.lists(tensor, min_size=1, max_size=5), st.integers(5, 150))
def test_within_size_is_what_trying_everything_finds(tensors, budget):
    possible = [value for cost, value in _everything(tensors) if cost <= budget]
    if not possible:
        with pytest.raises(OptionsError, match="cannot be made smaller than"):
            within_size(tensors, budget)
        return
    found = within_size(tensors, budget)
    assert found.divergence == pytest.approx(min(possible), abs=1e-9)
    assert found.nbytes <= budget
    assert found.gap == 0


@settings(max_examples=150, deadline=None)
@given(st.lists(tensor, min_size=1, max_size=5), st.floats(0, 30))
@example([[StorageOption(None, 1, 2.2250738585072014e-308), StorageOption(None, 5, 0.0)]], 0.0)
@example([[StorageOption(None, 1, 1.0), StorageOption(None, 5, 5e-324), StorageOption(None, 9, 0.0)]], 0.5)
@example([[StorageOption(None, 1, 10.0), StorageOption(None, 5, 5e-324), StorageOption(None, 9, 0.0)]], 5e-324)
@example(
    [
        [StorageOption(None, 1, 1.0)],
        [StorageOption(None, 9, 0.0), StorageOption(None, 1, 1e-13), StorageOption(None, 2, 0.5)],
    ],
    1.0,
)
def test_within_divergence_is_what_trying_everything_finds(tensors, limit):
    possible = [cost for cost, value in _everything(tensors) if value <= limit]
    if not possible:
        with pytest.raises(OptionsError, match="cannot be less than"):
            within_divergence(tensors, limit)
        return
    found = within_divergence(tensors, limit)
    assert found.divergence <= limit * (1 + 1e-9)
    # Sums of floats are what they are only up to rounding, so a sum next to the limit may count or not.
    rounded = [cost for cost, value in _everything(tensors) if value <= limit * (1 + 1e-9)]
    assert min(rounded) <= found.nbytes <= min(possible)
    assert found.gap == 0


def _model(count, seed=0):
    rng = np.random.default_rng(seed)
    tensors = []
    for _ in range(count):
        size, weight = int(2 ** rng.uniform(11, 22)), 10 ** rng.uniform(-4, 0)
        tensors.append(
            [
                StorageOption(None, (size * b // 8 + 2 * 2**b + 63) // 64 * 64, weight * 4.0**-b)
                for b in (1, 2, 3, 4, 6, 8)
            ]
            + [StorageOption(None, size * 2, 0.0)]
        )
    return tensors


def _scipy(tensors, budget):
    from scipy.optimize import Bounds, LinearConstraint, milp

    values = np.array([c.divergence for options in tensors for c in options])
    sizes = np.array([c.nbytes for options in tensors for c in options], float)
    one = np.zeros((len(tensors), len(values)))
    start = 0
    for row, options in enumerate(tensors):
        one[row, start : start + len(options)] = 1
        start += len(options)
    found = milp(
        values,
        constraints=[LinearConstraint(sizes[None], -np.inf, budget), LinearConstraint(one, 1, 1)],
        integrality=np.ones_like(values),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    return float(found.fun)


@pytest.mark.parametrize("bits", [2.1, 3, 4.5])
def test_a_model_of_many_tensors_is_solved_as_well_as_by_integer_programming(bits):
    tensors = _model(40)
    budget = int(sum(options[-1].nbytes for options in tensors) / 16 * bits)
    found = within_size(tensors, budget)
    assert found.divergence <= _scipy(tensors, budget) * (1 + 1e-6)
    assert found.nbytes <= budget
    assert found.gap < 1e-3


def test_the_gap_is_stated_when_combinations_are_thinned(monkeypatch):
    tensors = _model(60, seed=1)
    budget = int(sum(options[-1].nbytes for options in tensors) / 16 * 3.3)
    exact = within_size(tensors, budget)
    monkeypatch.setattr(allocation, "_MAX_STATES", 4)
    thinned = within_size(tensors, budget)
    assert thinned.divergence >= exact.divergence * (1 - 1e-9)
    assert 0 <= thinned.gap < 0.05
    assert thinned.divergence * (1 - thinned.gap) <= exact.divergence * (1 + 1e-9)


def test_the_worked_example_of_the_docstring_runs_and_the_relaxation_alone_does_worse():
    found = doctest.testmod(allocation)
    assert (found.failed, found.attempted) == (0, 5)
    costs, values = [np.array([0.2, 0.4, 0.7]), np.array([0.3, 0.5])], [np.array([0.9, 0.3, 0]), np.array([0.4, 0.15])]
    assert allocation.solve_relaxation(costs, values)[1] == [1, 1]


def test_nothing_to_choose():
    assert within_size([], 10).chosen == ()
