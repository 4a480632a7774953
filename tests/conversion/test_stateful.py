"""`wkt convert --stateful`: what is written, what is refused, and that the verification is of the thing itself."""

import json
import shutil

import numpy as np
import pytest
import torch

from whisperkit_tools.bundle import Bundle, variant_name
from whisperkit_tools.checkpoint import open_checkpoint
from whisperkit_tools.compile_hints.lint.chips import load_chips
from whisperkit_tools.compile_hints.lint.cost import estimate_program
from whisperkit_tools.compile_hints.lint.flops import count_program
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.compile_hints.token_embedding import chunk_heights
from whisperkit_tools.contract import STEP_FUNCTION, WINDOW_FUNCTION, package_interfaces, stateful_interfaces
from whisperkit_tools.conversion.config import ConvertConfig
from whisperkit_tools.conversion.contract_check import stateful_problems
from whisperkit_tools.conversion.export import PackageMetadata, export_package
from whisperkit_tools.conversion.verify import verify_bundle
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.errors import OptionsError
from whisperkit_tools.mil.graph import function_names, read_graph
from whisperkit_tools.mil.program import Program

STATES = {"key_cache", "value_cache", "audio_key_cache", "audio_value_cache"}


def test_two_functions_declare_the_same_states(stateful_bundle):
    package = Bundle.open(stateful_bundle).package("TextDecoder").path
    assert function_names(package) == (STEP_FUNCTION, WINDOW_FUNCTION)
    step, window = (read_graph(package, name) for name in (STEP_FUNCTION, WINDOW_FUNCTION))
    assert set(step.inputs) == {"input_ids", "cache_length", "decoder_key_padding_mask"}
    assert set(step.outputs) == {"logits", "alignment_heads_weights"}
    assert set(window.inputs) == {"encoder_output_embeds"}
    assert step.states == window.states and set(step.states) == STATES
    assert all(state.shape[-1] % 32 == 0 and state.dtype == "float16" for state in step.states.values())


def test_states_are_written_once_in_a_step_and_those_of_the_audio_never(stateful_bundle):
    package = Bundle.open(stateful_bundle).package("TextDecoder").path
    written = {
        name: [op.inputs["input"][0].name for op in read_graph(package, name).operations if op.type == "write_state"]
        for name in (STEP_FUNCTION, WINDOW_FUNCTION)
    }
    assert sorted(written[STEP_FUNCTION]) == ["key_cache", "value_cache"]
    assert sorted(written[WINDOW_FUNCTION]) == sorted(STATES)


