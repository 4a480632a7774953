"""Block formats against gguf-py's values and against the yardstick of the shared folder."""

import importlib.util
from typing import Any

import numpy as np
import pytest

from whisperkit_tools.contract import MODEL_COMPONENTS
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.quantization.block_formats import (
    BLOCK_FORMATS,
    BlockFormat,
    block_format_nbytes,
    column_scales,
    in_block_format,
    matrices,
    round_to_blocks,
)

PIECES = ["embed_tokens_weight_piece_0", "embed_tokens_weight_piece_1"]

# gguf-py 0.19.0, `dequantize(quantize(row))` of the row below: the first eight elements, and the sum of all.
GGUF = {
    "q8_0": (
        [0.0, 0.8416519165039062, -0.755126953125, 0.409027099609375, -0.29103851318359375, -0.13372039794921875,
         -0.9911041259765625, -0.9517745971679688],
        -4.318382263183594,
    ),
    "q5_1": (
        [0.0322265625, 0.8701171875, -0.7412109375, 0.4189453125, -0.2900390625, -0.1611328125, -0.9990234375,
         -0.9345703125],
        -4.189453125,
    ),
    "q5_0": (
        [0.0, 0.81170654296875, -0.749267578125, 0.43707275390625, -0.31219482421875, -0.1248779296875,
         -0.93658447265625, -0.93658447265625],
        -4.1209716796875,
    ),
    "q4_1": (
        [0.06640625, 0.865478515625, -0.732666015625, 0.4659423828125, -0.3331298828125, -0.0667724609375,
         -0.9990234375, -0.9990234375],
        -4.001220703125,
    ),
    "q4_0": (
        [0.0, 0.8741455078125, -0.749267578125, 0.3746337890625, -0.249755859375, -0.1248779296875,
         -0.8741455078125, -0.8741455078125],
        -3.8712158203125,
    ),
}  # fmt: skip


@pytest.fixture
def yardstick(shared):
    """The module of the shared folder that rounds and counts in its own way."""
    path = shared / "yardsticks" / "block_formats.py"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    spec = importlib.util.spec_from_file_location("block_format_yardstick", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def graphs(demo_bundle):
    return {name: read_graph(demo_bundle / f"{name}.mlpackage") for name in MODEL_COMPONENTS}


@pytest.mark.parametrize("one", BLOCK_FORMATS.values(), ids=BLOCK_FORMATS)
def test_values_are_those_of_ggml(one: BlockFormat):
    at = np.arange(32, dtype=np.float32)
    rows = np.stack([np.sin(at * at).astype(np.float16), np.zeros(32, np.float16)])
    found = round_to_blocks(rows, one)
    first, total = GGUF[one.name]
    assert found[0, :8].tolist() == first
    assert found[0].astype(np.float64).sum() == total
    assert not found[1].any()


@pytest.mark.parametrize("one", BLOCK_FORMATS.values(), ids=BLOCK_FORMATS)
def test_values_are_the_yardstick_s_but_for_ties(yardstick, one):
    """The yardstick divides by the rounded step and ggml by the exact one, so elements on an edge fall elsewhere."""
    weight = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float16)
    expected, found = yardstick.rounded(weight, *yardstick.FORMATS[one.name]), round_to_blocks(weight, one)
    assert np.mean(found != expected) < 0.01
    error, same = (np.sqrt(np.mean((value - weight) ** 2)) for value in (found, expected))
    assert error == pytest.approx(same, rel=2e-3)


def test_pointwise_convolutions_are_rounded_along_their_input():
    weight = np.random.default_rng(1).standard_normal((4097, 32)).astype(np.float16)  # more rows than a portion
    q5_0 = BLOCK_FORMATS["q5_0"]
    assert np.array_equal(round_to_blocks(weight[:, :, None, None], q5_0)[:, :, 0, 0], round_to_blocks(weight, q5_0))


def test_bits_an_element():
    assert {name: one.bits for name, one in BLOCK_FORMATS.items()} == {
        "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0, "q4_0": 4.5,
    }  # fmt: skip


def test_matrices_are_the_linear_weights_and_the_embedding(graphs):
    encoder, decoder = (matrices(graphs[name]) for name in MODEL_COMPONENTS)
    assert [name for name in decoder if name.startswith("embed_tokens")] == PIECES
    assert not [name for name in (*encoder, *decoder) if "position" in name or name.startswith("conv")]
    assert len(encoder) == 3 * 6
    assert len(decoder) == 2 * 10 + 2


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_bytes_are_those_that_the_yardstick_counts_for_the_checkpoint(graphs, yardstick, name):
    from safetensors.numpy import load_file

    from whisperkit_tools.demo import demo_checkpoint_dir

    bits, has_offset = yardstick.FORMATS[name]
    expected = 0
    for key, value in load_file(demo_checkpoint_dir() / "model.safetensors").items():
        is_block = value.ndim == 2 and "embed_positions" not in key
        expected += value.size * ((bits + (32 if has_offset else 16) / 32) / 8 if is_block else 2)
    assert sum(block_format_nbytes(graph, BLOCK_FORMATS[name]) for graph in graphs.values()) == expected


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_the_embedding_is_rounded_as_the_checkpoint_has_it(graphs, name):
    from safetensors.numpy import load_file

    from whisperkit_tools.demo import demo_checkpoint_dir

    stored = load_file(demo_checkpoint_dir() / "model.safetensors")["model.decoder.embed_tokens.weight"]
    graph = graphs["TextDecoder"]
    assert list(column_scales(graph)) == PIECES
    found = list[Any]()
    for table in PIECES:
        scale = graph.constants[column_scales(graph)[table]].value.astype(np.float32)
        assert set(np.frexp(scale)[0].reshape(-1).tolist()) == {0.5}  # powers of two
        found.append(in_block_format(graph, table, BLOCK_FORMATS[name]) * scale.reshape(1, -1))
    expected = round_to_blocks(stored.astype(np.float16), BLOCK_FORMATS[name])
    np.testing.assert_array_equal(np.concatenate(found), expected)
