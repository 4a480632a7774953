"""The prefill in a conversion: its caches against transformers', its evidence, and the gate that leaves it out."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.checkpoint import open_checkpoint
from whisperkit_tools.compile_hints.context_prefill import ForcedTokens
from whisperkit_tools.conversion.components import Components
from whisperkit_tools.conversion.config import ConvertConfig
from whisperkit_tools.conversion.export import PackageMetadata, export_package
from whisperkit_tools.conversion.prefill import build as prefill_stage
from whisperkit_tools.conversion.prefill.audio import (
    demo_clips,
    held_out_windows,
    own_audio,
)
from whisperkit_tools.conversion.prefill.build import PrefillOptions, PrefillStage
from whisperkit_tools.conversion.prefill.evidence import (
    NullTest,
    PrefillEvidence,
    gather_evidence,
    null_tables,
    read_table,
    similarity,
)
from whisperkit_tools.conversion.prefill.table import PrefillTable, encode, estimate, forced_caches, forced_tokens
from whisperkit_tools.conversion.verify import verify_bundle
from whisperkit_tools.demo import demo_checkpoint_dir, verification_speech
from whisperkit_tools.errors import ConversionError, OptionsError, QualityGateError
from whisperkit_tools.manifest import Manifest
from whisperkit_tools.progress import SilentProgress
from whisperkit_tools.signals import psnr_db
from whisperkit_tools.speech import SAMPLE_RATE_HZ, Recording

PACKAGE = "TextDecoderContextPrefill.mlpackage"


@pytest.fixture(scope="module")
def checkpoint():
    return open_checkpoint("demo")


@pytest.fixture(scope="module")
def forced(checkpoint):
    return forced_tokens(checkpoint.generation_config)


@pytest.fixture(scope="module")
def embeds(checkpoint):
    return encode(checkpoint, held_out_windows()[:2])


def caches_of(checkpoint, forced, embeds):
    """All layers' keys and values of the windows, `[windows, nodes, D * L]`."""
    parts = [([], []) for _ in embeds]
    for at, (_, keys, values) in enumerate(forced_caches(checkpoint, forced, embeds)):
        parts[at % len(embeds)][0].append(keys)
        parts[at % len(embeds)][1].append(values)
    return [tuple(torch.cat(part, dim=1) for part in window) for window in parts]


def transformers_caches(model, embeds, tokens):
    """`[tokens, D * L]` of keys and of values."""
    with torch.no_grad():
        output = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=embeds[0, :, 0].t()[None].float()),
            decoder_input_ids=torch.tensor([tokens]),
            use_cache=True,
        )
    layers = output.past_key_values.self_attention_cache.layers
    flat = [[kind[0].transpose(0, 1).flatten(1) for kind in (layer.keys, layer.values)] for layer in layers]
    return [torch.cat([layer[kind] for layer in flat], dim=1) for kind in (0, 1)]


def test_the_caches_are_those_of_transformers(checkpoint, forced, embeds):
    model = WhisperForConditionalGeneration.from_pretrained(demo_checkpoint_dir(), dtype=torch.float32).eval()
    ours = caches_of(checkpoint, forced, embeds)
    for language, task in ((forced.languages[0], 0), (forced.languages[3], 1), (forced.languages[-1], 0)):
        path = list(forced.path(language, task))
        tokens = [forced.tokens[node] for node in path]
        for window, of_window in zip(embeds, ours, strict=True):
            for mine, theirs in zip(of_window, transformers_caches(model, window, tokens), strict=True):
                assert psnr_db(theirs.numpy(), mine[path].numpy()) > 90


def test_the_table_is_the_mean_over_windows(checkpoint, forced, embeds):
    table = estimate(checkpoint, forced, embeds)
    (first, _), (second, _) = caches_of(checkpoint, forced, embeds)
    assert torch.allclose(table.keys, (first + second) / 2, atol=1e-4)
    again = estimate(checkpoint, forced, embeds)
    assert torch.equal(table.keys, again.keys)
    assert torch.equal(table.values, again.values)


