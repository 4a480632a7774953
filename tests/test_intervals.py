"""Wilson's interval by SciPy, and bootstraps that repeat, pair systems and bound their memory."""

import numpy as np
import pytest
import scipy.stats

from whisperkit_tools import intervals
from whisperkit_tools.intervals import bootstrap_draws, bootstrap_rates, no_worse, percentile_interval, wilson_interval


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (5, 5), (1, 3), (50, 100), (2533, 2620), (1, 1)])
def test_the_interval_is_wilsons(successes, trials):
    exact = scipy.stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((exact.low, exact.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_what_is_not_a_proportion_is_refused(successes, trials):
    with pytest.raises(ValueError, match=f"{successes} of {trials} is not a proportion"):
        wilson_interval(successes, trials)


def test_systems_are_resampled_together():
    errors = [3, 0, 2, 5]
    first, second = bootstrap_rates([errors, [value + 1 for value in errors]], [10] * 4, draws=100, seed=0)
    np.testing.assert_allclose(second - first, 0.1)
    with pytest.raises(ValueError, match="errors of 2 examples, but reference words of 4"):
        bootstrap_rates([[1, 2]], [10] * 4, draws=100, seed=0)


def test_large_corpora_are_resampled_in_blocks(monkeypatch):
    errors, words = list(range(50)), [60] * 50
    whole = bootstrap_rates([errors], words, draws=300, seed=0)
    monkeypatch.setattr(intervals, "_INDICES_AT_ONCE", 500)
    np.testing.assert_array_equal(bootstrap_rates([errors], words, draws=300, seed=0), whole)
    assert [len(block) for block in bootstrap_draws(50, draws=25, seed=0)] == [10, 10, 5]


def test_without_any_unit_there_is_no_rate():
    assert bootstrap_rates([[1, 2]], [0, 0], draws=100, seed=0) is None


def test_the_interval_is_the_middle_of_the_values():
    assert percentile_interval(np.arange(1001)) == pytest.approx((25, 975))


def test_equal_errors_are_no_worse():
    assert no_worse([1, 2, 3], [2, 2, 2]).tolist() == [True, True, False]
