"""The forecast of a search against what a search of known durations takes. Its clock is the test's."""

import pytest
from helpers.progress import SeenProgress

from whisperkit_tools.compress.forecast import SearchForecast


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("making_s", "judging_s"), [(20, 25), (60, 10), (5, 60)])
def test_after_the_first_candidate_the_forecast_is_of_the_right_order(making_s, judging_s):
    clock, progress = Clock(), SeenProgress()
    forecast = SearchForecast(progress, 8, 20, 2.5, clock)
    assert "takes about 2 min of this search: some 4 candidates of 20 examples at 2.5 s" in progress.notes[0]
    left = []
    for at in range(6):
        with forecast.making():
            clock.now += making_s
        left.append((clock.now, forecast.left_s))
        if at in (1, 3, 4, 5):
            with forecast.judging():
                clock.now += judging_s
    forecast.close()
    actual = clock.now - left[0][0]
    assert actual / 3 < left[0][1] < 3 * actual
    assert progress.notes[1].startswith("the search takes about ")
    assert progress.seen[-1] == ("search (s)", clock.now - 100, clock.now - 100)
    assert all(done < total for _, done, total in progress.seen[:-1])


def test_a_search_that_takes_longer_than_expected_never_claims_to_have_ended():
    clock, progress = Clock(), SeenProgress()
    forecast = SearchForecast(progress, 2, 1, 1.0, clock)
    for _ in range(5):
        with forecast.making(), forecast.judging():
            clock.now += 10
    assert forecast.left_s == 0
    assert all(done < total for _, done, total in progress.seen)
