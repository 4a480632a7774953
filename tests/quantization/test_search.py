"""The search along sizes, on gates whose border is known and divergences that fall with the size."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperkit_tools.errors import OptionsError
from whisperkit_tools.quantization.gate import Gate, GateExample
from whisperkit_tools.quantization.search import SearchOptions, SearchTrial, decision, search


class Candidates:
    """Candidates that pass from `border` bytes on, and whose divergence falls with a power of the size."""

    def __init__(self, border, exponent=6.0, kl_at_border=0.02, noise=lambda nbytes: 1.0):
        self.border, self.sizes, self.judged = border, [], []
        self._kl = lambda nbytes: noise(nbytes) * kl_at_border * (max(border, 1) / nbytes) ** exponent

    def make(self, budget):
        self.sizes.append(budget)
        return SearchTrial(budget, budget, self._kl(budget))

    def judge(self):
        at = self.sizes[-1]
        self.judged.append(at)
        wrong = 0 if at >= self.border else 1
        return Gate().judge([GateExample(str(i), 10, 0, int(i < wrong), 10, 10, 0.1) for i in range(10)])


@pytest.mark.parametrize("border", [1001, 1500, 2222, 5000, 7999])
@pytest.mark.parametrize("start", [None, 2500])
@pytest.mark.parametrize(("exponent", "kl"), [(6, 0.02), (9, 0.1), (4, 0.002), (6, 0.0)])
def test_the_smallest_that_passes_is_found_to_the_tolerance(border, start, exponent, kl):
    made = Candidates(border, exponent, kl)
    found = search(1000, 8000, made.make, made.judge, SearchOptions(tolerance=0.03, trials=16), start)
    assert found.best is not None
    assert border <= found.best.nbytes <= border * 1.04
    assert len(made.judged) == len(set(made.judged)) <= len(made.sizes) <= 16


@pytest.mark.parametrize("kl", [0.01, 0.02, 0.04])
@pytest.mark.parametrize("start", [2000, 3000, 4000])
def test_few_are_judged_where_the_border_is_near_the_usual_divergence(kl, start):
    made = Candidates(2900, 6, kl)
    found = search(1000, 8000, made.make, made.judge, SearchOptions(start_kl=0.02), start)
    assert 2900 <= found.best.nbytes <= 2900 * 1.06
    assert len(made.judged) <= 5
    assert len(made.sizes) <= 7
    assert min(made.judged) > 0.7 * 2900  # hopeless ones are never transcribed


def test_a_candidate_at_the_least_step_is_judged_whatever_its_divergence():
    """Divergence may fall so fast that no size has the wanted one."""
    made = Candidates(2900, 30, 0.002)
    found = search(1000, 8000, made.make, made.judge, None, 3000)
    assert 2900 <= found.best.nbytes <= 2900 * 1.06
    assert len(made.sizes) - len(set(made.sizes)) == 0
    assert len(made.sizes) <= 6


def test_what_diverges_more_than_one_that_failed_is_not_transcribed():
    made = Candidates(5000, noise=lambda nbytes: 3.0 if 4600 < nbytes < 4990 else 1.0)
    found = search(1000, 8000, made.make, made.judge, SearchOptions(tolerance=0.01, trials=16), 4000)
    unjudged = [trial for trial in found.trials if trial.verdict is None]
    assert any(4600 < trial.nbytes < 4990 for trial in unjudged)
    assert not any(4600 < nbytes < 4990 for nbytes in made.judged)
    assert 5000 <= found.best.nbytes <= 5100


def test_nothing_passes():
    made = Candidates(9000)
    found = search(1000, 8000, made.make, made.judge, None, 2500)
    assert found.best is None
    assert max(made.judged) == 8000
    assert found.nearest.nbytes == 8000


@pytest.mark.parametrize("trials", [2, 3, 4])
def test_the_last_of_the_trials_is_the_largest_where_none_passed(trials):
    made = Candidates(7999, 12, 1e-4)
    found = search(1000, 8000, made.make, made.judge, SearchOptions(trials=trials), 1100)
    assert found.trials[-1].nbytes == 8000
    assert found.best is found.trials[-1]


def test_everything_passes():
    made = Candidates(0, kl_at_border=0.02)
    found = search(1000, 8000, made.make, made.judge, SearchOptions(trials=20))
    assert found.best.nbytes <= 1050


def test_the_number_of_trials_is_kept():
    made = Candidates(5 * 10**6)
    search(10, 10**9, made.make, made.judge, SearchOptions(tolerance=1e-6, trials=5))
    assert len(made.sizes) == 5


@settings(max_examples=40, deadline=None)
@given(
    st.floats(1, 2e4), st.floats(1, 12), st.floats(1e-5, 10), st.floats(900, 9000), st.integers(1, 20), st.integers()
)
def test_whatever_the_divergences_something_is_judged_and_the_search_ends(border, exponent, kl, start, trials, seed):
    def noise(nbytes):
        return math.exp(2 * math.sin(seed % 1000 + nbytes))

    made = Candidates(border, exponent, kl, noise)
    found = search(1000, 8000, made.make, made.judge, SearchOptions(trials=trials), int(start))
    assert 1 <= len(made.judged) <= len(made.sizes) <= trials
    assert all(1000 <= nbytes <= 8000 for nbytes in made.sizes)
    assert decision(found.nearest) is not None
    assert found.best is None or found.best.nbytes >= border


def test_options_are_checked():
    with pytest.raises(OptionsError, match="tolerance"):
        SearchOptions(tolerance=0)
    with pytest.raises(OptionsError, match="divergence to begin with"):
        SearchOptions(start_kl=0)
