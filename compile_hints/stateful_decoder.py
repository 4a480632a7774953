"""Whisper's text decoder with its caches as states (iOS 18, macOS 15), in two halves.

`AudioProjection` runs once for each window: it projects the encoder's output to every layer's cross-attention keys and
values and writes them to states. `StatefulTextDecoder` runs once for each token. It takes the token, its position and a
mask, reads keys and values from the states, and writes its own there. Both hold all four states, under the same names
and in the same shapes, so that they can be two functions of one package on one state object.

The last axis of each state is a multiple of 32 elements, because other lengths fail on the Neural Engine
(apple/coremltools#2631). The audio's 1500 positions become 1504, and the four additional ones are masked.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from whisperkit_tools.compile_hints.attention import MultiHeadAttention
from whisperkit_tools.compile_hints.text_decoder import TextDecoder, TextDecoderLayer
from whisperkit_tools.compile_hints.token_embedding import chunks, embed, logits
from whisperkit_tools.contract import AUDIO_STATES, MASKED, TEXT_STATES, state_shapes


@torch.library.custom_op("whisperkit_tools::write_at", mutates_args=())
def write_at(cache: Tensor, update: Tensor, position: Tensor) -> Tensor:
    """Put `update` `[..., 1]` at one position of `cache` `[..., S]`.

    This is an operation of its own, because PyTorch has none for a position known only at run time that becomes the
    ML Program's `slice_update`, which the Neural Engine runs.
    Source: ane-guide, appendix A: `slice_update`, `read_state` and `write_state` native on all chips.

    Args:
        cache: `[..., S]`.
        update: `[..., 1]`.
        position: `[1]`, an integer.
    """
    result = cache.clone()
    at = int(position)
    result[..., at : at + 1] = update
    return result


@write_at.register_fake
def _(cache: Tensor, update: Tensor, position: Tensor) -> Tensor:
    return torch.empty_like(cache)


class _Stateful(nn.Module):
    """The four states as buffers outside the state dict."""

    key_cache: Tensor
    value_cache: Tensor
    audio_key_cache: Tensor
    audio_value_cache: Tensor

    def _make_states(self, decoder: TextDecoder) -> None:
        dtype = decoder.embed_tokens.weight.dtype
        for name, shape in state_shapes(decoder.dims, decoder.kv_length).items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype), persistent=False)

    def states(self) -> dict[str, Tensor]:
        """Return the states by name."""
        return {name: self.get_buffer(name) for name in (*TEXT_STATES, *AUDIO_STATES)}


class _CrossAttention(nn.Module):
    """The part of a layer's cross-attention that depends on the audio alone, under the checkpoint's names."""

    def __init__(self, attention: MultiHeadAttention) -> None:
        super().__init__()
        self.encoder_attn = nn.ModuleDict({"k_proj": attention.k_proj, "v_proj": attention.v_proj})


class AudioProjection(_Stateful):
    """The half that runs once for each window."""

    def __init__(self, decoder: TextDecoder) -> None:
        """Share the modules of a decoder, as `StatefulTextDecoder` does."""
        super().__init__()
        layers = cast("Iterable[TextDecoderLayer]", decoder.layers)
        self.layers = nn.ModuleList(_CrossAttention(layer.encoder_attn) for layer in layers)
        self._make_states(decoder)

    def forward(self, encoder_output_embeds: Tensor) -> Tensor:
        """Project a window's audio into the states, and clear the text's first position.

        The masks hide what the text's states hold from the previous window. Clearing a position makes these states part
        of this function too, so that both functions declare the same ones.

        Args:
            encoder_output_embeds: `[1, D, 1, 1500]`.

        Returns:
            `first_audio_key`, `[1, 1, 1, 1]`, because a program must have an output.
        """
        missing = self.audio_key_cache.shape[3] - encoder_output_embeds.shape[3]
        silence = torch.zeros_like(encoder_output_embeds[..., :missing])
        embeds = torch.cat((encoder_output_embeds, silence), dim=3) if missing else encoder_output_embeds
        layers = cast("Iterable[_CrossAttention]", self.layers)
        keys = torch.cat([layer.encoder_attn["k_proj"](embeds) for layer in layers], dim=1)
        values = torch.cat([layer.encoder_attn["v_proj"](embeds) for layer in layers], dim=1)
        self.audio_key_cache.copy_(keys)
        self.audio_value_cache.copy_(values)
        start = torch.zeros(1, dtype=torch.int32, device=embeds.device)
        for cache in (self.key_cache, self.value_cache):
            cache.copy_(write_at(cache, torch.zeros_like(cache[..., :1]), start))
        return keys[:, :1, :, :1]


class StatefulTextDecoder(_Stateful):
    """The half that runs once for each token."""

    audio_padding: Tensor | None

    def __init__(self, decoder: TextDecoder) -> None:
        """Share the modules of a decoder, the weights under the same names.

        Args:
            decoder: The decoder in the runtime's form. It stays unchanged.

        Raises:
            ValueError: The length of its caches is not a multiple of `STATE_ALIGNMENT`.
        """
        super().__init__()
        self.dims = decoder.dims
        self.alignment_heads = decoder.alignment_heads
        self.chunk_heights = decoder.chunk_heights
        self.embed_tokens = decoder.embed_tokens
        self.embed_positions = decoder.embed_positions
        self.layers = decoder.layers
        self.layer_norm = decoder.layer_norm
        self.register_buffer("embedding_scale", decoder.embedding_scale, persistent=False)
        self.embedding_scale: Tensor | None
        self._make_states(decoder)
        length, used = self.audio_key_cache.shape[3], self.dims.n_audio_ctx
        padding = torch.zeros(1, 1, 1, length, dtype=self.key_cache.dtype)
        padding[..., used:] = MASKED
        self.register_buffer("audio_padding", padding if length > used else None, persistent=False)

    def forward(self, input_ids: Tensor, cache_length: Tensor, decoder_key_padding_mask: Tensor) -> tuple[Tensor, ...]:
        """Decode one token. Project the audio and decode the previous tokens first.

        Args:
            input_ids: `[1]` int32, the token.
            cache_length: `[1]` int32, its position.
            decoder_key_padding_mask: `[1, S]`, 0 up to and including the current position, -10000 after it.

        Returns:
            `logits` `[1, 1, V]` and, when there are alignment heads, `alignment_heads_weights` `[1, 1500]`.
        """
        channels = self.dims.d_model
        padding = decoder_key_padding_mask.view(1, 1, 1, -1)
        tables = chunks(self.embed_tokens.weight, self.chunk_heights)
        embedded = embed(input_ids, tables, self.embedding_scale) + self.embed_positions(cache_length)
        x = embedded.view(1, channels, 1, 1)
        updates: list[tuple[Tensor, Tensor]] = []
        observed: list[Tensor] = []
        by_layer = zip(*(torch.split(state, channels, dim=1) for state in self.states().values()), strict=True)
        layers = cast("Iterable[TextDecoderLayer]", self.layers)
        for index, (layer, (keys, values, audio_keys, audio_values)) in enumerate(zip(layers, by_layer, strict=True)):
            normalised = layer.self_attn_layer_norm(x)
            key, value = layer.self_attn.k_proj(normalised), layer.self_attn.v_proj(normalised)
            updates.append((key, value))
            keys, values = write_at(keys, key, cache_length), write_at(values, value, cache_length)
            attended, _ = layer.self_attn.attend(normalised, keys, values, mask=padding)
            x = x + attended
            attended, weights = layer.encoder_attn.attend(
                layer.encoder_attn_layer_norm(x), audio_keys, audio_values, self.audio_padding, self._observed(index)
            )
            x = layer.feed_forward(x + attended)
            observed.extend(weights)
        for cache, update in zip((self.key_cache, self.value_cache), zip(*updates, strict=True), strict=True):
            # One write for all layers, at the end: a state is read and written once in a step.
            cache.copy_(write_at(cache, torch.cat(update, dim=1), cache_length))
        hidden = self.layer_norm(x).view(1, 1, channels)
        found = logits(hidden, tables)
        if not observed:
            return (found,)
        return found, torch.cat(observed, dim=1).mean(dim=(1, 2))[:, : self.dims.n_audio_ctx]

    def _observed(self, layer: int) -> tuple[int, ...]:
        """Return the alignment heads of one layer."""
        return tuple(head for at, head in self.alignment_heads or () if at == layer)
