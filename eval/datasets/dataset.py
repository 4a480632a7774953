"""A dataset: recordings with reference texts, the problems that were found in it, and the digest of its content."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from whisperkit_tools.errors import DatasetError
from whisperkit_tools.files import sha256
from whisperkit_tools.speech import Recording, samples_sha256
from whisperkit_tools.strict_json import json_text


@dataclass(frozen=True, slots=True)
class Problem:
    """A defect of one example of a dataset.

    Attributes:
        id: The example's, or its place in the dataset where it has none.
        kind: `missing_audio`, `unreadable_audio`, `no_reference`, `duplicate_id` or `bad_row`.
        message: One line for people.
    """

    id: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples of an evaluation.

    Attributes:
        name: Short name, usable as a folder name.
        source: A folder, or a Hub id with subset and split.
        examples: Recordings with reference texts in a fixed order, without those that have problems.
        problems: Defects of the omitted examples.
        ignored_segments: Segments that the dataset itself marks as not to be scored.
        options: How the examples were chosen, JSON-ready.
        fingerprint: Digest of the content, see `fingerprint`.
    """

    name: str
    source: str
    examples: tuple[Recording, ...]
    problems: tuple[Problem, ...] = ()
    ignored_segments: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def language(self) -> str | None:
        """The language of all examples. None when they differ or one is unknown."""
        languages = {example.language for example in self.examples}
        return languages.pop() if len(languages) == 1 else None

    @property
    def audio_s(self) -> float | None:
        """Seconds of audio in all. None when a length is unknown."""
        lengths = [example.duration_s for example in self.examples]
        return sum(s for s in lengths if s is not None) if None not in lengths else None


def fingerprint(examples: tuple[Recording, ...]) -> str:
    """Return the digest of what is evaluated: ids, references, word times and every byte of the audio, in order.

    Paths, file times and lengths from tables do not enter, so a copy elsewhere has the same fingerprint. Reading
    all audio once costs about a second per gigabyte, which is little beside transcribing it.

    Returns:
        64 hexadecimal digits.

    Raises:
        DatasetError: An audio file cannot be read.
    """
    whole = hashlib.sha256()
    for example in examples:
        words = [[word.text, word.start_s, word.end_s] for word in example.words]
        row = [example.id, example.text or "", example.language, words, _audio_sha256(example)]
        whole.update(json_text(row, indent=None).encode() + b"\n")
    return whole.hexdigest()


def _audio_sha256(example: Recording) -> str | None:
    """Return the digest of an example's audio, in the order in which `Recording` looks for it."""
    if example.samples is not None:
        return samples_sha256(example.samples)
    if example.generate is not None:
        return samples_sha256(example.generate())
    if example.path is None:
        return None
    try:
        return sha256(example.path)
    except OSError as error:
        raise DatasetError(f"{example.id}: cannot read {example.path}: {error.strerror or error}") from error
