"""faster-whisper: Whisper on CTranslate2, on CPUs and CUDA."""

import importlib
import time
from collections.abc import Collection
from typing import Any

from whisperkit_tools.errors import EvaluationError, OptionsError
from whisperkit_tools.eval.backends.base import transcription
from whisperkit_tools.eval.backends.options import Value, checked
from whisperkit_tools.eval.backends.registry import BackendOptions
from whisperkit_tools.files import first_line
from whisperkit_tools.speech import Samples, Segment, Timings, Transcription, Word


def load(options: BackendOptions) -> "FasterWhisperTranscriber":
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
    own = checked(options.name, options.extra, defaults)
    compute_type = own.pop("compute_type")
    try:
        model = library.WhisperModel(options.model, device=options.device or "auto", compute_type=compute_type)
    except (OSError, ValueError, RuntimeError) as error:
        raise EvaluationError(f"faster-whisper cannot load {options.model!r}: {first_line(error)}") from error
    return FasterWhisperTranscriber(model, options.temperatures, own)


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
            raise OptionsError(f"the model does not know {', '.join(unknown)}; it knows {', '.join(sorted(known))}")

    def transcribe(self, audio: Samples, *, language: str | None = None, words: bool = False) -> Transcription:
        """Transcribe one audio. faster-whisper decodes while its segments are read."""
        begun = time.perf_counter()
        parts, info = self._model.transcribe(
            audio, language=language, temperature=list(self._temperatures), word_timestamps=words, **self._options
        )
        kept = list(parts)
        total_s = time.perf_counter() - begun
        segments = [Segment(round(part.start, 3), round(part.end, 3), part.text, words=_words(part)) for part in kept]
        timings = Timings(round(total_s, 6), tokens=sum(len(part.tokens) for part in kept))
        text = "".join(part.text for part in kept).strip()
        return transcription(text, audio, timings, segments, info.language)


def _words(part: Any) -> tuple[Word, ...]:
    return tuple(Word(word.word, round(float(word.start), 3), round(float(word.end), 3)) for word in part.words or ())
