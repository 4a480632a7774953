"""What `--turbo` takes for encoder and decoder is what the cost model shows to be the fastest of all."""

import pytest
import torch

from whisperkit_tools.compile_hints.attention import attention
from whisperkit_tools.compile_hints.audio_encoder import AudioEncoder
from whisperkit_tools.compile_hints.lint.chips import load_chips
from whisperkit_tools.compile_hints.lint.cost import estimate_program
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.contract import ATTENTION_NAMES, package_interfaces
from whisperkit_tools.conversion.attention_layout import TURBO_DECODER, TURBO_ENCODER
from whisperkit_tools.conversion.export import PackageMetadata, export_package
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.mil.graph import read_graph

TABLE = load_chips()
DIMS = ModelDimensions(
    n_mels=80, d_model=384, encoder_layers=1, encoder_attention_heads=6, encoder_ffn_dim=1536, decoder_layers=1,
    decoder_attention_heads=6, decoder_ffn_dim=1536, vocab_size=1000,
)  # fmt: skip


def graphs(component, tmp_path_factory):
    """One layer at tiny's width, converted with each attention."""
    folder = tmp_path_factory.mktemp(component)
    interface = package_interfaces(DIMS, 448, word_timestamps=False)[component]
    found = {}
    for name in ATTENTION_NAMES:
        torch.manual_seed(0)
        kind = attention(name, None)
        module = AudioEncoder(DIMS, kind) if component == "AudioEncoder" else TextDecoder(DIMS, 448, None, kind)
        path = folder / f"{name}.mlpackage"
        metadata = PackageMetadata("", "", "", "", {})
        export_package(module.half().eval(), interface, path, deployment_target="ios16", metadata=metadata)
        found[name] = read_graph(path)
    return found


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    return graphs("AudioEncoder", tmp_path_factory)


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    return graphs("TextDecoder", tmp_path_factory)


def fastest(programs, chip):
    times = {name: estimate_program(name, graph, TABLE.chip(chip), TABLE).latency_s for name, graph in programs.items()}
    return [name for name, time in times.items() if time <= min(times.values()) * (1 + 1e-9)]


@pytest.mark.parametrize("chip", TABLE.chips)
def test_the_decoder_of_turbo_is_the_fastest(decoders, chip):
    assert TURBO_DECODER in fastest(decoders, chip)


@pytest.mark.slow
@pytest.mark.parametrize("chip", TABLE.chips)
def test_the_encoder_of_turbo_is_the_fastest(encoders, chip):
    assert TURBO_ENCODER in fastest(encoders, chip)
