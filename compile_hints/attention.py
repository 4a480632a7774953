"""Multi-head attention in `[B, C, 1, S]` layout, with its inner product as an exchangeable part.

`MultiHeadAttention` holds the projections under the checkpoint's names. An `AttentionImplementation`, chosen for each
component, combines queries, keys and values:

- `Cat`: all heads in one batched product, with the fewest operations.
- `SplitHeads`: one head at a time, the softmax over the channel axis.
- `SplitHeadsQ`: the same, with the queries in chunks.
- `SplitKV`: all heads at once, with keys and values in chunks.

All of them compute the same. They differ in the operations that the compiler sees and in the largest tensor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from whisperkit_tools.compile_hints.layers import SequenceConv, concatenated, split
from whisperkit_tools.contract import ATTENTION_NAMES, CHUNKED_ATTENTIONS, PLAIN_ATTENTIONS

CHUNK_ALIGNMENT = 32  # float16 numbers in 64 bytes, at a multiple of which each chunk begins
DEFAULT_CHUNK_SIZE = 512

Attended: TypeAlias = tuple[Tensor, list[Tensor]]
"""The output `[B, C, 1, Q]` and, for each observed head, its weights `[B, 1, Q, K]`."""


class AttentionImplementation(Protocol):
    """The combination of queries, keys and values."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, heads: int, mask: Tensor | None, observed: tuple[int, ...]
    ) -> Attended:
        """Attend from every query position to every key position.

        Args:
            query: `[B, C, 1, Q]`, already scaled.
            key: `[B, C, 1, K]`.
            value: `[B, C, 1, K]`.
            heads: Number of heads. Head `i` owns the channels `[i * C / heads, (i + 1) * C / heads)`.
            mask: `[B, 1, 1, K]`, or `[B, 1, Q, K]` with a row for each query. Finite, added to the scores, or None.
            observed: Heads whose attention weights are returned.

        Returns:
            The output `[B, C, 1, Q]` and, for each observed head, its weights `[B, 1, Q, K]` after the softmax.
        """
        ...


@dataclass(frozen=True, slots=True)
class Cat:
    """All heads in one batched product.

    The heads are split off the channel axis, so no reshape touches the sequence, which is the last axis.
    """

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, heads: int, mask: Tensor | None, observed: tuple[int, ...]
    ) -> Attended:
        """Attend. `AttentionImplementation` describes arguments and shapes."""
        query, key, value = (_by_head(x, heads) for x in (query, key, value))
        weights = _batched_scores(query, key, mask).softmax(dim=3)
        output = torch.matmul(value, weights.transpose(2, 3))  # [B, heads, C / heads, Q]
        return _joined(output), [weights[:, head : head + 1] for head in observed]


@dataclass(frozen=True, slots=True)
class SplitHeads:
    """One head at a time, with the keys on the channel axis of the scores, `[B, K, 1, Q]`.

    The products need no transpose on the Neural Engine, the softmax is over the channels, and one head's scores are
    small enough for its cache. The keys are transposed once, for all heads.
    Source: Apple, "Deploying Transformers on the Apple Neural Engine": `bchq,bkhc->bkhq`.
    """

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, heads: int, mask: Tensor | None, observed: tuple[int, ...]
    ) -> Attended:
        """Attend. `AttentionImplementation` describes arguments and shapes."""
        return SplitKeys(key, value, heads, mask).attend(query, observed)


@dataclass(frozen=True, slots=True)
class SplitHeadsQ:
    """`SplitHeads` with the queries in chunks, so that scores are at most `[B, K, 1, chunk_size]`.

    Attributes:
        chunk_size: Query positions in a chunk, a multiple of 32. The last chunk may be shorter.
    """

    chunk_size: int = DEFAULT_CHUNK_SIZE

    def __post_init__(self) -> None:
        """Raise `ValueError` for a size that makes no sense."""
        _check_chunk_size(self.chunk_size)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, heads: int, mask: Tensor | None, observed: tuple[int, ...]
    ) -> Attended:
        """Attend. `AttentionImplementation` describes arguments and shapes."""
        keys = SplitKeys(key, value, heads, mask)
        attended = [keys.attend(chunk, observed) for chunk in split(query, self.chunk_size, dim=3)]
        outputs = [output for output, _ in attended]
        weights = [concatenated(of_head, dim=2) for of_head in zip(*(seen for _, seen in attended), strict=True)]
        return concatenated(outputs, dim=3), weights


