"""One transcription while it runs: decodes the windows of an audio and gathers their segments, tokens and times."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from whisperkit_tools.decoder.session import CacheColumns, DecoderSession, StepRequest, Steps
from whisperkit_tools.decoder.speculative import SpeculativeSession
from whisperkit_tools.errors import AudioError, option
from whisperkit_tools.languages import LANGUAGE_CODES, LANGUAGE_NAMES
from whisperkit_tools.progress import Progress
from whisperkit_tools.speech import SAMPLE_RATE_HZ, Samples, Segment, Speculation, Timings, Transcription
from whisperkit_tools.transcribe.audio.features import FeatureSource, audio_features
from whisperkit_tools.transcribe.audio.vad import cut_in_pauses, detector
from whisperkit_tools.transcribe.engine import TranscriptionEngine
from whisperkit_tools.transcribe.flags import flag_notice, flagged
from whisperkit_tools.transcribe.options import TASKS, TranscribeOptions
from whisperkit_tools.transcribe.windows.chunked import DecodedChunk, overlapping_chunks, stitched_segments
from whisperkit_tools.transcribe.windows.decoding import DecodedWindow, WindowDecoder
from whisperkit_tools.transcribe.windows.sequential import Phrase, PromptContext, split_window
from whisperkit_tools.transcribe.windows.words import WordAligner, shifted

ENGLISH = "en"
_CHUNK_IN_STRIDES = 2.5
_WINDOWS_TO_JUDGE = 2  # a single window may be all in one phrase


@dataclass(frozen=True, slots=True)
class _Start:
    """The ids that every window's answer starts with, and their meaning."""

    ids: tuple[int, ...]
    language: str
    language_probability: float | None


@dataclass(slots=True)
class _Work:
    """Times by a clock and counts of the work done so far."""

    clock: Callable[[], float]
    started: float = field(init=False)
    windows: int = 0
    generated: int = 0
    fallbacks: int = 0
    mel_s: float = 0.0
    encoder_s: float = 0.0
    decoder_s: float = 0.0
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        """Note the time."""
        self.started = self.clock()

    def add(self, window: DecodedWindow) -> None:
        """Count a decoded window."""
        self.windows += 1
        self.generated += window.generated
        self.fallbacks += window.attempts - 1
        if self.first_token_at is None:
            self.first_token_at = window.first_token_at

    def timings(self, *, audio_s: float, decoder_steps: int, tokens: int) -> Timings:
        """Return the times up to now.

        Args:
            audio_s: Length of the audio.
            decoder_steps: Calls of the decoder.
            tokens: Kept tokens.
        """
        now = self.clock()
        total_s = now - self.started
        return Timings(
            total_s=round(total_s, 6),
            mel_s=round(self.mel_s, 6),
            encoder_s=round(self.encoder_s, 6),
            decoder_s=round(self.decoder_s, 6),
            time_to_first_token_s=round((self.first_token_at or now) - self.started, 6),
            windows=self.windows,
            decoder_steps=decoder_steps,
            tokens=tokens,
            tokens_per_second=round(self.generated / self.decoder_s, 3) if self.decoder_s else 0.0,
            fallbacks=self.fallbacks,
            real_time_factor=round(total_s / audio_s, 6),
        )


