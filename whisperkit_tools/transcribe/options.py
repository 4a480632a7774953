"""Options of a transcription, as one frozen and validated value."""

import math
from dataclasses import dataclass

from whisperkit_tools.errors import OptionsError, option

TASKS = ("transcribe", "translate")
AUTO = "auto"
FEATURES = ("window", "file")
LONG_FORMS = ("sequential", "chunked", "vad")
DETECTORS = ("energy", "silero")
MAX_CHUNK_S = 30  # a window
_CHUNK_S = 15.0


@dataclass(frozen=True, slots=True)
class TranscribeOptions:
    """All settings that decide on the tokens, given the bundle and the audio.

    Attributes:
        language: Spoken language, as a code (`es`), an English name (`Spanish`) or a tag (`es-419`, `zh-Hans`). `auto`
            detects it in the first window. None for the one that the model was tuned for, or else to detect it.
        task: `transcribe`, or `translate` to English. None for the one that the model was tuned for.
        prompt: Text that the audio seems to continue, which sets the spelling of names and the style.
        timestamps: Predict timestamps. Long audio is then cut between phrases, not at every 30 s.
        word_timestamps: Also align every word to the audio.
        temperatures: Temperatures to try in order until a window passes both thresholds. The last result is kept in any
            case.
        compression_ratio_threshold: A window whose token bytes compress better than this is repetitive and decoded
            again at the next temperature. None switches the check off. The ratio is over token ids, as in
            transformers, not over text as in OpenAI's code, where the customary value is 2.4.
        logprob_threshold: A window with a lower mean log probability is decoded again. None switches the check off.
        no_speech_threshold: A window with a higher no-speech probability has no text when its mean log probability
            is below `logprob_threshold`, or when that probability is above 0.99. None switches the check off.
        condition_on_previous_text: Give each window the text before it as prompt. This is more consistent, but a
            repetition then spreads to the next window. Off by default, as in the on-device runtime.
        seed: Seed of the sampling at temperatures above zero.
        max_new_tokens: Maximum number of tokens of a window's answer, timestamps and the end of the text included. None
            for as many as the model has positions for.
        prefill: Look up the first decoder steps of each window in the bundle's prefill, where it has one and no prompt
            precedes the answer.
        features: `window` computes the mel features of each window by itself, as the device does; `file` those of the
            whole audio, as transformers does. They differ only on audio of more than a window.
        long_form: Strategy for audio of more than a window. `sequential`: window after window, each from where
            the last phrase ended, as in the Whisper paper. `chunked`: overlapping chunks, stitched by their common
            tokens. `vad`: pieces that are cut in the pauses, which are omitted.
        chunk_length_s: Seconds of a chunk, or maximum seconds of a piece. None for 15. Longer ones take fewer windows.
        stride_s: Seconds at each end of a chunk that its neighbour hears too.
        vad: Detector of pauses: `energy`, or `silero` where the package silero-vad is installed.

    Raises:
        OptionsError: Naming all values that are out of range.
    """

    language: str | None = None
    task: str | None = None
    prompt: str | None = None
    timestamps: bool = True
    word_timestamps: bool = False
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_threshold: float | None = 1.35
    logprob_threshold: float | None = -1.0
    no_speech_threshold: float | None = 0.6
    condition_on_previous_text: bool = False
    seed: int = 0
    max_new_tokens: int | None = None
    prefill: bool = True
    features: str = "window"
    long_form: str = "sequential"
    chunk_length_s: float | None = None
    stride_s: float = 2.5
    vad: str = "energy"

    def __post_init__(self) -> None:
        """Check all values at once."""
        problems = [*self._choice_problems(), *self._temperature_problems(), *self._threshold_problems()]
        problems += self._long_form_problems()
        if problems:
            raise OptionsError("these options cannot be used: " + "; ".join(problems))

    def _choice_problems(self) -> list[str]:
        choices = (
            ("task", self.task or TASKS[0], TASKS),
            ("features", self.features, FEATURES),
            ("long_form", self.long_form, LONG_FORMS),
            ("vad", self.vad, DETECTORS),
        )
        return [
            f"{option(name)} is {value!r}, allowed are {', '.join(allowed)}"
            for name, value, allowed in choices
            if value not in allowed
        ]

    @property
    def detects_language(self) -> bool:
        """Whether the language is to be detected whatever the model was tuned for."""
        return self.language is not None and self.language.strip().lower() == AUTO

    @property
    def chunk_s(self) -> float:
        """Seconds of a chunk, or maximum seconds of a piece."""
        return self.chunk_length_s or _CHUNK_S

    def _long_form_problems(self) -> list[str]:
        problems = []
        if self.chunk_length_s is not None and not 1 <= self.chunk_length_s <= MAX_CHUNK_S:
            problems.append(
                f"{option('chunk_length_s')} is {self.chunk_length_s}, allowed are 1 to {MAX_CHUNK_S} seconds"
            )
        elif self.long_form == "chunked" and not 0 <= self.stride_s < self.chunk_s / 2:
            problems.append(
                f"{option('stride_s')} is {self.stride_s}, allowed is 0 to below half of a chunk's {self.chunk_s:g}"
            )
        if self.long_form != "sequential" and self.features == "file":
            problems.append(
                f"{option('features')} of the whole file go with sequential windows only, not with {self.long_form}"
            )
        if self.long_form == "chunked" and self.condition_on_previous_text:
            problems.append(
                f"chunks are decoded by themselves, they cannot be conditioned ({option('condition_on_previous_text')})"
            )
        return problems

    def _temperature_problems(self) -> list[str]:
        if not self.temperatures:
            return [f"{option('temperatures')} is empty, give at least one, such as 0"]
        wrong = [value for value in self.temperatures if not (math.isfinite(value) and 0 <= value <= 5)]
        return [f"{option('temperatures')} {wrong} are outside of 0 to 5"] if wrong else []

    def _threshold_problems(self) -> list[str]:
        problems = []
        ratio, logprob, no_speech = (
            self.compression_ratio_threshold,
            self.logprob_threshold,
            self.no_speech_threshold,
        )
        if ratio is not None and not ratio > 0:
            problems.append(f"{option('compression_ratio_threshold')} is {ratio}, expected a number above 0")
        if logprob is not None and not logprob <= 0:
            problems.append(f"{option('logprob_threshold')} is {logprob}, expected a log probability, 0 or below")
        if no_speech is not None and not 0 <= no_speech <= 1:
            problems.append(f"{option('no_speech_threshold')} is {no_speech}, expected a probability, 0 to 1")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            problems.append(f"{option('max_new_tokens')} is {self.max_new_tokens}, expected at least 1")
        return problems
