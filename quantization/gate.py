"""The quality gate: is a compressed bundle still as good as the uncompressed one, and how sure is that?

QoI is the percentage of examples with `wer(compressed) <= wer(reference)`, each example counting the same. Word error
rates are over the corpus, errors over words. A gate on a few utterances means little, so every figure carries a 95 %
interval from a seeded bootstrap over examples. Where no example is worse, each resample says so again, however few
they are; so QoI's interval is the bootstrap's and Wilson's score interval together: 95 % is sure from 73 examples on,
not from one. The gate takes a `measure` callable and knows nothing of where examples come from.

Source: QoI as published with whisperkittools; the percentile bootstrap, Efron and Tibshirani, chapter 13; Wilson 1927,
"Probable inference, the law of succession, and statistical inference".
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.errors import QualityGateError
from whisperkit_tools.intervals import bootstrap_draws, no_worse, percentile_interval, wilson_interval

GATE_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Example:
    """What was measured on one example.

    Attributes:
        name: For the report.
        words: Words of the true text.
        reference_errors: Word errors of the uncompressed bundle.
        errors: Word errors of the compressed one.
        tokens: Tokens of the uncompressed bundle's transcript.
        agreeing: How many of them the compressed bundle would have chosen too, given those before.
        divergence: Sum over these tokens of the KL divergence, in nats.
    """

    name: str
    words: int
    reference_errors: int
    errors: int
    tokens: int
    agreeing: int
    divergence: float


Measure = Callable[[Path], Sequence[Example]]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found.

    Attributes:
        examples: How many there were.
        qoi: Percentage of examples that are no worse.
        wer: Of the compressed bundle, in percent.
        reference_wer: Of the uncompressed one, in percent.
        wer_delta: Their difference, in percentage points.
        kl_divergence: Mean, in nats a token.
        token_agreement: Percentage of tokens.
        shortfalls: One line for each limit that is missed; none means that the gate is open.
    """

    examples: int
    qoi: Figure
    wer: Figure
    reference_wer: Figure
    wer_delta: Figure
    kl_divergence: Figure
    token_agreement: Figure
    shortfalls: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return not self.shortfalls


@dataclass(frozen=True, slots=True)
class Gate:
    """What a compressed bundle must reach.

    Attributes:
        qoi_min: Least QoI in percent.
        wer_delta_max: Most that the word error rate may rise, in percentage points.
        max_kl: Most mean KL divergence in nats a token; None for any.
        confident: Judge by the pessimistic end of each interval.
        seed: Of the bootstrap.
    """

    qoi_min: float = 95.0
    wer_delta_max: float = 1.0
    max_kl: float | None = None
    confident: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            ValueError: A limit is no number or out of range; all of them are named.
        """
        problems = []
        if not 0 <= self.qoi_min <= 100:
            problems.append(f"qoi_min is {self.qoi_min}, expected 0 to 100 percent")
        if not math.isfinite(self.wer_delta_max):
            problems.append(f"wer_delta_max is {self.wer_delta_max}, expected percentage points")
        if self.max_kl is not None and not (math.isfinite(self.max_kl) and self.max_kl >= 0):
            problems.append(f"max_kl is {self.max_kl}, expected nats a token, 0 or more")
        if problems:
            raise ValueError("; ".join(problems))

    def judge(self, examples: Sequence[Example]) -> Verdict:
        """Compute the figures and compare them with the limits.

        Raises:
            QualityGateError: There is no example to judge by.
        """
        if not examples:
            raise QualityGateError("the gate has no examples to judge by, so it stays closed; name audio with speech")
        figures = _figures(examples, self.seed)
        return Verdict(examples=len(examples), **figures, shortfalls=tuple(self._shortfalls(figures)))

    def _shortfalls(self, figures: dict[str, Figure]) -> list[str]:
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


def _described(found: float, figure: Figure, confident: bool) -> str:
    if confident:
        return f"{found:.2f} (pessimistic end of 95 %; measured {figure.value:.2f})"
    return f"{found:.2f} (95 %: {figure.low:.2f} to {figure.high:.2f})"


def _figures(examples: Sequence[Example], seed: int) -> dict[str, Figure]:
    # Words are the same for both, so comparing errors compares rates.
    kept = no_worse([e.errors for e in examples], [e.reference_errors for e in examples])
    counts = [(e.words, e.errors, e.reference_errors, e.tokens, e.agreeing, e.divergence) for e in examples]
    return _bootstrapped(np.column_stack([kept, np.array(counts, np.float64)]), seed)


def _bootstrapped(table: NDArray[np.float64], seed: int) -> dict[str, Figure]:
    """Figures of the rows of a table, with intervals over resampled rows."""
    count = len(table)
    values = _statistics(table[None])
    spread = [_statistics(table[drawn]) for drawn in bootstrap_draws(count, draws=GATE_DRAWS, seed=seed)]
    figures = {
        name: Figure(float(value[0]), *percentile_interval(np.concatenate([block[name] for block in spread])))
        for name, value in values.items()
    }
    return {**figures, "qoi": _with_score_interval(figures["qoi"], int(table[:, 0].sum()), count)}


def _with_score_interval(percentage: Figure, kept: int, count: int) -> Figure:
    """Widen the interval of `kept` of `count` examples, in percent, to Wilson's where that is wider."""
    low, high = (100 * end for end in wilson_interval(kept, count))
    return Figure(percentage.value, min(percentage.low, low), max(percentage.high, high))


def _statistics(table: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """The figures of each of several tables `[N, examples, 7]`."""
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
