"""The decoder on several tokens against as many steps of the decoder in the runtime's form."""

import pytest
import torch

from tests.compile_hints.test_stateful_decoder import decoder
from whisperkit_tools.compile_hints.verify_decoder import VerifyTextDecoder


def inputs(positions, length=64):
    at = torch.arange(length)[None]
    place = torch.tensor(positions, dtype=torch.int32)
    return place, (at == place[:, None]).float(), torch.where(at <= place[:, None], 0.0, -1e4)


@pytest.mark.parametrize("name", ["cat", "split-heads", "split-kv"])
@pytest.mark.parametrize("chunk", [None, 40])
def test_gives_what_single_steps_give(name, chunk):
    made = decoder(name, logits_chunk_size=chunk)
    made.embedding_scale = torch.rand(32) + 0.5
    embeds, tokens = torch.randn(1, 32, 1, 100), [3, 80, 41, 7, 7, 20]
    caches = [torch.zeros(1, 64, 1, 64) for _ in range(2)]
    rows = []
    for position, token in enumerate(tokens):
        if position == 1:
            before = [cache.clone() for cache in caches]
        place, here, padding = inputs([position])
        rows.append(made(torch.tensor([token], dtype=torch.int32), place, *caches, here, embeds, padding))
        for cache, update in zip(caches, rows[-1][1:3], strict=True):
            cache[..., position : position + 1] = update
    # A rejected draft left these behind.
    for cache in before:
        cache[..., 1:4] = 99.0
    place, here, padding = inputs(range(1, 6))
    found = VerifyTextDecoder(made)(torch.tensor(tokens[1:], dtype=torch.int32), place, *before, here, embeds, padding)
    expected = [
        torch.cat(parts, dim=axis) for parts, axis in zip(zip(*rows[1:], strict=True), (1, 3, 3, 0), strict=True)
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_without_alignment_heads_there_are_three_outputs():
    made = decoder()
    made.alignment_heads = None
    place, here, padding = inputs([0, 1])
    caches = [torch.zeros(1, 64, 1, 64) for _ in range(2)]
    ids = torch.tensor([1, 2], dtype=torch.int32)
    assert len(VerifyTextDecoder(made)(ids, place, *caches, here, torch.randn(1, 32, 1, 100), padding)) == 3
