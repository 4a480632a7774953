"""Forecast of how long a search takes, from what its parts have taken so far."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean

from whisperkit_tools.progress import Progress

# Searches on real speech make about six candidates and judge about four. Forcing settles half of the examples of a good
# candidate, and a bad one is rejected after a few.
_MADE, _JUDGED, _SHARE = 6, 4, 0.5


class SearchForecast:
    """Tells how long a search is expected to take, and how much of that is left."""

    def __init__(
        self,
        progress: Progress,
        trials: int,
        examples: int,
        seconds_per_example: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Report the first forecast, before any candidate is made.

        Args:
            progress: Told of the forecasts.
            trials: Maximum number of candidates.
            examples: Number of the gate's examples.
            seconds_per_example: Time that the reference took to transcribe one.
            clock: Seconds from any moment.
        """
        self._progress, self._clock, self._started = progress, clock, clock()
        self._expected_made, self._expected_judged = min(trials, _MADE), min(trials, _JUDGED)
        self._judging_s = examples * seconds_per_example * _SHARE
        self._made: list[float] = []
        self._judged: list[float] = []
        progress.note(
            f"the gate takes about {_minutes(self.left_s)} of this search: some {self._expected_judged} candidates of "
            f"{examples} examples at {seconds_per_example:.1f} s; the first candidate shows how long making them takes"
        )

    @property
    def left_s(self) -> float:
        """Seconds that the rest is expected to take."""
        made, judged = len(self._made), len(self._judged)
        making = fmean(self._made) * max(0, self._expected_made - made) if self._made else 0.0
        judging = fmean([self._judging_s, *self._judged]) * max(0, self._expected_judged - judged)
        return making + judging

    @contextmanager
    def making(self) -> Iterator[None]:
        """Time the making of one candidate, its divergence included."""
        with self._timed(self._made):
            yield
        if len(self._made) == 1:
            self._progress.note(f"the search takes about {_minutes(self.left_s)} more")

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Time the gate's decision on one candidate."""
        with self._timed(self._judged):
            yield

    def close(self) -> None:
        """Report that nothing is left."""
        passed = round(self._clock() - self._started)
        self._progress.advance("search (s)", passed, passed)

    @contextmanager
    def _timed(self, into: list[float]) -> Iterator[None]:
        begun = self._clock()
        yield
        into.append(self._clock() - begun)
        passed = self._clock() - self._started
        self._progress.advance("search (s)", round(passed), round(passed + max(1.0, self.left_s)))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
