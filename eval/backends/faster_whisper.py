"""faster-whisper: Whisper on CTranslate2, on CPUs and CUDA."""

import importlib
import time
from collections.abc import Collection
from typing import Any

from whisperkit_tools.errors import EvaluationError
from whisperkit_tools.eval.backends.base import FloatArray, Hypothesis, TimedText, Timings
from whisperkit_tools.eval.backends.options import Value, checked
from whisperkit_tools.eval.backends.registry import BackendSpec
from whisperkit_tools.speech import SAMPLE_RATE_HZ


def load(spec: BackendSpec) -> "FasterWhisperTranscriber":
    """Load a model by its size, its Hub id, or the folder of a converted one.

    Raises:
        EvaluationError: It cannot be loaded.
    """
    library: Any = importlib.import_module("faster_whisper")
    defaults: dict[str, Value] = {
        "compute_type": "default",
        "beam_size": 5,
        "vad_filter": False,
        "condition_on_previous_text": False,
    }
    options = checked(spec.name, spec.options, defaults)
    compute_type = options.pop("compute_type")
    try:
        model = library.WhisperModel(spec.model, device=spec.device or "auto", compute_type=compute_type)
    except (OSError, ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise EvaluationError(f"faster-whisper cannot load {spec.model!r}: {first}") from error
    return FasterWhisperTranscriber(model, spec.temperatures, options)


class FasterWhisperTranscriber:
    """A loaded CTranslate2 model."""

    def __init__(self, model: Any, temperatures: tuple[float, ...], options: dict[str, Any]) -> None:
        self._model = model
        self._temperatures = temperatures
        self._options = options

    def check(self, languages: Collection[str]) -> None:
        """Check that the model knows these languages."""
        known = set(self._model.supported_languages)
        unknown = sorted(set(languages) - known)
        if unknown:
            raise EvaluationError(f"the model does not know {', '.join(unknown)}; it knows {', '.join(sorted(known))}")

    def transcribe(self, audio: FloatArray, *, language: str | None = None, words: bool = False) -> Hypothesis:
        """Transcribe one audio; faster-whisper decodes while its segments are read."""
        begun = time.perf_counter()
        parts, info = self._model.transcribe(
            audio, language=language, temperature=list(self._temperatures), word_timestamps=words, **self._options
        )
        kept = list(parts)
        total_s = time.perf_counter() - begun
        segments = tuple(TimedText(part.text, round(part.start, 3), round(part.end, 3)) for part in kept)
        timed = tuple(
            TimedText(word.word, round(float(word.start), 3), round(float(word.end), 3))
            for part in kept
            for word in part.words or ()
        )
        timings = Timings(
            audio_s=round(len(audio) / SAMPLE_RATE_HZ, 6),
            total_s=round(total_s, 6),
            tokens=sum(len(part.tokens) for part in kept),
        )
        return Hypothesis("".join(part.text for part in kept).strip(), timings, segments, timed, info.language)
