"""Columns of the token embedding made alike: exact in float16, and better for one palette."""

import numpy as np
import pytest
import torch

from whisperkit_tools.checkpoint.opening import open_checkpoint
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.conversion.column_scales import fold_column_scales
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.palette import palettize


def decoder(columns: torch.Tensor | None = None) -> TextDecoder:
    """The demo's decoder in float16, its embedding's columns multiplied and the layer norm divided by powers of two."""
    found = open_checkpoint("demo").load_decoder(16, dtype=torch.float16)
    if columns is not None:
        found.embed_tokens.weight.mul_(columns)
        found.layer_norm.weight.div_(columns)
        found.layer_norm.bias.div_(columns)
    return found


@pytest.fixture(scope="module")
def columns():
    exponents = np.random.default_rng(0).integers(-3, 4, open_checkpoint("demo").dims.d_model)
    return torch.from_numpy(np.exp2(exponents).astype(np.float16))


def step(module: TextDecoder) -> tuple[torch.Tensor, ...]:
    module, dims = module.float(), module.dims
    caches = torch.zeros(1, dims.d_model * dims.decoder_layers, 1, 16)
    update = torch.zeros(1, 16)
    update[0, 0] = 1
    audio = torch.randn(1, dims.d_model, 1, dims.n_audio_ctx, generator=torch.Generator().manual_seed(1))
    padding = torch.full((1, 16), -1e4)
    padding[0, 0] = 0
    with torch.no_grad():
        ids, at = torch.tensor([30], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        return module(ids, at, caches, caches, update, audio, padding)


def test_outputs_stay_the_same(columns):
    before, folded = decoder(columns), decoder(columns)
    fold_column_scales(folded)
    assert folded.embedding_scale is not None
    mantissas = np.frexp(folded.embedding_scale.numpy())[0]
    assert set(mantissas.tolist()) == {0.5}
    for found, expected in zip(step(folded), step(before), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_one_palette_serves_all_columns(columns):
    plain, folded = decoder(columns), decoder(columns)
    fold_column_scales(folded)
    power = plain.layer_norm.weight.float().square() + plain.layer_norm.bias.float().square()

    def logits_error(table, scale):
        change = torch.from_numpy(palettize(table.numpy(), Compression(4)).dense().astype(np.float32)) - table.float()
        return float(((change * scale).square().sum(0) * power).sum())

    ones = torch.ones_like(columns).float()
    before = logits_error(plain.embed_tokens.weight, ones)
    assert logits_error(folded.embed_tokens.weight, folded.embedding_scale.float()) < 0.5 * before


def test_a_column_that_would_be_rounded_stays_as_it_is():
    found = decoder()
    found.embed_tokens.weight[:, 0] = 60000.0
    found.embed_tokens.weight[0, 1] = 6e-8  # the smallest number of float16
    before = found.embed_tokens.weight.clone()
    fold_column_scales(found)
    scale = found.embedding_scale if found.embedding_scale is not None else torch.ones(before.shape[1])
    assert torch.equal(found.embed_tokens.weight * scale.half(), before)
    assert bool(torch.isfinite(found.embed_tokens.weight).all())