def test_similarity_is_psnr_over_the_answers_positions(checkpoint, forced, embeds):
    table = estimate(checkpoint, forced, embeds[:1])
    found = similarity(checkpoint, {"table": table}, embeds[1:])["table"]
    ((keys, values),) = caches_of(checkpoint, forced, embeds[1:])
    for language, task in ((forced.languages[0], 0), (forced.languages[5], 1)):
        path = list(forced.path(language, task))
        expected = [psnr_db(b[path].numpy(), a[path].numpy()) for a, b in ((table.keys, keys), (table.values, values))]
        assert found[language, task] == pytest.approx(min(expected), abs=0.01)
    assert len(found) == len(forced.languages) * len(forced.tasks)
    itself = similarity(checkpoint, {"table": table}, embeds[:1])["table"]
    assert min(itself.values()) > 100


# --- forced tokens --------------------------------------------------------------------------------------------------


def test_forced_tokens_follow_from_the_checkpoint(checkpoint, shared):
    large = json.loads((shared / "checkpoints" / "whisper-large-v3" / "generation_config.json").read_text())
    found = forced_tokens(large)
    assert (found.length, len(found.languages), len(found.tasks), found.start) == (3, 100, 2, 50258)
    assert found.tasks == (50360, 50359)  # transcribe first, as the package's input counts
    english = json.loads((shared / "checkpoints" / "whisper-tiny.en" / "generation_config.json").read_text())
    assert forced_tokens(english) == ForcedTokens(50257)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"lang_to_id": None}, "no languages;"),
        ({"task_to_id": {"translate": 5}}, "no a task 'transcribe'"),
        ({"lang_to_id": {"<|en|>": 3, "<|de|>": 3}}, "make no sense"),
    ],
)
def test_a_vocabulary_without_languages_or_tasks_is_refused(missing, message):
    generation = {
        "decoder_start_token_id": 1,
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": 2},
        "task_to_id": {"transcribe": 4, "translate": 5},
    }
    assert forced_tokens(generation).tokens == (1, 2, 4, 5)
    with pytest.raises(ConversionError, match=message):
        forced_tokens({**generation, **missing})


def variant(tmp_path, change):
    """A copy of the demo checkpoint with another generation config."""
    folder = Path(shutil.copytree(demo_checkpoint_dir(), tmp_path / "my-finetune"))
    generation = json.loads((folder / "generation_config.json").read_text())
    change(folder, generation)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def english_only(folder, generation):
    generation["is_multilingual"] = False
    generation.pop("lang_to_id")
    generation.pop("task_to_id")


def without_languages(folder, generation):
    generation.pop("lang_to_id")
    text = (folder / "tokenizer.json").read_text()
    for token in json.loads(text)["added_tokens"]:
        name = token["content"]
        if name.startswith("<|") and len(name) in (6, 7) and name[2:-2].isalpha() and name[2:-2].islower():
            text = text.replace(f'"{name}"', f'"<|spoken {name[2:-2]}|>"')
    (folder / "tokenizer.json").write_text(text)


def test_an_english_only_checkpoint_gets_its_one_token(tmp_path):
    folder = variant(tmp_path, english_only)
    stage = PrefillStage(
        open_checkpoint(str(folder)), PrefillOptions(source="noise"), verify=False, progress=SilentProgress()
    )
    assert stage.forced.length == 1
    (tmp_path / "out").mkdir()
    outcome = stage.run(tmp_path / "out", export)
    assert outcome.included
    table = read_table(tmp_path / "out" / PACKAGE, stage.forced)
    assert table.keys.shape == (1, 256)
    assert float(table.keys.abs().max()) > 0


def test_where_there_can_be_no_prefill_turbo_does_without_and_asking_for_it_fails(wkt, tmp_path):
    folder = variant(tmp_path, without_languages)
    code, out, err = wkt("convert", folder, "-o", tmp_path / "out", "--prefill")
    assert (code, out) == (1, "")
    assert "its vocabulary has no languages" in err
    assert not list((tmp_path / "out").glob("*"))
    code, out, err = wkt("convert", folder, "-o", tmp_path / "out", "--turbo", "--no-verify", "--json")
    assert code == 0
    assert "prefill left out: there can be no prefill" in err
    bundle = Path(json.loads(out)["path"])
    assert not (bundle / PACKAGE).exists()
    recorded = json.loads((bundle / "wkt.json").read_text())["prefill"]
    assert (recorded["included"], recorded["evidence"]) == (False, None)
    code, out, _ = wkt("info", bundle)
    assert code == 0
    assert "left out: there can be no prefill" in out


