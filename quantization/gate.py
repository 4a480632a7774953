"""The quality gate: compares a compressed bundle with the uncompressed one, with confidence intervals.

QoI is the percentage of examples with `wer(compressed) <= wer(reference)`, all examples with equal weight. Word error
rates are corpus rates: all errors over all words. A gate on a few utterances says little, so every figure has a 95 %
interval from a seeded bootstrap over examples. Where no example is worse, no resample has a worse one either, however
few examples there are. QoI's interval is therefore the union of the bootstrap's and of Wilson's score interval. With
it, a confident QoI of at least 95 % takes 73 examples or more.

Transcribing takes long, so a gate closes as soon as no outcome of the pending examples could open it. This is certain,
because every limit is easier to meet with fewer errors: QoI does not fall, WER does not rise, and neither do the ends
of their intervals, whose resamples are the same. The gate is judged with pending examples free of errors. Where even
that misses a limit, the verdict is final, and figures that depend on the pending examples are absent from it.

Source: QoI as published with whisperkittools; the percentile bootstrap, Efron and Tibshirani, chapter 13; Wilson 1927,
"Probable inference, the law of succession, and statistical inference".
"""

import math
import sys
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
        errors: Word errors of the compressed bundle. None while it has not transcribed the example.
        tokens: Tokens of the uncompressed bundle's transcript.
        agreeing: Those of them that the compressed bundle would choose too, given the same tokens before.
        divergence: Sum of the KL divergence over these tokens, in nats.
        is_cut: Whether the transcript was cut because the example is worse in any case. The errors are then a minimum.
    """

    name: str
    words: int
    reference_errors: int
    errors: int | None
    tokens: int
    agreeing: int
    divergence: float
    is_cut: bool = False

    @property
    def is_final(self) -> bool:
        """Whether the word errors are known and not only a minimum."""
        return self.errors is not None and not self.is_cut

    @property
    def minimum_errors(self) -> int:
        """The word errors, or the fewest that are possible as far as is known."""
        return self.errors or 0


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
        qoi: Percentage of examples that are no worse. None where the gate stopped early.
        wer: Word error rate of the compressed bundle, in percent. None where the gate stopped early.
        reference_wer: Word error rate of the uncompressed bundle, in percent.
        wer_delta: Their difference, in percentage points. None where the gate stopped early.
        kl_divergence: Mean KL divergence, in nats per token.
        token_agreement: Percentage of tokens on which the bundles agree.
        shortfalls: One line for each missed limit. Empty when the gate is open.
        stopped_after: Number of examples whose outcome was known when it was certain that the gate stays closed. None
            where all were measured.
    """

    examples: int
    qoi: IntervalFigure | None
    wer: IntervalFigure | None
    reference_wer: IntervalFigure
    wer_delta: IntervalFigure | None
    kl_divergence: IntervalFigure
    token_agreement: IntervalFigure
    shortfalls: tuple[str, ...]
    stopped_after: int | None = None

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
            ValueError: The decision depends on examples that are pending.
        """
        if not examples:
            raise QualityGateError(
                "the gate has no examples to judge by, so it stays closed; name audio with speech "
                f"({option('gate_audio')})"
            )
        figures = _figures(examples, self.seed)
        if all(example.is_final for example in examples):
            shortfalls = tuple(self._shortfalls(figures))
            return Verdict(examples=len(examples), **figures, shortfalls=shortfalls, stopped_after=None)
        return self._stopped(examples, figures)

    def is_decided(self, examples: Sequence[GateExample]) -> bool:
        """Return whether nothing that pending examples may turn out to be changes the decision."""
        if all(example.is_final for example in examples):
            return True
        figures = _figures(examples, self.seed) if self.confident else _values(examples)
        return bool(self._missed(figures))

    def _stopped(self, examples: Sequence[GateExample], figures: dict[str, IntervalFigure]) -> Verdict:
        """Return the verdict on examples of which some are pending. The figures are those without errors in these."""
        missed, known = self._missed(figures), [example for example in examples if example.errors is not None]
        if not missed:
            pending = sum(not example.is_final for example in examples)
            raise ValueError(f"{pending} of {len(examples)} examples are pending, and the gate could still open")
        worse = sum(example.minimum_errors > example.reference_errors for example in known)
        after = f"the first {len(known)} of {len(examples)} examples"
        qoi = f"{worse} of {after} are worse; at least {self.qoi_min:g} % must be no worse"
        if self.confident:
            qoi += f", and the pessimistic end of 95 % is at most {figures['qoi'].low:.2f} %"
        lines = {
            "qoi": qoi,
            "wer_delta": f"WER delta {self._found(figures, 'wer_delta'):.2f} points or more after {after}, at most "
            f"{self.wer_delta_max:g} is allowed",
            "kl_divergence": self._kl_shortfall(figures),
        }
        complete = {name: figures[name] for name in ("reference_wer", "kl_divergence", "token_agreement")}
        return Verdict(
            examples=len(examples),
            qoi=None,
            wer=None,
            wer_delta=None,
            **complete,
            shortfalls=tuple(lines[name] for name in missed),
            stopped_after=len(known),
        )

    def _found(self, figures: dict[str, IntervalFigure], name: str) -> float:
        """Return the end or the middle of a figure that is judged."""
        figure = figures[name]
        if not self.confident:
            return figure.value
        return figure.low if name == "qoi" else figure.high

    def _missed(self, figures: dict[str, IntervalFigure]) -> list[str]:
        """Return the names of the figures that miss their limits."""
        missed = []
        # Written so that a figure that is not a number closes the gate.
        if not self._found(figures, "qoi") >= self.qoi_min:
            missed.append("qoi")
        if not self._found(figures, "wer_delta") <= self.wer_delta_max:
            missed.append("wer_delta")
        limit = sys.float_info.max if self.max_kl is None else self.max_kl
        if not self._found(figures, "kl_divergence") <= limit:
            missed.append("kl_divergence")
        return missed

    def _shortfalls(self, figures: dict[str, IntervalFigure]) -> list[str]:
        qoi, delta = (
            _described(self._found(figures, name), figures[name], self.confident) for name in ("qoi", "wer_delta")
        )
        lines = {
            "qoi": f"QoI {qoi} %, at least {self.qoi_min:g} % is required",
            "wer_delta": f"WER delta {delta} points, at most {self.wer_delta_max:g} is allowed",
            "kl_divergence": self._kl_shortfall(figures),
        }
        return [lines[name] for name in self._missed(figures)]

    def _kl_shortfall(self, figures: dict[str, IntervalFigure]) -> str:
        divergence = figures["kl_divergence"]
        if not math.isfinite(self._found(figures, "kl_divergence")):
            return "KL divergence is not a number: a bundle gave logits that are not finite"
        return (
            f"KL divergence {self._found(figures, 'kl_divergence'):.4g} (95 %: {divergence.low:.4g} to "
            f"{divergence.high:.4g}) nats a token, at most {self.max_kl or 0:g} is allowed"
        )


def mean_divergence(examples: Sequence[GateExample]) -> float:
    """Return the mean KL divergence in nats per token. No example has to be transcribed. 0 without any token."""
    return sum(example.divergence for example in examples) / max(1, sum(example.tokens for example in examples))


def next_pending(examples: Sequence[GateExample]) -> int:
    """Return the index of the example to transcribe next: the one that is likeliest to be worse.

    That is the one on whose reference transcript the bundles disagree most. Recordings without such a comparison, which
    are long, come after the others, and cut transcripts last.

    Raises:
        ValueError: None is pending.
    """

    def order(at: int) -> tuple[bool, int, float, int]:
        example = examples[at]
        return (example.is_cut, example.agreeing - example.tokens, -example.divergence, at)

    return min((at for at, example in enumerate(examples) if not example.is_final), key=order)


def _described(found: float, figure: IntervalFigure, confident: bool) -> str:
    if confident:
        return f"{found:.2f} (pessimistic end of 95 %; measured {figure.value:.2f})"
    return f"{found:.2f} (95 %: {figure.low:.2f} to {figure.high:.2f})"


def _table(examples: Sequence[GateExample]) -> NDArray[np.float64]:
    """Return the examples' numbers `[examples, 7]`. Pending examples have the fewest errors that are possible."""
    # Both have the same reference words, so comparing errors compares rates.
    good = no_worse([e.minimum_errors for e in examples], [e.reference_errors for e in examples])
    counts = [(e.words, e.minimum_errors, e.reference_errors, e.tokens, e.agreeing, e.divergence) for e in examples]
    return np.column_stack([good, np.array(counts, np.float64)])


def _values(examples: Sequence[GateExample]) -> dict[str, IntervalFigure]:
    """Return the figures without their intervals."""
    found = _statistics(_table(examples)[None])
    return {name: IntervalFigure(float(value[0]), math.nan, math.nan) for name, value in found.items()}


def _figures(examples: Sequence[GateExample], seed: int) -> dict[str, IntervalFigure]:
    """Return the figures, with intervals over resampled examples."""
    table = _table(examples)
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