@dataclass(frozen=True, slots=True)
class SplitKV:
    """All heads at once, with keys and values in chunks, so that scores are at most `[B, heads, Q, chunk_size]`.

    Each chunk has a softmax of its own. Only its largest score and the share of that in the chunk are kept, and the
    chunk's share in the whole follows from these. All values stay inside float16: no exponent is positive, no sum is
    larger than the number of keys, and the values are only ever averaged.
    Source: Rabe and Staats, "Self-attention does not need O(n^2) memory", 2021.

    Attributes:
        chunk_size: Key positions in a chunk, a multiple of 32. The last chunk may be shorter.
    """

    chunk_size: int = DEFAULT_CHUNK_SIZE

    def __post_init__(self) -> None:
        """Raise `ValueError` for a size that makes no sense."""
        _check_chunk_size(self.chunk_size)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, heads: int, mask: Tensor | None, observed: tuple[int, ...]
    ) -> Attended:
        """Attend. `AttentionImplementation` describes arguments and shapes."""
        if key.shape[3] <= self.chunk_size:
            return Cat()(query, key, value, heads=heads, mask=mask, observed=observed)
        query = _by_head(query, heads)
        keys, values = (split(_by_head(x, heads), self.chunk_size, dim=3) for x in (key, value))
        masks = [None] * len(keys) if mask is None else split(mask, self.chunk_size, dim=3)
        parts = [_Part(query, *part) for part in zip(keys, values, masks, strict=True)]
        shares = _shares(parts)  # each [B, heads, Q, 1]
        by_query = query.shape[0], heads, 1, -1
        output = parts[0].output * shares[0].view(by_query)
        for part, share in zip(parts[1:], shares[1:], strict=True):
            output = output + part.output * share.view(by_query)
        return _joined(output), [_whole_weights(parts, shares, head) for head in observed]


_PLAIN: dict[str, Callable[[], AttentionImplementation]] = dict(zip(PLAIN_ATTENTIONS, (Cat, SplitHeads), strict=True))
_CHUNKED: dict[str, Callable[[int], AttentionImplementation]] = dict(
    zip(CHUNKED_ATTENTIONS, (SplitHeadsQ, SplitKV), strict=True)
)


def attention(name: str, chunk_size: int | None = None) -> AttentionImplementation:
    """Return the attention implementation of that name.

    Args:
        name: One of `contract.ATTENTION_NAMES`.
        chunk_size: Positions in a chunk, for an implementation that works in chunks. None for its default.

    Raises:
        ValueError: No implementation has the name, it does not work in chunks, or the size makes no sense.
    """
    if name in _CHUNKED:
        return _CHUNKED[name](DEFAULT_CHUNK_SIZE if chunk_size is None else chunk_size)
    if name not in _PLAIN:
        raise ValueError(f"unknown attention implementation {name!r}; known are {', '.join(ATTENTION_NAMES)}")
    if chunk_size is not None:
        raise ValueError(
            f"attention {name!r} does not work in chunks, but a chunk size of {chunk_size} was given; omit it "
            f"or choose {' or '.join(_CHUNKED)}"
        )
    return _PLAIN[name]()


def works_in_chunks(name: str) -> bool:
    """Return whether `attention(name)` takes a chunk size."""
    return name in _CHUNKED


class MultiHeadAttention(nn.Module):
    """The projections around an attention, with the checkpoint's parameter names.

    Source: Whisper's attention: keys have no bias, and the query (bias included) is scaled by `head_dim ** -0.5`
    before the product, which also keeps the scores inside float16.
    """

    def __init__(self, channels: int, heads: int, implementation: AttentionImplementation) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.implementation: Callable[..., Attended] = implementation
        self.q_proj = SequenceConv(channels, channels)
        self.k_proj = SequenceConv(channels, channels, bias=False)
        self.v_proj = SequenceConv(channels, channels)
        self.out_proj = SequenceConv(channels, channels)

    def attend(
        self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, observed: tuple[int, ...] = ()
    ) -> Attended:
        """Attend from `x` `[B, C, 1, Q]` to projected keys and values `[B, C, 1, K]`.

        Returns:
            The projected output `[B, C, 1, Q]` and the weights `[B, 1, Q, K]` of each observed head.
        """
        query = self.q_proj(x) * self.scale
        output, weights = self.implementation(query, key, value, heads=self.heads, mask=mask, observed=observed)
        return self.out_proj(output), weights

    def forward(self, x: Tensor, source: Tensor, observed: tuple[int, ...] = ()) -> Attended:
        """Attend from `x` `[B, C, 1, Q]` to all of `source` `[B, C, 1, K]` (equal to `x` for self-attention)."""
        return self.attend(x, self.k_proj(source), self.v_proj(source), observed=observed)


