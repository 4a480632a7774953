"""Search along the axis of size for the smallest bundle that passes the gate."""

from collections.abc import Callable
from dataclasses import dataclass

from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.quantization.gate import Verdict

_STRIDE, _STRIDE_GROWTH = 1.15, 1.1  # the first ratio of two sizes, and the growth of each further one


@dataclass(frozen=True, slots=True)
class SearchTrial:
    """One candidate of a search.

    Attributes:
        budget_bytes: The requested size.
        nbytes: The size that the candidate has.
        verdict: The gate's decision.
    """

    budget_bytes: int
    nbytes: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Settings of a search.

    Attributes:
        tolerance: Relative difference below which two sizes count as equal.
        trials: Maximum number of candidates to measure.
    """

    tolerance: float = 0.05
    trials: int = 8

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionsError: A value is out of range. The message names all of them.
        """
        problems = []
        if not 0 < self.tolerance < 1:
            problems.append(f"the search's tolerance is {self.tolerance}, expected more than 0 and less than 1")
        if self.trials < 1:
            problems.append(f"{option('trials')} is {self.trials}, expected 1 or more")
        if problems:
            raise OptionsError("; ".join(problems))


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The trials of a search.

    Attributes:
        trials: All trials, in order.
    """

    trials: tuple[SearchTrial, ...]

    @property
    def best(self) -> SearchTrial | None:
        """The smallest trial that passed. None when none did."""
        passed = [trial for trial in self.trials if trial.verdict.passed]
        return min(passed, key=lambda trial: trial.nbytes) if passed else None

    @property
    def nearest(self) -> SearchTrial:
        """The trial nearest to passing: by the number of missed limits, then by QoI, WER and divergence."""
        return min(self.trials, key=_distance)


def _distance(trial: SearchTrial) -> tuple[float, ...]:
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
    attempt: Callable[[int], SearchTrial],
    options: SearchOptions | None = None,
    start_bytes: int | None = None,
) -> SearchResult:
    """Search for the smallest candidate that passes: stride from the start to the border, then bisect, by ratios.

    The search assumes that larger candidates pass more easily. Near the border, where chance decides, this does not
    hold strictly. The best trial has passed in any case.

    Args:
        smallest_bytes: The smallest possible size.
        largest_bytes: The largest useful size.
        attempt: Makes and measures the best candidate within a size.
        options: Settings of the search.
        start_bytes: The size to begin with. None for the largest.
    """
    options = options or SearchOptions()
    trials: list[SearchTrial] = []
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
            stride *= _STRIDE_GROWTH
    return SearchResult(tuple(trials))
