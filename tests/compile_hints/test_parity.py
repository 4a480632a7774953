"""AudioEncoder and TextDecoder against transformers' Whisper in float32, at true dimensions."""

from dataclasses import dataclass, replace

import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.benchmarks.dimensions import SIZES, dimensions
from whisperkit_tools.compile_hints.audio_encoder import AudioEncoder
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.dimensions import ModelDimensions

TINY = dimensions(SIZES["tiny"].config())
LARGE_V3_2_LAYERS = replace(dimensions(SIZES["large-v3"].config()), encoder_layers=2, decoder_layers=2)
TOKENS = [50258, 50259, 50359, 50363, 440, 1723]
HEADS = ((0, 1), (1, 0), (1, 3))
MINIMUM_DB = 70.0


def psnr_db(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = (found - expected).square().mean().sqrt()
    return float(20 * torch.log10(expected.abs().max() / error.clamp(min=1e-30)))


def reference_model(dims: ModelDimensions) -> WhisperForConditionalGeneration:
    """Return a seeded Whisper whose norms and biases are not the trivial ones of an untrained model."""
    config = WhisperConfig(
        vocab_size=dims.vocab_size,
        num_mel_bins=dims.n_mels,
        d_model=dims.d_model,
        encoder_layers=dims.encoder_layers,
        decoder_layers=dims.decoder_layers,
        encoder_attention_heads=dims.encoder_attention_heads,
        decoder_attention_heads=dims.decoder_attention_heads,
        encoder_ffn_dim=dims.encoder_ffn_dim,
        decoder_ffn_dim=dims.decoder_ffn_dim,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data = ("norm.weight" in name) + 0.2 * torch.randn_like(parameter)
    return model


@dataclass
class Case:
    dims: ModelDimensions
    model: WhisperForConditionalGeneration
    embeds: torch.Tensor  # the reference's, [1, 1500, D]
    features: torch.Tensor  # [1, n_mels, 3000]


@pytest.fixture(scope="module", params=[TINY, LARGE_V3_2_LAYERS], ids=["tiny", "large-v3-2-layers"])
def case(request: pytest.FixtureRequest) -> Case:
    dims: ModelDimensions = request.param
    model = reference_model(dims)
    features = torch.randn(1, dims.n_mels, 3000)
    with torch.no_grad():
        embeds = model.model.encoder(features).last_hidden_state
    return Case(dims, model, embeds, features)


def loaded(module_of: type, case: Case, *args: object) -> AudioEncoder | TextDecoder:
    """Build on the meta device and assign the checkpoint's own tensors, as the converter does."""
    with torch.device("meta"):
        module = module_of(case.dims, *args)
    source = case.model.model.encoder if module_of is AudioEncoder else case.model.model.decoder
    module.load_state_dict(source.state_dict(), assign=True)
    return module.eval()


def test_encoder_equals_transformers(case: Case) -> None:
    encoder = loaded(AudioEncoder, case)
    with torch.no_grad():
        found = encoder(case.features[:, :, None])
    assert found.shape == (1, case.dims.d_model, 1, 1500)
    assert psnr_db(found[:, :, 0].transpose(1, 2), case.embeds) > MINIMUM_DB


@pytest.mark.parametrize("kv_length", [448, 64])
def test_decoder_steps_equal_transformers(case: Case, kv_length: int) -> None:
    decoder = loaded(TextDecoder, case, kv_length, HEADS)
    width, layers = case.dims.d_model, case.dims.decoder_layers
    with torch.no_grad():
        expected = case.model(
            encoder_outputs=(case.embeds,),
            decoder_input_ids=torch.tensor([TOKENS]),
            output_attentions=True,
            use_cache=True,
        )
        embeds = case.embeds.transpose(1, 2)[:, :, None]
        keys = torch.zeros(1, width * layers, 1, kv_length)
        values = torch.zeros_like(keys)
        for at, token in enumerate(TOKENS):
            here = torch.zeros(1, kv_length)
            here[0, at] = 1
            padding = torch.full((1, kv_length), -10000.0)
            padding[0, : at + 1] = 0
            id_and_position = (torch.tensor([x], dtype=torch.int32) for x in (token, at))
            logits, key, value, weights = decoder(*id_and_position, keys, values, here, embeds, padding)
            keys[..., at : at + 1], values[..., at : at + 1] = key, value

            assert logits.shape == (1, 1, case.dims.vocab_size)
            assert key.shape == value.shape == (1, width * layers, 1, 1)
            assert psnr_db(logits[0, 0], expected.logits[0, at]) > MINIMUM_DB
            attention = torch.stack([expected.cross_attentions[layer][0, head, at] for layer, head in HEADS]).mean(0)
            assert weights.shape == (1, 1500)
            assert psnr_db(weights[0], attention) > MINIMUM_DB
    for layer, cached in enumerate(expected.past_key_values.self_attention_cache.layers):
        channels = slice(layer * width, (layer + 1) * width)
        for found, reference in ((keys, cached.keys), (values, cached.values)):
            by_step = found[0, channels, 0, : len(TOKENS)].T
            assert psnr_db(by_step, reference[0].transpose(0, 1).reshape(len(TOKENS), width)) > MINIMUM_DB


def test_without_alignment_heads_there_are_three_outputs() -> None:
    small = ModelDimensions(
        n_mels=80,
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        vocab_size=50,
    )
    decoder = TextDecoder(small, kv_length=8)
    inputs = (
        torch.tensor([3], dtype=torch.int32),
        torch.tensor([0], dtype=torch.int32),
        torch.zeros(1, 16, 1, 8),
        torch.zeros(1, 16, 1, 8),
        torch.zeros(1, 8),
        torch.zeros(1, 16, 1, 1500),
        torch.zeros(1, 8),
    )
    assert len(decoder(*inputs)) == 3
    with pytest.raises(ValueError, match=r"alignment heads \[\(1, 0\), \(0, 2\)\] do not exist"):
        TextDecoder(small, alignment_heads=((0, 0), (1, 0), (0, 2)))
    with pytest.raises(ValueError, match="kv_length is 449, expected 1 to 448"):
        TextDecoder(small, kv_length=449)