def test_weights_are_stored_once_and_keep_their_names(stateful_bundle, demo_bundle):
    stateful, plain = (Bundle.open(path).package("TextDecoder").path for path in (stateful_bundle, demo_bundle))
    sizes = [(path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size for path in (stateful, plain)]
    assert sizes[0] < 1.05 * sizes[1]

    def weights(path, function="main"):
        constants = read_graph(path, function).constants.values()
        names = [one.spec.name for one in constants]
        return {name for name in names if name.endswith("proj_weight") or name.startswith("embed_tokens")}

    assert weights(stateful) | weights(stateful, WINDOW_FUNCTION) == weights(plain)
    assert weights(stateful, WINDOW_FUNCTION).isdisjoint(weights(stateful))


def test_the_manifest_and_the_name_say_so(stateful_bundle):
    bundle = Bundle.open(stateful_bundle)
    assert bundle.name.endswith("_stateful") and bundle.manifest.variant == bundle.name
    assert bundle.manifest.conversion.stateful is True
    figures = bundle.manifest.parity.psnr_db["TextDecoder"]
    assert min(figures["float32"].values()) > 70 and min(figures["float16"].values()) > 40


def test_no_name_ends_with_another():
    names = [
        variant_name("openai", "whisper-tiny", turbo=turbo, stateful=stateful, size_bytes=size)
        for turbo in (False, True)
        for stateful in (False, True)
        for size in (None, 30_000_000)
    ]
    assert names[2] == "openai_whisper-tiny_stateful" and names[7] == "openai_whisper-tiny_turbo_stateful_30MB"
    assert len(set(names)) == len(names)
    assert [(one, two) for one in names for two in names if one != two and one.endswith(two)] == []


def test_verify_checks_it_again_and_closes(stateful_bundle, tmp_path):
    checkpoint = open_checkpoint("demo")
    assert verify_bundle(Bundle.open(stateful_bundle), checkpoint).problems == ()
    broken = shutil.copytree(stateful_bundle, tmp_path / "broken_stateful")
    weights = broken / "TextDecoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    content = np.fromfile(weights, np.uint8)
    content[len(content) // 2 :: 4096] ^= 0x40  # an exponent bit, here and there
    content.tofile(weights)
    manifest = json.loads((broken / "wkt.json").read_text())
    manifest["files"] = {
        name: record
        for name, record in manifest["files"].items()
        if not name.startswith("TextDecoder.mlpackage/Data/com.apple.CoreML/weights")
    }
    (broken / "wkt.json").write_text(json.dumps(manifest))
    found = verify_bundle(Bundle.open(broken), None)
    assert found.files and "not recorded" in found.files[0]


def test_a_function_that_is_missing_or_other_is_named(stateful_bundle, demo_bundle):
    dims = open_checkpoint("demo").dims
    wanted = stateful_interfaces(dims, 448, word_timestamps=True)
    stateful, plain = (Bundle.open(path).package("TextDecoder").path for path in (stateful_bundle, demo_bundle))
    assert stateful_problems("TextDecoder", stateful, wanted) == []
    assert stateful_problems("TextDecoder", plain, wanted) == [
        "TextDecoder: function main is missing",
        "TextDecoder: function project_audio is missing",
    ]
    shorter = stateful_interfaces(dims, 416, word_timestamps=True)
    assert any(
        "function main: state key_cache has declared shape [1, 256, 1, 448], expected [1, 256, 1, 416]" in line
        for line in stateful_problems("TextDecoder", stateful, shorter)
    )


def test_older_systems_are_refused(wkt, tmp_path):
    code, _, err = wkt("convert", "demo", "-o", tmp_path, "--stateful")
    assert code == 2 and "--stateful needs iOS 18 or macOS 15, but --deployment-target is ios16" in err
    code, _, err = wkt("convert", "demo", "-o", tmp_path, "--stateful", "--deployment-target", "macos14")
    assert code == 2 and "choose ios18 or macos15" in err
    with pytest.raises(OptionsError, match="deployment_target is ios17"):
        ConvertConfig(stateful=True, deployment_target="ios17")


def test_a_length_that_no_state_can_have_is_refused(wkt, tmp_path):
    arguments = ("--stateful", "--deployment-target", "ios18", "--kv-length", "100")
    code, _, err = wkt("convert", "demo", "-o", tmp_path, *arguments)
    assert code == 2 and "--kv-length is 100" in err
    assert "need a multiple of 32" in err and "the next are 96 and 128" in err
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_info_and_verify_say_that_the_runtime_does_not_load_it(wkt, stateful_bundle, demo_bundle):
    code, out, _ = wkt("info", stateful_bundle)
    assert code == 0 and "today's open runtime does not load it" in out
    assert "function project_audio" in out and "state   audio_key_cache" in out
    assert json.loads(wkt("info", stateful_bundle, "--json")[1])["loads_in_runtime"] is False
    assert json.loads(wkt("info", demo_bundle, "--json")[1])["loads_in_runtime"] is True
    assert "does not load" not in wkt("info", demo_bundle)[1]
    code, _, err = wkt("verify", stateful_bundle, "--no-parity")
    assert code == 0 and "today's open runtime does not load it" in err


def test_lint_and_estimate_look_at_both_functions(wkt, stateful_bundle):
    packages = json.loads(wkt("lint", stateful_bundle, "--chip", "m4", "--json")[1])["packages"]
    assert [name for name in packages if name.startswith("TextDecoder")] == ["TextDecoder", "TextDecoder:project_audio"]
    assert not [f for one in packages.values() for f in one["findings"] if f["rule"] in ("no-path", "state-width")]
    one = json.loads(wkt("lint", stateful_bundle / "TextDecoder.mlpackage", "--function", "project_audio", "--json")[1])
    assert list(one["packages"]) == ["TextDecoder:project_audio"]
    estimate = json.loads(wkt("estimate", stateful_bundle, "--chip", "m1", "--json")[1])["estimates"][0]
    latency = {part["component"]: part["latency_s"] for part in estimate["programs"]}
    assert estimate["decoder_step_s"] == latency["TextDecoder"]
    assert estimate["window_s"] == pytest.approx(sum(latency.values()) + 99 * latency["TextDecoder"])
    code, _, err = wkt("lint", stateful_bundle, "--function", "other")
    assert code == 1 and "no package has a function 'other'; there are main, project_audio" in err


@pytest.fixture(scope="module")
def stateless_ios18(tmp_path_factory):
    """The runtime's form for the same system: from iOS 17 on the converter puts 16-bit casts around look-ups."""
    checkpoint = open_checkpoint("demo")
    decoder = checkpoint.load_decoder(448, checkpoint.alignment_heads, torch.float16)
    interface = package_interfaces(checkpoint.dims, 448, word_timestamps=True)["TextDecoder"]
    path = tmp_path_factory.mktemp("stateless") / "TextDecoder.mlpackage"
    export_package(
        decoder, interface, path, deployment_target="ios18", metadata=PackageMetadata("d", "a", "l", "v", {})
    )
    return read_graph(path)


@pytest.mark.parametrize("chip", ["a14", "a17pro", "m1", "m5"])
def test_the_cost_model_orders_the_real_packages(stateful_bundle, stateless_ios18, chip):
    """Stateful before stateless, as published, on packages as converted."""
    table = load_chips()
    stateful = Bundle.open(stateful_bundle).package("TextDecoder").graph()
    before, after = (
        estimate_program("TextDecoder", graph, table.chip(chip), table) for graph in (stateless_ios18, stateful)
    )
    assert after.latency_s < before.latency_s and after.flops < before.flops


def test_a_stateful_step_leaves_out_exactly_the_projections_of_the_audio(stateful_bundle, stateless_ios18):
    stateful = Bundle.open(stateful_bundle).package("TextDecoder").graph()
    before, after = (sum(count.macs for count in count_program(graph)) for graph in (stateless_ios18, stateful))
    dims = open_checkpoint("demo").dims
    projections = 2 * dims.decoder_layers * dims.d_model**2 * dims.n_audio_ctx
    added = 2 * dims.decoder_layers * dims.d_model * 4  # the positions that were added for alignment
    assert before - after == projections - added


def test_every_token_of_a_large_vocabulary_is_looked_up(tmp_path):
    """Ids above 32767 do not fit the 16-bit integers that the converter takes for indices where it can."""
    dims = ModelDimensions(
        n_mels=8, n_audio_ctx=32, d_model=8, encoder_layers=1, encoder_attention_heads=1, encoder_ffn_dim=8,
        decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=8, n_text_ctx=32, vocab_size=51866,
    )  # fmt: skip
    torch.manual_seed(0)
    decoder = TextDecoder(dims, 32).eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    from whisperkit_tools.conversion.stateful import export_stateful

    package = tmp_path / "TextDecoder.mlpackage"
    interfaces = stateful_interfaces(dims, 32, word_timestamps=False)
    metadata = PackageMetadata("d", "a", "l", "v", {})
    export_stateful(decoder.half(), interfaces, package, deployment_target="ios18", metadata=metadata)
    program, decoder = Program.load(package), decoder.float()
    at = np.arange(32)[None]
    masks = (at == 0).astype(np.float32), np.where(at <= 0, 0, -1e4).astype(np.float32)
    cache, embeds = torch.zeros(1, 8, 1, 32), torch.zeros(1, 8, 1, 32)
    window = Program.load(package, function=WINDOW_FUNCTION)
    for token in (0, 8191, 8192, 8193, 32767, 32768, 40000, 51865):
        state = program.make_state()
        window.predict({"encoder_output_embeds": embeds.numpy()}, state)
        inputs = {"input_ids": [token], "cache_length": [0], "decoder_key_padding_mask": masks[1]}
        found = program.predict(inputs, state)["logits"]
        with torch.no_grad():
            ids, place = torch.tensor([token]), torch.tensor([0])
            mask = [torch.from_numpy(one) for one in masks]
            expected = decoder(ids, place, cache, cache, mask[0], embeds, mask[1])[0]
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)


def test_pieces_of_the_embedding_are_named_after_it(tmp_path):
    """So that the lint, and whoever compresses weights, can say which tensor is meant."""
    checkpoint = open_checkpoint("demo")
    decoder = checkpoint.load_decoder(448, None, torch.float16, logits_chunk_size=1024)
    interface = package_interfaces(checkpoint.dims, 448, word_timestamps=False)["TextDecoder"]
    metadata = PackageMetadata("d", "a", "l", "v", {})
    path = tmp_path / "TextDecoder.mlpackage"
    export_package(decoder, interface, path, deployment_target="ios16", metadata=metadata)
    pieces = {
        spec.name: spec.shape
        for operation in read_graph(path).operations
        if operation.type == "linear"
        for spec in operation.inputs["weight"]
    }
    rows = chunk_heights(checkpoint.dims.vocab_size, 1024)
    assert pieces == {
        f"embed_tokens_weight_piece_{number}": (count, checkpoint.dims.d_model) for number, count in enumerate(rows)
    }


def test_converting_twice_gives_the_same_bytes(stateful_bundle, tmp_path):
    from whisperkit_tools.conversion.export import fold_query_scale
    from whisperkit_tools.conversion.stateful import export_stateful

    checkpoint = open_checkpoint("demo")
    written = []
    for number in range(2):
        decoder = checkpoint.load_decoder(448, checkpoint.alignment_heads, torch.float16)
        fold_query_scale(decoder)
        interfaces = stateful_interfaces(checkpoint.dims, 448, word_timestamps=True)
        path = tmp_path / str(number) / "TextDecoder.mlpackage"
        path.parent.mkdir()
        metadata = PackageMetadata("d", "a", "l", "v", {"k": "v"})
        export_stateful(decoder, interfaces, path, deployment_target="ios18", metadata=metadata)
        written.append({str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()})
        assert [one.name for one in path.parent.iterdir()] == [path.name]  # the halves are gone
    assert written[0] == written[1]
