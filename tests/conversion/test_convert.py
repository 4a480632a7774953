"""Conversion: what is written keeps the contract, computes what the checkpoint does, and is the same every time."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.checkpoint import open_checkpoint
from whisperkit_tools.contract import PackageInterface, TensorInterface, package_interfaces
from whisperkit_tools.conversion.config import ConvertConfig
from whisperkit_tools.conversion.contract_check import interface_problems, package_problems
from whisperkit_tools.conversion.convert import convert
from whisperkit_tools.conversion.export import PackageMetadata, export_package, fold_query_scale
from whisperkit_tools.conversion.parity import ComponentParity, ParityGate, require
from whisperkit_tools.conversion.verify import verify_bundle
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.errors import BundleError, ConversionError, OptionsError, QualityGateError, WktError
from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.signals import psnr_db

METADATA = PackageMetadata("what", "who", "MIT", "1", {"key": "value"})


@pytest.fixture
def bundle(demo_bundle, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copytree(demo_bundle, tmp_path / demo_bundle.name))


def demo_dims(bundle: Path) -> ModelDimensions:
    return ModelDimensions(**json.loads((bundle / "wkt.json").read_text())["dimensions"])


# The contract, written down here once more from the runtime's sources, not from our own table.
def expected_shapes(d, layers, mels, vocabulary, length):
    return {
        "MelSpectrogram": ({"audio": [480000]}, {"melspectrogram_features": [1, mels, 1, 3000]}),
        "AudioEncoder": (
            {"melspectrogram_features": [1, mels, 1, 3000]},
            {"encoder_output_embeds": [1, d, 1, 1500]},
        ),
        "TextDecoder": (
            {
                "input_ids": [1],
                "cache_length": [1],
                "key_cache": [1, d * layers, 1, length],
                "value_cache": [1, d * layers, 1, length],
                "kv_cache_update_mask": [1, length],
                "encoder_output_embeds": [1, d, 1, 1500],
                "decoder_key_padding_mask": [1, length],
            },
            {
                "logits": [1, 1, vocabulary],
                "key_cache_updates": [1, d * layers, 1, 1],
                "value_cache_updates": [1, d * layers, 1, 1],
                "alignment_heads_weights": [1, 1500],
            },
        ),
    }


def test_the_packages_declare_what_the_runtime_reads(bundle):
    dims = demo_dims(bundle)
    # coremltools rewrites the Manifest of a package that it reads, so it gets a copy.
    load_spec = import_coremltools().utils.load_spec
    expected = expected_shapes(dims.d_model, dims.decoder_layers, dims.n_mels, dims.vocab_size, 448)
    for name, (inputs, outputs) in expected.items():
        description = load_spec(str(bundle / f"{name}.mlpackage")).description
        for features, shapes in ((description.input, inputs), (description.output, outputs)):
            assert {feature.name: list(feature.type.multiArrayType.shape) for feature in features} == shapes
            for feature in features:
                kind = feature.type.multiArrayType.ArrayDataType.Name(feature.type.multiArrayType.dataType)
                integer = feature.name in ("input_ids", "cache_length")
                assert kind == ("INT32" if integer else "FLOAT32" if feature.name == "audio" else "FLOAT16")


def test_the_bundle_has_what_makes_it_usable_offline(demo_bundle):
    names = {path.name for path in demo_bundle.iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json", "wkt.json"} <= names


def test_the_manifest_records_source_options_and_parity(demo_bundle):
    manifest = json.loads((demo_bundle / "wkt.json").read_text())
    assert manifest["source"]["name"] == "demo"
    assert all(len(digest) == 64 for digest in manifest["source"]["sha256"].values())
    assert manifest["conversion"]["verified"] is True
    figures = manifest["parity"]["psnr_db"]
    assert figures.keys() == {"MelSpectrogram", "AudioEncoder", "TextDecoder"}
    assert all(value >= 70 for item in figures.values() for value in item["float32"].values())
    assert all(value >= 40 for item in figures.values() for value in item["float16"].values())
    assert Bundle.open(demo_bundle).differing_files() == []


def test_the_package_says_what_it_is(demo_bundle):
    metadata = read_graph(demo_bundle / "TextDecoder.mlpackage", "main").metadata
    assert "one token a call" in metadata.description
    assert metadata.license
    assert metadata.user_defined["source_revision"] == metadata.version


def test_the_tied_embedding_is_stored_once_and_weights_keep_their_names(demo_bundle):
    dims = demo_dims(demo_bundle)
    graph = read_graph(demo_bundle / "TextDecoder.mlpackage", "main")
    rows = {n: c.spec.shape[0] for n, c in graph.constants.items() if n.startswith("embed_tokens")}
    assert list(rows) == ["embed_tokens_weight_piece_0", "embed_tokens_weight_piece_1"]
    assert list(rows.values()) == [256, dims.vocab_size - 256]
    assert "layers_0_self_attn_q_proj_weight" in graph.constants
    weights = demo_bundle / "TextDecoder.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    parameters = sum(t.numel() for t in open_checkpoint("demo").load_decoder(dtype=torch.float16).state_dict().values())
    assert weights.stat().st_size < 2 * parameters + 50_000


def test_weights_are_those_of_the_checkpoint(demo_bundle):
    """Rounded to float16 once, by whoever stored the checkpoint, and not again."""
    checkpoint = open_checkpoint("demo")
    graph = read_graph(demo_bundle / "AudioEncoder.mlpackage", "main")
    for name, tensor in checkpoint.load_encoder(torch.float16).state_dict().items():
        constant = graph.constants.get(name.replace(".", "_"))
        if constant is not None:
            assert np.array_equal(np.asarray(constant.value).reshape(-1), tensor.numpy().reshape(-1)), name


def test_converting_twice_gives_the_same_bytes(demo_bundle, tmp_path):
    config = ConvertConfig(output_dir=tmp_path, verify=False)
    again = convert(open_checkpoint("demo"), config).path
    for path in sorted(p for p in demo_bundle.rglob("*") if p.is_file() and p.name != "wkt.json"):
        other = again / path.relative_to(demo_bundle)
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest(), path
    assert json.loads((again / "wkt.json").read_text())["conversion"]["verified"] is False


def test_options_reach_the_packages(tmp_path):
    config = ConvertConfig(output_dir=tmp_path, deployment_target="ios18", kv_length=64, word_timestamps=False)
    result = convert(open_checkpoint("demo"), config)
    graph = read_graph(result.path / "TextDecoder.mlpackage", "main")
    assert graph.inputs["key_cache"].shape[3] == 64
    assert "alignment_heads_weights" not in graph.outputs
    assert graph.metadata.spec_version == 9  # Core ML's number for iOS 18
    assert len(result.parity) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deployment_target": "ios15"}, "deployment_target is 'ios15'; choose from ios16"),
        ({"compile": True}, "compile needs macOS"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(WktError, match=message) as raised:
        ConvertConfig(**options)
    # A wrong value is wrong usage. A compiler that this machine lacks is a failure.
    assert raised.value.exit_code == (1 if "compile" in options else 2)


@pytest.mark.parametrize("length", [0, 7, 449, -1])
def test_impossible_kv_lengths_are_refused_before_anything_is_written(tmp_path, length):
    with pytest.raises(OptionsError, match=f"kv_length is {length}, allowed are 8 to 448"):
        convert(open_checkpoint("demo"), ConvertConfig(output_dir=tmp_path / "b", kv_length=length))
    assert not (tmp_path / "b").exists() or list((tmp_path / "b").iterdir()) == []


def test_the_parity_gate_closes_on_a_wrong_export(tmp_path, monkeypatch):
    """The export gets other weights than the reference: the command must exit 3 and leave nothing behind."""

    def broken_export(module, *args, **kwargs):
        name = next((n for n, _ in module.named_parameters() if n.endswith("fc2.bias")), None)
        if name is None:
            return export_package(module, *args, **kwargs)
        parameter = module.get_parameter(name)
        kept = parameter.detach().clone()
        parameter.data[0] += 0.5  # one channel: layer norm takes a shift of all of them away
        export_package(module, *args, **kwargs)
        parameter.data.copy_(kept)
        return None

    monkeypatch.setattr("whisperkit_tools.conversion.convert.export_package", broken_export)
    with pytest.raises(QualityGateError, match=r"AudioEncoder: encoder_output_embeds has .* dB in float32") as raised:
        convert(open_checkpoint("demo"), ConvertConfig(output_dir=tmp_path))
    assert raised.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [69.9, float("nan"), float("-inf")])
def test_the_gate_closes_on_each_precision(value):
    good = {"out": 120.0}
    require([ComponentParity("A", good, {"out": 40.0})], ParityGate())
    with pytest.raises(QualityGateError, match="in float32, at least 70 dB"):
        require([ComponentParity("A", {"out": value}, good)], ParityGate())
    with pytest.raises(QualityGateError, match="in float16, at least 40 dB"):
        require([ComponentParity("A", good, {"out": min(value, 39.9) if value == value else value})], ParityGate())


def test_interface_differences_are_all_named(bundle):
    dims = demo_dims(bundle)
    path = bundle / "TextDecoder.mlpackage"
    right = package_interfaces(dims, 448, word_timestamps=True)["TextDecoder"]
    assert package_problems("TextDecoder", path, right) == []
    spec = import_coremltools().utils.load_spec(str(path))
    spec.description.output[0].type.multiArrayType.shape[2] = 7
    spec.description.input[2].type.multiArrayType.dataType = 65568  # FLOAT32
    spec.description.input[0].name = "ids"
    lines = interface_problems("TextDecoder", spec, right)
    assert lines == [
        "TextDecoder: input input_ids is missing",
        "TextDecoder: input ids is unknown to the runtime",
        "TextDecoder: input key_cache has type float32, expected float16",
        f"TextDecoder: output logits has declared shape [1, 1, 7], expected [1, 1, {dims.vocab_size}]",
    ]


def test_a_float16_module_is_exported_as_it_computes(tmp_path):
    """Scalars and per-channel scales in float16, which coremltools alone refuses."""

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.linspace(0.5, 2, 8, dtype=torch.float16))
            self.shift = torch.nn.Parameter(torch.linspace(-1, 1, 8, dtype=torch.float16))

        def forward(self, x):
            return (1.0 - x * 0.3) * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)

    tensor = TensorInterface((1, 8, 1, 4))
    path = tmp_path / "Scaled.mlpackage"
    export_package(
        Scaled(), PackageInterface({"x": tensor}, {"y": tensor}), path, deployment_target="ios16", metadata=METADATA
    )
    assert [op.type for op in read_graph(path, "main").operations] == ["mul", "sub", "batch_norm"]
    x = np.random.default_rng(0).standard_normal((1, 8, 1, 4)).astype(np.float32)
    expected = Scaled().float()(torch.from_numpy(x)).detach().numpy()
    assert psnr_db(expected, Program.load(path).predict({"x": x})["y"]) > 70


def test_an_operation_that_coremltools_refuses_is_one_line(tmp_path):
    class Refused(torch.nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    tensor = TensorInterface((1, 4), "float32", ("float32",))
    with pytest.raises(ConversionError, match=r"coremltools cannot convert Refused: .*bessel") as raised:
        export_package(
            Refused(), PackageInterface({"x": tensor}, {"y": tensor}), tmp_path / "Refused.mlpackage",
            deployment_target="ios16", metadata=METADATA, float32=True,
        )  # fmt: skip
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("heads", "folded"), [(2, True), (4, False)])
def test_the_query_scale_is_folded_only_where_that_is_exact(heads, folded):
    """64 channels a head scale by 1/8; 32 channels by 0.1768, which float16 would round into the weights."""
    from whisperkit_tools.compile_hints.attention import MultiHeadAttention, attention

    module = MultiHeadAttention(128, heads, attention("cat"))
    x = torch.randn(1, 128, 1, 5, generator=torch.Generator().manual_seed(0))
    before = module(x, x)[0]
    fold_query_scale(module)
    assert (module.scale == 1.0) is folded
    assert torch.allclose(module(x, x)[0], before, atol=1e-6)


def test_verify_finds_nothing_in_a_good_bundle(bundle):
    found = verify_bundle(Bundle.open(bundle), open_checkpoint("demo"))
    assert found.problems == ()
    assert [item.component for item in found.measured] == ["MelSpectrogram", "AudioEncoder", "TextDecoder"]


def flip_byte(path: Path, offset: int):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(bytes(data))


def test_verify_finds_a_changed_byte(bundle):
    weights = bundle / "AudioEncoder.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    flip_byte(weights, 100_001)
    found = verify_bundle(Bundle.open(bundle), open_checkpoint("demo"))
    assert len(found.problems) == 1
    assert "AudioEncoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin: sha256" in found.files[0]


def test_verify_finds_wrong_weights_behind_right_hashes(bundle):
    """A manifest can be rewritten; the parity cannot."""
    from whisperkit_tools.manifest import Manifest, write_manifest

    weights = bundle / "AudioEncoder.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    for offset in range(100_001, 140_001, 2):
        flip_byte(weights, offset) if offset % 4000 == 1 else None
    manifest = json.loads((bundle / "wkt.json").read_text())
    write_manifest(bundle, Manifest.from_json(manifest, "m"))
    found = verify_bundle(Bundle.open(bundle), open_checkpoint("demo"))
    assert found.files == ()
    assert any("AudioEncoder: encoder_output_embeds" in line for line in found.parity)


def test_verify_finds_a_broken_contract(bundle):
    config = json.loads((bundle / "config.json").read_text())
    config["vocab_size"] += 1
    (bundle / "config.json").write_text(json.dumps(config))
    found = verify_bundle(Bundle.open(bundle), None)
    assert any("logits has declared shape" in line for line in found.contract)
    assert any("config.json" in line for line in found.files)


def test_verify_survives_a_truncated_package(bundle):
    model = bundle / "TextDecoder.mlpackage" / "Data" / "com.apple.CoreML" / "model.mlmodel"
    model.write_bytes(model.read_bytes()[:1000])
    found = verify_bundle(Bundle.open(bundle), None)
    assert found.files
    assert found.contract


def test_a_missing_package_is_named(bundle):
    shutil.rmtree(bundle / "AudioEncoder.mlpackage")
    with pytest.raises(BundleError, match=r"missing AudioEncoder\.mlpackage"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turbo": "yes"}, "turbo is 'yes', expected True or False"),
        ({"kv_length": "448"}, "kv_length is '448', expected an integer"),
        ({"force": 1, "logits_chunk_size": True}, "force is 1, .*; logits_chunk_size is True, expected an integer"),
    ],
)
def test_values_of_the_wrong_type_are_refused_before_the_work(options, message):
    with pytest.raises(OptionsError, match=message):
        ConvertConfig(**options)
