"""Comparison of two runs over the same examples: the difference of their word error rates and its significance.

Source: paired bootstrap over utterances: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR
performance evaluation", ICASSP 2004.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.errors import DatasetError, OptionsError, option
from whisperkit_tools.eval.reports.read import ReadRun
from whisperkit_tools.eval.schema import ResultRow
from whisperkit_tools.intervals import bootstrap_rates, no_worse, percentile_interval, wilson_interval

IDS_SHOWN = 3
COMPARISON_DRAWS = 10_000
MIN_SAMPLES = 100


@dataclass(frozen=True, slots=True)
class ComparisonOptions:
    """Settings of a comparison.

    Attributes:
        common: Compare the examples that both runs have. Otherwise different ids are an error.
        samples: Number of bootstrap samples.
        seed: Random seed of the bootstrap.

    Raises:
        OptionsError: Too few samples.
    """

    common: bool = False
    samples: int = COMPARISON_DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the number of samples."""
        if self.samples < MIN_SAMPLES:
            raise OptionsError(f"{option('samples')} is {self.samples}; the minimum for an interval is {MIN_SAMPLES}")


@dataclass(frozen=True, slots=True)
class ExampleDifference:
    """An example on which the two runs have different numbers of word errors.

    Attributes:
        id: The example's id.
        errors: The candidate's word errors minus the baseline's.
        baseline_wer: None where the reference has no words.
        candidate_wer: None where the reference has no words.
    """

    id: str
    errors: int
    baseline_wer: float | None
    candidate_wer: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A candidate against a baseline, over the examples that both transcribed.

    Attributes:
        baseline: Name of the baseline's run.
        candidate: Name of the candidate's run.
        baseline_key: Key of the baseline's run.
        candidate_key: Key of the candidate's run.
        examples: Number of compared examples.
        left_out_failed: Number of omitted examples that failed in one of the runs.
        left_out_unpaired: Number of omitted examples that only one of the runs has.
        baseline_wer: Over the compared examples.
        candidate_wer: Over the compared examples.
        wer_difference: Candidate minus baseline. Positive is worse.
        wer_difference_interval: 95 % paired bootstrap interval.
        worse_probability: Fraction of bootstrap samples in which the candidate has more errors, ties counted half.
        samples: Number of bootstrap samples.
        seed: Random seed of the bootstrap.
        qoi: Fraction of examples on which the candidate is no worse than the baseline.
        qoi_interval: 95 % Wilson interval.
        qoi_reverse: Fraction of examples on which the baseline is no worse than the candidate.
        qoi_reverse_interval: 95 % Wilson interval.
        regressed: Examples with more errors than in the baseline, the largest difference first.
        improved: Examples with fewer errors, the largest difference first.
    """

    baseline: str
    candidate: str
    baseline_key: str
    candidate_key: str
    examples: int
    left_out_failed: int
    left_out_unpaired: int
    baseline_wer: float | None
    candidate_wer: float | None
    wer_difference: float | None
    wer_difference_interval: tuple[float, float] | None
    worse_probability: float | None
    samples: int
    seed: int
    qoi: float
    qoi_interval: tuple[float, float]
    qoi_reverse: float
    qoi_reverse_interval: tuple[float, float]
    regressed: tuple[ExampleDifference, ...] = ()
    improved: tuple[ExampleDifference, ...] = ()


def compare(baseline: ReadRun, candidate: ReadRun, config: ComparisonOptions | None = None) -> Comparison:
    """Compare two runs over the same examples.

    Args:
        baseline: The reference run.
        candidate: The compared run.
        config: Default settings when None.

    Raises:
        OptionsError: The runs have other examples or other references.
        DatasetError: There is no example that both transcribed.
    """
    config = config or ComparisonOptions()
    pairs, unpaired = _pairs(baseline, candidate, common=config.common)
    good = [(old, new) for old, new in pairs if old.error is None and new.error is None]
    if not good:
        raise DatasetError(f"{baseline.folder} and {candidate.folder} have no example that both transcribed")
    words = _array([old.reference_words for old, _ in good])
    old_errors, new_errors = _array([old.errors for old, _ in good]), _array([new.errors for _, new in good])
    rates = bootstrap_rates([new_errors - old_errors], words, draws=config.samples, seed=config.seed)
    drawn = None if rates is None else rates[0]
    total = int(words.sum())
    kept, kept_reverse = int(no_worse(new_errors, old_errors).sum()), int(no_worse(old_errors, new_errors).sum())
    changes = [
        ExampleDifference(new.id, int(more), old.wer, new.wer)
        for (old, new), more in zip(good, new_errors - old_errors, strict=True)
    ]
    return Comparison(
        baseline=baseline.report.name,
        candidate=candidate.report.name,
        baseline_key=baseline.report.key,
        candidate_key=candidate.report.key,
        examples=len(good),
        left_out_failed=len(pairs) - len(good),
        left_out_unpaired=unpaired,
        baseline_wer=int(old_errors.sum()) / total if total else None,
        candidate_wer=int(new_errors.sum()) / total if total else None,
        wer_difference=int((new_errors - old_errors).sum()) / total if total else None,
        wer_difference_interval=None if drawn is None else percentile_interval(drawn),
        worse_probability=None if drawn is None else float((drawn > 0).mean() + (drawn == 0).mean() / 2),
        samples=config.samples,
        seed=config.seed,
        qoi=kept / len(good),
        qoi_interval=wilson_interval(kept, len(good)),
        qoi_reverse=kept_reverse / len(good),
        qoi_reverse_interval=wilson_interval(kept_reverse, len(good)),
        regressed=tuple(sorted((change for change in changes if change.errors > 0), key=lambda it: -it.errors)),
        improved=tuple(sorted((change for change in changes if change.errors < 0), key=lambda it: it.errors)),
    )


def _pairs(baseline: ReadRun, candidate: ReadRun, *, common: bool) -> tuple[list[tuple[ResultRow, ResultRow]], int]:
    old = {row.id: row for row in baseline.rows}
    new = {row.id: row for row in candidate.rows}
    shared = [name for name in old if name in new]
    unpaired = len(old) + len(new) - 2 * len(shared)
    if not shared:
        raise OptionsError(
            f"{_of(baseline)} and {_of(candidate)} have no example in common; compare runs over one dataset"
        )
    if unpaired and not common:
        raise OptionsError(
            f"{_of(baseline)} and {_of(candidate)} are not over the same examples: {len(shared)} in common, "
            f"{_only(old, new)} only in the first, {_only(new, old)} only in the second; "
            f"compare those in common with {option('common')}, or evaluate both on the same selection"
        )
    pairs = [(old[name], new[name]) for name in shared]
    differ = [one.id for one, other in pairs if _scored_differently(one, other)]
    if differ:
        raise OptionsError(
            f"{_of(baseline)} and {_of(candidate)} have other references for {_named(differ)}; they were made from "
            f"other data or with another {option('normalizer')}, evaluate one of them again"
        )
    return pairs, unpaired


def _scored_differently(one: ResultRow, other: ResultRow) -> bool:
    if one.error is not None or other.error is not None:
        return False
    return (one.reference_normalized, one.reference_words) != (other.reference_normalized, other.reference_words)


def _of(run: ReadRun) -> str:
    return f"{run.folder} ({run.report.dataset.name})"


def _only(first: Mapping[str, ResultRow], second: Mapping[str, ResultRow]) -> str:
    return _named([name for name in first if name not in second])


def _named(ids: Sequence[str]) -> str:
    if not ids:
        return "0"
    return f"{len(ids)} ({', '.join(ids[:IDS_SHOWN])}{', ...' if len(ids) > IDS_SHOWN else ''})"


def _array(values: Sequence[int]) -> NDArray[np.int64]:
    return np.asarray(values, dtype=np.int64)
