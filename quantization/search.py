"""Finding the smallest bundle that passes the gate, along the axis of size."""

from collections.abc import Callable
from dataclasses import dataclass

from whisperkit_tools.quantization.gate import Verdict

_STRIDE, _LONGER = 1.15, 1.1  # the first, and how much longer each further one is


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate on the search path.

    Attributes:
        budget_bytes: The size asked for.
        nbytes: The size it has.
        verdict: What the gate said.
    """

    budget_bytes: int
    nbytes: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How far to search.

    Attributes:
        tolerance: Sizes nearer than this share of each other are not told apart.
        trials: Most candidates to measure.
    """

    tolerance: float = 0.05
    trials: int = 8

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is out of range.
        """
        if not 0 < self.tolerance < 1 or self.trials < 1:
            raise ValueError(f"tolerance is {self.tolerance}, trials {self.trials}; expected 0 to 1, and at least 1")


@dataclass(frozen=True, slots=True)
class Search:
    """What was tried, in order.

    Attributes:
        trials: The path.
    """

    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The smallest that passed."""
        passed = [trial for trial in self.trials if trial.verdict.passed]
        return min(passed, key=lambda trial: trial.nbytes) if passed else None

    @property
    def nearest(self) -> Trial:
        """The one that comes nearest to passing: fewest limits missed, then the best QoI, WER and divergence."""
        return min(self.trials, key=_distance)


def _distance(trial: Trial) -> tuple[float, ...]:
    verdict = trial.verdict
    return (
        len(verdict.shortfalls),
        -verdict.qoi.value,
        verdict.wer_delta.value,
        verdict.kl_divergence.value,
        trial.nbytes,
    )


def search(
    smallest_bytes: int,
    largest_bytes: int,
    attempt: Callable[[int], Trial],
    options: SearchOptions | None = None,
    start_bytes: int | None = None,
) -> Search:
    """Look for the smallest candidate that passes: stride from the start to the border, then bisect, by ratios.

    Passing is taken to grow with size. Where chance decides near the border that is not strictly so; what is returned
    has passed itself in any case.

    Args:
        smallest_bytes: The smallest possible size.
        largest_bytes: The largest that is worth having.
        attempt: Makes and measures the best candidate within a size.
        options: How far to search.
        start_bytes: Where to begin; the largest size when None.
    """
    options = options or SearchOptions()
    trials: list[Trial] = []
    low, high = float(smallest_bytes), float(largest_bytes)
    at, stride = min(max(float(start_bytes or largest_bytes), low), high), _STRIDE
    while len(trials) < options.trials:
        trial = attempt(int(at))
        trials.append(trial)
        ended = at <= low if trial.verdict.passed else at >= high
        if trial.verdict.passed:
            high = float(min(trial.nbytes, at))
        else:
            low = float(at)
        outcomes = {made.verdict.passed for made in trials}
        if ended or (True in outcomes and high <= low * (1 + options.tolerance)):
            break
        if len(outcomes) == 2:
            at = (low * high) ** 0.5
        else:
            at = max(low, high / stride) if trial.verdict.passed else low * stride
            at = high if at * _STRIDE > high and not trial.verdict.passed else at
            stride *= _LONGER
    return Search(tuple(trials))
