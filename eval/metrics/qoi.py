"""Quality of inference: the share of examples on which an optimised model is no worse than its original.

In the word error rate of a corpus, examples that became better hide others that became worse. Users of the original
model notice exactly those. Source: the definition published with WhisperKit's evaluation results.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from whisperkit_tools.errors import DatasetError, OptionsError
from whisperkit_tools.intervals import Interval, no_worse, wilson_interval

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class QualityOfInference:
    """A system compared with a reference system, example by example, unweighted.

    Attributes:
        qoi: Fraction of examples with `wer <= wer of the reference run`. None without examples.
        interval: 95 % Wilson score interval.
        examples: Number of compared examples.
        better: Ids of examples with a lower WER than in the reference run.
        worse: Ids of examples with a higher WER, the largest difference first.
    """

    qoi: float | None
    interval: Interval | None
    examples: int
    better: tuple[str, ...]
    worse: tuple[str, ...]

    @property
    def equal(self) -> int:
        """Number of examples with the same WER."""
        return self.examples - len(self.better) - len(self.worse)


def quality_of_inference(wer: Mapping[str, float], reference_wer: Mapping[str, float]) -> QualityOfInference:
    """Compare the examples' word error rates with those of a reference run.

    Args:
        wer: Word error rate of each example, by id.
        reference_wer: Word error rate of the same examples in the reference run.

    Raises:
        OptionsError: The two do not hold the same ids.
        DatasetError: A rate is not a number.
    """
    _check(wer, reference_wer)
    # Both rates have the same denominator, so equal error counts give bit-equal floats.
    worse = sorted((id for id in wer if wer[id] > reference_wer[id]), key=lambda id: (reference_wer[id] - wer[id], id))
    better = [id for id in wer if wer[id] < reference_wer[id]]
    count = len(wer)
    kept = int(no_worse(list(wer.values()), [reference_wer[id] for id in wer]).sum())
    return QualityOfInference(
        qoi=kept / count if count else None,
        interval=wilson_interval(kept, count) if count else None,
        examples=count,
        better=tuple(better),
        worse=tuple(worse),
    )


def _check(wer: Mapping[str, float], reference_wer: Mapping[str, float]) -> None:
    problems = []
    for ids, where in ((reference_wer.keys() - wer.keys(), "reference"), (wer.keys() - reference_wer.keys(), "other")):
        if ids:
            problems.append(f"{len(ids)} only in the {where} run ({_listed(ids)})")
    if problems:
        raise OptionsError(
            f"the two runs do not hold the same examples: {'; '.join(problems)}; run both on the same dataset"
        )
    broken = [id for id in wer if not math.isfinite(wer[id]) or not math.isfinite(reference_wer[id])]
    if broken:
        raise DatasetError(f"word error rates that are not numbers: {_listed(set(broken))}")


def _listed(ids: set[str]) -> str:
    shown = sorted(ids)[:_SHOWN]
    return ", ".join(shown) + (", ..." if len(ids) > _SHOWN else "")
