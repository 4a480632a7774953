"""Alignment of reference and hypothesis word by word, and the distances of their times."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from whisperkit_tools.eval.metrics.normalize import BasicTextNormalizer, Normalizer

PIECE_TYPES = frozenset({"equal", "substitute", "delete", "insert"})
# Times come in hundredths of a second. A float's last bit must not decide whether 0.1 is within 0.1.
_HUNDRED_MS = 0.1 + 1e-9


class TimedWord(Protocol):
    """A word with the second at which it starts."""

    @property
    def text(self) -> str:
        """The word."""
        ...

    @property
    def start_s(self) -> float:
        """Seconds from the start of the audio."""
        ...


@dataclass(frozen=True, slots=True)
class AlignmentPiece:
    """A stretch of normalised words that are equal, substituted, deleted or inserted.

    Attributes:
        type: `equal`, `substitute`, `delete` or `insert`.
        reference: The reference's words. Empty for `insert`.
        hypothesis: The hypothesis' words. Empty for `delete`.
    """

    type: str
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WordTimestampError:
    """Distance of predicted from reference word starts, over words that were recognised.

    Attributes:
        words: Number of matched words that have both times.
        mean_s: Mean absolute distance of the starts.
        median_s: Median absolute distance.
        p90_s: 90th percentile of the absolute distance.
        within_100ms: Fraction of words within 0.1 s.
        within_200ms: Fraction of words within 0.2 s.
    """

    words: int
    mean_s: float
    median_s: float
    p90_s: float
    within_100ms: float
    within_200ms: float


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[AlignmentPiece, ...]:
    """Align two lists of words with the minimum number of edits, as jiwer does.

    Args:
        reference: Words without spaces.
        hypothesis: Words without spaces.

    Returns:
        Stretches in order, which together hold all words of both.
    """
    import jiwer

    found = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    return tuple(
        AlignmentPiece(
            chunk.type,
            tuple(reference[chunk.ref_start_idx : chunk.ref_end_idx]),
            tuple(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in found.alignments[0]
    )


def word_start_distances(
    reference: Sequence[TimedWord], hypothesis: Sequence[TimedWord], normalize: Normalizer | None = None
) -> list[float]:
    """Return the distances in seconds between the starts of the words that were recognised.

    Words are normalised one by one and aligned. A word that splits into several parts is represented by the first.

    Args:
        reference: Words with times.
        hypothesis: Words with times.
        normalize: For single words. None for `BasicTextNormalizer`.

    Returns:
        One for each matched word: the hypothesis' start minus the reference's.
    """
    normalize = normalize or BasicTextNormalizer()
    expected = _first_parts([(word.text, word.start_s) for word in reference], normalize)
    heard = _first_parts([(word.text, word.start_s) for word in hypothesis], normalize)
    distances: list[float] = []
    at = [0, 0]
    for piece in align([text for text, _ in expected], [text for text, _ in heard]):
        if piece.type == "equal":
            pairs = zip(expected[at[0] :], heard[at[1] : at[1] + len(piece.hypothesis)], strict=False)
            distances += [there[1] - here[1] for here, there in pairs]
        at = [at[0] + len(piece.reference), at[1] + len(piece.hypothesis)]
    return distances


def _first_parts(words: Iterable[tuple[str, float]], normalize: Normalizer) -> list[tuple[str, float]]:
    parts = [(normalize(text).split(), start_s) for text, start_s in words]
    return [(found[0], start_s) for found, start_s in parts if found]


def word_timestamp_error(distances: Sequence[float]) -> WordTimestampError | None:
    """Summarise the distances of all examples. None when no word was matched."""
    if not distances:
        return None
    size = np.abs(np.asarray(distances, dtype=np.float64))
    return WordTimestampError(
        words=len(size),
        mean_s=float(size.mean()),
        median_s=float(np.median(size)),
        p90_s=float(np.quantile(size, 0.9)),
        within_100ms=float(np.mean(size <= _HUNDRED_MS)),
        within_200ms=float(np.mean(size <= 2 * _HUNDRED_MS)),
    )
