"""The attention implementations against torch's and transformers' own, and what their packages hold."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperAttention

from whisperkit_tools.compile_hints.attention import (
    Cat,
    MultiHeadAttention,
    SplitHeads,
    SplitHeadsQ,
    SplitKV,
    attention,
)
from whisperkit_tools.compile_hints.audio_encoder import AudioEncoder
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.contract import ATTENTION_NAMES, PackageInterface, TensorInterface, package_interfaces
from whisperkit_tools.conversion.export import PackageMetadata, export_package, fold_query_scale
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.signals import psnr_db

IMPLEMENTATIONS = [Cat(), SplitHeads(), SplitHeadsQ(), SplitHeadsQ(96), SplitKV(), SplitKV(96)]
HEADS = [(6, 64), (20, 64), (4, 32)]  # tiny, large-v3, the embedded demo
METADATA = PackageMetadata("what", "who", "MIT", "1", {})


def of_torch(query, key, value, heads, mask):
    """Torch's own attention: output `[B, C, 1, Q]`, weights `[B, heads, Q, K]`."""
    query, key, value = (x[:, :, 0].unflatten(1, (heads, -1)).transpose(2, 3).double() for x in (query, key, value))
    mask = None if mask is None else mask.double()
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    scores = query @ key.transpose(2, 3)
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    return output.transpose(2, 3).flatten(1, 2)[:, :, None], weights


