"""The token embedding in chunks of rows: every token's row and logit, whatever the chunks are."""

import pytest
import torch

from whisperkit_tools.compile_hints.token_embedding import chunk_heights, chunks, embed, logits


@pytest.mark.parametrize(
    ("vocab_size", "at_most", "expected"),
    [
        (51864, None, (8192, 43672)),
        (51866, None, (8192, 43674)),
        (51865, 16000, (8192, 16000, 16000, 11673)),
        (51865, 4096, (4096, 4096, *[4096] * 10, 2713)),
        (2248, None, (256, 1992)),
        (50, 7, (7, 1, 7, 7, 7, 7, 7, 7)),
        (5, None, (1, 4)),
        (4, None, (4,)),
        (1, None, (1,)),
    ],
)
def test_heights(vocab_size, at_most, expected):
    assert chunk_heights(vocab_size, at_most) == expected
    assert sum(expected) == vocab_size


@pytest.mark.parametrize("at_most", [None, 1, 7, 8, 49])
def test_every_token_has_its_row_and_its_logit(at_most):
    random = torch.Generator().manual_seed(0)
    weight, scale = torch.randn(50, 16, generator=random), torch.randn(16, generator=random)
    hidden = torch.randn(1, 1, 16, generator=random)
    tables = chunks(weight, chunk_heights(50, at_most))
    for token in range(50):
        ids = torch.tensor([token], dtype=torch.int32)
        assert torch.equal(embed(ids, tables, None), weight[token : token + 1])
        assert torch.equal(embed(ids, tables, scale), weight[token : token + 1] * scale)
    ids = torch.tensor([49, 0, 8, 7], dtype=torch.int32)
    assert torch.equal(embed(ids, tables, scale), weight[ids] * scale)
    torch.testing.assert_close(logits(hidden, tables), hidden @ weight.T)
