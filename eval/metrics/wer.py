"""Word and character error rates, their bootstrap interval, and signs of hallucination.

`word_error_rate` is the one implementation of the house. Every caller names its normaliser, because figures of
different normalisers cannot be compared. The alignment is jiwer's. Rates are fractions: 0.05 is 5 %.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from whisperkit_tools.eval.metrics.alignment import AlignmentPiece, align
from whisperkit_tools.eval.metrics.normalize import Normalizer
from whisperkit_tools.intervals import Interval, bootstrap_rates, percentile_interval

WER_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Counts:
    """Edits between references and hypotheses, in words or in characters. Counts add up.

    Attributes:
        hits: Number of equal words or characters.
        substitutions: Number of replaced ones.
        deletions: Number of those only in the reference.
        insertions: Number of those only in the hypothesis.
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
        """Edits per reference word or character. None without any, because a rate has no meaning there."""
        return self.errors / self.reference if self.reference else None

    @property
    def insertion_rate(self) -> float | None:
        """Insertions per reference word, which are made up. None without reference words."""
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
        words: Word edits. `words.rate` is the WER.
        characters: Character edits, spaces included. `characters.rate` is the CER.
        alignment: The words' edits in order.
    """

    words: Counts
    characters: Counts
    alignment: tuple[AlignmentPiece, ...]


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str], normalize: Normalizer) -> float:
    """Return the word error rate of a corpus, in which every reference word weighs the same.

    Args:
        references: The spoken texts.
        hypotheses: The recognised texts, in the same order.
        normalize: Applied to both sides before they are compared.

    Returns:
        Word errors per reference word. Without any reference word it is the number of errors, as with jiwer.

    Raises:
        ValueError: The two differ in length.
    """
    pairs = zip(references, hypotheses, strict=True)
    corpus = total(word_counts(normalize(reference), normalize(hypothesis)) for reference, hypothesis in pairs)
    return corpus.errors / max(corpus.reference, 1)


def score(reference: str, hypothesis: str) -> Score:
    """Compare one normalised hypothesis with its normalised reference."""
    alignment = align(reference.split(), hypothesis.split())
    return Score(_counts(alignment), character_counts(reference, hypothesis), alignment)


def word_counts(reference: str, hypothesis: str) -> Counts:
    """Return the word edits between two normalised texts."""
    return _counts(align(reference.split(), hypothesis.split()))


def minimum_errors(reference: Sequence[str], begun: Sequence[str]) -> int:
    """Return the fewest word errors of any text that begins with these words.

    It is the least edit distance of the words from a beginning of the reference, whose rest could follow without error.
    """
    distances = list(range(len(reference) + 1))  # of no words from the first 0, 1, ... words of the reference
    for word in begun:
        diagonal, distances[0] = distances[0], distances[0] + 1
        for at, expected in enumerate(reference, start=1):
            substituted, diagonal = diagonal + (word != expected), distances[at]
            distances[at] = min(substituted, diagonal + 1, distances[at - 1] + 1)
    return min(distances)


def _counts(alignment: Iterable[AlignmentPiece]) -> Counts:
    found: Counter[str] = Counter()
    for piece in alignment:
        found[piece.type] += max(len(piece.reference), len(piece.hypothesis))
    return Counts(found["equal"], found["substitute"], found["delete"], found["insert"])


def character_counts(reference: str, hypothesis: str) -> Counts:
    """Return the character edits between two normalised texts, spaces included."""
    import jiwer

    if not reference.split() or not hypothesis.split():
        # jiwer strips, so a text of spaces would count as nothing on one side only
        reference, hypothesis = reference.strip(), hypothesis.strip()
        return Counts(deletions=len(reference), insertions=len(hypothesis))
    found = jiwer.process_characters(reference, hypothesis)
    return Counts(found.hits, found.substitutions, found.deletions, found.insertions)


def total(counts: Iterable[Counts]) -> Counts:
    """Return the sum. Its rate is the corpus' rate, in which every word weighs the same."""
    return sum(counts, Counts())


def wer_interval(
    errors: Sequence[int], reference_words: Sequence[int], *, seed: int = 0, draws: int = WER_DRAWS
) -> Interval | None:
    """Return the 95 % bootstrap interval of a corpus word error rate.

    Args:
        errors: `[examples]`, edits of each example.
        reference_words: `[examples]`.
        seed: The same seed gives the same interval.
        draws: Number of resampled corpora.

    Returns:
        2.5th and 97.5th percentile. None without reference words.

    Raises:
        ValueError: The two differ in length.
    """
    rates = bootstrap_rates([errors], reference_words, draws=draws, seed=seed)
    return None if rates is None else percentile_interval(rates[0])


def repeated_ngrams(text: str, n: int = 5) -> int:
    """Return how many of a normalised text's n-grams have occurred in it before, as with a decoder caught in a loop.

    Source: Gandhi et al. 2023, "Distil-Whisper", section 5: repeated 5-gram word duplicates.
    """
    words = text.split()
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(ngrams) - len(set(ngrams))
