"""What a transcription is: words in segments in one text, with how sure and how fast."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Word:
    """One word with the punctuation that sticks to it.

    Attributes:
        text: As decoded, usually with a leading space.
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
        text: As decoded, usually with a leading space.
        tokens: Its ids, timestamps included, without end-of-text; where chunks were stitched, those of text only.
        temperature: At which its window was decoded.
        avg_logprob: Mean log probability of its window's tokens, natural logarithm.
        compression_ratio: Of its window's token bytes.
        no_speech_prob: Of its window; None when a prefill spared the pass that tells it and no threshold asked for it.
        words: Empty unless word timestamps were asked for.
    """

    start_s: float
    end_s: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float | None
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """How long it took, in seconds of wall time, and what was done in them.

    Attributes:
        total_s: From audio samples to text.
        mel_s: In the mel spectrogram.
        encoder_s: In the audio encoder.
        decoder_s: In the decoding loops.
        time_to_first_token_s: From audio samples to the first token of text.
        windows: Encoded windows of 30 s.
        decoder_steps: Calls of the text decoder, prompts and repetitions included.
        tokens: Tokens that were generated and kept.
        tokens_per_second: Generated tokens, those of dropped attempts included, per second of decoding.
        fallbacks: Windows' attempts that were dropped for the next temperature.
        real_time_factor: `total_s` per second of audio: below 1 is faster than real time.
    """

    total_s: float
    mel_s: float
    encoder_s: float
    decoder_s: float
    time_to_first_token_s: float
    windows: int
    decoder_steps: int
    tokens: int
    tokens_per_second: float
    fallbacks: int
    real_time_factor: float


@dataclass(frozen=True, slots=True)
class Transcription:
    """The text of one audio.

    Attributes:
        text: The whole, without surrounding space.
        language: Code of the language that was given or detected.
        language_probability: Of the detected one among all languages; None when it was given.
        task: `transcribe` or `translate`.
        segments: In time order; those without text are left out.
        tokens: All kept ids in order, timestamps included, as transformers' `generate` returns them; where chunks were
            stitched, those of text only.
        audio_duration_s: Length of the audio.
        timings: How long it took.
        notices: What was changed about the request, such as a prompt that was cut.
        long_form: How audio of more than a window was gone through.
    """

    text: str
    language: str
    language_probability: float | None
    task: str
    segments: tuple[Segment, ...]
    tokens: tuple[int, ...]
    audio_duration_s: float
    timings: Timings
    notices: tuple[str, ...] = ()
    long_form: str = "sequential"

    def to_dict(self) -> dict[str, Any]:
        """Return the value as JSON-ready dictionaries, lists, numbers and strings."""
        return asdict(self)
