"""The text decoder on several tokens at once: how a large model reads what a draft has written, or a long prompt.

It computes what as many steps of `TextDecoder` compute, and reads every weight once instead of once for each token.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from whisperkit_tools.compile_hints.text_decoder import TextDecoder, TextDecoderLayer
from whisperkit_tools.compile_hints.token_embedding import chunks, embed, logits


class CachedSteps:
    """Masks of several steps in a row, in the form of `CachedStep`.

    Attributes:
        here: `[1, 1, N, S]`, each row one at the position of its token.
        elsewhere: `[1, 1, 1, S]`, zero at the positions of all tokens, else one.
        padding: `[1, 1, N, S]`, added to the scores of each token.
    """

    def __init__(self, update_mask: Tensor, padding_mask: Tensor) -> None:
        self.here = update_mask.view(1, 1, *update_mask.shape)
        self.elsewhere = 1.0 - self.here.sum(dim=2, keepdim=True)
        self.padding = padding_mask.view(1, 1, *padding_mask.shape)

    def updated(self, cache: Tensor, update: Tensor) -> Tensor:
        """Put the columns of `update` `[1, D, 1, N]` at their positions of `cache` `[1, D, 1, S]`.

        A product with one-hot rows, because a scatter has no path on the Neural Engine.
        """
        placed = torch.matmul(update.transpose(1, 2), self.here)  # [1, 1, D, S]
        return cache * self.elsewhere + placed.transpose(1, 2)


class VerifyTextDecoder(nn.Module):
    """Several decoding steps in one."""

    def __init__(self, decoder: TextDecoder) -> None:
        """Share the modules of a decoder, the weights under the same names.

        Args:
            decoder: The decoder in the runtime's form. It stays unchanged.
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
        """Decode `N` tokens.

        Args:
            input_ids: `[N]` int32, the tokens.
            cache_length: `[N]` int32, their positions.
            key_cache: `[1, D * L, 1, S]`, all layers' keys along the channels.
            value_cache: `[1, D * L, 1, S]`.
            kv_cache_update_mask: `[N, S]`, each row one at the position of its token.
            encoder_output_embeds: `[1, D, 1, 1500]`.
            decoder_key_padding_mask: `[N, S]`, each row 0 up to and including the position of its token, -10000 after.

        Returns:
            `logits` `[1, N, V]`, `key_cache_updates` and `value_cache_updates` `[1, D * L, 1, N]`, and, when there are
            alignment heads, `alignment_heads_weights` `[N, 1500]`.
        """
        channels = self.dims.d_model
        steps = CachedSteps(kv_cache_update_mask, decoder_key_padding_mask)
        tables = chunks(self.embed_tokens.weight, self.chunk_heights)
        embedded = embed(input_ids, tables, self.embedding_scale) + self.embed_positions(cache_length)
        x = embedded.transpose(0, 1).reshape(1, channels, 1, -1)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        observed: list[Tensor] = []
        layers = cast("Iterable[TextDecoderLayer]", self.layers)
        layer_caches = zip(
            torch.split(key_cache, channels, dim=1), torch.split(value_cache, channels, dim=1), strict=True
        )
        for index, (layer, (layer_keys, layer_values)) in enumerate(zip(layers, layer_caches, strict=True)):
            heads = tuple(head for at, head in self.alignment_heads or () if at == index)
            x, key, value, weights = layer(x, layer_keys, layer_values, steps, encoder_output_embeds, heads)
            keys.append(key)
            values.append(value)
            observed.extend(weights)
        hidden = self.layer_norm(x).reshape(1, channels, -1).transpose(1, 2)
        outputs = (logits(hidden, tables), torch.cat(keys, dim=1), torch.cat(values, dim=1))
        if not observed:
            return outputs
        return (*outputs, torch.cat(observed, dim=1).mean(dim=1).reshape(len(input_ids), -1))
