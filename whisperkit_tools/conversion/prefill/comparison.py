"""Transcripts of the same speech with several prefills, decoded greedily and in batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.conversion.prefill.table import PrefillTable
from whisperkit_tools.decoder.adapters import FunctionModel, MemoizedModel
from whisperkit_tools.decoder.loading import load_models
from whisperkit_tools.decoder.prefill_lookup import PREFILL_OUTPUTS
from whisperkit_tools.mil.tensor_spec import TensorSpec
from whisperkit_tools.speech import Recording, Transcription
from whisperkit_tools.transcribe.audio.load import load_audio
from whisperkit_tools.transcribe.many import TranscriptionRequest
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber

_REMEMBERED = 64  # embeddings of clips, so that each is encoded once for all prefills


class PrefillComparison:
    """Transcribes clips with one prefill after another.

    Timestamps are off, so that all positions of the table count. So are the checks that would decode a window again:
    every difference comes from the prefill.
    """

    def __init__(self, bundle: Path) -> None:
        """Load a bundle.

        Args:
            bundle: A folder with packages, tokenizer and configs. It needs no manifest.
        """
        self._bundle = Bundle.open(bundle)
        loaded = load_models(self._bundle)
        self._models = replace(loaded, encoder=MemoizedModel(loaded.encoder, _REMEMBERED), prefill=None)

    def transcripts(
        self, clips: Sequence[Recording], table: PrefillTable | None, limits: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Transcription]]:
        """Transcribe clips, each when it is asked for.

        Args:
            clips: The speech. Its language is detected where it is not given.
            table: The prefill. None to decode all tokens.
            limits: Maximum number of tokens of each transcript. None for what the model takes.

        Yields:
            Index and transcript of each clip, in the order in which they end.
        """
        prefill = None if table is None else _as_package(table)
        transcriber = Transcriber.from_models(replace(self._models, prefill=prefill), self._bundle)
        is_multilingual = transcriber.special.is_multilingual

        def request(index: int, clip: Recording) -> TranscriptionRequest:
            options = _options(clip.language if is_multilingual else None)
            options = replace(options, max_new_tokens=limits[index]) if limits else options
            return TranscriptionRequest(lambda: clip.audio(load_audio), options)

        for result in transcriber.transcribe_many([request(*pair) for pair in enumerate(clips)]):
            yield result.index, result.get()


def _options(language: str | None) -> TranscribeOptions:
    return TranscribeOptions(
        language=language,
        timestamps=False,
        temperatures=(0.0,),
        compression_ratio_threshold=None,
        logprob_threshold=None,
        no_speech_threshold=None,
    )


def _as_package(table: PrefillTable) -> FunctionModel:
    """Return a table as the package TextDecoderContextPrefill."""
    shape = (1, table.keys.shape[1], 1, table.forced.length)
    outputs = {name: TensorSpec(name, shape, "float16") for name in PREFILL_OUTPUTS}
    inputs = {name: TensorSpec(name, (1,), "int32") for name in (contract.TASK, contract.LANGUAGE)}

    def run(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        caches = table.caches(int(given[contract.LANGUAGE]), int(given[contract.TASK]))
        return dict(zip(PREFILL_OUTPUTS, caches, strict=True))

    return FunctionModel(run, inputs, outputs)
