"""From audio samples to a transcription: ties the bundle's models, its tokenizer and the decoding rules together."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.decoder.models import Models, ModelSizes
from whisperkit_tools.decoder.session import CacheColumns
from whisperkit_tools.errors import AudioError, BundleError
from whisperkit_tools.mil.tensor_spec import Precision
from whisperkit_tools.speech import SAMPLE_RATE_HZ, Segment, Timings, Transcription
from whisperkit_tools.transcribe.audio.features import ArrayFeatures, FeatureSource, FloatArray, audio_features
from whisperkit_tools.transcribe.audio.vad import cut_in_pauses, detector
from whisperkit_tools.transcribe.options import TASKS, TranscribeOptions
from whisperkit_tools.transcribe.tokenizer import SpecialTokens, WhisperTokenizer
from whisperkit_tools.transcribe.windows.chunked import HeardChunk, overlapping_chunks, stitched_segments
from whisperkit_tools.transcribe.windows.decoding import DecodedWindow, WindowDecoder
from whisperkit_tools.transcribe.windows.sequential import Context, Phrase, split_window
from whisperkit_tools.transcribe.windows.words import WordAligner, shifted

ENGLISH = "en"
Progress = Callable[[float, float], None]
"""Called with the seconds of audio that are done, and those there are."""


@dataclass(slots=True)
class _Record:
    """What one transcription gathers while it runs."""

    segments: list[Segment] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    windows: int = 0
    generated: int = 0
    fallbacks: int = 0
    mel_s: float = 0.0
    encoder_s: float = 0.0
    decoder_s: float = 0.0
    first_token_at: float | None = None


@dataclass(frozen=True, slots=True)
class _Start:
    """The ids every window's answer starts with, and what they mean."""

    ids: tuple[int, ...]
    language: str
    language_probability: float | None


@dataclass(slots=True)
class _Job:
    """One transcription while it runs."""

    options: TranscribeOptions
    duration_s: float
    progress: Progress | None
    started: float
    notices: tuple[str, ...]
    context: Context
    decoder: WindowDecoder
    record: _Record = field(default_factory=_Record)
    start: _Start | None = None

    @property
    def written(self) -> str:
        """Code of the language that is written, once the first window is decoded."""
        return ENGLISH if self.options.task == "translate" or self.start is None else self.start.language

    def tell(self, done_s: float) -> None:
        """Report how far the audio is done."""
        if self.progress is not None:
            self.progress(done_s, self.duration_s)


