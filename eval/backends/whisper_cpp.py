"""whisper.cpp through pywhispercpp: ggml models on CPUs, Metal and CUDA."""

import importlib
import time
from collections.abc import Collection
from typing import Any

from whisperkit_tools.errors import EvaluationError, OptionsError
from whisperkit_tools.eval.backends.base import transcription
from whisperkit_tools.eval.backends.options import checked
from whisperkit_tools.eval.backends.registry import BackendOptions
from whisperkit_tools.speech import Samples, Segment, Timings, Transcription

_TICKS_PER_S = 100  # whisper.cpp counts in hundredths of a second


def load(options: BackendOptions) -> "WhisperCppTranscriber":
    """Load a ggml model by its name or file.

    Raises:
        EvaluationError: It cannot be loaded.
    """
    library: Any = importlib.import_module("pywhispercpp.model")
    own = checked(options.name, options.extra, {"n_threads": 4, "beam_size": 0})
    beam_size = own.pop("beam_size")
    strategy = {"params_sampling_strategy": 1, "beam_search": {"beam_size": beam_size, "patience": -1.0}}
    try:
        model = library.Model(options.model, redirect_whispercpp_logs_to=None, **(strategy if beam_size else {}))
    except Exception as error:  # it raises bare exceptions
        raise EvaluationError(f"whisper.cpp cannot load {options.model!r}: {error}") from error
    return WhisperCppTranscriber(model, options.temperatures, own)


class WhisperCppTranscriber:
    """A loaded ggml model."""

    def __init__(self, model: Any, temperatures: tuple[float, ...], options: dict[str, Any]) -> None:
        step = temperatures[1] - temperatures[0] if len(temperatures) > 1 else 0.0
        self._model = model
        self._options = {**options, "temperature": temperatures[0], "temperature_inc": step}

    def check(self, languages: Collection[str]) -> None:
        """Check that whisper.cpp knows these languages."""
        known = set(self._model.available_languages())
        unknown = sorted(set(languages) - known)
        if unknown:
            raise OptionsError(f"whisper.cpp does not know {', '.join(unknown)}; it knows {', '.join(sorted(known))}")

    def transcribe(self, audio: Samples, *, language: str | None = None, words: bool = False) -> Transcription:
        """Transcribe one audio. Word times would need segments of single words, which changes the text."""
        begun = time.perf_counter()
        parts = self._model.transcribe(
            audio, language=language or "auto", print_progress=False, no_context=True, **self._options
        )
        total_s = time.perf_counter() - begun
        segments = [Segment(part.t0 / _TICKS_PER_S, part.t1 / _TICKS_PER_S, part.text) for part in parts]
        text = " ".join(part.text.strip() for part in parts)
        return transcription(text, audio, Timings(round(total_s, 6)), segments, language)
