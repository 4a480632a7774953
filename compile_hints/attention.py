"""Multi-head attention in `[B, C, 1, S]` layout, with its inner product as an exchangeable part.

`MultiHeadAttention` holds the projections under the checkpoint's names; *how* queries, keys and values meet is an
`AttentionImplementation`, chosen by name for each component. A new one is a function and an entry in `attention`.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from whisperkit_tools.compile_hints.layers import SequenceConv


class AttentionImplementation(Protocol):
    """How queries, keys and values meet."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, heads: int, mask: Tensor | None, observed: tuple[int, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """Attend from every query position to every key position.

        Args:
            query: `[B, C, 1, Q]`, already scaled.
            key: `[B, C, 1, K]`.
            value: `[B, C, 1, K]`.
            heads: Number of heads; head `i` owns the channels `[i * C / heads, (i + 1) * C / heads)`.
            mask: `[B, 1, 1, K]`, finite, added to the scores, or None.
            observed: Heads whose attention weights the caller wants to see.

        Returns:
            The output `[B, C, 1, Q]` and, for each observed head, its weights `[B, 1, Q, K]` after the softmax.
        """
        ...


def cat_attention(
    query: Tensor, key: Tensor, value: Tensor, *, heads: int, mask: Tensor | None, observed: tuple[int, ...]
) -> tuple[Tensor, list[Tensor]]:
    """Attend with all heads in one batched product; see `AttentionImplementation` for arguments and shapes.

    The heads are split off the channel axis, so no reshape touches the sequence, which is the last axis.
    """
    query, key, value = (x.view(x.shape[0], heads, -1, x.shape[3]) for x in (query, key, value))
    scores = torch.matmul(query.transpose(2, 3), key)  # [B, heads, Q, K]
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(dim=3)
    output = torch.matmul(value, weights.transpose(2, 3))  # [B, heads, C / heads, Q]
    joined = output.reshape(output.shape[0], -1, 1, output.shape[3])
    return joined, [weights[:, head : head + 1] for head in observed]


def attention(name: str) -> AttentionImplementation:
    """Return the attention implementation of that name.

    Raises:
        ValueError: No implementation has the name.
    """
    implementations: dict[str, AttentionImplementation] = {"cat": cat_attention}
    if name not in implementations:
        raise ValueError(f"unknown attention implementation {name!r}; known are {', '.join(sorted(implementations))}")
    return implementations[name]


class MultiHeadAttention(nn.Module):
    """The projections around an attention, with the checkpoint's parameter names.

    Source: Whisper's attention: keys have no bias, and the query (bias included) is scaled by `head_dim ** -0.5`
    before the product, which also keeps the scores inside float16.
    """

    def __init__(self, channels: int, heads: int, implementation: AttentionImplementation) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.implementation: Callable[..., tuple[Tensor, list[Tensor]]] = implementation
        self.q_proj = SequenceConv(channels, channels)
        self.k_proj = SequenceConv(channels, channels, bias=False)
        self.v_proj = SequenceConv(channels, channels)
        self.out_proj = SequenceConv(channels, channels)

    def attend(
        self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, observed: tuple[int, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Attend from `x` `[B, C, 1, Q]` to projected keys and values `[B, C, 1, K]`.

        Returns:
            The projected output `[B, C, 1, Q]` and the weights `[B, 1, Q, K]` of each observed head.
        """
        query = self.q_proj(x) * self.scale
        output, weights = self.implementation(query, key, value, heads=self.heads, mask=mask, observed=observed)
        return self.out_proj(output), weights

    def forward(self, x: Tensor, source: Tensor, observed: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
        """Attend from `x` `[B, C, 1, Q]` to all of `source` `[B, C, 1, K]` (equal to `x` for self-attention)."""
        return self.attend(x, self.k_proj(source), self.v_proj(source), observed=observed)