class Transcriber:
    """Transcribes audio with one bundle; loaded once, used many times, by one thread at a time."""

    def __init__(self, models: Models, tokenizer: WhisperTokenizer, *, max_length: int) -> None:
        """Put the parts together; `load` finds them in a bundle.

        Args:
            models: The bundle's packages.
            tokenizer: Its tokenizer.
            max_length: Most tokens of prompt and answer together.
        """
        self.models = models
        self._tokenizer = tokenizer
        self._max_length = min(max_length, models.sizes.kv_length)
        self.session = models.new_session()

    @classmethod
    def load(
        cls,
        bundle: Bundle | str | Path,
        *,
        precision: Precision = "float32",
        backend: str = "torch",
        compute_units: str | None = None,
        device: str = "cpu",
    ) -> "Transcriber":
        """Load a bundle.

        Args:
            bundle: An opened bundle, or its folder.
            precision: `float32`, or `float16` to round every operation's result as the device does.
            backend: `torch` anywhere, or `coreml` on macOS.
            compute_units: Of Core ML.
            device: Of PyTorch.

        Raises:
            BundleError: The bundle is incomplete or damaged.
        """
        from whisperkit_tools.decoder.loading import load_models

        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        models = load_models(opened, precision=precision, backend=backend, compute_units=compute_units, device=device)
        return cls.from_models(models, opened)

    @classmethod
    def from_models(cls, models: Models, bundle: Bundle) -> "Transcriber":
        """Add a bundle's tokenizer and configs to models that are loaded already.

        Raises:
            BundleError: The tokenizer or the configs are missing or belong to another model.
        """
        config = bundle.read_json("config.json")
        generation_config = _generation_config(bundle, config)
        tokenizer = WhisperTokenizer.load(
            bundle.asset("tokenizer.json"),
            generation_config,
            vocab_size=models.sizes.vocab_size,
            n_audio_ctx=models.sizes.n_audio_ctx,
        )
        return cls(models, tokenizer, max_length=int(config.get("max_target_positions", models.sizes.kv_length)))

    @property
    def sizes(self) -> ModelSizes:
        """ModelSizes of the bundle's models."""
        return self.models.sizes

    @property
    def special(self) -> SpecialTokens:
        """The bundle's special ids."""
        return self._tokenizer.special

    @property
    def tokenizer(self) -> WhisperTokenizer:
        """The bundle's tokenizer."""
        return self._tokenizer

    def transcribe(
        self, audio: FloatArray, options: TranscribeOptions | None = None, *, progress: Progress | None = None
    ) -> Transcription:
        """Transcribe audio.

        Args:
            audio: `[samples]`, float32, mono, 16 kHz, between -1 and 1.
            options: What to do; the defaults when None.
            progress: Told after each window.

        Raises:
            AudioError: The audio is empty or not finite, or the options do not fit the model.
        """
        _check_audio(audio)
        samples = np.ascontiguousarray(audio, dtype=np.float32)
        options = options or TranscribeOptions()
        job = self._begin(options, len(samples) / SAMPLE_RATE_HZ, progress)
        # A chunk may be shorter than a window; what fits into one chunk needs no cutting.
        if options.long_form == "chunked" and job.duration_s > options.chunk_s:
            self._by_chunks(job, samples)
        elif options.long_form == "vad" and job.duration_s > options.chunk_s:
            self._by_pauses(job, samples)
        else:
            self._sequential(job, audio_features(self.models, samples, options.features), 0.0, job.duration_s)
        return self._finish(job)

    def transcribe_features(
        self, features: Tensor | FloatArray, options: TranscribeOptions | None = None
    ) -> Transcription:
        """Transcribe mel features that were computed elsewhere.

        Args:
            features: `[n_mels, frames]`.
            options: What to do; the defaults when None.

        Raises:
            AudioError: The options do not fit the model, or want audio that can be cut.
        """
        options = options or TranscribeOptions()
        if options.long_form != "sequential":
            raise AudioError(f"features that were computed elsewhere are not cut: long_form is {options.long_form!r}")
        sizes = self.models.sizes
        source = ArrayFeatures(features, sizes.n_frames)
        job = self._begin(options, source.n_frames * sizes.hop_length / SAMPLE_RATE_HZ, None)
        self._sequential(job, source, 0.0, job.duration_s)
        return self._finish(job)

    def check(self, options: TranscribeOptions) -> None:
        """Check that the options fit the model, before any audio is read.

        Raises:
            AudioError: They do not.
        """
        if options.language is not None:
            self.special.language_id(options.language)
        if not self.special.is_multilingual and options.task != "transcribe":
            raise AudioError(f"task {options.task!r} was asked for, but this model knows only English transcription")
        if options.task not in self.special.tasks and self.special.is_multilingual:
            raise AudioError(f"this model's vocabulary has no task {options.task!r}")
        if options.word_timestamps and not self.sizes.has_alignment:
            raise BundleError(
                "this bundle has no word timestamps: its TextDecoder has no output alignment_heads_weights; "
                "convert it again without --no-word-timestamps"
            )
        if options.prompt is not None:
            self._tokenizer.encode_prompt(options.prompt, self._prompt_limit)

    @property
    def _prompt_limit(self) -> int:
        """Half of the context less one, as in OpenAI's code and the on-device runtime."""
        return self._max_length // 2 - 1

    def _begin(self, options: TranscribeOptions, duration_s: float, progress: Progress | None) -> "_Job":
        """Make ready for one transcription."""
        started = time.perf_counter()
        self.check(options)
        self.session.steps = 0
        prompt, notice = self._prompt(options)
        context = Context(self.special, prompt, condition=options.condition_on_previous_text, limit=self._prompt_limit)
        decoder = WindowDecoder(
            self.session, self.special, options, max_length=self._max_length, vocab_size=self.sizes.vocab_size
        )
        notices = tuple(line for line in (notice, self._prefill_notice(options)) if line)
        return _Job(options, duration_s, progress, started, notices, context, decoder)

    def _finish(self, job: "_Job") -> Transcription:
        if job.start is None:
            raise AudioError("the audio holds no frames; there is nothing to transcribe")
        return self._result(job.record, job.start, job.options, job.duration_s, job.started, job.notices)

    def _window(self, job: "_Job", source: FeatureSource, frame: int, count: int) -> DecodedWindow:
        """Decode the window of `count` frames from `frame`."""
        embeds = self._encode(source, frame, count, job.record)
        decoding_from = time.perf_counter()
        job.start = job.start or self._start(embeds, job.options)
        prefix, at = job.context.prefix(job.start.ids)
        window = job.decoder.decode(embeds, prefix, at, self._prefilled(job.start, job.options))
        job.record.decoder_s += time.perf_counter() - decoding_from
        return window

    def _sequential(self, job: "_Job", source: FeatureSource, offset_s: float, stop_s: float) -> None:
        """Decode window after window of a piece of the audio that starts at `offset_s` and stops at `stop_s`."""
        frame, frame_s = 0, self.sizes.hop_length / SAMPLE_RATE_HZ
        while frame < source.n_frames:
            count = min(self.sizes.n_frames, source.n_frames - frame)
            window = self._window(job, source, frame, count)
            split = split_window(
                window.tokens,
                self.special,
                window_frames=count,
                frames_per_position=self.sizes.frames_per_position,
            )
            phrases, advance = ((), count) if window.has_no_speech else (split.phrases, split.advance_frames)
            job.context.add(window, phrases)
            self._record(job.record, window, [phrase.tokens for phrase in phrases])
            from_s = offset_s + frame * frame_s
            job.record.segments += self._segments(window, phrases, job.options, job.written, from_s, count, stop_s)
            frame += advance
            job.tell(offset_s + frame * frame_s if frame < source.n_frames else stop_s)

    def _by_pauses(self, job: "_Job", samples: FloatArray) -> None:
        """Decode the pieces between pauses; where no speech is found the model itself judges all of it."""
        options = job.options
        speech = detector(options.vad).speech(samples)
        longest = round(options.chunk_s * SAMPLE_RATE_HZ)
        for start, stop in cut_in_pauses(samples, speech, longest) or [(0, len(samples))]:
            source = audio_features(self.models, samples[start:stop], options.features)
            self._sequential(job, source, start / SAMPLE_RATE_HZ, stop / SAMPLE_RATE_HZ)
        job.tell(job.duration_s)

    def _by_chunks(self, job: "_Job", samples: FloatArray) -> None:
        """Decode overlapping chunks, and stitch them at the end."""
        options = job.options
        length, stride = (round(seconds * SAMPLE_RATE_HZ) for seconds in (options.chunk_s, options.stride_s))
        position_s = self.sizes.hop_length * self.sizes.frames_per_position / SAMPLE_RATE_HZ
        heard = []
        for chunk in overlapping_chunks(len(samples), length, stride):
            source = audio_features(self.models, samples[chunk.start : chunk.stop], options.features)
            window = self._window(job, source, 0, source.n_frames)
            self._record(job.record, window, ())
            stop_s = chunk.stop / SAMPLE_RATE_HZ
            heard.append(HeardChunk.of(window, self.special, chunk.start / SAMPLE_RATE_HZ, stop_s, position_s))
            job.tell(stop_s)
        job.record.segments = stitched_segments(
            heard, self._tokenizer.decode, job.written, timestamps=options.timestamps, words=options.word_timestamps
        )
        job.record.tokens = [token for segment in job.record.segments for token in segment.tokens]

    def _encode(self, source: FeatureSource, frame: int, count: int, record: _Record) -> Tensor:
        """Compute a window's audio embeddings, and note how long it took."""
        begin = time.perf_counter()
        features = source.window(frame, count)
        between = time.perf_counter()
        embeds = self.models.encode(features)
        record.mel_s += between - begin
        record.encoder_s += time.perf_counter() - between
        return embeds

    def _prompt(self, options: TranscribeOptions) -> tuple[tuple[int, ...], str | None]:
        if options.prompt is None or not options.prompt.strip():
            return (), None
        return self._tokenizer.encode_prompt(options.prompt, self._prompt_limit)

    def _start(self, embeds: Tensor, options: TranscribeOptions) -> _Start:
        """Decide on the ids that every answer starts with; the language is detected from the first window."""
        special = self.special
        ids = [special.start_of_transcript]
        language, probability = ENGLISH, None
        if special.is_multilingual:
            if options.language is None:
                language, probability = self.detect_language(embeds)
            else:
                language = special.language_of(special.language_id(options.language))
            ids += [special.languages[language], special.tasks[options.task]]
        if not options.timestamps:
            ids.append(special.no_timestamps)
        return _Start(tuple(ids), language, probability)

    def _prefilled(self, start: _Start, options: TranscribeOptions) -> CacheColumns | None:
        """Return the table's caches of the language and task, where it is to be used."""
        table = self.models.prefill_lookup
        if table is None or not options.prefill or table.length != self.special.forced:
            return None
        return table.columns(self.special.languages.get(start.language, 0), TASKS.index(options.task))

    def _prefill_notice(self, options: TranscribeOptions) -> str | None:
        """Say why a table that is there and wanted is of no use."""
        table, forced = self.models.prefill_lookup, self.special.forced
        if table is None or not options.prefill or table.length == forced:
            return None
        return f"the bundle's prefill is not used: it holds {table.length} tokens, answers here start with {forced}"

    def detect_language(self, embeds: Tensor) -> tuple[str, float]:
        """Return the most probable language of a window and its probability among all languages."""
        self.session.begin(embeds)
        logits, _ = self.session.step(self.special.start_of_transcript, 0)
        codes = list(self.special.languages)
        probabilities = logits[[self.special.languages[code] for code in codes]].softmax(dim=0)
        best = int(probabilities.argmax())
        return codes[best], float(probabilities[best])

    def _record(self, record: _Record, window: DecodedWindow, kept: Sequence[Sequence[int]]) -> None:
        record.windows += 1
        record.generated += window.generated
        record.fallbacks += window.attempts - 1
        for tokens in kept:
            record.tokens += tokens
        if record.first_token_at is None:
            record.first_token_at = window.first_token_at

    def _segments(
        self,
        window: DecodedWindow,
        phrases: Sequence[Phrase],
        options: TranscribeOptions,
        language: str,
        offset_s: float,
        count: int,
        stop_s: float,
    ) -> list[Segment]:
        """Phrases with text, in seconds of the audio: the window starts at `offset_s`, its piece ends at `stop_s`."""
        frame_s = self.sizes.hop_length / SAMPLE_RATE_HZ
        position_s = frame_s * self.sizes.frames_per_position
        words: list[list[tuple[str, float, float]]] = [[] for _ in phrases]
        if options.word_timestamps and window.alignment is not None:
            aligner = WordAligner(self.special, self._tokenizer.decode, language, position_s)
            positions = count // self.sizes.frames_per_position
            words = aligner.align(window.tokens, window.alignment, phrases, positions)
        segments = []
        for phrase, timed in zip(phrases, words, strict=True):
            text = self._tokenizer.decode(phrase.tokens)
            if not text.strip():
                continue
            segments.append(
                Segment(
                    start_s=round(min(offset_s + phrase.start * position_s, stop_s), 3),
                    end_s=round(min(offset_s + phrase.end * position_s, stop_s), 3),
                    text=text,
                    tokens=phrase.tokens,
                    temperature=window.temperature,
                    avg_logprob=round(window.avg_logprob, 6),
                    compression_ratio=round(window.compression_ratio, 6),
                    no_speech_prob=_rounded(window.no_speech_prob),
                    words=shifted(timed, offset_s, stop_s),
                )
            )
        return segments

    def _result(
        self,
        record: _Record,
        start: _Start,
        options: TranscribeOptions,
        duration_s: float,
        started: float,
        notices: tuple[str, ...],
    ) -> Transcription:
        total_s = time.perf_counter() - started
        first = record.first_token_at if record.first_token_at is not None else started + total_s
        timings = Timings(
            total_s=round(total_s, 6),
            mel_s=round(record.mel_s, 6),
            encoder_s=round(record.encoder_s, 6),
            decoder_s=round(record.decoder_s, 6),
            time_to_first_token_s=round(first - started, 6),
            windows=record.windows,
            decoder_steps=self.session.steps,
            tokens=len(record.tokens),
            tokens_per_second=round(record.generated / record.decoder_s, 3) if record.decoder_s else 0.0,
            fallbacks=record.fallbacks,
            real_time_factor=round(total_s / duration_s, 6),
        )
        return Transcription(
            text="".join(segment.text for segment in record.segments).strip(),
            language=start.language,
            language_probability=start.language_probability,
            task=options.task,
            segments=tuple(record.segments),
            tokens=tuple(record.tokens),
            audio_duration_s=round(duration_s, 6),
            timings=timings,
            notices=notices,
            long_form=options.long_form,
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _check_audio(audio: FloatArray) -> None:
    """Raise `AudioError` unless the audio is a row of finite numbers."""
    if audio.ndim != 1:
        raise AudioError(f"the audio has shape {list(audio.shape)}, expected one channel: [samples]")
    if audio.size == 0:
        raise AudioError("the audio holds no samples; there is nothing to transcribe")
    if not bool(np.isfinite(audio).all()):
        bad = int(np.count_nonzero(~np.isfinite(audio)))
        raise AudioError(f"the audio holds {bad} samples that are not numbers (NaN or infinite); export it again")


def _generation_config(bundle: Bundle, config: dict[str, Any]) -> dict[str, Any]:
    """Content of `generation_config.json`, filled up from the model's config where older checkpoints keep it."""
    has_file = (bundle.path / "generation_config.json").is_file()
    generation_config = bundle.read_json("generation_config.json") if has_file else {}
    inherited = (
        "eos_token_id",
        "decoder_start_token_id",
        "suppress_tokens",
        "begin_suppress_tokens",
    )
    for name in inherited:
        if generation_config.get(name) is None and config.get(name) is not None and not has_file:
            generation_config[name] = config[name]
    return generation_config
