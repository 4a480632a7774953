"""Search along the axis of size for the smallest bundle that passes the gate.

A candidate's divergence is measured in seconds, its transcripts in minutes. Divergence is therefore the map: the search
looks for the size with a wanted divergence, and has the gate transcribe only there. What divergence a gate tolerates is
not known in advance, since it depends on the model and on the examples. The search begins at a divergence at which
gates usually open, moves on by what the gate says, and bisects between the largest size that failed and the smallest
that passed.

On whisper-tiny.en and 20 utterances of LibriSpeech test-other, of 23 tokens each, QoI was 95 % at a divergence of
0.0006 nats a token, 90 % at 0.006 and at 0.03, 85 % at 0.05, and 75 % at 0.1. A gate that asks for 95 % opens around
0.002.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.quantization.gate import Verdict

_STRIDE, _STRIDE_GROWTH = 2.0, 1.5  # the first ratio of two wanted divergences, and the growth of each further one
_NEAR = 1.5  # ratio of a measured divergence to the wanted one up to which it is worth the gate's time
_EXPONENT = 8.0  # of the size in the divergence, before two candidates show it: a fourth for each bit, at 6 bits
_EXPONENTS = 3.0, 20.0  # of which smaller and larger ones come from noise
_MISSES = 2  # candidates of another divergence than wanted, after which the next is judged in any case


@dataclass(frozen=True, slots=True)
class SearchTrial:
    """One candidate of a search.

    Attributes:
        budget_bytes: The requested size.
        nbytes: The size that the candidate has.
        kl_divergence: Its mean KL divergence on the gate's examples, in nats per token.
        verdict: The gate's decision. None where the divergence alone showed that it would teach nothing.
    """

    budget_bytes: int
    nbytes: int
    kl_divergence: float
    verdict: Verdict | None = None


def decision(trial: SearchTrial) -> Verdict:
    """Return the gate's decision on a trial that it was asked for.

    Raises:
        ValueError: The gate was not asked.
    """
    if trial.verdict is None:
        raise ValueError(f"the candidate of {trial.nbytes} bytes was not judged")
    return trial.verdict


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Settings of a search.

    Attributes:
        tolerance: Relative difference below which two sizes count as equal.
        trials: Maximum number of candidates to make.
        start_kl: Divergence to begin with, in nats per token. It decides how long a search takes, not what it finds.
    """

    tolerance: float = 0.05
    trials: int = 8
    start_kl: float = 0.002

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
        if not 0 < self.start_kl < math.inf:
            problems.append(f"the divergence to begin with is {self.start_kl}, expected nats a token, more than 0")
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
        passed = [trial for trial in self.trials if trial.verdict is not None and trial.verdict.passed]
        return min(passed, key=lambda trial: trial.nbytes) if passed else None

    @property
    def nearest(self) -> SearchTrial:
        """The judged trial nearest to passing: that of minimum divergence, and of these the largest."""
        judged = [trial for trial in self.trials if trial.verdict is not None]
        return min(judged, key=lambda trial: (trial.kl_divergence, -trial.nbytes))


def search(
    smallest_bytes: int,
    largest_bytes: int,
    make: Callable[[int], SearchTrial],
    judge: Callable[[], Verdict],
    options: SearchOptions | None = None,
    start_bytes: int | None = None,
) -> SearchResult:
    """Search for the smallest candidate that passes.

    The search assumes that larger candidates pass more easily. Near the border, where chance decides, this does not
    hold strictly. The best trial has passed in any case.

    Args:
        smallest_bytes: The smallest possible size.
        largest_bytes: The largest useful size.
        make: Makes the best candidate within a size, and measures its divergence.
        judge: Asks the gate about the candidate made last.
        options: Settings of the search.
        start_bytes: The size to begin with. None for the largest.
    """
    options = options or SearchOptions()
    state = _State(float(smallest_bytes), float(largest_bytes), options)
    at = min(max(float(start_bytes or largest_bytes), state.low), state.high)
    while len(state.trials) < options.trials:
        trial = make(int(at))
        if state.is_worth_judging(trial, at):
            trial = replace(trial, verdict=judge())
        state.add(trial, at)
        if state.has_ended:
            break
        at = state.next_bytes()
    return SearchResult(tuple(state.trials))


