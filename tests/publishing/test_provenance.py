"""The commands in a model card, from manifests."""

import json
from pathlib import Path

import pytest

from whisperkit_tools.manifest import Manifest
from whisperkit_tools.publishing.provenance import PublishedSource, command_line, commands, source_of

DATA = Path(__file__).parents[1] / "data" / "manifests"


def manifest(**parts):
    return Manifest.from_json(parts, "m")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("convert_turbo", ["wkt convert demo --deployment-target ios16 --turbo"]),
        ("palettize_tuned", [
            "wkt convert demo --deployment-target ios16",
            "wkt palettize bundles/whisperkit-tools_whisper-micro-demo --target-size 1107711 --qoi-min 95.0 "
            "--wer-delta-max 1.0 --tune-palettes 6",
        ]),
        ("palettize_bits_6_rejected", [
            "wkt convert demo --deployment-target ios16",
            "wkt palettize bundles/whisperkit-tools_whisper-micro-demo --bits 6 --qoi-min 95.0 --wer-delta-max 1.0",
        ]),
    ],
)  # fmt: skip
def test_commands_of_manifests_that_wkt_wrote(name, lines):
    assert commands("v", Manifest.from_json(json.loads((DATA / f"{name}.json").read_text()), name)) == lines


def test_each_choice_of_a_conversion_is_an_option():
    conversion = {
        "deployment_target": "ios18", "turbo": True, "stateful": True, "kv_length": 224, "word_timestamps": False,
        "audio_encoder_attention": "einsum", "text_decoder_attention": "cat", "attention_chunk_size": 256,
        "logits_chunk_size": 16384, "compiled": True, "verified": False,
    }  # fmt: skip
    source = {"org": "acme", "model": "whisper w", "revision": "f00"}
    assert commands("v", manifest(conversion=conversion, source=source)) == [
        "wkt convert 'acme/whisper w' --revision f00 --deployment-target ios18 --turbo --stateful --kv-length 224 "
        "--audio-encoder-attention einsum --attention-chunk-size 256 --logits-chunk-size 16384 --no-word-timestamps "
        "--no-prefill --compile --no-verify"
    ]


def test_what_an_earlier_manifest_lacks_is_not_an_option():
    assert commands("v", manifest(conversion={})) == ["wkt convert unknown --deployment-target ios16"]
    assert commands("v", manifest()) == []


def test_the_audio_of_a_prefill_is_an_option():
    prefill = {"included": True, "from": "noise"}
    (line,) = commands("v", manifest(conversion={}, prefill=prefill))
    assert line.endswith(" --prefill --prefill-from noise")


def test_words_are_quoted_for_a_shell():
    assert command_line("pull", "a;rm", options=[("force", True), ("tag", None)]) == "wkt pull 'a;rm' --force"


def test_sources_are_named_as_on_the_hub():
    turbo = manifest(source={"org": "openai", "model": "whisper-large-v3-v20240930", "license": "mit"})
    assert source_of(turbo) == PublishedSource("openai/whisper-large-v3-turbo", None, "mit")
    assert source_of(manifest()) == PublishedSource("unknown", None, None)
