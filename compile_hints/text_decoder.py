"""Whisper's text decoder in Neural Engine layout: one token a call, caches in and their updates out."""

from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from whisperkit_tools.compile_hints.attention import AttentionImplementation, Cat, MultiHeadAttention
from whisperkit_tools.compile_hints.layers import ChannelLayerNorm, FeedForward
from whisperkit_tools.compile_hints.token_embedding import chunk_heights, chunks, embed, logits
from whisperkit_tools.dimensions import ModelDimensions

AlignmentHeads: TypeAlias = tuple[tuple[int, int], ...]
"""Pairs of decoder layer and cross-attention head."""


class CacheMasks(Protocol):
    """Where a layer puts its new keys and values, and which positions it sees."""

    @property
    def padding(self) -> Tensor:
        """`[1, 1, N, S]`, added to the scores of each token."""
        ...

    def updated(self, cache: Tensor, update: Tensor) -> Tensor:
        """Put `update` `[1, D, 1, N]` into `cache` `[1, D, 1, S]`."""
        ...


class CachedStep:
    """Masks of one step, for the self-attention of every layer.

    Attributes:
        here: `[1, 1, 1, S]`, one at the current position.
        elsewhere: `1 - here`.
        padding: `[1, 1, 1, S]`, added to the scores: 0 on filled positions, finite and very negative on others.
    """

    def __init__(self, update_mask: Tensor, padding_mask: Tensor) -> None:
        self.here = update_mask.view(1, 1, 1, -1)
        self.elsewhere = 1.0 - self.here
        self.padding = padding_mask.view(1, 1, 1, -1)

    def updated(self, cache: Tensor, update: Tensor) -> Tensor:
        """Put `update` `[1, D, 1, 1]` at the current position of `cache` `[1, D, 1, S]`.

        This is arithmetic, because a scatter has no path on the Neural Engine.
        """
        return cache * self.elsewhere + update * self.here


