"""How far hypotheses are from references: word and character errors, and the signs of hallucination.

Texts come in normalised (`eval.normalize`). Alignment is jiwer's. Rates are fractions: 0.05 is 5 %.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from whisperkit_tools.errors import DatasetError
from whisperkit_tools.eval.metrics.alignment import align
from whisperkit_tools.eval.schema import AlignmentPiece

RESAMPLES = 1000
CONFIDENCE = 0.95
_BATCH = 1 << 22  # resampled examples held at once
Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Counts:
    """Edits between references and hypotheses, in words or in characters; can be added up.

    Attributes:
        hits: Equal ones.
        substitutions: Replaced ones.
        deletions: Those only in the reference.
        insertions: Those only in the hypothesis.
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference(self) -> int:
        """Length of the references."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float | None:
        """Edits per reference word or character; None without any, where a rate has no meaning."""
        return self.errors / self.reference if self.reference else None

    @property
    def insertion_rate(self) -> float | None:
        """Insertions per reference word: what was made up. None without reference words."""
        return self.insertions / self.reference if self.reference else None

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


@dataclass(frozen=True, slots=True)
class Score:
    """One hypothesis against its reference.

    Attributes:
        words: Word edits; `words.rate` is the WER.
        characters: Character edits, spaces included; `characters.rate` is the CER.
        alignment: The words' edits in order.
    """

    words: Counts
    characters: Counts
    alignment: tuple[AlignmentPiece, ...]


def score(reference: str, hypothesis: str) -> Score:
    """Compare one normalised hypothesis with its normalised reference."""
    alignment = align(reference.split(), hypothesis.split())
    return Score(_counts(alignment), character_counts(reference, hypothesis), alignment)


def _counts(alignment: Iterable[AlignmentPiece]) -> Counts:
    found: Counter[str] = Counter()
    for piece in alignment:
        found[piece.type] += max(len(piece.reference), len(piece.hypothesis))
    return Counts(found["equal"], found["substitute"], found["delete"], found["insert"])


def character_counts(reference: str, hypothesis: str) -> Counts:
    """Character edits between two normalised texts, spaces included."""
    import jiwer

    if not reference.split() or not hypothesis.split():
        # jiwer strips, so that a text of spaces would count as nothing on one side only
        reference, hypothesis = reference.strip(), hypothesis.strip()
        return Counts(deletions=len(reference), insertions=len(hypothesis))
    found = jiwer.process_characters(reference, hypothesis)
    return Counts(found.hits, found.substitutions, found.deletions, found.insertions)


def total(counts: Iterable[Counts]) -> Counts:
    """Add up; the rate of the sum is the corpus' rate, in which every word weighs the same."""
    return sum(counts, Counts())


def wer_interval(
    errors: Sequence[int], reference_words: Sequence[int], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval | None:
    """Bootstrap interval of the corpus word error rate: examples are drawn with replacement.

    Source: Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation".

    Args:
        errors: `[examples]`, edits of each example.
        reference_words: `[examples]`.
        seed: The same seed gives the same interval.
        resamples: How often a corpus is drawn.

    Returns:
        2.5th and 97.5th percentile; None without reference words.

    Raises:
        DatasetError: The two differ in length.
    """
    rates = bootstrap_rates([errors], reference_words, seed=seed, resamples=resamples)
    return None if rates is None else percentile_interval(rates[0])


def bootstrap_rates(
    errors: Sequence[Sequence[int]], reference_words: Sequence[int], *, seed: int = 0, resamples: int = RESAMPLES
) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Corpus error rates of resampled corpora, the same examples being drawn for all systems.

    Args:
        errors: `[systems][examples]`, edits of each example.
        reference_words: `[examples]`, the same for all systems.
        seed: The same seed draws the same examples.
        resamples: How often a corpus is drawn.

    Returns:
        `[systems, resamples]`; None without reference words.

    Raises:
        DatasetError: The lengths differ.
    """
    words = np.asarray(reference_words, dtype=np.int64)
    edits = [np.asarray(row, dtype=np.int64) for row in errors]
    if any(len(row) != len(words) for row in edits):
        lengths = ", ".join(str(len(row)) for row in edits)
        raise DatasetError(f"errors of {lengths} examples beside reference words of {len(words)}")
    if not words.sum():
        return None
    generator = np.random.default_rng(seed)
    blocks, size = [], max(1, _BATCH // len(words))
    for start in range(0, resamples, size):
        drawn = generator.integers(len(words), size=(min(size, resamples - start), len(words)))
        drawn_words = words[drawn].sum(axis=1)
        # A draw without a single reference word has no rate; its errors count as if there were one.
        blocks.append(np.stack([row[drawn].sum(axis=1) / np.maximum(drawn_words, 1) for row in edits]))
    return np.concatenate(blocks, axis=1)


def percentile_interval(values: np.ndarray[Any, np.dtype[np.float64]], confidence: float = CONFIDENCE) -> Interval:
    """The middle part of resampled values."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def repeated_ngrams(text: str, n: int = 5) -> int:
    """How many of a normalised text's n-grams have occurred in it before, as in a decoder caught in a loop.

    Source: Gandhi et al. 2023, "Distil-Whisper", section 5: repeated 5-gram word duplicates.
    """
    words = text.split()
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(ngrams) - len(set(ngrams))
