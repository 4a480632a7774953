"""Transcribing audio with one bundle: its models, its tokenizer, and the strategies for audio of any length."""

from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.decoder.loading import load_drafted_models, load_models
from whisperkit_tools.decoder.models import Models, ModelSizes
from whisperkit_tools.decoder.session import DecoderSession
from whisperkit_tools.errors import BundleError, OptionsError, option
from whisperkit_tools.mil.size_check import damage_reported
from whisperkit_tools.mil.tensor_spec import Precision
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.speech import SAMPLE_RATE_HZ, Samples, Transcription
from whisperkit_tools.transcribe.audio.features import ArrayFeatures
from whisperkit_tools.transcribe.engine import AudioSource, TranscriptionEngine, read_samples
from whisperkit_tools.transcribe.many import (
    AUTO,
    BatchSize,
    ManyTranscriptions,
    TranscriptionRequest,
    TranscriptionResult,
    automatic_batch_size,
    check_batch_size,
)
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.run import TranscriptionRun
from whisperkit_tools.transcribe.tokenizer import SpecialTokens, WhisperTokenizer, vocabulary

# Ids that older checkpoints keep in the model's config.
_INHERITED = ("eos_token_id", "decoder_start_token_id", "suppress_tokens", "begin_suppress_tokens")


class Transcriber:
    """Transcribes audio with one bundle. It is loaded once and used many times, by one thread at a time.

    Example:
        >>> import whisperkit_tools as wkt
        >>> found = wkt.Transcriber.load("bundles/acme_whisper-demo").transcribe("speech.flac")
        >>> found.language, len(found.text.split()) > 2
        ('en', True)
    """

    def __init__(self, models: Models, tokenizer: WhisperTokenizer, *, max_length: int) -> None:
        """Put the parts together. `load` finds them in a bundle.

        Args:
            models: The bundle's packages.
            tokenizer: Its tokenizer.
            max_length: Maximum number of tokens of prompt and answer together.
        """
        length = min(max_length, models.sizes.kv_length)
        self._engine = TranscriptionEngine(models, tokenizer, models.new_session(), length)

    @classmethod
    def load(
        cls,
        bundle: Bundle | str | Path,
        *,
        precision: Precision = "float32",
        backend: str = "torch",
        compute_units: str | None = None,
        device: str = "cpu",
        draft: Bundle | str | Path | None = None,
    ) -> "Transcriber":
        """Load a bundle.

        Args:
            bundle: An opened bundle, or its folder.
            precision: For `torch`: `float32`, or `float16` to round every operation's result as the device does.
            backend: `torch` anywhere, or `coreml` on macOS.
            compute_units: For `coreml`: `all`, `cpu_only`, `cpu_and_gpu` or `cpu_and_ne`. None for those that the
                on-device runtime chooses for each package.
            device: For `torch`: `cpu`, `cuda` or `mps`.
            draft: The bundle of a smaller model that writes ahead. The tokens are the same, and take less time. None
                for none.

        Raises:
            BundleError: The bundle is incomplete or damaged, or the draft does not fit it.
            OptionsError: There is no such backend.
            UnsupportedOperationError: This machine lacks the backend or the device, or a program has unknown
                operations.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        with damage_reported(opened.path):
            if draft is None:
                models = load_models(
                    opened, precision=precision, backend=backend, compute_units=compute_units, device=device
                )
                return cls.from_models(models, opened)
            small = draft if isinstance(draft, Bundle) else Bundle.open(draft)
            check_same_vocabulary(opened, small)
            drafted = load_drafted_models(
                opened, small, precision=precision, backend=backend, compute_units=compute_units, device=device
            )
            return cls.from_models(drafted, opened)

    @classmethod
    def from_models(cls, models: Models, bundle: Bundle) -> "Transcriber":
        """Add a bundle's tokenizer and configs to models that are loaded already.

        Raises:
            BundleError: The tokenizer or the configs are missing or belong to another model.
        """
        config, sizes = bundle.read_json("config.json"), models.sizes
        tokenizer = load_tokenizer(bundle, vocab_size=sizes.vocab_size, n_audio_ctx=sizes.n_audio_ctx)
        length = config.get("max_target_positions", sizes.kv_length)
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise BundleError(
                f"{bundle.path}/config.json: max_target_positions is {repr(length)[:80]}, expected a count"
            )
        return cls(models, tokenizer, max_length=length)

    @property
    def models(self) -> Models:
        """The bundle's packages."""
        return self._engine.models

    @property
    def sizes(self) -> ModelSizes:
        """Sizes of the bundle's models."""
        return self._engine.models.sizes

    @property
    def session(self) -> DecoderSession:
        """The decoder with the caches of the last window."""
        return self._engine.session

    @property
    def special(self) -> SpecialTokens:
        """The bundle's special ids."""
        return self._engine.special

    @property
    def tokenizer(self) -> WhisperTokenizer:
        """The bundle's tokenizer."""
        return self._engine.tokenizer

    def transcribe(
        self,
        audio: Samples | str | Path,
        options: TranscribeOptions | None = None,
        *,
        progress: Progress | None = None,
        label: str | None = None,
    ) -> Transcription:
        """Transcribe audio of any length.

        Args:
            audio: `[samples]`, float32, mono, 16 kHz, between -1 and 1. Or the path of an audio file in any format that
                libsndfile or FFmpeg reads.
            options: Language, task, timestamps and all else that decides on the text. None for the defaults.
            progress: Told after each window how many seconds of the audio are done, in tenths.
            label: Name of the audio in progress. None for the file's name.

        Raises:
            AudioError: The audio is missing, damaged, empty or not finite.
            OptionsError: The options do not fit the model.
        """
        options = options or TranscribeOptions()
        self.check(options)
        notes: list[str] = []
        if isinstance(audio, str | Path):
            label = label or Path(audio).name
        samples = read_samples(audio, notes.append)
        run = TranscriptionRun(
            self._engine, options, len(samples) / SAMPLE_RATE_HZ, progress or SilentProgress(), label or "audio"
        )
        run.note(notes)
        self.session.perform(run.decode(samples))
        return run.result()

    def transcribe_many(
        self,
        recordings: Iterable[AudioSource | TranscriptionRequest],
        options: TranscribeOptions | None = None,
        *,
        batch_size: BatchSize = AUTO,
        progress: Progress | None = None,
    ) -> Iterator[TranscriptionResult]:
        """Transcribe many recordings, several at once, and each with the tokens that it has alone.

        A step of the decoder reads all weights for one token of one recording. Here it reads them for a token of each
        recording of a batch. As soon as one of them ends, the next takes its place.

        Args:
            recordings: Samples, files, functions that return samples, or requests with options of their own. They are
                taken as their turn comes, so a generator saves memory.
            options: For all that have none of their own. None for the defaults.
            batch_size: Number of recordings decoded at once. `auto` for eight, or fewer where memory is short. Where
                more are given than memory holds, half as many are tried. Core ML and a stateful decoder take one.
            progress: Told about a batch that was too large.

        Yields:
            A result for each recording, in the order in which they end. One that fails fails alone.

        Raises:
            OptionsError: The options do not fit the model, or there is no such batch size.

        Example:
            >>> import whisperkit_tools as wkt
            >>> transcriber = wkt.Transcriber.load("bundles/acme_whisper-demo")
            >>> results = transcriber.transcribe_many(["speech.flac", "speech.flac"])
            >>> sorted((result.index, result.get().language) for result in results)
            [(0, 'en'), (1, 'en')]
        """
        options = options or TranscribeOptions()
        self.check(options)
        check_batch_size(batch_size)
        requests = (
            item if isinstance(item, TranscriptionRequest) else TranscriptionRequest(item, options)
            for item in recordings
        )
        size = automatic_batch_size(self._engine) if isinstance(batch_size, str) else batch_size
        size = size if self.models.takes_batches else 1
        if isinstance(recordings, Sized):
            size = max(1, min(size, len(recordings)))
        return ManyTranscriptions(self._engine, requests, size, self.check, progress).results()

    def transcribe_features(
        self, features: Tensor | Samples, options: TranscribeOptions | None = None
    ) -> Transcription:
        """Transcribe mel features that were computed elsewhere, window after window.

        Args:
            features: `[n_mels, frames]`.
            options: As for `transcribe`.

        Raises:
            AudioError: There are no frames.
            OptionsError: The options do not fit the model, or need audio that can be cut.
        """
        options = options or TranscribeOptions()
        self.check(options)
        if options.long_form != "sequential":
            raise OptionsError(
                f"{option('long_form')} is {options.long_form!r}, but features from elsewhere are not cut; "
                f"use {option('long_form', 'sequential')}"
            )
        source = ArrayFeatures(features, self.sizes.n_frames)
        duration_s = source.n_frames * self._engine.frame_s
        run = TranscriptionRun(self._engine, options, duration_s, SilentProgress(), "features")
        self.session.perform(run.sequential(source, 0.0, duration_s))
        return run.result()

    def check(self, options: TranscribeOptions) -> None:
        """Check that the options fit the model, before any audio is read.

        Raises:
            OptionsError: They do not.
        """
        special, options = self.special, self._engine.resolved(options)
        if options.language is not None:
            special.language_id(options.language)
        if not special.is_multilingual and options.task != "transcribe":
            raise OptionsError(
                f"{option('task')} is {options.task!r}, but this model knows only English transcription; "
                f"use {option('task', 'transcribe')}"
            )
        if options.task not in special.tasks and special.is_multilingual:
            raise OptionsError(
                f"{option('task')} is {options.task!r}, which this model's vocabulary lacks; it has "
                f"{', '.join(special.tasks) or 'no tasks'}"
            )
        if options.word_timestamps and not self.sizes.has_alignment:
            raise OptionsError(
                f"{option('word_timestamps')} was asked for, but this bundle has no word timestamps: its "
                f"{contract.DECODER} has no output {contract.ALIGNMENT}; convert it again with "
                f"{option('word_timestamps', True)}"
            )
        self._engine.prompt(options)


