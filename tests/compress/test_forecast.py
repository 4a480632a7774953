"""The forecast of a search against what a search of known durations takes. Its clock is the test's."""

import pytest
from helpers.progress import SeenProgress

from whisperkit_tools.compress.forecast import SearchForecast


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("making_s", "judging_s"), [(20, 3), (45, 9), (60, 25)])
def test_the_forecasts_are_of_the_right_order(making_s, judging_s):
    clock, progress = Clock(), SeenProgress()
    forecast = SearchForecast(progress, 8, 20, 2.5, clock)
    assert progress.notes == [
        "the search takes about 6 min: some 6 candidates on 20 examples, each of which the uncompressed bundle "
        "transcribed in 2.5 s"
    ]
    left = [(clock.now, forecast.left_s)]
    for at in range(6):
        with forecast.making():
            clock.now += making_s
        left.append((clock.now, forecast.left_s))
        if at in (1, 3, 4, 5):
            with forecast.judging():
                clock.now += judging_s
    forecast.close()
    for begun, expected in left[:3]:
        assert (clock.now - begun) / 3 < expected < 3 * (clock.now - begun)
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
