"""What an evaluation runs over: examples with references, and what was found wrong with the dataset they came from."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from whisperkit_tools.errors import AudioError, DatasetError

FloatArray: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
# An audio file to `[samples]`, float32, mono, 16 kHz. The caller brings the decoder: `eval` has none.
AudioReader: TypeAlias = Callable[[Path], FloatArray]
# What stands between the decoded audio and the transcriber, such as added noise.
Alteration: TypeAlias = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class ReferenceWord:
    """One word of a reference with its place in the audio.

    Attributes:
        text: As it stands in the reference.
        start_s: Seconds from the start of the audio.
        end_s: Seconds from the start of the audio; None where the dataset gives starts only.
    """

    text: str
    start_s: float
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One audio with its reference transcript.

    Attributes:
        id: Unique within the dataset.
        reference: As it stands in the dataset, not normalised.
        audio: The file; None only for a problem without audio, or when `generate` makes the samples.
        language: Code such as `en`; None when the dataset does not say.
        duration_s: From the dataset's table or the file's header; None when neither tells.
        speaker: Who speaks; None when the dataset does not say.
        words: Words with times, where the dataset has them.
        alteration: Applied to the decoded samples; picklable, so that worker processes can have it.
        generate: Makes the samples instead of a file; picklable.
    """

    id: str
    reference: str
    audio: Path | None
    language: str | None = None
    duration_s: float | None = None
    speaker: str | None = None
    words: tuple[ReferenceWord, ...] = ()
    alteration: Alteration | None = None
    generate: Callable[[], FloatArray] | None = None

    def samples(self, read: AudioReader) -> FloatArray:
        """Decode the audio.

        Args:
            read: The decoder.

        Returns:
            `[samples]`, float32, mono, 16 kHz.

        Raises:
            AudioError: There is no audio, or it cannot be decoded.
        """
        if self.generate is not None:
            samples = self.generate()
        elif self.audio is not None:
            samples = read(self.audio)
        else:
            raise AudioError(f"{self.id}: the dataset names no audio for it")
        return samples if self.alteration is None else self.alteration(samples)

    def altered(self, alteration: Alteration) -> "Example":
        """The same example, heard through `alteration`."""
        return replace(self, alteration=alteration)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one example of a dataset.

    Attributes:
        id: Of the example, or its place in the dataset where it has none.
        kind: `missing_audio`, `unreadable_audio`, `empty_reference`, `duplicate_id` or `bad_row`.
        message: One line for people.
    """

    id: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """The examples that an evaluation runs over.

    Attributes:
        name: Short, usable as a folder name.
        source: Where it came from: a folder, or a Hub id with subset and split.
        examples: In a fixed order, those with problems left out.
        problems: What is wrong with those left out.
        ignored_segments: Segments that the dataset itself marks as not to be scored.
        options: How the examples were chosen, JSON-ready.
        fingerprint: Of the content, see `fingerprint`.
    """

    name: str
    source: str
    examples: tuple[Example, ...]
    problems: tuple[Problem, ...] = ()
    ignored_segments: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def language(self) -> str | None:
        """The language of all examples; None when they differ or one does not say."""
        languages = {example.language for example in self.examples}
        return languages.pop() if len(languages) == 1 else None

    @property
    def audio_s(self) -> float | None:
        """Seconds of audio in all; None when a length is not known."""
        lengths = [example.duration_s for example in self.examples]
        return sum(s for s in lengths if s is not None) if None not in lengths else None


def fingerprint(examples: tuple[Example, ...]) -> str:
    """Hash of what is evaluated: ids, references, word times and every byte of the audio, in order.

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
        row = [example.id, example.reference, example.language, words, _audio_hash(example)]
        whole.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return whole.hexdigest()


def _audio_hash(example: Example) -> str | None:
    if example.generate is not None:
        return hashlib.sha256(example.generate().tobytes()).hexdigest()
    if example.audio is None:
        return None
    try:
        with example.audio.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"{example.id}: cannot read {example.audio}: {error.strerror or error}") from error