class TextDecoderLayer(FeedForward):
    """One decoder block: cached self-attention, cross-attention to the audio, then the feed-forward half."""

    def __init__(self, dims: ModelDimensions, implementation: AttentionImplementation) -> None:
        super().__init__(dims.d_model, dims.decoder_ffn_dim)
        self.self_attn = MultiHeadAttention(dims.d_model, dims.decoder_attention_heads, implementation)
        self.self_attn_layer_norm = ChannelLayerNorm(dims.d_model)
        self.encoder_attn = MultiHeadAttention(dims.d_model, dims.decoder_attention_heads, implementation)
        self.encoder_attn_layer_norm = ChannelLayerNorm(dims.d_model)

    def forward(
        self,
        x: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        step: CacheMasks,
        encoder_output_embeds: Tensor,
        observed: tuple[int, ...],
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Transform the residual stream `x` `[1, D, 1, 1]` with this layer's caches `[1, D, 1, S]`.

        Returns:
            The residual stream, the key and value of this position (each `[1, D, 1, 1]`), and the observed heads'
            cross-attention weights, each `[1, 1, 1, 1500]`.
        """
        normalised = self.self_attn_layer_norm(x)
        key_update, value_update = self.self_attn.k_proj(normalised), self.self_attn.v_proj(normalised)
        key, value = step.updated(key_cache, key_update), step.updated(value_cache, value_update)
        attended, _ = self.self_attn.attend(normalised, key, value, mask=step.padding)
        x = x + attended
        attended, weights = self.encoder_attn(self.encoder_attn_layer_norm(x), encoder_output_embeds, observed)
        return self.feed_forward(x + attended), key_update, value_update, weights


class TextDecoder(nn.Module):
    """One decoding step.

    Parameter names are the checkpoint's below `model.decoder.`. The token embedding is used twice, to embed and to
    compute the logits, in the same shape, so that a package stores it once.

    Attributes:
        embedding_scale: `[D]`, by which the embedded token is multiplied. None for 1.
        chunk_heights: Numbers of rows of the token embedding's chunks.
    """

    def __init__(
        self,
        dims: ModelDimensions,
        kv_length: int = 448,
        alignment_heads: AlignmentHeads | None = None,
        attention: AttentionImplementation | None = None,
        logits_chunk_size: int | None = None,
    ) -> None:
        """Build the decoder.

        Args:
            dims: The architecture.
            kv_length: Positions of the caches, at most `dims.n_text_ctx`.
            alignment_heads: Heads whose mean cross-attention is given out for word timestamps, or None for none.
            attention: The attention implementation, `Cat` unless given.
            logits_chunk_size: Maximum number of logits that one product gives, where the Neural Engine has a limit.
                None for all at once.

        Raises:
            ValueError: `kv_length`, a head or `logits_chunk_size` is out of range.
        """
        super().__init__()
        _check_kv_length(kv_length, dims)
        _check_heads(alignment_heads, dims)
        if logits_chunk_size is not None and logits_chunk_size < 1:
            raise ValueError(f"logits_chunk_size is {logits_chunk_size}, expected a positive number or None")
        implementation = attention or Cat()
        self.dims = dims
        self.kv_length = kv_length
        self.alignment_heads = alignment_heads or None
        self.chunk_heights = chunk_heights(dims.vocab_size, logits_chunk_size)
        self.embed_tokens = nn.Embedding(dims.vocab_size, dims.d_model)
        self.embed_positions = nn.Embedding(dims.n_text_ctx, dims.d_model)
        self.layers = nn.ModuleList(TextDecoderLayer(dims, implementation) for _ in range(dims.decoder_layers))
        self.layer_norm = ChannelLayerNorm(dims.d_model)
        self.register_buffer("embedding_scale", None, persistent=False)
        self.embedding_scale: Tensor | None

    def forward(
        self,
        input_ids: Tensor,
        cache_length: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        kv_cache_update_mask: Tensor,
        encoder_output_embeds: Tensor,
        decoder_key_padding_mask: Tensor,
    ) -> tuple[Tensor, ...]:
        """Decode one token.

        Args:
            input_ids: `[1]` int32, the token.
            cache_length: `[1]` int32, its position, which is the number of filled cache positions.
            key_cache: `[1, D * L, 1, S]`, all layers' keys along the channels.
            value_cache: `[1, D * L, 1, S]`.
            kv_cache_update_mask: `[1, S]`, one at the current position, else zero.
            encoder_output_embeds: `[1, D, 1, 1500]`.
            decoder_key_padding_mask: `[1, S]`, 0 up to and including the current position, -10000 after it.

        Returns:
            `logits` `[1, 1, V]`, `key_cache_updates` and `value_cache_updates` `[1, D * L, 1, 1]`, and, when there are
            alignment heads, `alignment_heads_weights` `[1, 1500]`.
        """
        channels = self.dims.d_model
        step = CachedStep(kv_cache_update_mask, decoder_key_padding_mask)
        tables = chunks(self.embed_tokens.weight, self.chunk_heights)
        embedded = embed(input_ids, tables, self.embedding_scale) + self.embed_positions(cache_length)
        x = embedded.view(1, channels, 1, 1)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        observed: list[Tensor] = []
        layer_caches = zip(
            torch.split(key_cache, channels, dim=1), torch.split(value_cache, channels, dim=1), strict=True
        )
        for index, (layer, (layer_keys, layer_values)) in enumerate(zip(self.layers, layer_caches, strict=True)):
            x, key, value, weights = layer(
                x, layer_keys, layer_values, step, encoder_output_embeds, self._observed_heads(index)
            )
            keys.append(key)
            values.append(value)
            observed.extend(weights)
        hidden = self.layer_norm(x).view(1, 1, channels)
        outputs = (logits(hidden, tables), torch.cat(keys, dim=1), torch.cat(values, dim=1))
        if not observed:
            return outputs
        return (*outputs, torch.cat(observed, dim=1).mean(dim=(1, 2)))

    def _observed_heads(self, layer: int) -> tuple[int, ...]:
        """Return the alignment heads of one layer."""
        return tuple(head for at, head in self.alignment_heads or () if at == layer)


def _check_kv_length(kv_length: int, dims: ModelDimensions) -> None:
    """Raise `ValueError` unless the decoder has a position for each cache entry."""
    if not 1 <= kv_length <= dims.n_text_ctx:
        raise ValueError(f"kv_length is {kv_length}, expected 1 to {dims.n_text_ctx}, the decoder's positions")


def _check_heads(heads: AlignmentHeads | None, dims: ModelDimensions) -> None:
    """Raise `ValueError` naming all alignment heads that the decoder does not have."""
    wrong = [
        pair
        for pair in heads or ()
        if not (0 <= pair[0] < dims.decoder_layers and 0 <= pair[1] < dims.decoder_attention_heads)
    ]
    if wrong:
        raise ValueError(
            f"alignment heads {wrong} do not exist in a decoder of {dims.decoder_layers} layers "
            f"with {dims.decoder_attention_heads} heads"
        )
