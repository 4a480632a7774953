"""Transcripts of the same speech with several prefills: each clip is encoded once, and decoded greedily with each."""

from collections.abc import Mapping, Sequence
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
from whisperkit_tools.speech import Recording
from whisperkit_tools.transcribe.audio.load import load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber


def transcripts_with(
    bundle: Path, clips: Sequence[Recording], prefills: Mapping[str, PrefillTable | None]
) -> dict[str, list[str]]:
    """Transcribe clips with each of several prefills.

    Timestamps are off, so that all positions of the table count. So are the checks that would decode a window again:
    every difference comes from the prefill.

    Args:
        bundle: A folder with packages, tokenizer and configs. It needs no manifest.
        clips: The speech. Its language is detected where it is not given.
        prefills: A table by name, or None to decode all tokens.

    Returns:
        By name, the text of each clip.
    """
    opened = Bundle.open(bundle)
    loaded = load_models(opened)
    mel, encoder = MemoizedModel(loaded.mel), MemoizedModel(loaded.encoder)
    models = replace(loaded, mel=mel, encoder=encoder, prefill=None)
    transcribers = {
        name: Transcriber.from_models(replace(models, prefill=None if table is None else _as_package(table)), opened)
        for name, table in prefills.items()
    }
    found: dict[str, list[str]] = {name: [] for name in prefills}
    for clip in clips:
        mel.clear()
        encoder.clear()
        samples = clip.audio(load_audio)
        for name, transcriber in transcribers.items():
            options = _options(clip.language if transcriber.special.is_multilingual else None)
            found[name].append(transcriber.transcribe(samples, options).text)
    return found


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
