"""mlx-whisper: Whisper on the GPU of Apple silicon."""

import importlib
import time
from collections.abc import Collection
from typing import Any

from whisperkit_tools.errors import OptionsError
from whisperkit_tools.eval.backends.base import transcription
from whisperkit_tools.eval.backends.options import checked
from whisperkit_tools.eval.backends.registry import BackendOptions
from whisperkit_tools.speech import Samples, Segment, Timings, Transcription, Word


def load(options: BackendOptions) -> "MlxWhisperTranscriber":
    """Take a folder or Hub id with MLX weights. mlx-whisper loads it with the first audio and keeps it."""
    library: Any = importlib.import_module("mlx_whisper")
    own = checked(options.name, options.extra, {"condition_on_previous_text": False})
    return MlxWhisperTranscriber(library, options.model, options.temperatures, own)


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
            raise OptionsError(f"Whisper does not know {', '.join(unknown)}; it knows {', '.join(tokenizer.LANGUAGES)}")

    def transcribe(self, audio: Samples, *, language: str | None = None, words: bool = False) -> Transcription:
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
        timings = Timings(round(total_s, 6), tokens=sum(len(part["tokens"]) for part in parts))
        segments = [
            Segment(float(part["start"]), float(part["end"]), part["text"], words=_words(part)) for part in parts
        ]
        return transcription(result["text"].strip(), audio, timings, segments, result.get("language"))


def _words(part: dict[str, Any]) -> tuple[Word, ...]:
    return tuple(Word(word["word"], float(word["start"]), float(word["end"])) for word in part.get("words", ()))
