"""The commands in a model card, from manifests."""

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest

from whisperkit_tools.compression_records import SettingsRecord
from whisperkit_tools.manifest import Manifest
from whisperkit_tools.pipeline.palettize import palettize
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
        ("palettize_settings", [
            "wkt convert demo --deployment-target ios16",
            "wkt palettize bundles/whisperkit-tools_whisper-micro-demo --target-size 1200000 --tune-palettes 2 "
            "--qoi-min 0.0 --wer-delta-max 10.0 --gate-examples 2 --windows 1 --keep '*/conv1_weight'",
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


def test_the_options_of_a_compression_are_those_that_were_given():
    settings = {
        "target_bits": 4.5, "max_kl": None, "keep": ["conv*", "TextDecoder/embed*"], "allowed_nbits": [2, 4],
        "allow": ["vectors", "outliers"],
        "qoi_min": 90.0, "wer_delta_max": 1.0, "confident": True, "windows": 8, "trials": 3, "seed": 0,
        "calibration": "my speech", "allow_overlap": True, "reference": "other", "gate_examples": 4,
        "tune_palettes": 6,
    }  # fmt: skip
    recipe = {"tensors": {"AudioEncoder": {"w": {"compression": {"nbits": 8}}}}}
    (line,) = commands("v", manifest(compression={"settings": settings, "recipe": recipe}))
    assert line == (
        "wkt palettize bundles/v --target-bits 4.5 --allowed-nbits 2,4 --allow vectors,outliers --tune-palettes 6 "
        "--qoi-min 90.0 --wer-delta-max 1.0 --confident --calibration 'my speech' --allow-overlap "
        "--reference bundles/other --gate-examples 4 --trials 3 --keep 'conv*' --keep 'TextDecoder/embed*'"
    )


def test_every_option_that_decides_about_a_compressed_bundle_is_recorded():
    elsewhere = {
        "bundle", "recipe_out", "output_dir", "profile", "keep_rejected", "plot", "force", "dry_run", "progress"
    }  # fmt: skip
    defaults = {
        name: one.default for name, one in inspect.signature(palettize).parameters.items() if name not in elsewhere
    }
    recorded = {item.name for item in fields(SettingsRecord)} - {"extra", "keys"}
    assert recorded == set(defaults)
    limits = {name: defaults[name] for name in ("qoi_min", "wer_delta_max")}
    usual = manifest(
        compression={"settings": {name: value for name, value in defaults.items() if value not in ((), None)}}
    )
    assert commands("v", usual) == [
        command_line("palettize", "bundles/v", options=list(limits.items()))
    ]  # a default is not spelled out


def test_words_are_quoted_for_a_shell():
    assert command_line("pull", "a;rm", options=[("force", True), ("tag", None)]) == "wkt pull 'a;rm' --force"


def test_sources_are_named_as_on_the_hub():
    turbo = manifest(source={"org": "openai", "model": "whisper-large-v3-v20240930", "license": "mit"})
    assert source_of(turbo) == PublishedSource("openai/whisper-large-v3-turbo", None, "mit")
    assert source_of(manifest()) == PublishedSource("unknown", None, None)
