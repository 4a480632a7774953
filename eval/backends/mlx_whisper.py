"""mlx-whisper: Whisper on the GPU of Apple silicon."""

import importlib
import time
from collections.abc import Collection
from typing import Any

from whisperkit_tools.errors import EvaluationError
from whisperkit_tools.eval.backends.base import FloatArray, Hypothesis, TimedText, Timings
from whisperkit_tools.eval.backends.options import checked
from whisperkit_tools.eval.backends.registry import BackendSpec
from whisperkit_tools.speech import SAMPLE_RATE_HZ


def load(spec: BackendSpec) -> "MlxWhisperTranscriber":
    """Take a folder or Hub id with MLX weights; mlx-whisper loads it with the first audio, and keeps it."""
    library: Any = importlib.import_module("mlx_whisper")
    options = checked(spec.name, spec.options, {"condition_on_previous_text": False})
    return MlxWhisperTranscriber(library, spec.model, spec.temperatures, options)


class MlxWhisperTranscriber:
    """mlx-whisper with one model."""

    def __init__(self, library: Any, model: str, temperatures: tuple[float, ...], options: dict[str, Any]) -> None:
        self._library = library
        self._model = model
        self._temperatures = temperatures
        self._options = options

    def check(self, languages: Collection[str]) -> None:
        """Check that Whisper knows these languages."""
        tokenizer: Any = importlib.import_module("mlx_whisper.tokenizer")
        unknown = sorted(set(languages) - set(tokenizer.LANGUAGES))
        if unknown:
            raise EvaluationError(f"Whisper does not know {', '.join(unknown)}")

    def transcribe(self, audio: FloatArray, *, language: str | None = None, words: bool = False) -> Hypothesis:
        """Transcribe one audio."""
        begun = time.perf_counter()
        result = self._library.transcribe(
            audio,
            path_or_hf_repo=self._model,
            language=language,
            temperature=self._temperatures,
            word_timestamps=words,
            **self._options,
        )
        total_s = time.perf_counter() - begun
        parts = result["segments"]
        timings = Timings(
            audio_s=round(len(audio) / SAMPLE_RATE_HZ, 6),
            total_s=round(total_s, 6),
            tokens=sum(len(part["tokens"]) for part in parts),
        )
        return Hypothesis(
            result["text"].strip(),
            timings,
            tuple(TimedText(part["text"], float(part["start"]), float(part["end"])) for part in parts),
            tuple(
                TimedText(word["word"], float(word["start"]), float(word["end"]))
                for part in parts
                for word in part.get("words", ())
            ),
            result.get("language"),
        )
