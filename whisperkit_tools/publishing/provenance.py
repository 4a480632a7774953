"""Provenance of a published bundle from its manifest: its source, and the commands that make a bundle like it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from whisperkit_tools.compression_records import CompressionRecord, GateRecord, SettingsRecord, TuningRecord
from whisperkit_tools.manifest import ConversionRecord, Manifest, SourceRecord

# Defaults of `wkt convert`, which the commands do not spell out.
KV_LENGTH = 448  # the positions of Whisper's decoder
CHUNK_SIZE = 512
# Defaults of `wkt palettize`. The limits of its gate are spelled out.
_PALETTIZE = SettingsRecord(windows=8, trials=8, seed=0)
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
        made.append(_convert(manifest, manifest.conversion))
    if compression is not None:
        original = compression.original.name if compression.original and compression.original.name else variant
        made.append(command_line("palettize", f"bundles/{original}", options=_compression_options(compression)))
    return made


def command_line(verb: str, *arguments: str, options: Sequence[tuple[str, object]]) -> str:
    """Return a command of `wkt`.

    Args:
        verb: Name of the command.
        arguments: Its arguments.
        options: Fields of options with their values. True and False are spelled as switches, None is omitted.
    """
    words = ["wkt", verb, *arguments]
    for field, value in options:
        name = field.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name if value else f'no-{name}'}")
        elif value is not None:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


def _convert(manifest: Manifest, conversion: ConversionRecord) -> str:
    source = source_of(manifest)
    name = source.name
    if not source.revision:  # a local folder is named by the model that it holds, not by its path
        is_demo = manifest.source is not None and manifest.source.name == "demo"
        name = "demo" if is_demo else name.split("/")[-1]
    return command_line(
        "convert", name, options=[("revision", source.revision or None), *_conversion_options(manifest, conversion)]
    )


def _conversion_options(manifest: Manifest, conversion: ConversionRecord) -> list[tuple[str, object]]:
    usual = {
        "kv_length": KV_LENGTH,
        "audio_encoder_attention": _CHUNKED if conversion.turbo else _PLAIN,
        "text_decoder_attention": _PLAIN,
        "attention_chunk_size": CHUNK_SIZE,
        "logits_chunk_size": None,
    }
    return [
        ("deployment_target", conversion.deployment_target or "ios16"),
        ("turbo", conversion.turbo or None),
        ("stateful", conversion.stateful or None),
        *((name, found) for name, value in usual.items() if (found := getattr(conversion, name)) != value),
        ("word_timestamps", None if conversion.word_timestamps else False),
        *_prefill_options(manifest, asked_by_default=conversion.turbo),
        ("compile", conversion.compiled or None),
        ("verify", False if conversion.verified is False else None),
    ]


def _prefill_options(manifest: Manifest, *, asked_by_default: bool) -> list[tuple[str, object]]:
    prefill = manifest.prefill
    if prefill is None or not prefill.included:
        return [("prefill", False)] if asked_by_default else []
    source = None if prefill.source in ("", "speech") else prefill.source
    return [("prefill", None if asked_by_default else True), ("prefill_from", source)]


def _compression_options(compression: CompressionRecord) -> list[tuple[str, object]]:
    if compression.settings is not None:
        return _settings_options(compression.settings)
    gate, tuning = compression.gate or GateRecord(), compression.tuning or TuningRecord()
    size = compression.predicted_nbytes or compression.nbytes or 0
    return [
        *(_uniform(compression.recipe) or [("target_size", size)]),
        ("qoi_min", gate.qoi_min),
        ("wer_delta_max", gate.wer_delta_max),
        ("tune_palettes", tuning.steps),
        ("confident", gate.confident or None),
    ]


def _settings_options(settings: SettingsRecord) -> list[tuple[str, object]]:
    """Return the recorded options other than defaults."""
    names = [item.name for item in fields(settings) if item.name not in ("extra", "keys")]
    given = {name: value for name in names if (value := getattr(settings, name)) != getattr(_PALETTIZE, name)}
    if settings.allowed_nbits:
        given["allowed_nbits"] = ",".join(map(str, settings.allowed_nbits))
    if settings.allow:
        given["allow"] = ",".join(settings.allow)
    if settings.reference is not None:
        given["reference"] = f"bundles/{settings.reference}"
    given.pop("keep", None)
    return [*given.items(), *(("keep", pattern) for pattern in settings.keep)]


def _uniform(recipe: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Return the options of a recipe with one bit width for all that it compresses, empty for a mixed one."""
    parts = _object(recipe.get("tensors"))
    widths = {part: _widths(_object(tensors)) for part, tensors in parts.items()}
    found = {nbits for part in widths.values() for nbits in part if nbits is not None}
    if len(found) != 1:
        return []
    left = [("keep", f"{part}/*") for part, has in widths.items() if has == {None}]
    return [("bits", found.pop()), *left]


def _widths(tensors: Mapping[str, Any]) -> set[int | None]:
    """Return the bits of an index over the weights of a component, None for a weight that stays float16."""
    found = [_object(_object(tensor).get("compression")).get("nbits") for tensor in tensors.values()]
    return {width if isinstance(width, int) else None for width in found}


def _object(value: Any) -> Mapping[str, Any]:
    """Return a JSON object of a recipe, empty where it is none. Recipes in manifests are not checked."""
    return value if isinstance(value, Mapping) else {}
