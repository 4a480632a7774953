"""The same speech transcribed with several prefills: each clip is encoded once, and decoded greedily with each."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.conversion.prefill.audio import read_audio
from whisperkit_tools.decoder.loading import load_models
from whisperkit_tools.decoder.prefill_lookup import OUTPUTS, ContextPrefill
from whisperkit_tools.decoder.session import Component, Models
from whisperkit_tools.mil.tensor_spec import TensorSpec
from whisperkit_tools.speech import Recording
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
    transcriber, models, memory = _load(bundle)
    tables = {name: find and _prefill(find, models, transcriber) for name, find in prefills.items()}
    found: dict[str, list[str]] = {name: [] for name in prefills}
    for clip in clips:
        memory.clear()
        options = _options(clip.language if transcriber.special.is_multilingual else None)
        for name, table in tables.items():
            models.prefill = table
            found[name].append(transcriber.transcribe(clip.audio(read_audio), options).text)
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


def _load(bundle: Path) -> tuple[Transcriber, Models, "_Memory"]:
    opened = Bundle.open(bundle)
    models, memory = load_models(opened), _Memory()
    models.wrap_audio_side(memory.around)
    return Transcriber.from_models(models, opened), models, memory


class _Memory:
    """What components gave for what they were given, until it is cleared."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, bytes], Mapping[str, Tensor]] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()

    def around(self, component: Component) -> Component:
        """A component that computes the same, but only once."""
        return _Remembering(component, self._known)


class _Remembering:
    def __init__(self, component: Component, known: dict[tuple[int, bytes], Mapping[str, Tensor]]) -> None:
        self.inputs, self.outputs = component.inputs, component.outputs
        self._component, self._known = component, known

    def run(self, inputs: Mapping[str, Tensor], /) -> Mapping[str, Tensor]:
        """Compute, or remember."""
        digest = hashlib.sha256()
        for value in inputs.values():
            digest.update(value.contiguous().numpy().tobytes())
        key = (id(self), digest.digest())
        if key not in self._known:
            self._known[key] = self._component.run(inputs)
        return self._known[key]


def _prefill(find: Lookup, models: Models, transcriber: Transcriber) -> ContextPrefill:
    table = _FunctionTable(find, models.sizes.cache_channels, transcriber.special.forced)
    return ContextPrefill(table, models.sizes.cache_channels, models.device, models.dtype)


class _FunctionTable:
    """Stands in for the package."""

    def __init__(self, find: Lookup, channels: int, length: int) -> None:
        self._find = find
        self.outputs = {name: TensorSpec(name, (1, channels, 1, length), "float16") for name in OUTPUTS}

    def run(self, inputs: Mapping[str, Tensor], /) -> dict[str, Tensor]:
        """Look up."""
        found = self._find(int(inputs["language"]), int(inputs["task"]))
        return {name: torch.from_numpy(array) for name, array in zip(OUTPUTS, found, strict=True)}
