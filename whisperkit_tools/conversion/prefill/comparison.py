"""The same speech transcribed with several prefills: each clip is encoded once, and decoded greedily with each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.decoder.adapters import FunctionModel, MemoizedModel
from whisperkit_tools.decoder.loading import load_models
from whisperkit_tools.decoder.models import Models
from whisperkit_tools.decoder.prefill_lookup import PREFILL_OUTPUTS
from whisperkit_tools.mil.tensor_spec import TensorSpec
from whisperkit_tools.speech import Recording
from whisperkit_tools.transcribe.audio.load import load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber

Lookup: TypeAlias = Callable[[int, int], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Language id and task to keys and values, each `[1, D * L, 1, n]`."""


def transcripts_with(
    bundle: Path, clips: Sequence[Recording], prefills: Mapping[str, Lookup | None]
) -> dict[str, list[str]]:
    """Transcribe clips with each of several prefills.

    Without timestamps, so that all positions of the table count, and without the checks that would decode a window
    again: what differs comes from the prefill.

    Args:
        bundle: A folder with packages, tokenizer and configs; it needs no manifest.
        clips: What to transcribe.
        prefills: By name: a table, or None to decode all tokens.

    Returns:
        By name, the text of each clip.
    """
    opened = Bundle.open(bundle)
    loaded = load_models(opened)
    mel, encoder = MemoizedModel(loaded.mel), MemoizedModel(loaded.encoder)
    models = replace(loaded, mel=mel, encoder=encoder, prefill=None)
    special = Transcriber.from_models(models, opened).special
    transcribers = {
        name: Transcriber.from_models(
            replace(models, prefill=None if find is None else _prefill(find, models, special.forced)), opened
        )
        for name, find in prefills.items()
    }
    found: dict[str, list[str]] = {name: [] for name in prefills}
    for clip in clips:
        mel.clear()
        encoder.clear()
        options, samples = _options(clip.language if special.is_multilingual else None), clip.audio(load_audio)
        for name, transcriber in transcribers.items():
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


def _prefill(find: Lookup, models: Models, forced: int) -> FunctionModel:
    """Return a table as the package TextDecoderContextPrefill, which gives the caches of `forced` tokens."""
    shape = (1, models.sizes.cache_channels, 1, forced)
    outputs = {name: TensorSpec(name, shape, "float16") for name in PREFILL_OUTPUTS}
    inputs = {name: TensorSpec(name, (1,), "int32") for name in (contract.TASK, contract.LANGUAGE)}

    def run(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = find(int(given[contract.LANGUAGE]), int(given[contract.TASK]))
        return {name: torch.from_numpy(array) for name, array in zip(PREFILL_OUTPUTS, found, strict=True)}

    return FunctionModel(run, inputs, outputs)
