"""An outcome to the row that is stored: normalised, aligned, counted."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from whisperkit_tools.eval.metrics.normalize import Normalization
from whisperkit_tools.eval.metrics.wer import score
from whisperkit_tools.eval.runs.worker import Outcome, Task
from whisperkit_tools.eval.schema import ResultRow

# Without these a stored row is damaged.
REQUIRED = frozenset(
    {"id", "index", "error", "hypothesis", "substitutions", "deletions", "insertions", "reference_words"}
)


class Scorer:
    """Makes rows; one for a run, for its normalisers are made once."""

    def __init__(self, normalizer: str, spellings: Mapping[str, str] | None = None) -> None:
        """Choose the normaliser.

        Args:
            normalizer: One of `normalize.NORMALIZERS`.
            spellings: Of the English one; None for the table that ships with this package.

        Raises:
            DatasetError: No such normaliser.
        """
        self._normalization = Normalization(normalizer, None if spellings is None else dict(spellings))

    def row(self, task: Task, outcome: Outcome) -> dict[str, Any]:
        """The row of `results.jsonl` for an outcome; that of a stream also holds its words and times."""
        example = task.example
        plain = ResultRow(
            id=task.key,
            index=task.number,
            audio=str(example.audio) if example.audio is not None else None,
            duration_s=outcome.duration_s if outcome.duration_s is not None else example.duration_s,
            language=example.language,
            speaker=example.speaker,
            reference=example.reference,
            error=outcome.error,
        )
        row = asdict(plain)
        if outcome.hypothesis is not None:
            heard = outcome.hypothesis
            row |= self._scored(example.reference, heard.text, example.language or heard.language)
            row |= {"language": example.language or heard.language, "timings": asdict(heard.timings)}
            row["segments"] = [asdict(segment) for segment in heard.segments]
            row["words"] = [asdict(word) for word in heard.words]
        elif outcome.stream is not None:
            row |= self._scored(example.reference, outcome.stream.text, example.language)
            row["stream"] = asdict(outcome.stream)
        return row

    def _scored(self, reference: str, hypothesis: str, language: str | None) -> dict[str, Any]:
        expected, heard = self._normalization.pair(reference, hypothesis, language)
        found = score(expected, heard)
        return {
            "hypothesis": hypothesis,
            "reference_normalized": expected,
            "hypothesis_normalized": heard,
            "wer": found.words.rate,
            "cer": found.characters.rate,
            "hits": found.words.hits,
            "substitutions": found.words.substitutions,
            "deletions": found.words.deletions,
            "insertions": found.words.insertions,
            "reference_words": found.words.reference,
            "alignment": [
                {"type": piece.type, "reference": list(piece.reference), "hypothesis": list(piece.hypothesis)}
                for piece in found.alignment
            ],
        }