class _State:
    """What is known while a search runs.

    Attributes:
        trials: The trials so far.
        low: The largest size that failed, or else the smallest there is.
        high: The smallest size that passed, or else the largest there is.
        has_ended: Whether no further trial can change the result by more than the tolerance.
    """

    def __init__(self, low: float, high: float, options: SearchOptions) -> None:
        self.trials: list[SearchTrial] = []
        self.low, self.high = low, high
        self.has_ended = False
        self._options = options
        self._wanted_kl, self._stride = options.start_kl, _STRIDE
        self._failed_kl = math.inf  # the least that failed
        self._outcomes: set[bool] = set()
        self._misses = 0  # in a row, of trials that had another divergence than wanted

    def is_worth_judging(self, trial: SearchTrial, at: float) -> bool:
        """Return whether the gate's decision on a trial teaches something, given the requested size."""
        kl = trial.kl_divergence
        if kl > self._failed_kl:
            return False
        is_last = len(self.trials) + 1 == self._options.trials
        if is_last or len(self._outcomes) == 2 or self._misses >= _MISSES or not kl > 0:
            return True
        room = 1 + self._options.tolerance
        cannot_move = at * room >= self.high - 1 if kl > self._wanted_kl else at <= self.low * room + 1
        return cannot_move or self._wanted_kl / _NEAR <= kl <= self._wanted_kl * _NEAR

    def add(self, trial: SearchTrial, at: float) -> None:
        """Take note of a trial of the requested size."""
        self.trials.append(trial)
        if trial.verdict is None and not trial.kl_divergence > self._failed_kl:
            self._misses += 1
            return
        passed = trial.verdict is not None and trial.verdict.passed
        self.has_ended = at <= self.low if passed else at >= self.high
        if passed:
            self.high = float(min(trial.nbytes, at))
        else:
            self.low = float(at)
        if trial.verdict is not None:
            self._learn(trial, passed)
        self.has_ended |= True in self._outcomes and self.high <= self.low * (1 + self._options.tolerance)

    def _learn(self, trial: SearchTrial, passed: bool) -> None:
        """Choose the divergence that is wanted next."""
        self._misses = 0
        self._outcomes.add(passed)
        if not passed:
            self._failed_kl = min(self._failed_kl, trial.kl_divergence)
        base = trial.kl_divergence if trial.kl_divergence > 0 else self._wanted_kl
        self._wanted_kl = base * self._stride if passed else base / self._stride
        self._stride *= _STRIDE_GROWTH

    def next_bytes(self) -> float:
        """Return the size of the next trial."""
        if True not in self._outcomes and len(self.trials) + 1 == self._options.trials:
            return self.high  # rather than to end without a result, where a large bundle may pass
        if len(self._outcomes) == 2:
            return math.sqrt(self.low * self.high)
        at, room = self._expected_bytes(), 1 + self._options.tolerance
        if self._outcomes:  # move on, and try the end where little would be left
            at = min(at, self.high / room) if True in self._outcomes else max(at, self.low * room)
        if at >= self.high / room and True not in self._outcomes:
            return self.high
        return self.low if at <= self.low * room and False not in self._outcomes else min(max(at, self.low), self.high)

    def _expected_bytes(self) -> float:
        """Return the size at which the wanted divergence is expected, by a power law through the nearest trials."""
        known = [trial for trial in self.trials if trial.kl_divergence > 0]
        if not known:
            return self.trials[0].nbytes * math.pow(self._options.start_kl / self._wanted_kl, 1 / _EXPONENT)
        near = sorted(known, key=lambda trial: abs(math.log(trial.kl_divergence / self._wanted_kl)))
        exponent = _exponent(near[0], near[1]) if len(near) > 1 else _EXPONENT
        return near[0].nbytes * math.pow(near[0].kl_divergence / self._wanted_kl, 1 / exponent)


def _exponent(one: SearchTrial, other: SearchTrial) -> float:
    """Return the exponent with which divergence falls with size between two trials."""
    if one.nbytes == other.nbytes:
        return _EXPONENT
    found = -math.log(one.kl_divergence / other.kl_divergence) / math.log(one.nbytes / other.nbytes)
    return min(max(found, _EXPONENTS[0]), _EXPONENTS[1])