class TranscriptionRun:
    """Transcribes one audio: `decode` by the strategy of the options, then `result`."""

    def __init__(
        self,
        engine: TranscriptionEngine,
        options: TranscribeOptions,
        duration_s: float,
        progress: Progress,
        label: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare.

        Args:
            engine: Models and tokenizer of the bundle.
            options: Options that fit the model.
            duration_s: Length of the audio.
            progress: Told after each window.
            label: Name of the audio in progress.
            clock: Tells the seconds that this transcription has taken so far.
        """
        self._work = _Work(clock)
        given, options = options, self._suited(engine, engine.resolved(options), duration_s)
        self._engine, self._options = engine, options
        self._duration_s = duration_s
        self._progress, self._label = progress, label
        self._steps_before = engine.session.steps
        self._speculation_before = _speculation(engine.session)
        prompt, notice = engine.prompt(options)
        notices = (notice, self._prefill_notice(), self._language_notice(given), self._timestamps_notice(given))
        self._notices = [line for line in notices if line]
        self._context = PromptContext(
            engine.special, prompt, condition=options.condition_on_previous_text, limit=engine.prompt_limit
        )
        self._decoder = self._new_decoder()
        self._start: _Start | None = None
        self._closes: list[bool] = []  # of each window with text, whether a timestamp closes a phrase
        self._segments: list[Segment] = []
        self._tokens: list[int] = []

    def note(self, lines: Sequence[str]) -> None:
        """Add notices about the audio."""
        self._notices[:0] = lines

    def _new_decoder(self) -> WindowDecoder:
        engine = self._engine
        return WindowDecoder(
            engine.session,
            engine.special,
            self._options,
            max_length=engine.max_length,
            vocab_size=engine.models.sizes.vocab_size,
            clock=self._work.clock,
        )

    @staticmethod
    def _suited(engine: TranscriptionEngine, options: TranscribeOptions, duration_s: float) -> TranscribeOptions:
        """Return the options without timestamps where the vocabulary has none.

        Windows that follow each other need timestamps to begin between phrases, so long audio goes by chunks then.
        """
        if not options.timestamps or engine.special.has_timestamps:
            return options
        is_long = duration_s > engine.window_s
        can_be_cut = options.features == "window" and not options.condition_on_previous_text
        by_chunks = is_long and can_be_cut and options.long_form == "sequential"
        return replace(options, timestamps=False, long_form="chunked" if by_chunks else options.long_form)

    def _timestamps_notice(self, given: TranscribeOptions) -> str | None:
        if given.timestamps == self._options.timestamps:
            return None
        by_chunks = "" if given.long_form == self._options.long_form else ", and in overlapping chunks"
        return f"the model's vocabulary has no timestamps; it is transcribed without them{by_chunks}"

    # --- strategies --------------------------------------------------------------------------------------------------

    def decode(self, samples: Samples) -> Steps[None]:
        """Decode audio samples `[n]` by the strategy of the options.

        Yields:
            Steps on the engine's session.
        """
        # A chunk may be shorter than a window. What fits into one chunk needs no cutting.
        is_longer = self._duration_s > min(self._options.chunk_s, self._engine.window_s)
        if self._options.long_form == "chunked" and is_longer:
            yield from self.by_chunks(samples)
        elif self._options.long_form == "vad" and is_longer:
            yield from self.by_pauses(samples)
        else:
            yield from self.sequential(self._features(samples), 0.0, self._duration_s)

    def sequential(self, source: FeatureSource, start_s: float, stop_s: float) -> Steps[None]:
        """Decode window after window of a piece of the audio.

        Args:
            source: Features of the piece.
            start_s: Where the piece starts in the audio.
            stop_s: Where it stops.
        """
        sizes, frame = self._engine.models.sizes, 0
        while frame < source.n_frames:
            count = min(sizes.n_frames, source.n_frames - frame)
            window = yield from self._decode_window(source, frame, count)
            if window.guesses_times and self._options.timestamps:
                self._stop_timestamps()
                window = yield from self._decode_window(source, frame, count)
            split = split_window(
                window.tokens,
                self._engine.special,
                window_frames=count,
                frames_per_position=sizes.frames_per_position,
            )
            phrases, advance = ((), count) if window.has_no_speech else (split.phrases, split.advance_frames)
            self._context.add(window, phrases)
            self._closes += [window.surest_timestamp is not None] if phrases and self._options.timestamps else []
            for phrase in phrases:
                self._tokens += phrase.tokens
            self._segments += self._phrase_segments(
                window, phrases, start_s + frame * self._engine.frame_s, count, stop_s
            )
            frame += advance
            self._advance(start_s + frame * self._engine.frame_s if frame < source.n_frames else stop_s)

    def by_pauses(self, samples: Samples) -> Steps[None]:
        """Decode the pieces between pauses. Where no speech is found the model itself judges all of the audio."""
        speech = detector(self._options.vad).speech(samples)
        max_samples = round(min(self._options.chunk_s, self._engine.window_s) * SAMPLE_RATE_HZ)
        for start, stop in cut_in_pauses(samples, speech, max_samples) or [(0, len(samples))]:
            source = self._features(samples[start:stop])
            yield from self.sequential(source, start / SAMPLE_RATE_HZ, stop / SAMPLE_RATE_HZ)
        self._advance(self._duration_s)

    def by_chunks(self, samples: Samples) -> Steps[None]:
        """Decode overlapping chunks, and stitch them at the end."""
        options, engine = self._options, self._engine
        seconds = min(options.chunk_s, engine.window_s)
        length = round(seconds * SAMPLE_RATE_HZ)
        stride_s = options.stride_s
        if seconds < options.chunk_s:  # the model's windows are shorter, which leaves less room for the overlap
            stride_s = min(stride_s, seconds / _CHUNK_IN_STRIDES)
        stride = round(stride_s * SAMPLE_RATE_HZ)
        decoded = []
        for chunk in overlapping_chunks(len(samples), length, stride):
            source = self._features(samples[chunk.start : chunk.stop])
            window = yield from self._decode_window(source, 0, source.n_frames)
            start_s, stop_s = chunk.start / SAMPLE_RATE_HZ, chunk.stop / SAMPLE_RATE_HZ
            decoded.append(DecodedChunk.of(window, engine.special, start_s, stop_s, engine.position_s))
            self._advance(stop_s)
        self._segments = stitched_segments(
            decoded,
            engine.tokenizer.decode,
            self._written_language,
            timestamps=options.timestamps,
            words=options.word_timestamps,
        )
        self._tokens = [token for segment in self._segments for token in segment.tokens]

    def result(self) -> Transcription:
        """Return the transcription.

        Raises:
            AudioError: Nothing was decoded, because the audio holds no frames.
        """
        if self._start is None:
            raise AudioError("the audio holds no frames; there is nothing to transcribe")
        segments = flagged(self._segments, self._options)
        notices = (*self._notices, *(line for line in (self._closing_notice(), flag_notice(segments)) if line))
        return Transcription(
            text="".join(segment.text for segment in self._segments).strip(),
            language=self._start.language,
            language_probability=self._start.language_probability,
            task=self._task,
            segments=tuple(segments),
            tokens=tuple(self._tokens),
            audio_duration_s=round(self._duration_s, 6),
            timings=self._work.timings(
                audio_s=self._duration_s,
                decoder_steps=self._engine.session.steps - self._steps_before,
                tokens=len(self._tokens),
            ),
            notices=notices,
            long_form=self._options.long_form,
            speculation=self._speculation(),
        )

    def _speculation(self) -> Speculation | None:
        """Return what the draft did for this audio."""
        now, before = _speculation(self._engine.session), self._speculation_before
        return None if now is None or before is None else now - before

    # --- one window --------------------------------------------------------------------------------------------------

    def _features(self, samples: Samples) -> FeatureSource:
        return audio_features(self._engine.models, samples, self._options.features)

    def _decode_window(self, source: FeatureSource, frame: int, count: int) -> Steps[DecodedWindow]:
        """Decode the window of `count` frames from `frame`, and count it."""
        embeds = self._encode(source, frame, count)
        decoding_from = self._work.clock()
        if self._start is None:
            self._start = yield from self._choose_start(embeds)
        prefix, start_of_transcript = self._context.prefix(self._start.ids)
        window = yield from self._decoder.decode(embeds, prefix, start_of_transcript, self._prefilled(self._start))
        self._work.decoder_s += self._work.clock() - decoding_from
        self._work.add(window)
        return window

    def _encode(self, source: FeatureSource, frame: int, count: int) -> Tensor:
        """Compute a window's audio embeddings, and note how long it took."""
        begin = time.perf_counter()
        features = source.window(frame, count)
        between = time.perf_counter()
        embeds = self._engine.models.encode(features)
        self._work.mel_s += between - begin
        self._work.encoder_s += time.perf_counter() - between
        return embeds

    def _phrase_segments(
        self, window: DecodedWindow, phrases: Sequence[Phrase], offset_s: float, count: int, stop_s: float
    ) -> list[Segment]:
        """Return the phrases with text, in seconds of the audio.

        Args:
            window: The window.
            phrases: Its phrases.
            offset_s: Where the window starts in the audio.
            count: Mel frames of audio in the window.
            stop_s: Where its piece of the audio stops.
        """
        position_s, decode = self._engine.position_s, self._engine.tokenizer.decode
        words: list[list[tuple[str, float, float]]] = [[] for _ in phrases]
        if self._options.word_timestamps and window.alignment is not None:
            aligner = WordAligner(self._engine.special, decode, self._written_language, position_s)
            positions = count // self._engine.models.sizes.frames_per_position
            words = aligner.align(window.tokens, window.alignment, phrases, positions)
        texts = [decode(phrase.tokens) for phrase in phrases]
        return [
            window.segment(
                min(offset_s + phrase.start * position_s, stop_s),
                min(offset_s + phrase.end * position_s, stop_s),
                text,
                phrase.tokens,
                shifted(timed, offset_s, stop_s),
            )
            for phrase, text, timed in zip(phrases, texts, words, strict=True)
            if text.strip()
        ]

    def _advance(self, done_s: float) -> None:
        """Report how much of the audio is done."""
        self._progress.advance(self._label, round(done_s, 1), round(self._duration_s, 1))

    # --- language, task and prefill ----------------------------------------------------------------------------------

    @property
    def _task(self) -> str:
        """The task, once the model's own stands in for none."""
        return self._options.task or TASKS[0]

    @property
    def _written_language(self) -> str:
        """Code of the language that is written, once the first window was decoded."""
        return ENGLISH if self._task == "translate" or self._start is None else self._start.language

    def _choose_start(self, embeds: Tensor) -> Steps[_Start]:
        """Choose the ids that every answer starts with. The language is detected in the first window."""
        special = self._engine.special
        ids = [special.start_of_transcript]
        language, probability = ENGLISH, None
        if special.is_multilingual:
            if self._options.language is None:
                language, probability = yield from self._detect_language(embeds)
            else:
                language = special.language_of(special.language_id(self._options.language))
            ids += [special.languages[language], special.tasks[self._task]]
        if not self._options.timestamps:
            ids.append(special.no_timestamps)
        return _Start(tuple(ids), language, probability)

    def _detect_language(self, embeds: Tensor) -> Steps[tuple[str, float]]:
        """Return the most probable language of a window, and its probability among all languages."""
        special = self._engine.special
        self._engine.session.begin(embeds)
        logits = (yield StepRequest(special.start_of_transcript, 0)).logits
        codes = list(special.languages)
        probabilities = logits[[special.languages[code] for code in codes]].softmax(dim=0)
        best = int(probabilities.argmax())
        return codes[best], float(probabilities[best])

    def _prefilled(self, start: _Start) -> CacheColumns | None:
        """Return the prefill's caches for the language and task, where it is to be used."""
        lookup, special = self._engine.models.prefill_lookup, self._engine.special
        if lookup is None or not self._options.prefill or lookup.length != special.forced:
            return None
        return lookup.columns(special.languages.get(start.language, 0), TASKS.index(self._task))

    def _stop_timestamps(self) -> None:
        """Go on without timestamps, because those of this model are guesses that cut phrases in the wrong places."""
        engine = self._engine
        self._options = replace(self._options, timestamps=False)
        self._decoder = self._new_decoder()
        if self._start is not None:
            self._start = replace(self._start, ids=(*self._start.ids, engine.special.no_timestamps))
        self._notices.append(
            "the model's timestamps are guesses, as after training without them; it is transcribed without timestamps, "
            f"in windows of {engine.window_s:g} s, which may cut words: use {option('long_form', 'chunked')} for long "
            "audio"
        )

    def _closing_notice(self) -> str | None:
        """Return why long audio may lose words at its seams, where no window closed a phrase."""
        if len(self._closes) < _WINDOWS_TO_JUDGE or any(self._closes):
            return None
        return (
            "the model predicts no closing timestamps, as after training without them; its windows follow each other "
            f"every {self._engine.window_s:g} s, which may cut words: use {option('long_form', 'chunked')}"
        )

    def _language_notice(self, given: TranscribeOptions) -> str | None:
        """Return which of the model's languages a tag such as `pt-BR` stands for."""
        special, written = self._engine.special, given.language
        if written is None or given.detects_language or not special.is_multilingual:
            return None
        code = special.language_of(special.language_id(written))
        plain = written.strip().lower().removeprefix("<|").removesuffix("|>")
        if plain == code or LANGUAGE_CODES.get(plain) == code:
            return None
        return f"the language {written} is read as {code} ({LANGUAGE_NAMES.get(code, 'without a known name')})"

    def _prefill_notice(self) -> str | None:
        """Return why a prefill that is there and wanted cannot be used."""
        lookup, forced = self._engine.models.prefill_lookup, self._engine.special.forced
        if lookup is None or not self._options.prefill or lookup.length == forced:
            return None
        return f"the bundle's prefill is not used: it holds {lookup.length} tokens, this model forces {forced}"


def _speculation(session: DecoderSession) -> Speculation | None:
    """Return what a session's draft did so far."""
    return session.speculation if isinstance(session, SpeculativeSession) else None
