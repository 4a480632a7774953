"""Forecast of how long a search takes, from what its parts have taken so far."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean

from whisperkit_tools.progress import Progress

# Searches on real speech make about six candidates and judge about four. Forcing the examples takes as long as the
# reference took to transcribe them, most of it in the encoder. It settles most examples of a good candidate, a bad one
# is rejected after a few, and what is transcribed is encoded already.
_MADE, _JUDGED = 6, 4
_MAKING, _JUDGING = 1.0, 0.2  # of the time that the reference took to transcribe


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

        Palettes that are not in the cache, and tuning, come on top until the first candidate shows how long they take.

        Args:
            progress: Told of the forecasts.
            trials: Maximum number of candidates.
            examples: Number of the gate's examples.
            seconds_per_example: Time that the reference took to transcribe one.
            clock: Seconds from any moment.
        """
        self._progress, self._clock, self._started = progress, clock, clock()
        self._expected_made, self._expected_judged = min(trials, _MADE), min(trials, _JUDGED)
        transcribing_s = examples * seconds_per_example
        self._making_s, self._judging_s = _MAKING * transcribing_s, _JUDGING * transcribing_s
        self._made: list[float] = []
        self._judged: list[float] = []
        progress.note(
            f"the search takes about {_duration(self.left_s)}: some {self._expected_made} candidates on {examples} "
            f"examples, each of which the uncompressed bundle transcribed in {seconds_per_example:.1f} s"
        )

    @property
    def left_s(self) -> float:
        """Seconds that the rest is expected to take."""
        made, judged = len(self._made), len(self._judged)
        making = (fmean(self._made) if made else self._making_s) * max(0, self._expected_made - made)
        judging = fmean([self._judging_s, *self._judged]) * max(0, self._expected_judged - judged)
        return making + judging

    @contextmanager
    def making(self) -> Iterator[None]:
        """Time the making of one candidate, its divergence included."""
        with self._timed(self._made):
            yield

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


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
