"""Recordings, and the transcriptions of them: the nouns that every room shares."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from whisperkit_tools.errors import AudioError, show_options

SAMPLE_RATE_HZ = 16_000
WINDOW_S = 30
WINDOW_SAMPLES = WINDOW_S * SAMPLE_RATE_HZ  # 480000 samples in a window

# Endings of audio files, and of videos whose sound is read. One list, so that a folder means the same to every command.
AUDIO_EXTENSIONS = (
    ".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".aac", ".aif", ".aiff", ".caf", ".mp4", ".mov", ".webm",
)  # fmt: skip

if TYPE_CHECKING:
    import numpy as np

    Samples: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
else:
    Samples = Any  # the runtime contract and `wkt --help` need this module, but not numpy, which is slow to import
"""Mono audio `[n]` at 16 kHz, float32."""

AudioReader: TypeAlias = Callable[[Path], Samples]
"""Decodes an audio file. The caller brings it where a room has no decoder of its own."""

Alteration: TypeAlias = Callable[[Samples], Samples]
"""A change between the decoded audio and the transcriber, such as added noise. Picklable, for worker processes."""


@dataclass(frozen=True, slots=True)
class ReferenceWord:
    """One word of a reference with its place in the audio.

    Attributes:
        text: The word as it stands in the reference.
        start_s: Seconds from the start of the audio.
        end_s: Seconds from the start of the audio. None where the dataset gives starts only.
    """

    text: str
    start_s: float
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class ReferencePhrase:
    """One sentence of a long recording with its place in the audio.

    Attributes:
        text: The sentence as it stands in the reference.
        start_s: Seconds from the start of the audio.
        end_s: Seconds from the start of the audio.
        translation: The sentence in English. None where the dataset has no translation.
    """

    text: str
    start_s: float
    end_s: float
    translation: str | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """One audio, and what is known about it.

    The audio comes from `samples`, `generate` or `path`, in this order.

    Attributes:
        id: Unique within its collection, and shown in messages.
        text: The reference transcript, not normalised. None where nobody wrote it down.
        path: The audio file.
        samples: The decoded audio `[n]` at 16 kHz.
        generate: Makes the samples instead of a file. Picklable.
        language: Code such as `en`. None when unknown.
        duration_s: Seconds from a table or the file's header. None when unknown.
        speaker: The speaker. None when unknown.
        translation: The reference in English. None when there is none.
        words: The words of the reference with their times.
        phrases: The sentences of the reference with their times.
        alteration: Applied to the decoded samples.
    """

    id: str
    text: str | None = None
    path: Path | None = None
    samples: Samples | None = field(default=None, repr=False, compare=False)
    generate: Callable[[], Samples] | None = None
    language: str | None = None
    duration_s: float | None = None
    speaker: str | None = None
    translation: str | None = None
    words: tuple[ReferenceWord, ...] = ()
    phrases: tuple[ReferencePhrase, ...] = ()
    alteration: Alteration | None = None

    def audio(self, read: AudioReader) -> Samples:
        """Return the samples `[n]` at 16 kHz, decoded by `read` where there is only a file.

        Raises:
            AudioError: There is no audio, or it cannot be decoded.
        """
        if self.samples is not None:
            found = self.samples
        elif self.generate is not None:
            found = self.generate()
        elif self.path is not None:
            found = read(self.path)
        else:
            raise AudioError(f"{self.id}: no audio file is known for it")
        return found if self.alteration is None else self.alteration(found)

    def altered(self, alteration: Alteration) -> "Recording":
        """Return the same recording, heard through `alteration`."""
        return replace(self, alteration=alteration)


def samples_sha256(samples: Samples) -> str:
    """Return the hex digest of the samples' bytes."""
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(samples).tobytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Word:
    """One transcribed word with the punctuation attached to it.

    Attributes:
        text: The decoded text, usually with a leading space.
        start_s: Seconds from the start of the audio.
        end_s: Seconds from the start of the audio.
    """

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A phrase between two timestamps, or a whole window without them.

    Attributes:
        start_s: Seconds from the start of the audio.
        end_s: Seconds from the start of the audio.
        text: The decoded text, usually with a leading space.
        tokens: Token ids, timestamps included, without end-of-text. Where chunks were stitched, text tokens only.
        temperature: Temperature at which its window was decoded. None where a backend does not report it.
        avg_logprob: Mean log probability of its window's tokens, natural logarithm. None where not reported.
        compression_ratio: Compression ratio of its window's token bytes. None where not reported.
        no_speech_prob: Probability that its window holds no speech. None where a prefill spared the pass that
            computes it and no threshold needed it, or where a backend does not report it.
        words: Words with times. Empty unless word timestamps were requested.
        flags: Reasons to doubt it: `repetition` (the same words too often in a row), `low_confidence` (its window's
            log probability is below the threshold), `no_speech` (its window probably holds no speech).
    """

    start_s: float
    end_s: float
    text: str
    tokens: tuple[int, ...] = ()
    temperature: float | None = None
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    no_speech_prob: float | None = None
    words: tuple[Word, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Wall times in seconds, and counts of the work done in them. None is what a backend does not report.

    Attributes:
        total_s: From audio samples to text.
        mel_s: In the mel spectrogram.
        encoder_s: In the audio encoder.
        decoder_s: In the decoding loops.
        time_to_first_token_s: From audio samples to the first token of text.
        windows: Encoded windows of 30 s.
        decoder_steps: Calls of the text decoder, prompts and repetitions included.
        tokens: Generated and kept tokens.
        tokens_per_second: Generated tokens, those of discarded attempts included, per second of decoding.
        fallbacks: Attempts that were discarded for the next temperature.
        real_time_factor: `total_s` per second of audio. Below 1 is faster than real time.
    """

    total_s: float
    mel_s: float | None = None
    encoder_s: float | None = None
    decoder_s: float | None = None
    time_to_first_token_s: float | None = None
    windows: int | None = None
    decoder_steps: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    fallbacks: int | None = None
    real_time_factor: float | None = None