# --- one head at a time ---------------------------------------------------------------------------------------------


class SplitKeys:
    """Keys, values and mask, brought into the layout of `SplitHeads` once for all queries.

    Attributes:
        keys: Each head's, `[B, K, 1, C / heads]`.
        values: Each head's, `[B, C / heads, 1, K]`.
        mask: `[B, K, 1, 1]` or `[B, K, 1, Q]`, or None.
    """

    def __init__(self, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> None:
        self.channels = key.shape[1] // heads
        self.keys = split(key.transpose(1, 3), self.channels, dim=3)
        self.values = split(value, self.channels, dim=1)
        by_key = mask if mask is None else mask.transpose(1, 3)  # [B, K, Q, 1]
        self.mask = by_key if by_key is None or by_key.shape[2] == 1 else by_key.transpose(2, 3)

    def attend(self, query: Tensor, observed: tuple[int, ...]) -> Attended:
        """Attend from `query` `[B, C, 1, Q]`, head by head."""
        queries = split(query, self.channels, dim=1)
        by_head = [self.attend_one_head(*head) for head in zip(queries, self.keys, self.values, strict=True)]
        output = concatenated([output for output, _ in by_head], dim=1)
        return output, [by_head[head][1].permute(0, 2, 3, 1) for head in observed]

    def attend_one_head(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return one head's output `[B, C / heads, 1, Q]` and weights `[B, K, 1, Q]`."""
        scores = torch.einsum("bkhc,bchq->bkhq", key, query)
        if self.mask is not None:
            scores = scores + self.mask
        weights = scores.softmax(dim=1)
        return torch.einsum("bchk,bkhq->bchq", value, weights), weights


# --- keys in chunks -------------------------------------------------------------------------------------------------


class _Part:
    """Attention to one chunk of the keys, as if there were no others.

    Attributes:
        weights: `[B, heads, Q, chunk]`. Each row sums to one.
        output: `[B, heads, C / heads, Q]`, the average of the chunk's values.
        highest: `[B, heads, Q, 1]`, the largest score.
        top: `[B, heads, Q, 1]`, the weight of that score. Its inverse is the sum of `exp(score - highest)`.
    """

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        scores = _batched_scores(query, key, mask)
        self.weights = scores.softmax(dim=3)
        self.output = torch.matmul(value, self.weights.transpose(2, 3))
        self.highest = scores.amax(dim=3, keepdim=True)
        self.top = self.weights.amax(dim=3, keepdim=True)


def _shares(parts: Sequence[_Part]) -> list[Tensor]:
    """Return the share of each part in the whole softmax, `[B, heads, Q, 1]`."""
    highest = parts[0].highest
    for part in parts[1:]:
        highest = torch.maximum(highest, part.highest)
    sums = [(part.highest - highest).exp() / part.top for part in parts]
    total = sums[0]
    for part_sum in sums[1:]:
        total = total + part_sum
    return [part_sum / total for part_sum in sums]


def _whole_weights(parts: Sequence[_Part], shares: Sequence[Tensor], head: int) -> Tensor:
    """Return a head's weights over all keys, `[B, 1, Q, K]`."""
    one = slice(head, head + 1)
    return torch.cat([part.weights[:, one] * share[:, one] for part, share in zip(parts, shares, strict=True)], dim=3)


# --- shapes ---------------------------------------------------------------------------------------------------------


def _by_head(x: Tensor, heads: int) -> Tensor:
    """Turn `[B, C, 1, S]` into `[B, heads, C / heads, S]`."""
    return x.view(x.shape[0], heads, -1, x.shape[3])


def _joined(output: Tensor) -> Tensor:
    """Turn `[B, heads, C / heads, Q]` into `[B, C, 1, Q]`."""
    return output.reshape(output.shape[0], -1, 1, output.shape[3])


def _batched_scores(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Return the masked scores `[B, heads, Q, K]` of queries and keys `[B, heads, C / heads, S]`."""
    scores = torch.matmul(query.transpose(2, 3), key)
    return scores if mask is None else scores + mask


def _check_chunk_size(size: int) -> None:
    """Raise `ValueError` unless chunks of that size begin at aligned addresses."""
    if isinstance(size, bool) or not isinstance(size, int) or size < CHUNK_ALIGNMENT or size % CHUNK_ALIGNMENT:
        raise ValueError(
            f"the attention's chunk size is {size!r}, expected a positive multiple of {CHUNK_ALIGNMENT}, so that each "
            f"chunk of float16 numbers begins at a multiple of {2 * CHUNK_ALIGNMENT} bytes"
        )