def random_inputs(batch, heads, head_channels, queries, keys, filled, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(batch, heads * head_channels, 1, length, generator=generator) for length in (queries, keys, keys)
    )
    mask = None if filled is None else torch.where(torch.arange(keys) < filled, 0.0, -1e4).view(1, 1, 1, keys)
    return query * head_channels**-0.5 * 3, key, value, mask


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize(("heads", "head_channels"), HEADS)
@pytest.mark.parametrize("queries", [1, 150])
def test_output_and_weights_equal_torchs(implementation, heads, head_channels, queries):
    query, key, value, mask = random_inputs(1, heads, head_channels, queries, 448, filled=200)
    observed = (2, 0)
    output, weights = implementation(query, key, value, heads=heads, mask=mask, observed=observed)
    expected, expected_weights = of_torch(query, key, value, heads, mask)
    assert output.shape == expected.shape
    assert psnr_db(expected.numpy(), output.numpy()) > 110
    for head, found in zip(observed, weights, strict=True):
        assert found.shape == (1, 1, queries, 448)
        assert psnr_db(expected_weights[:, head : head + 1].numpy(), found.numpy()) > 110
        assert torch.allclose(found.sum(dim=-1), torch.ones(()), atol=1e-5)
        assert found[..., 200:].abs().max() == 0


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from([Cat, SplitHeads, SplitHeadsQ, SplitKV]),
    chunk=st.sampled_from([32, 64, 96, 512]),
    batch=st.integers(1, 2),
    heads=st.integers(1, 4),
    head_channels=st.sampled_from([1, 3, 8]),
    queries=st.integers(1, 200),
    keys=st.integers(1, 300),
    data=st.data(),
)
def test_any_length_chunk_and_mask(kind, chunk, batch, heads, head_channels, queries, keys, data):
    filled = data.draw(st.none() | st.integers(1, keys))
    observed = tuple(data.draw(st.lists(st.integers(0, heads - 1), unique=True)))
    implementation = kind(chunk) if kind in (SplitHeadsQ, SplitKV) else kind()
    query, key, value, mask = random_inputs(batch, heads, head_channels, queries, keys, filled, seed=keys)
    output, weights = implementation(query, key, value, heads=heads, mask=mask, observed=observed)
    expected, expected_weights = of_torch(query, key, value, heads, mask)
    assert torch.allclose(output.double(), expected, atol=1e-5)
    assert len(weights) == len(observed)
    for head, found in zip(observed, weights, strict=True):
        assert torch.allclose(found.double(), expected_weights[:, head : head + 1], atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize("filled", ["first only", "one later chunk", "none"])
def test_chunks_that_are_masked_altogether_change_nothing(implementation, filled):
    query, key, value, _ = random_inputs(1, 2, 8, 3, 300, None)
    mask = torch.full((1, 1, 1, 300), -1e4)
    mask[..., {"first only": slice(0, 1), "one later chunk": slice(200, 220), "none": slice(0, 0)}[filled]] = 0
    output, _ = implementation(query, key, value, heads=2, mask=mask, observed=())
    expected, _ = of_torch(query, key, value, 2, mask)
    # Where all is masked, -1e4 takes digits from the scores of float32.
    assert torch.allclose(output.double(), expected, atol=1e-2 if filled == "none" else 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=str)
def test_float16_is_finite_where_sums_of_values_would_not_be(implementation):
    """1,500 equal keys with values of 400: their plain sum is 600,000, far beyond float16's 65,504."""
    query = torch.zeros(1, 16, 1, 2, dtype=torch.float16)
    key = torch.zeros(1, 16, 1, 1500, dtype=torch.float16)
    value = torch.full((1, 16, 1, 1500), 400.0, dtype=torch.float16)
    output, weights = implementation(query, key, value, heads=2, mask=None, observed=(0,))
    assert torch.allclose(output.float(), torch.full(output.shape, 400.0), rtol=5e-3)
    assert torch.allclose(weights[0].float().sum(-1), torch.ones(()), atol=5e-3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=str)
def test_float16_survives_scores_of_hundreds(implementation):
    query, key, value, mask = random_inputs(1, 4, 32, 3, 448, filled=300)
    query = query * 30
    half = [x.half() for x in (query, key, value, mask)]
    output, _ = implementation(*half[:3], heads=4, mask=half[3], observed=())
    expected, _ = of_torch(*(x.float() for x in half[:3]), 4, mask)
    assert psnr_db(expected.numpy(), output.float().numpy()) > 40


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize(("heads", "head_channels"), HEADS)
def test_projections_and_attention_equal_transformers(implementation, heads, head_channels):
    channels = heads * head_channels
    config = WhisperConfig(d_model=channels, attn_implementation="eager")
    torch.manual_seed(0)
    reference = WhisperAttention(channels, heads, layer_idx=0, config=config).eval()
    ours = MultiHeadAttention(channels, heads, implementation)
    ours.load_state_dict(reference.state_dict())
    x, source = torch.randn(1, 40, channels), torch.randn(1, 700, channels)
    with torch.no_grad():
        expected, expected_weights = reference(x, key_value_states=source, output_attentions=True)[:2]
        found, weights = ours(x.transpose(1, 2)[:, :, None], source.transpose(1, 2)[:, :, None], observed=(1,))
    assert psnr_db(expected.transpose(1, 2)[:, :, None].numpy(), found.numpy()) > 70
    assert psnr_db(expected_weights[:, 1:2].numpy(), weights[0].numpy()) > 70


def test_names_and_sizes():
    assert ATTENTION_NAMES == ("cat", "split-heads", "split-heads-q", "split-kv")
    assert attention("cat") == Cat()
    assert attention("split-heads") == SplitHeads()
    assert attention("split-heads-q") == SplitHeadsQ(512)
    assert attention("split-kv", 64) == SplitKV(64)


def test_the_command_line_explains_all_of_them():
    from whisperkit_tools.cli.convert import command

    assert all(f" {name}: " in command.help.replace("\n", " ") for name in ATTENTION_NAMES)


@pytest.mark.parametrize("size", [0, -32, 1, 33, 500, 64.0, True, "64"])
@pytest.mark.parametrize("name", ["split-heads-q", "split-kv"])
def test_sizes_that_make_no_sense_are_refused(name, size):
    with pytest.raises(ValueError, match=f"chunk size is {size!r}, expected a positive multiple of 32"):
        attention(name, size)


def test_unknown_names_and_needless_sizes_are_refused():
    with pytest.raises(ValueError, match="unknown attention implementation 'dog'; known are cat, split-heads, split-h"):
        attention("dog")
    with pytest.raises(ValueError, match="'cat' does not work in chunks, but a chunk size of 64 was given"):
        attention("cat", 64)


class Probe(torch.nn.Module):
    """An attention alone, as a component."""

    def __init__(self, implementation, heads):
        super().__init__()
        self.implementation, self.heads = implementation, heads

    def forward(self, query, key, value, mask):
        output, weights = self.implementation(query, key, value, heads=self.heads, mask=mask, observed=(1, 0))
        return output, torch.cat(weights, dim=1)


# Two heads of 16 channels and 80 keys with 40 queries, in chunks of 32: what the compiler gets to see.
EXPECTED_OPERATIONS = {
    Cat(): {"reshape": 4, "matmul": 2, "add": 1, "softmax": 1},
    SplitHeads(): {"transpose": 3, "split": 3, "einsum": 4, "add": 2, "softmax": 2},
    SplitHeadsQ(32): {"einsum": 8, "add": 4, "softmax": 4},
    SplitKV(32): {"matmul": 6, "softmax": 3, "reduce_max": 6, "exp": 3, "maximum": 2, "split": 3},
}


@pytest.mark.parametrize(("queries", "target"), [(1, "ios16"), (40, "ios16"), (40, "ios18")])
@pytest.mark.parametrize("implementation", EXPECTED_OPERATIONS, ids=str)
def test_packages_compute_the_same_with_the_operations_meant(implementation, queries, target, tmp_path):
    heads, head_channels, keys = 2, 16, 80
    channels, shape = heads * head_channels, TensorInterface
    interface = PackageInterface(
        {
            "query": shape((1, channels, 1, queries)),
            "key": shape((1, channels, 1, keys)),
            "value": shape((1, channels, 1, keys)),
            "mask": shape((1, 1, 1, keys)),
        },
        {"output": shape((1, channels, 1, queries)), "weights": shape((1, 2, queries, keys))},
    )
    path = tmp_path / "Probe.mlpackage"
    export_package(Probe(implementation, heads), interface, path, deployment_target=target, metadata=METADATA)

    graph = read_graph(path)
    counts = Counter(operation.type for operation in graph.operations)
    if queries > 1:
        assert {kind: counts[kind] for kind in EXPECTED_OPERATIONS[implementation]} == EXPECTED_OPERATIONS[
            implementation
        ]
    assert all(len(output.shape) <= 4 for operation in graph.operations for output in operation.outputs)
    assert {output.dtype for operation in graph.operations for output in operation.outputs} == {"float16"}

    query, key, value, mask = random_inputs(1, heads, head_channels, queries, keys, filled=50)
    given = {name: x.half().float() for name, x in zip(interface.inputs, (query, key, value, mask), strict=True)}
    expected, expected_weights = of_torch(*list(given.values())[:3], heads, mask)
    for precision, least in (("float32", 70), ("float16", 40)):
        found = Program.load(path, precision=precision).predict({name: x.numpy() for name, x in given.items()})
        assert psnr_db(expected.numpy(), found["output"]) >= least
        assert psnr_db(expected_weights[:, [1, 0]].numpy(), found["weights"]) >= least
        assert np.abs(found["weights"].sum(-1) - 1).max() < 5e-3


SMALL = ModelDimensions(
    n_mels=80,
    n_audio_ctx=100,
    d_model=32,
    encoder_layers=2,
    encoder_attention_heads=2,
    encoder_ffn_dim=64,
    decoder_layers=2,
    decoder_attention_heads=2,
    decoder_ffn_dim=64,
    vocab_size=5000,
)


def seeded(build):
    torch.manual_seed(0)
    module = build()
    for name, parameter in module.named_parameters():
        parameter.data = ("norm.weight" in name) + 0.2 * torch.randn_like(parameter)
    return module.eval().requires_grad_(False)


def decoder_inputs(token, at=5, kv_length=64):
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 1, 64, 1, kv_length, generator=generator).half().float()
    position = torch.arange(kv_length)[None]
    return {
        "input_ids": torch.tensor([token], dtype=torch.int32),
        "cache_length": torch.tensor([at], dtype=torch.int32),
        "key_cache": keys,
        "value_cache": values,
        "kv_cache_update_mask": (position == at).float(),
        "encoder_output_embeds": torch.randn(1, 32, 1, 100, generator=generator).half().float(),
        "decoder_key_padding_mask": torch.where(position <= at, 0.0, -1e4),
    }


