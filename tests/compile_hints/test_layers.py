"""Dimensions, layers and attention against torch's own operations."""

import pytest
import torch
import torch.nn.functional as F

from whisperkit_tools.compile_hints.attention import Cat
from whisperkit_tools.compile_hints.layers import ChannelLayerNorm, SequenceConv
from whisperkit_tools.dimensions import ModelDimensions

SIZES = {
    "n_mels": 80,
    "d_model": 128,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 512,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 512,
    "vocab_size": 2248,
}


def test_dimensions_have_whispers_defaults() -> None:
    dims = ModelDimensions(**SIZES)
    assert (dims.n_audio_ctx, dims.n_text_ctx, dims.n_frames) == (1500, 448, 3000)


def test_dimensions_report_all_problems_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"n_mels is 0, expected.*; decoder_layers is '2', expected a positive integer"
    ):
        ModelDimensions(**{**SIZES, "n_mels": 0, "decoder_layers": "2"})
    with pytest.raises(ValueError, match="encoder_attention_heads is 5, which does not divide d_model 128"):
        ModelDimensions(**{**SIZES, "encoder_attention_heads": 5})


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_layer_norm_equals_torch(scale: float) -> None:
    torch.manual_seed(1)
    norm = ChannelLayerNorm(48)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    x = torch.randn(2, 48, 1, 7) * scale + scale
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (48,), norm.weight, norm.bias, 1e-5).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm(x), expected, atol=1e-4, rtol=1e-4)


def test_sequence_conv_loads_linear_weights_without_a_copy() -> None:
    linear = torch.nn.Linear(6, 5)
    with torch.device("meta"):
        conv = SequenceConv(6, 5)
    conv.load_state_dict(linear.state_dict(), assign=True)
    assert conv.weight.shape == (5, 6, 1, 1)
    assert conv.weight.data_ptr() == linear.weight.data_ptr()
    x = torch.randn(2, 6, 1, 9)
    torch.testing.assert_close(conv(x)[:, :, 0].transpose(1, 2), linear(x[:, :, 0].transpose(1, 2)))


def test_sequence_conv_loads_1d_convolutions_and_its_own_shape() -> None:
    reference = torch.nn.Conv1d(6, 5, 3, stride=2, padding=1)
    conv = SequenceConv(6, 5, 3, stride=2)
    conv.load_state_dict(reference.state_dict())
    x = torch.randn(2, 6, 1, 10)
    torch.testing.assert_close(conv(x)[:, :, 0], reference(x[:, :, 0]))
    conv.load_state_dict(conv.state_dict())


def test_cat_attention_equals_torch_and_shows_its_weights() -> None:
    torch.manual_seed(2)
    heads, head_dim, queries, keys = 3, 4, 5, 7
    query, key, value = (torch.randn(2, heads * head_dim, 1, n) for n in (queries, keys, keys))
    mask = torch.zeros(2, 1, 1, keys)
    mask[..., -2:] = -1e4
    output, weights = Cat()(query, key, value, heads=heads, mask=mask, observed=(2, 0))
    by_head = [x.reshape(2, heads, head_dim, -1).transpose(2, 3) for x in (query, key, value)]
    expected = F.scaled_dot_product_attention(*by_head, attn_mask=mask, scale=1.0)
    torch.testing.assert_close(output, expected.transpose(2, 3).reshape(2, -1, 1, queries))
    scores = (by_head[0] @ by_head[1].transpose(2, 3) + mask).softmax(-1)
    torch.testing.assert_close(torch.cat(weights, dim=1), scores[:, [2, 0]])
