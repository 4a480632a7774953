"""Provenance of a published bundle from its manifest: its source, and the commands that make a bundle like it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whisperkit_tools.manifest import (
    CompressionRecord,
    ConversionRecord,
    GateRecord,
    Manifest,
    SourceRecord,
    TuningRecord,
)

# Defaults of `wkt convert`, which the commands do not spell out.
KV_LENGTH = 448  # the positions of Whisper's decoder
CHUNK_SIZE = 512
_PLAIN, _CHUNKED = "cat", "split-heads-q"
# Bundles of OpenAI's turbo model are named by its date. Source: the on-device runtime's names of its model folders.
_PUBLISHED_AS = {"openai/whisper-large-v3-v20240930": "openai/whisper-large-v3-turbo"}


@dataclass(frozen=True, slots=True)
class PublishedSource:
    """The checkpoint of a published bundle.

    Attributes:
        name: `ORG/NAME` on the Hub, otherwise a name for people, never a path.
        revision: Commit on the Hub; None for a local checkpoint.
        license: As the checkpoint states it.
    """

    name: str
    revision: str | None
    license: str | None


def source_of(manifest: Manifest) -> PublishedSource:
    """Return the source that a manifest records."""
    recorded = manifest.source or SourceRecord()
    name = f"{recorded.org}/{recorded.model}" if recorded.org and recorded.model else "unknown"
    return PublishedSource(_PUBLISHED_AS.get(name, name), recorded.revision, recorded.license)


def commands(variant: str, manifest: Manifest) -> list[str]:
    """Return the commands that make a bundle like this one, empty where the manifest does not tell."""
    made, compression = [], manifest.compression
    if manifest.conversion is not None:
        made.append(shlex.join(_convert(manifest, manifest.conversion)))
    if compression is not None:
        original = compression.original.name if compression.original and compression.original.name else variant
        made.append(shlex.join(_palettize(original, compression)))
    return made


def _convert(manifest: Manifest, conversion: ConversionRecord) -> list[str]:
    source = source_of(manifest)
    words = ["wkt", "convert"]
    if source.revision:
        words += [source.name, "--revision", source.revision]
    else:  # a local folder is named by the model that it holds, not by its path
        is_demo = manifest.source is not None and manifest.source.name == "demo"
        words.append("demo" if is_demo else source.name.split("/")[-1])
    words += ["--deployment-target", conversion.deployment_target or "ios16"]
    words += ["--turbo"] if conversion.turbo else []
    words += ["--stateful"] if conversion.stateful else []
    usual = {
        "kv_length": KV_LENGTH,
        "audio_encoder_attention": _CHUNKED if conversion.turbo else _PLAIN,
        "text_decoder_attention": _PLAIN,
        "attention_chunk_size": CHUNK_SIZE,
        "logits_chunk_size": None,
    }
    for name, value in usual.items():
        found = getattr(conversion, name)
        if found is not None and found != value:
            words += [f"--{name.replace('_', '-')}", str(found)]
    words += [] if conversion.word_timestamps else ["--no-word-timestamps"]
    words += _prefill(manifest, asked_by_default=conversion.turbo)
    words += ["--compile"] if conversion.compiled else []
    words += ["--no-verify"] if conversion.verified is False else []
    return words


def _prefill(manifest: Manifest, *, asked_by_default: bool) -> list[str]:
    prefill = manifest.prefill
    if prefill is None or not prefill.included:
        return ["--no-prefill"] if asked_by_default else []
    words = [] if asked_by_default else ["--prefill"]
    return words if prefill.source in ("", "speech") else [*words, "--prefill-from", prefill.source]


def _palettize(original: str, compression: CompressionRecord) -> list[str]:
    gate, tuning = compression.gate or GateRecord(), compression.tuning or TuningRecord()
    size = compression.predicted_nbytes or compression.nbytes or 0
    aim = _uniform(compression.recipe) or ["--target-size", str(size)]
    words = ["wkt", "palettize", f"bundles/{original}", *aim]
    for option, value in (
        ("--qoi-min", gate.qoi_min),
        ("--wer-delta-max", gate.wer_delta_max),
        ("--tune-palettes", tuning.steps),
    ):
        words += [option, str(value)] if value is not None else []
    return [*words, "--confident"] if gate.confident else words


def _uniform(recipe: Mapping[str, Any]) -> list[str]:
    """Return the options of a recipe with one bit width for all that it compresses, empty for a mixed one."""
    parts = _object(recipe.get("tensors"))
    widths = {part: _widths(_object(tensors)) for part, tensors in parts.items()}
    found = {nbits for part in widths.values() for nbits in part if nbits is not None}
    if len(found) != 1:
        return []
    left = [word for part, has in widths.items() if has == {None} for word in ("--keep", f"{part}/*")]
    return ["--bits", str(found.pop()), *left]


def _widths(tensors: Mapping[str, Any]) -> set[int | None]:
    """Return the bits of an index over the weights of a component, None for a weight that stays float16."""
    return {_object(_object(tensor).get("compression")).get("nbits") for tensor in tensors.values()}


def _object(value: Any) -> Mapping[str, Any]:
    """Return a JSON object of a recipe, empty where it is none. Recipes in manifests are not checked."""
    return value if isinstance(value, Mapping) else {}