@pytest.mark.parametrize("implementation", [SplitHeads(), SplitHeadsQ(32), SplitKV(32)], ids=str)
def test_encoder_and_decoder_give_the_same_with_each(implementation):
    features = torch.randn(1, 80, 1, 200)
    plain, other = (seeded(lambda choice=choice: AudioEncoder(SMALL, choice)) for choice in (None, implementation))
    assert psnr_db(plain(features).numpy(), other(features).numpy()) > 70
    heads = ((0, 1), (1, 0), (1, 1))
    plain, other = (
        seeded(lambda choice=choice: TextDecoder(SMALL, 64, heads, choice)) for choice in (None, implementation)
    )
    inputs = decoder_inputs(3).values()
    for expected, found in zip(plain(*inputs), other(*inputs), strict=True):
        assert psnr_db(expected.numpy(), found.numpy()) > 70
    assert other(*inputs)[3].sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("chunk", [1, 999, 1000, 2500, 4999, 5000, 9999])
def test_split_logits_are_the_same(chunk):
    vocabulary = ModelDimensions(**{name: getattr(SMALL, name) for name in SMALL.__slots__} | {"vocab_size": 50})
    whole, split = (
        seeded(lambda size=size: TextDecoder(vocabulary, 64, logits_chunk_size=size))
        for size in (None, max(1, chunk // 100))
    )
    for token in (0, 8, 9, 10, 24, 25, 48, 49):
        inputs = decoder_inputs(token).values()
        for expected, found in zip(whole(*inputs), split(*inputs), strict=True):
            assert psnr_db(expected.numpy(), found.numpy()) > 110
    with pytest.raises(ValueError, match="logits_chunk_size is 0, expected a positive number"):
        TextDecoder(vocabulary, 64, logits_chunk_size=0)


def test_split_logits_store_the_embedding_once_and_find_every_token(tmp_path):
    """Ids beyond 2,048, the odd ones among them not to be had in float16."""
    heads = ((1, 0),)
    decoder = seeded(lambda: TextDecoder(SMALL, 64, heads, logits_chunk_size=1024)).half()
    fold_query_scale(decoder)
    interface = package_interfaces(SMALL, 64, word_timestamps=True)["TextDecoder"]
    path = tmp_path / "TextDecoder.mlpackage"
    export_package(decoder, interface, path, deployment_target="ios16", metadata=METADATA)
    graph = read_graph(path)
    heights = [
        c.spec.shape[0] for c in graph.constants.values() if c.spec.shape[1:] == (32,) and c.spec.shape[0] != 448
    ]
    assert heights == [512, 1024, 1024, 1024, 1024, 392]
    parameters = sum(parameter.numel() for parameter in decoder.parameters())
    weights = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    assert weights.stat().st_size < 2 * parameters + 50_000
    produced = {output.name: output.dtype for operation in graph.operations for output in operation.outputs}
    for operation in (operation for operation in graph.operations if operation.type == "gather"):
        index = operation.inputs["indices"][0]
        assert produced.get(index.name, index.dtype) == "int32"

    program, decoder = Program.load(path, precision="float16"), decoder.float()
    for token in (0, 511, 512, 1023, 1535, 1536, 2047, 2049, 3073, 4095, 4607, 4608, 4999):
        inputs = decoder_inputs(token)
        found = program.predict({name: x.numpy() for name, x in inputs.items()})
        for name, expected in zip(interface.outputs, decoder(*inputs.values()), strict=True):
            assert psnr_db(expected.numpy(), found[name]) > 40
