"""The commands that make a bundle like a published one, from its manifest; and what it was made from."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KV_LENGTH = 448  # what Whisper's decoder has, and `wkt convert` takes unasked
_PLAIN, _CHUNKED = "cat", "split-heads-q"
# Bundles of OpenAI's turbo model go by its date. Source: the on-device runtime's names of its model folders.
_PUBLISHED_AS = {"openai/whisper-large-v3-v20240930": "openai/whisper-large-v3-turbo"}


@dataclass(frozen=True, slots=True)
class Source:
    """What a bundle was made from.

    Attributes:
        name: `ORG/NAME` on the Hub, else a name for people; never a path.
        revision: Commit on the Hub; None for what is not there.
        license: As the source names it.
    """

    name: str
    revision: str | None
    license: str | None


def section(manifest: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a manifest, empty where it is missing or no mapping: manifests come from outside, too."""
    value = manifest.get(name)
    return value if isinstance(value, Mapping) else {}


def source_of(manifest: Mapping[str, Any]) -> Source:
    """What a manifest says of the source."""
    recorded = section(manifest, "source")
    org, model = recorded.get("org"), recorded.get("model")
    name = f"{org}/{model}" if org and model else "unknown"
    revision, licence = recorded.get("revision"), recorded.get("license")
    return Source(
        _PUBLISHED_AS.get(name, name),
        revision if isinstance(revision, str) else None,
        licence if isinstance(licence, str) else None,
    )


def commands(variant: str, manifest: Mapping[str, Any]) -> list[str]:
    """The commands that make a bundle like this one; empty where the manifest does not tell."""
    original = section(section(manifest, "compression"), "original").get("name", variant)
    made = []
    if section(manifest, "conversion"):
        made.append(shlex.join(_convert(manifest)))
    if section(manifest, "compression"):
        made.append(shlex.join(_palettize(str(original), section(manifest, "compression"))))
    return made


def _convert(manifest: Mapping[str, Any]) -> list[str]:
    conversion, source = section(manifest, "conversion"), source_of(manifest)
    turbo = bool(conversion.get("turbo"))
    words = ["wkt", "convert"]
    if source.revision:
        words += [source.name, "--revision", source.revision]
    else:  # a folder of somebody's machine is named by what it holds, not by where it lies
        words.append("demo" if section(manifest, "source").get("name") == "demo" else source.name.split("/")[-1])
    words += ["--deployment-target", str(conversion.get("deployment_target", "ios16"))]
    words += ["--turbo"] if turbo else []
    words += ["--stateful"] if conversion.get("stateful") else []
    usual = {
        "kv_length": KV_LENGTH,
        "audio_encoder_attention": _CHUNKED if turbo else _PLAIN,
        "text_decoder_attention": _PLAIN,
        "attention_chunk_size": None,
        "logits_chunk_size": None,
    }
    for name, value in usual.items():
        found = conversion.get(name, value)
        default = 512 if name == "attention_chunk_size" else value
        if found is not None and found not in (value, default):
            words += [f"--{name.replace('_', '-')}", str(found)]
    words += [] if conversion.get("word_timestamps", True) else ["--no-word-timestamps"]
    words += _prefill(manifest, asked_by_default=turbo)
    words += ["--compile"] if conversion.get("compiled") else []
    words += [] if conversion.get("verified", True) else ["--no-verify"]
    return words


def _prefill(manifest: Mapping[str, Any], *, asked_by_default: bool) -> list[str]:
    prefill = section(manifest, "prefill")
    if not prefill.get("included"):
        return ["--no-prefill"] if asked_by_default else []
    words = [] if asked_by_default else ["--prefill"]
    source = prefill.get("from")
    return words if source in (None, "speech") else [*words, "--prefill-from", str(source)]


def _palettize(original: str, compression: Mapping[str, Any]) -> list[str]:
    gate, tuning = section(compression, "gate"), section(compression, "tuning")
    size = compression.get("predicted_nbytes") or compression.get("nbytes") or 0
    aim = _uniform(section(compression, "recipe")) or ["--target-size", str(size)]
    words = ["wkt", "palettize", f"bundles/{original}", *aim]
    for option, value in (
        ("--qoi-min", gate.get("qoi_min")),
        ("--wer-delta-max", gate.get("wer_delta_max")),
        ("--tune-palettes", tuning.get("steps")),
    ):
        words += [option, str(value)] if value is not None else []
    return [*words, "--confident"] if gate.get("confident") else words


def _uniform(recipe: Mapping[str, Any]) -> list[str]:
    """The aim of a recipe with one width for all that it compresses, and what it leaves; empty for a mixed one."""
    parts = section(recipe, "tensors")
    widths = {part: _widths(section(parts, part)) for part in parts}
    found = {nbits for part in widths.values() for nbits in part if nbits is not None}
    if len(found) != 1:
        return []
    left = [word for part, has in widths.items() if has == {None} for word in ("--keep", f"{part}/*")]
    return ["--bits", str(found.pop()), *left]


def _widths(tensors: Mapping[str, Any]) -> set[int | None]:
    """Bits of an index, over the weights of a component; None where one is left in float16."""
    return {section(section(tensors, name), "compression").get("nbits") for name in tensors}