def check_same_vocabulary(bundle: Bundle, draft: Bundle) -> None:
    """Check that a draft's tokens are those of the bundle.

    Raises:
        BundleError: Some ids stand for other tokens.
    """
    mine, other = (vocabulary(one.asset("tokenizer.json")) for one in (bundle, draft))
    if mine == other:
        return
    different = sorted(token for token in mine.keys() | other.keys() if mine.get(token) != other.get(token))
    raise BundleError(
        f"the draft {draft.path} has another tokenizer than {bundle.path}: {len(different)} tokens differ, such as "
        f"{', '.join(map(repr, different[:3]))}; use a draft that was made from this model"
    )


def load_tokenizer(bundle: Bundle, *, vocab_size: int, n_audio_ctx: int) -> WhisperTokenizer:
    """Load a bundle's tokenizer.

    Args:
        bundle: The bundle.
        vocab_size: Size of the decoder's logits.
        n_audio_ctx: Encoder positions of a window.

    Raises:
        BundleError: The tokenizer or the configs are missing or belong to another model.
    """
    given = _generation_config(bundle, bundle.read_json("config.json"))
    return WhisperTokenizer.load(bundle.asset("tokenizer.json"), given, vocab_size=vocab_size, n_audio_ctx=n_audio_ctx)


def _generation_config(bundle: Bundle, config: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `generation_config.json`, or what the model's config says in its place."""
    if (bundle.path / "generation_config.json").is_file():
        return bundle.read_json("generation_config.json")
    return {name: config[name] for name in _INHERITED if config.get(name) is not None}
