"""The tied token embedding in chunks of rows.

Whisper's tokens are numbered about as they are frequent, because a byte pair encoding merges frequent pairs first. The
first rows are embedded, and predicted, far more often than the others. They are a chunk of their own, so that they can
be compressed less. The other rows are cut where the Neural Engine limits the number of logits of one product. Each
chunk is used twice, to embed and to compute logits, in the same shape, so that a package stores it once.
"""

from functools import reduce
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from whisperkit_tools.compile_hints.layers import concatenated

_SHARE = 5  # the frequent tokens are at most a fifth of all


def chunk_heights(vocab_size: int, at_most: int | None = None) -> tuple[int, ...]:
    """Return the numbers of rows of the chunks: those of the frequent tokens, then the others.

    The frequent ones are a power of two in number, 8192 for Whisper's vocabularies. `python -m tests.benchmarks
    real-curve` measures what bundles with these chunks are worth at equal bytes.

    Args:
        vocab_size: Number of tokens.
        at_most: Maximum number of rows of a chunk. None for any.
    """
    frequent = 1 << max(0, (vocab_size // _SHARE).bit_length() - 1) if vocab_size >= _SHARE else 0
    heights = list[int]()
    for rows in (frequent, vocab_size - frequent):
        size = min(at_most or rows, rows)
        heights += [min(size, rows - start) for start in range(0, rows, size)] if rows else []
    return tuple(heights)


def chunks(weight: Tensor, heights: tuple[int, ...]) -> list[Tensor]:
    """Cut a table `[V, D]` into chunks of rows. The converter makes a constant of each, and none of the whole."""
    return [weight] if len(heights) == 1 else list(torch.split(weight, list(heights), dim=0))


def embed(ids: Tensor, tables: list[Tensor], scale: Tensor | None) -> Tensor:
    """Return the embedded tokens `[N, D]` of ids `[N]`, each channel multiplied by its scale `[D]`.

    All arithmetic is on integers, because float16 does not hold ids beyond 2048. Clamping, division and maxima are not
    used, because the converter makes them arithmetic of floats.
    """
    embedded = F.embedding(ids, tables[0]) if len(tables) == 1 else _of_chunks(ids, tables)
    return embedded if scale is None else embedded * scale


def _of_chunks(ids: Tensor, tables: list[Tensor]) -> Tensor:
    """Look tokens up in every chunk, in row 0 where they belong to another chunk, and take the rows from their own."""
    starts = list(accumulate(len(table) for table in tables[:-1]))
    reached = [(ids >= start).to(ids.dtype) for start in starts]  # the second chunk, the third one, ...
    inside = [1 - reached[0], *(one - following for one, following in pairwise(reached)), reached[-1]]
    rows = [
        F.embedding((ids - start if start else ids) * here, table)
        for table, start, here in zip(tables, [0, *starts], inside, strict=True)
    ]
    chunk = reduce(torch.add, reached)
    if ids.shape[0] > 1:  # each chunk has given a row for each of the tokens
        chunk = chunk * ids.shape[0] + torch.arange(ids.shape[0], dtype=ids.dtype)
    return F.embedding(chunk, torch.cat(rows))


def logits(hidden: Tensor, tables: list[Tensor]) -> Tensor:
    """Return the logits `[1, N, V]` of hidden states `[1, N, D]`."""
    return concatenated([F.linear(hidden, table) for table in tables], dim=2)