@pytest.mark.parametrize(
    ("options", "made", "required"),
    [
        ({}, False, None),
        ({"turbo": True}, True, False),
        ({"turbo": True, "prefill": False}, False, None),
        ({"turbo": True, "prefill": True}, True, True),
        ({"prefill": True}, True, True),
        ({"prefill": PrefillOptions(source="noise", required=False)}, True, False),
    ],
)
def test_turbo_implies_a_prefill_where_there_can_be_one(options, made, required):
    found = ConvertConfig(**options).prefill_options
    assert (found is not None) == made
    assert found is None or found.required is required


# --- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "music"}, "known are speech, noise, mixed"),
        (
            {"source": "noise", "audio": (Recording("r", samples=np.zeros(16000, np.float32)),)},
            "takes no prefill_audio",
        ),
        ({"audio": "/does/not/exist"}, "prefill_audio is /does/not/exist, which does not exist"),
        ({"audio": __file__}, "which is not a folder"),
        ({"max_wer_delta": -1.0}, "expected points of WER, 0 or more"),
        ({"max_wer_delta": math.nan}, "expected points of WER, 0 or more"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(OptionsError, match=message):
        PrefillOptions(**options)


def test_strict_without_evidence_is_refused(checkpoint):
    with pytest.raises(OptionsError, match="strict asks for the evidence that verify=False skips"):
        PrefillStage(checkpoint, PrefillOptions(strict=True), verify=False, progress=SilentProgress())
    with pytest.raises(OptionsError, match="strict asks for"):
        ConvertConfig(prefill=PrefillOptions(strict=True), verify=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prefill-from", "noise"), "add --prefill or --turbo"),
        (("--strict",), "add --prefill or --turbo"),
        (("--turbo", "--no-prefill", "--prefill-max-wer-delta", "1"), "add --prefill or --turbo"),
        (("--prefill", "--prefill-audio", "/does/not/exist"), "does not exist"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(wkt, tmp_path, arguments, message):
    code, out, err = wkt("convert", "demo", "-o", tmp_path, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_audio_is_refused(wkt, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = wkt("convert", "demo", "-o", tmp_path / "out", "--prefill", "--prefill-audio", tmp_path / "empty")
    assert code == 1
    assert "a folder without audio" in err
    assert not (tmp_path / "out").exists()


# --- in a bundle ----------------------------------------------------------------------------------------------------


def export(module, interface, path):
    metadata = PackageMetadata("what", "who", "MIT", "1", {})
    export_package(module, interface, path, deployment_target="ios16", metadata=metadata)


@pytest.fixture
def bundle(prefill_bundle, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(prefill_bundle, tmp_path / prefill_bundle.name))


def test_the_package_keeps_the_runtimes_contract(prefill_bundle, forced, tmp_path):
    from whisperkit_tools.mil.coreml import import_coremltools

    copy = shutil.copytree(prefill_bundle / PACKAGE, tmp_path / PACKAGE)  # coremltools rewrites what it reads
    description = import_coremltools().utils.load_spec(str(copy)).description
    shapes = {
        feature.name: list(feature.type.multiArrayType.shape) for feature in (*description.input, *description.output)
    }
    cache = [1, 256, 1, 3]
    assert shapes == {"task": [1], "language": [1], "key_cache_prefill": cache, "value_cache_prefill": cache}
    kinds = {
        feature.name: feature.type.multiArrayType.ArrayDataType.Name(feature.type.multiArrayType.dataType)
        for feature in (*description.input, *description.output)
    }
    assert {kinds["task"], kinds["language"]} == {"INT32"}
    assert {kinds["key_cache_prefill"], kinds["value_cache_prefill"]} == {"FLOAT16"}


def test_the_package_stores_each_node_once(prefill_bundle, forced):
    weights = prefill_bundle / PACKAGE / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    nodes = 1 + len(forced.languages) * (1 + len(forced.tasks))
    table = 2 * nodes * 256 * 2  # keys and values, D * L = 256, float16
    assert table <= weights.stat().st_size < table + 8192


def test_the_manifest_records_the_evidence(prefill_bundle, forced):
    manifest = json.loads((prefill_bundle / "wkt.json").read_text())
    recorded = manifest["prefill"]
    assert (recorded["included"], recorded["tokens"], recorded["languages"], recorded["tasks"]) == (True, 3, 99, 2)
    evidence = recorded["evidence"]
    assert {*evidence["psnr_db"]} == {name[2:-2] for name in open_checkpoint("demo").generation_config["lang_to_id"]}
    assert all({*tasks} == {"transcribe", "translate"} for tasks in evidence["psnr_db"].values())
    assert evidence["clips"] == 5
    assert evidence["wer_delta"] == pytest.approx(evidence["wer_with"] - evidence["wer_without"], abs=1e-3)
    assert {*evidence["nulls"]} == {"zeros", "gaussian"}
    least = min(value for tasks in evidence["psnr_db"].values() for value in tasks.values())
    assert all(null["psnr_db"] < least for null in evidence["nulls"].values())
    assert min(manifest["parity"]["psnr_db"]["TextDecoderContextPrefill"]["float16"].values()) > 70
    assert Bundle.open(prefill_bundle).differing_files() == []


def test_info_shows_the_evidence(wkt, prefill_bundle):
    code, out, _ = wkt("info", prefill_bundle)
    assert code == 0
    assert "included: 3 tokens, 99 languages x 2 tasks" in out
    assert "of 5 transcripts change, WER" in out
    assert "null test zeros" in out


def stage_of(checkpoint, **options):
    few = tuple(Recording(clip.id, clip.text, samples=clip.samples) for clip in demo_clips()[:8])
    config = PrefillOptions(**{"audio": few} | options)
    return PrefillStage(checkpoint, config, verify=True, progress=SilentProgress())


def damaged(checkpoint, forced, embeds):
    """An estimate gone wrong: caches of no meaning, three times as large."""
    table = null_tables(estimate(checkpoint, forced, embeds))["gaussian"]
    return PrefillTable(forced, 3 * table.keys, 3 * table.values)


def test_the_gate_leaves_a_harmful_prefill_out(checkpoint, bundle, monkeypatch):
    shutil.rmtree(bundle / PACKAGE)
    monkeypatch.setattr(prefill_stage, "estimate", damaged)
    outcome = stage_of(checkpoint).run(bundle, export)
    assert not outcome.included
    assert not (bundle / PACKAGE).exists()
    assert outcome.evidence.wer_delta > 0.2
    assert "the WER rises by" in outcome.reason
    assert outcome.lines()[0].startswith("prefill left out")
    with pytest.raises(QualityGateError, match="the WER rises by"):
        stage_of(checkpoint, strict=True).run(bundle, export)


def test_the_gate_leaves_a_prefill_out_when_caches_without_meaning_do_as_well(bundle, tmp_path):
    """A decoder whose self-attention adds nothing: whatever the caches hold, it writes the same."""
    folder = variant(tmp_path, lambda folder, generation: None)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.startswith("model.decoder") and ".self_attn.out_proj." in name:
            weights[name] = torch.zeros_like(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    deaf = open_checkpoint(str(folder))
    components = Components(deaf, 448, None, verification_speech())
    shutil.rmtree(bundle / PACKAGE)
    shutil.rmtree(bundle / "TextDecoder.mlpackage")
    decoder = components.load("TextDecoder")
    export(decoder, components.interfaces["TextDecoder"], bundle / "TextDecoder.mlpackage")
    outcome = stage_of(deaf).run(bundle, export)
    assert not outcome.included
    assert not (bundle / PACKAGE).exists()
    assert not outcome.evidence.is_harmful
    assert outcome.evidence.alike == ("zeros", "gaussian")
    assert outcome.evidence.changed == outcome.evidence.nulls["zeros"].changed == 0
    assert outcome.lines()[0].startswith("prefill left out")
    assert "all-zero and Gaussian caches do about as well" in outcome.reason
    with pytest.raises(QualityGateError, match="do about as well, so this measurement is inconclusive"):
        stage_of(deaf, strict=True).run(bundle, export)


@pytest.mark.slow
def test_strict_exits_3_and_leaves_nothing_behind(wkt, tmp_path, monkeypatch):
    monkeypatch.setattr(prefill_stage, "estimate", damaged)
    audio = tmp_path / "audio"
    audio.mkdir()
    for clip in demo_clips()[:8]:
        soundfile.write(audio / f"{clip.id}.wav", clip.samples, SAMPLE_RATE_HZ)
        (audio / f"{clip.id}.txt").write_text(clip.text)
    arguments = ("convert", "demo", "-o", tmp_path / "out", "--prefill", "--prefill-audio", audio)
    code, out, err = wkt(*arguments, "--strict")
    assert (code, out) == (3, "")
    assert "the WER rises by" in err
    assert list((tmp_path / "out").iterdir()) == []
    code, out, err = wkt(*arguments)
    assert code == 0
    assert "prefill left out" in out
    bundle = Path(out.splitlines()[-1])
    assert not (bundle / PACKAGE).exists()
    assert json.loads((bundle / "wkt.json").read_text())["prefill"]["evidence"]["judged_on"] == "recordings"


def test_two_conversions_write_the_same_package(checkpoint, tmp_path):
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        config = PrefillOptions(source="noise")
        PrefillStage(checkpoint, config, verify=False, progress=SilentProgress()).run(tmp_path / name, export)
        package = tmp_path / name / PACKAGE
        files.append(
            {str(path.relative_to(package)): path.read_bytes() for path in package.rglob("*") if path.is_file()}
        )
    assert files[0] == files[1]


def test_every_language_and_task_is_printed(prefill_bundle, forced):
    recorded = json.loads((prefill_bundle / "wkt.json").read_text())["prefill"]["evidence"]
    known = {**recorded, "nulls": {name: NullTest(**null) for name, null in recorded["nulls"].items()}}
    lines = PrefillEvidence(**{name: known[name] for name in PrefillEvidence.__slots__}).lines()
    printed = " ".join(line.removeprefix("dB") for line in lines if line.startswith("dB"))
    assert len(printed.split()) == 2 * len(forced.languages)
    for language, tasks in recorded["psnr_db"].items():
        assert f" {language} {tasks['transcribe']:.1f}/{tasks['translate']:.1f}" in printed


def test_a_language_that_the_demo_does_not_speak_leaves_a_gap(checkpoint, forced, prefill_bundle):
    table = read_table(prefill_bundle / PACKAGE, forced)
    audio = own_audio("speech", [Recording("r", samples=demo_clips()[0].samples)])
    foreign = tuple(replace(clip, language="xx") for clip in audio.clips[:2])
    short = replace(audio, clips=foreign, held_out=audio.held_out[:1])
    found = gather_evidence(checkpoint, prefill_bundle, table, short, 0.2)
    assert "speaks none of the model's languages" in found.inconclusive
    assert found.wer_delta is None
    assert not found.is_harmful
    assert {name: null.clips for name, null in found.nulls.items()} == {"zeros": 0, "gaussian": 0}
    assert found.alike == ()
    assert any("the effect of the prefill is unknown" in line for line in found.lines())


def test_verify_compares_the_caches_with_the_checkpoints(checkpoint, bundle):
    manifest = json.loads((bundle / "wkt.json").read_text())
    good = verify_bundle(Bundle(bundle, Manifest.from_json(manifest, "m")), checkpoint)
    assert good.problems == ()
    weights = bundle / PACKAGE / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    content = bytearray(weights.read_bytes())
    behind = len(content) // 2 + 1024  # the second table's rows; its record stays
    content[behind:] = content[behind:][::-1]
    weights.write_bytes(bytes(content))
    from whisperkit_tools.files import sha256

    name = str(weights.relative_to(bundle))
    manifest["files"][name] = {"sha256": sha256(weights), "size_bytes": weights.stat().st_size}
    bad = verify_bundle(Bundle(bundle, Manifest.from_json(manifest, "m")), checkpoint)
    assert bad.files == ()
    assert any("TextDecoderContextPrefill: en transcribe has" in line for line in bad.problems)


def test_verify_misses_a_prefill_that_is_recorded(bundle):
    shutil.rmtree(bundle / PACKAGE)
    manifest = json.loads((bundle / "wkt.json").read_text())
    found = verify_bundle(Bundle(bundle, Manifest.from_json(manifest, "m")), None)
    assert "TextDecoderContextPrefill is missing, but recorded as included" in found.contract
