"""Scoring: from the result of a task to the stored row, normalised, aligned and counted."""

from collections.abc import Mapping
from dataclasses import fields, replace

from whisperkit_tools.eval.metrics.normalize import Normalization
from whisperkit_tools.eval.metrics.wer import score
from whisperkit_tools.eval.runs.worker import Task, TaskResult
from whisperkit_tools.eval.schema import ResultRow, RowSegment, RowTimings, StreamRow


class Scorer:
    """Makes rows. One for a run, because its normalisers are built once."""

    def __init__(self, normalizer: str, spellings: Mapping[str, str] | None = None) -> None:
        """Choose the normaliser.

        Args:
            normalizer: One of `normalize.NORMALIZERS`.
            spellings: Table of the English normaliser. None for the table that ships with this package.

        Raises:
            OptionsError: No such normaliser.
        """
        self._normalization = Normalization(normalizer, None if spellings is None else dict(spellings))

    def row(self, task: Task, result: TaskResult) -> ResultRow:
        """Return the row of a result. That of a stream also holds its words and times."""
        example = task.example
        plain = ResultRow(
            id=task.key,
            index=task.number,
            audio=str(example.path) if example.path is not None else None,
            duration_s=result.duration_s if result.duration_s is not None else example.duration_s,
            language=example.language,
            speaker=example.speaker,
            reference=example.text or "",
            error=result.error,
        )
        if result.transcription is not None:
            heard = result.transcription
            row = self._scored(plain, heard.text, example.language or heard.language)
            return replace(
                row,
                timings=RowTimings.of(heard),
                segments=tuple(RowSegment(part.text, part.start_s, part.end_s) for part in heard.segments),
                words=heard.words,
            )
        if result.stream is not None:
            row = self._scored(plain, result.stream.text, example.language)
            values = {field.name: getattr(row, field.name) for field in fields(row)}
            return StreamRow(**values, stream=result.stream)
        return plain

    def _scored(self, row: ResultRow, hypothesis: str, language: str | None) -> ResultRow:
        expected, heard = self._normalization.pair(row.reference, hypothesis, language)
        found = score(expected, heard)
        return replace(
            row,
            language=language,
            hypothesis=hypothesis,
            reference_normalized=expected,
            hypothesis_normalized=heard,
            wer=found.words.rate,
            cer=found.characters.rate,
            hits=found.words.hits,
            substitutions=found.words.substitutions,
            deletions=found.words.deletions,
            insertions=found.words.insertions,
            reference_words=found.words.reference,
            alignment=found.alignment,
        )
