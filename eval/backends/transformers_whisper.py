"""The PyTorch original of a bundle through transformers' `generate`, to compare the bundle with."""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from whisperkit_tools.errors import EvaluationError, OptionsError
from whisperkit_tools.eval.backends.base import transcription
from whisperkit_tools.eval.backends.options import checked
from whisperkit_tools.eval.backends.registry import BackendOptions
from whisperkit_tools.files import first_line
from whisperkit_tools.speech import SAMPLE_RATE_HZ, WINDOW_SAMPLES, Samples, Segment, Timings, Transcription

# The same as our own decoding, so that the model is all that differs.
_CHECKS = {"compression_ratio_threshold": 1.35, "logprob_threshold": -1.0, "no_speech_threshold": 0.6}


def load(options: BackendOptions) -> "TransformersTranscriber":
    """Load a checkpoint from a folder or the Hub.

    Raises:
        EvaluationError: It cannot be loaded.
    """
    import torch

    own = checked(options.name, options.extra, {"dtype": "float32", "seed": 0})
    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if own["dtype"] not in dtypes:
        raise OptionsError(f"backend {options.name}: dtype is {own['dtype']!r}, allowed are {', '.join(dtypes)}")
    return TransformersTranscriber(options, dtypes[str(own["dtype"])], int(own["seed"]))


class TransformersTranscriber:
    """Sequential long-form decoding with timestamps, as Whisper does it."""

    def __init__(self, options: BackendOptions, dtype: Any, seed: int) -> None:
        """Load model, feature extractor and tokenizer."""
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizerFast

        self._device, self._dtype, self._seed = options.device or "cpu", dtype, seed
        try:
            model = WhisperForConditionalGeneration.from_pretrained(options.model, dtype=dtype)
            self._model: Any = model.to(self._device).eval()
            self._extractor: Any = WhisperFeatureExtractor.from_pretrained(options.model)
            self._tokenizer: Any = WhisperTokenizerFast.from_pretrained(options.model)
        except (OSError, ValueError, RuntimeError) as error:
            raise EvaluationError(f"transformers cannot load {options.model!r}: {first_line(error)}") from error
        self._temperatures = options.temperatures

    @property
    def _languages(self) -> dict[str, int]:
        """Tokens of the languages, by code. Empty for an English model."""
        config = self._model.generation_config
        if not getattr(config, "is_multilingual", False):
            return {}
        return {token.strip("<|>"): id for token, id in config.lang_to_id.items()}

    def check(self, languages: Collection[str]) -> None:
        """Check that the checkpoint knows these languages."""
        known = set(self._languages) or {"en"}
        unknown = sorted(set(languages) - known)
        if unknown:
            raise OptionsError(
                f"the checkpoint does not know the language{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; "
                f"it knows {', '.join(sorted(known))}"
            )

    def transcribe(self, audio: Samples, *, language: str | None = None, words: bool = False) -> Transcription:
        """Transcribe one audio."""
        import torch

        begun = time.perf_counter()
        torch.manual_seed(self._seed)
        extra = {} if len(audio) <= WINDOW_SAMPLES else {"truncation": False, "padding": "longest"}
        features = self._extractor(audio, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", **extra).input_features
        mel_s = time.perf_counter() - begun
        spoken = {"language": language, "task": "transcribe"} if self._languages else {}
        with _watched(self._model) as watch, torch.no_grad():
            output = self._model.generate(
                features.to(self._device, self._dtype),
                return_timestamps=True,
                return_segments=True,
                condition_on_prev_tokens=False,
                temperature=self._temperatures,
                **_CHECKS,
                **spoken,
            )
        total_s = time.perf_counter() - begun
        return self._transcription(output, watch, audio, begun, mel_s, total_s)

    def _transcription(
        self, output: Any, watch: "_Watch", audio: Samples, begun: float, mel_s: float, total_s: float
    ) -> Transcription:
        kept, audio_s = output["segments"][0], len(audio) / SAMPLE_RATE_HZ
        segments = [
            Segment(
                round(float(part["start"]), 3),
                round(min(float(part["end"]), audio_s), 3),
                self._tokenizer.decode(part["tokens"], skip_special_tokens=True),
            )
            for part in kept
        ]
        segments = [segment for segment in segments if segment.text.strip()]
        timings = Timings(
            total_s=round(total_s, 6),
            mel_s=round(mel_s, 6),
            encoder_s=round(watch.encoder_s, 6),
            decoder_s=round(max(0.0, total_s - mel_s - watch.encoder_s), 6),
            time_to_first_token_s=round(watch.first_token_at - begun, 6) if watch.first_token_at else None,
            tokens=sum(len(part["tokens"]) for part in kept),
            windows=watch.encoded,
        )
        return transcription("".join(segment.text for segment in segments).strip(), audio, timings, segments)


@dataclass(slots=True)
class _Watch:
    """Times taken inside `generate`, which encodes a window again for its no-speech probability and fallbacks."""

    encoder_s: float = 0.0
    encoded: int = 0
    first_token_at: float | None = None
    started: list[float] = field(default_factory=list)

    def before_encoder(self, *_: Any) -> None:
        self.started.append(time.perf_counter())

    def after_encoder(self, *_: Any) -> None:
        self.encoder_s += time.perf_counter() - self.started.pop()
        self.encoded += 1

    def after_projection(self, *_: Any) -> None:
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()


@contextmanager
def _watched(model: Any) -> Iterator[_Watch]:
    """Time the encoder's calls and the first logits. On a GPU these are the times of launching, not of computing."""
    watch = _Watch()
    hooks = [
        model.model.encoder.register_forward_pre_hook(watch.before_encoder),
        model.model.encoder.register_forward_hook(watch.after_encoder),
        model.proj_out.register_forward_hook(watch.after_projection),
    ]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()
