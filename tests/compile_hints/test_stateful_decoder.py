"""The stateful halves against the decoder in the runtime's form, which other tests compare with transformers."""

from dataclasses import replace

import pytest
import torch

from whisperkit_tools.compile_hints.attention import attention
from whisperkit_tools.compile_hints.stateful_decoder import AudioProjection, StatefulTextDecoder, write_at
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.contract import AUDIO_STATES, aligned, state_shapes
from whisperkit_tools.dimensions import ModelDimensions

HEADS = ((0, 1), (1, 0), (1, 3))


def dimensions(**other):
    plain = ModelDimensions(
        n_mels=8, n_audio_ctx=100, d_model=32, encoder_layers=1, encoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, n_text_ctx=64, vocab_size=90,
    )  # fmt: skip
    return replace(plain, **other)


def decoder(name="cat", logits_chunk_size=None, **other):
    torch.manual_seed(0)
    made = TextDecoder(dimensions(**other), 64, HEADS, attention(name), logits_chunk_size).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.2 if parameter.ndim > 1 else 0.5))
    return made


class Pair:
    """Both forms of one decoder, fed with the same tokens."""

    def __init__(self, made: TextDecoder) -> None:
        self.decoder, self.window, self.step = made, AudioProjection(made), StatefulTextDecoder(made)
        for name, state in self.window.states().items():
            setattr(self.step, name, state)  # one state for both, as a package's functions have
        channels = made.dims.d_model * made.dims.decoder_layers
        self.caches = [torch.zeros(1, channels, 1, 64) for _ in range(2)]

    def begin(self, embeds):
        self.embeds = embeds
        return self.window(embeds)

    def both(self, token, position):
        at = torch.arange(64)[None]
        ids, place = torch.tensor([token], dtype=torch.int32), torch.tensor([position], dtype=torch.int32)
        padding = torch.where(at <= position, 0.0, -1e4)
        expected = self.decoder(ids, place, *self.caches, (at == position).float(), self.embeds, padding)
        for cache, update in zip(self.caches, expected[1:3], strict=True):
            cache[..., position : position + 1] = update
        return expected, self.step(ids, place, padding)


@pytest.mark.parametrize("name", ["cat", "split-heads", "split-kv"])
@pytest.mark.parametrize(("frames", "chunk"), [(100, None), (96, 40)])
def test_gives_what_the_stateless_decoder_gives(name, frames, chunk):
    with torch.no_grad():
        pair = Pair(decoder(name, chunk, n_audio_ctx=frames))
        first = pair.begin(torch.randn(1, 32, 1, frames))
        assert first.shape == (1, 1, 1, 1)
        for position, token in enumerate([3, 89, 0, 41, 77]):
            expected, found = pair.both(token, position)
            torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found[1], expected[3], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(
                found[1].sum(), torch.tensor(1.0)
            )  # nothing goes to what was added for alignment
        torch.testing.assert_close(pair.step.key_cache, pair.caches[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pair.step.value_cache, pair.caches[1], rtol=1e-4, atol=1e-5)


def test_what_an_earlier_window_left_behind_is_not_seen():
    with torch.no_grad():
        pair = Pair(decoder())
        pair.begin(torch.randn(1, 32, 1, 100))
        for position in range(9):
            pair.both(position + 5, position)
        pair.begin(torch.randn(1, 32, 1, 100))
        for cache in pair.caches:
            cache.zero_()
        for position in range(3):
            expected, found = pair.both(position + 50, position)
            torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)


def test_the_audio_is_projected_once_and_padded_to_whole_rows():
    made = decoder()
    with torch.no_grad():
        pair = Pair(made)
        embeds = torch.randn(1, 32, 1, 100)
        pair.begin(embeds)
        for name, part in zip(AUDIO_STATES, ("k_proj", "v_proj"), strict=True):
            expected = torch.cat([getattr(layer.encoder_attn, part)(embeds) for layer in made.layers], dim=1)
            assert pair.step.get_buffer(name).shape == (1, 64, 1, 128)
            torch.testing.assert_close(pair.step.get_buffer(name)[..., :100], expected)


def test_states_of_whole_rows_only():
    shapes = state_shapes(dimensions(n_audio_ctx=1500), 64)
    assert shapes["key_cache"] == (1, 64, 1, 64) and shapes["audio_value_cache"] == (1, 64, 1, 1504)
    assert [aligned(length) for length in (1, 32, 33, 1500)] == [32, 32, 64, 1504]
    with pytest.raises(ValueError, match=r"kv_length is 50; .* a multiple of 32"):
        state_shapes(dimensions(), 50)
    with pytest.raises(ValueError, match="kv_length is 40"):
        StatefulTextDecoder(TextDecoder(dimensions(), 40))


def test_write_at_leaves_its_argument_alone():
    cache = torch.zeros(1, 2, 1, 4)
    written = write_at(cache, torch.ones(1, 2, 1, 1), torch.tensor([2]))
    assert written[0, :, 0].tolist() == [[0, 0, 1, 0]] * 2 and not cache.any()
    torch.library.opcheck(write_at, (cache, torch.ones(1, 2, 1, 1), torch.tensor([2])), test_utils="test_schema")


def test_the_stateless_decoder_stays_whole_and_shares_its_weights():
    made = decoder()
    names = set(made.state_dict())
    pair = Pair(made)
    assert set(made.state_dict()) == names
    assert set(pair.step.state_dict()) == names and set(pair.window.state_dict()) < names
    for name, tensor in pair.window.state_dict().items():
        assert tensor.data_ptr() == made.state_dict()[name].data_ptr()
