"""The quality gate: compares a compressed bundle with the uncompressed one, with confidence intervals.

QoI is the percentage of examples with `wer(compressed) <= wer(reference)`, all examples with equal weight. Word error
rates are corpus rates: all errors over all words. A gate on a few utterances says little, so every figure has a 95 %
interval from a seeded bootstrap over examples. Where no example is worse, no resample has a worse one either, however
few examples there are. QoI's interval is therefore the union of the bootstrap's and of Wilson's score interval. With
it, a confident QoI of at least 95 % takes 73 examples or more.

Source: QoI as published with whisperkittools; the percentile bootstrap, Efron and Tibshirani, chapter 13; Wilson 1927,
"Probable inference, the law of succession, and statistical inference".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.errors import OptionsError, QualityGateError, option
from whisperkit_tools.intervals import bootstrap_draws, no_worse, percentile_interval, wilson_interval

GATE_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class GateExample:
    """Measurements on one example.

    Attributes:
        name: Name of the example, for reports.
        words: Words of the true text.
        reference_errors: Word errors of the uncompressed bundle.
        errors: Word errors of the compressed bundle.
        tokens: Tokens of the uncompressed bundle's transcript.
        agreeing: Those of them that the compressed bundle would choose too, given the same tokens before.
        divergence: Sum of the KL divergence over these tokens, in nats.
    """

    name: str
    words: int
    reference_errors: int
    errors: int
    tokens: int
    agreeing: int
    divergence: float


@dataclass(frozen=True, slots=True)
class IntervalFigure:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's figures and decision.

    Attributes:
        examples: Number of examples.
        qoi: Percentage of examples that are no worse.
        wer: Word error rate of the compressed bundle, in percent.
        reference_wer: Word error rate of the uncompressed bundle, in percent.
        wer_delta: Their difference, in percentage points.
        kl_divergence: Mean KL divergence, in nats per token.
        token_agreement: Percentage of tokens on which the bundles agree.
        shortfalls: One line for each missed limit. Empty when the gate is open.
    """

    examples: int
    qoi: IntervalFigure
    wer: IntervalFigure
    reference_wer: IntervalFigure
    wer_delta: IntervalFigure
    kl_divergence: IntervalFigure
    token_agreement: IntervalFigure
    shortfalls: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every limit is met."""
        return not self.shortfalls


@dataclass(frozen=True, slots=True)
class Gate:
    """The limits that a compressed bundle must meet.

    Attributes:
        qoi_min: Minimum QoI in percent.
        wer_delta_max: Maximum rise of the word error rate, in percentage points.
        max_kl: Maximum mean KL divergence, in nats per token. None for any.
        confident: Judge by the pessimistic end of each interval.
        seed: Seed of the bootstrap.
    """

    qoi_min: float = 95.0
    wer_delta_max: float = 1.0
    max_kl: float | None = None
    confident: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            OptionsError: A limit is not a number or out of range. The message names all of them.
        """
        problems = []
        if not 0 <= self.qoi_min <= 100:
            problems.append(f"{option('qoi_min')} is {self.qoi_min}, expected 0 to 100 percent")
        if not math.isfinite(self.wer_delta_max):
            problems.append(f"{option('wer_delta_max')} is {self.wer_delta_max}, expected percentage points")
        if self.max_kl is not None and not (math.isfinite(self.max_kl) and self.max_kl >= 0):
            problems.append(f"{option('max_kl')} is {self.max_kl}, expected nats a token, 0 or more")
        if problems:
            raise OptionsError("; ".join(problems))

    def judge(self, examples: Sequence[GateExample]) -> Verdict:
        """Compute the figures and compare them with the limits.

        Raises:
            QualityGateError: There are no examples.
        """
        if not examples:
            raise QualityGateError(
                "the gate has no examples to judge by, so it stays closed; name audio with speech "
                f"({option('gate_audio')})"
            )
        figures = _figures(examples, self.seed)
        return Verdict(examples=len(examples), **figures, shortfalls=tuple(self._shortfalls(figures)))

    def _shortfalls(self, figures: dict[str, IntervalFigure]) -> list[str]:
        qoi, delta, divergence = figures["qoi"], figures["wer_delta"], figures["kl_divergence"]
        found = qoi.low if self.confident else qoi.value
        lines = []
        # Written so that a figure that is not a number closes the gate.
        if not found >= self.qoi_min:
            lines.append(f"QoI {_described(found, qoi, self.confident)} %, at least {self.qoi_min:g} % is required")
        found = delta.high if self.confident else delta.value
        if not found <= self.wer_delta_max:
            lines.append(
                f"WER delta {_described(found, delta, self.confident)} points, "
                f"at most {self.wer_delta_max:g} is allowed"
            )
        found = divergence.high if self.confident else divergence.value
        if self.max_kl is not None and not found <= self.max_kl:
            lines.append(
                f"KL divergence {found:.4g} (95 %: {divergence.low:.4g} to {divergence.high:.4g}) nats a token, "
                f"at most {self.max_kl:g} is allowed"
            )
        return lines


def _described(found: float, figure: IntervalFigure, confident: bool) -> str:
    if confident:
        return f"{found:.2f} (pessimistic end of 95 %; measured {figure.value:.2f})"
    return f"{found:.2f} (95 %: {figure.low:.2f} to {figure.high:.2f})"


def _figures(examples: Sequence[GateExample], seed: int) -> dict[str, IntervalFigure]:
    # Both have the same reference words, so comparing errors compares rates.
    good = no_worse([e.errors for e in examples], [e.reference_errors for e in examples])
    counts = [(e.words, e.errors, e.reference_errors, e.tokens, e.agreeing, e.divergence) for e in examples]
    return _bootstrapped(np.column_stack([good, np.array(counts, np.float64)]), seed)


def _bootstrapped(table: NDArray[np.float64], seed: int) -> dict[str, IntervalFigure]:
    """Return the figures of a table `[examples, 7]`, with intervals over resampled rows."""
    count = len(table)
    values = _statistics(table[None])
    spread = [_statistics(table[drawn]) for drawn in bootstrap_draws(count, draws=GATE_DRAWS, seed=seed)]
    figures = {
        name: IntervalFigure(float(value[0]), *percentile_interval(np.concatenate([block[name] for block in spread])))
        for name, value in values.items()
    }
    return {**figures, "qoi": _with_score_interval(figures["qoi"], int(table[:, 0].sum()), count)}


def _with_score_interval(percentage: IntervalFigure, good: int, count: int) -> IntervalFigure:
    """Widen the interval of `good` out of `count` examples, in percent, to Wilson's where that is wider."""
    low, high = (100 * end for end in wilson_interval(good, count))
    return IntervalFigure(percentage.value, min(percentage.low, low), max(percentage.high, high))


def _statistics(table: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Return the figures `[N]` of each of several tables `[N, examples, 7]`."""
    better, words, errors, reference, tokens, agreeing, divergence = np.moveaxis(table, -1, 0)
    total, spoken = np.maximum(words.sum(-1), 1), np.maximum(tokens.sum(-1), 1)
    wer, reference_wer = 100 * errors.sum(-1) / total, 100 * reference.sum(-1) / total
    return {
        "qoi": 100 * better.mean(-1),
        "wer": wer,
        "reference_wer": reference_wer,
        "wer_delta": wer - reference_wer,
        "kl_divergence": divergence.sum(-1) / spoken,
        "token_agreement": 100 * agreeing.sum(-1) / spoken,
    }