@dataclass(frozen=True, slots=True)
class Speculation:
    """What a draft did for a transcription.

    Attributes:
        rounds: Calls of the large decoder on tokens that the draft had written.
        proposed: Tokens that the draft wrote.
        accepted: Those of them that the large decoder wrote too.
        repeated_steps: Single steps of the large decoder for choices too close for a call on several tokens.
        draft_steps: Calls of the draft's decoder.
    """

    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    repeated_steps: int = 0
    draft_steps: int = 0

    def __sub__(self, earlier: "Speculation") -> "Speculation":
        """Return what was done since an earlier count."""
        return Speculation(*(getattr(self, name) - getattr(earlier, name) for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Transcription:
    """The text of one recording.

    Attributes:
        text: The whole text, without surrounding space.
        language: Code of the given or detected language. None where a backend does not report it.
        language_probability: Probability of the detected language. None when the language was given.
        task: `transcribe` or `translate`.
        segments: Segments in time order, those without text omitted.
        tokens: All kept token ids in order, timestamps included, as transformers' `generate` returns them. Where
            chunks were stitched, text tokens only.
        audio_duration_s: Length of the audio.
        timings: Wall times and counts.
        notices: Changes to the request, such as a truncated prompt.
        long_form: Strategy for audio of more than one window.
        speculation: What the draft did. None without one.
    """

    text: str
    language: str | None
    language_probability: float | None
    task: str
    segments: tuple[Segment, ...]
    tokens: tuple[int, ...]
    audio_duration_s: float
    timings: Timings
    notices: tuple[str, ...] = ()
    long_form: str = "sequential"
    speculation: Speculation | None = None

    @property
    def words(self) -> tuple[Word, ...]:
        """Words of all segments in time order."""
        return tuple(word for segment in self.segments for word in segment.words)

    def to_dict(self) -> dict[str, Any]:
        """Return the transcription as JSON-ready dictionaries, lists, numbers and strings."""
        return {**asdict(self), "notices": tuple(show_options(notice) for notice in self.notices)}
