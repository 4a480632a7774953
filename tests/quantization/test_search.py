"""The search along sizes, on gates whose border is known."""

import pytest

from whisperkit_tools.errors import OptionsError
from whisperkit_tools.quantization.gate import Gate, GateExample
from whisperkit_tools.quantization.search import SearchOptions, SearchTrial, search


def _attempts(border, sizes):
    """Attempts that pass from `border` bytes on; the more is missing the worse."""

    def attempt(budget):
        sizes.append(budget)
        wrong = 0 if budget >= border else 1 + min(8, int(10 * (1 - budget / border)))
        examples = [GateExample(str(i), 10, 0, int(i < wrong), 10, 10, float(wrong)) for i in range(10)]
        return SearchTrial(budget, budget, Gate().judge(examples))

    return attempt


@pytest.mark.parametrize("border", [1001, 1500, 2222, 5000, 7999])
@pytest.mark.parametrize("start", [None, 2500])
def test_the_smallest_that_passes_is_found_to_the_tolerance(border, start):
    sizes = []
    found = search(1000, 8000, _attempts(border, sizes), SearchOptions(tolerance=0.03, trials=12), start)
    assert found.best is not None
    assert border <= found.best.nbytes <= border * 1.04
    assert len(sizes) == len(set(sizes)) <= 12


def test_nothing_passes():
    sizes = []
    found = search(1000, 8000, _attempts(9000, sizes), None, 2500)
    assert found.best is None
    assert max(sizes) == 8000
    assert found.nearest.nbytes == 8000


def test_everything_passes():
    sizes = []
    found = search(1000, 8000, _attempts(0, sizes), SearchOptions(trials=20))
    assert found.best.nbytes <= 1050


def test_the_number_of_trials_is_kept():
    sizes = []
    search(10, 10**9, _attempts(5 * 10**6, sizes), SearchOptions(tolerance=1e-6, trials=5))
    assert len(sizes) == 5


def test_options_are_checked():
    with pytest.raises(OptionsError, match="tolerance"):
        SearchOptions(tolerance=0)
