"""A bundle behind the protocol of the evaluation's backends."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.checkpoint import open_checkpoint
from whisperkit_tools.errors import EvaluationError, OptionsError, option
from whisperkit_tools.eval.backends.base import (
    BackendInfo,
    BackendRequest,
    BundleInfo,
    EvaluationTarget,
)
from whisperkit_tools.files import folder_bytes
from whisperkit_tools.mil.tensor_spec import Precision
from whisperkit_tools.speech import Samples, Transcription
from whisperkit_tools.strict_json import json_text, parse_json
from whisperkit_tools.transcribe.audio.load import AudioInput, load_audio
from whisperkit_tools.transcribe.many import AUTO, BatchSize, TranscriptionRequest
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber

EXECUTOR, CORE_ML = "executor", "coreml"
BUNDLE_BACKENDS = (EXECUTOR, CORE_ML)
_SILENCE_TOKENS = 64  # of a clip without speech: what was heard is what counts, not how long it goes on


@dataclass(frozen=True, slots=True)
class LoadBundle:
    """Loads a bundle in whatever process it is called.

    Attributes:
        path: The bundle's folder.
        options: How to decode. The language is that of each example.
        backend: One of `BUNDLE_BACKENDS`.
        precision: Precision of the executor.
        compute_units: Core ML compute units; None for those of the on-device runtime.
        device: PyTorch device of the executor.
        batch_size: Number of recordings decoded at once.
    """

    path: str
    options: TranscribeOptions
    backend: str = EXECUTOR
    precision: Precision = "float32"
    compute_units: str | None = None
    device: str = "cpu"
    batch_size: BatchSize = AUTO

    def __call__(self) -> "BundleTranscriber":
        """Load the bundle.

        Raises:
            WktError: It is damaged, or this machine lacks the backend.
        """
        transcriber = Transcriber.load(
            self.path,
            precision=self.precision,
            backend="coreml" if self.backend == CORE_ML else "torch",
            compute_units=self.compute_units,
            device=self.device,
        )
        return BundleTranscriber(transcriber, self.options, self.batch_size)


class BundleTranscriber:
    """A loaded bundle. Its transcripts are those of `wkt transcribe`."""

    def __init__(self, transcriber: Transcriber, options: TranscribeOptions, batch_size: BatchSize = AUTO) -> None:
        self._transcriber = transcriber
        self._options = options
        self._batch_size = batch_size

    def check(self, languages: Collection[str]) -> None:
        """Check that the bundle knows these languages and that the options fit it.

        Raises:
            OptionsError: Naming the languages or options that do not.
        """
        special = self._transcriber.special
        known = set(special.languages) if special.is_multilingual else {"en"}
        unknown = sorted(set(languages) - known)
        if unknown:
            raise OptionsError(
                f"the model does not know the language{'s' if len(unknown) > 1 else ''} {', '.join(unknown)} of the "
                f"dataset; it knows {', '.join(sorted(known))}. Choose examples with {option('language')}"
            )
        self._transcriber.check(self._options)

    def transcribe(self, audio: Samples, *, language: str | None = None, words: bool = False) -> Transcription:
        """Transcribe one audio."""
        return self._transcriber.transcribe(audio, self._chosen(language, words))

    def transcribe_many(self, requests: Iterable[BackendRequest]) -> Iterator[tuple[int, Transcription | Exception]]:
        """Transcribe several audios at once."""
        results = self._transcriber.transcribe_many(map(self._request, requests), batch_size=self._batch_size)
        for result in results:
            yield result.index, result.transcription or result.error or EvaluationError("no result")

    def _request(self, given: BackendRequest) -> TranscriptionRequest:
        options = self._chosen(given.language, given.words)
        if given.is_silent:
            limit = min(_SILENCE_TOKENS, options.max_new_tokens or _SILENCE_TOKENS)
            options = replace(options, temperatures=options.temperatures[:1], max_new_tokens=limit)
        return TranscriptionRequest(given.read, options)

    def _chosen(self, language: str | None, words: bool) -> TranscribeOptions:
        given = language if self._transcriber.special.is_multilingual else None
        timed = self._options.word_timestamps or (words and self._transcriber.sizes.has_alignment)
        return replace(self._options, language=given, word_timestamps=timed)


def bundle_target(bundle: Bundle, load: LoadBundle, name: str) -> EvaluationTarget:
    """Return a bundle that is ready to be evaluated. It is hashed, not loaded."""
    options = asdict(load.options)
    del options["language"]  # each example's own
    ran = {"device": load.device} if load.backend == EXECUTOR else {"compute_units": load.compute_units}
    precision = {"precision": load.precision} if load.backend == EXECUTOR else {}
    info = bundle_info(bundle)
    backend = BackendInfo(
        name=load.backend,
        model=bundle.name,
        identity=info.sha256,
        options=parse_json(json_text({**ran, **precision, **options})),
    )
    return EvaluationTarget(name, load, backend, info)


def bundle_info(bundle: Bundle) -> BundleInfo:
    """Return the name and sizes of a bundle, and one digest of the content of all its files.

    The files are read, because a file that was changed by hand makes another bundle, whatever the manifest says.
    """
    return BundleInfo(
        name=bundle.name,
        path=str(bundle.path),
        bytes=folder_bytes(bundle.path),
        component_bytes={name: bundle.package(name).nbytes for name in bundle.components()},
        sha256=bundle.content_sha256(),
        created=bundle.created,
        options={name: value for name, value in bundle.manifest.to_json().items() if name not in ("files", "created")},
    )


def hugging_face_folder(source: str) -> tuple[str, str]:
    """Return a checkpoint, by any of its names, as the folder that a backend for Hugging Face checkpoints reads.

    Args:
        source: `demo`, an alias, a Hub id or a folder.

    Returns:
        The folder, and the Hub's commit that tells it from another of the same name, or an empty text.

    Raises:
        CheckpointError: It cannot be found or read.
        EvaluationError: It is not a Hugging Face folder.
    """
    checkpoint = open_checkpoint(source)
    folder = checkpoint.weight_files[0].parent
    if not (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        raise EvaluationError(f"{source} is not a whole Hugging Face checkpoint; the transformers backend needs one")
    return str(folder), checkpoint.revision or ""


def read_audio(path: Path) -> Samples:
    """Decode an audio file to 16 kHz mono, as `wkt transcribe` does."""
    return load_audio(AudioInput(str(path), path))
