"""Fused operations against the separate ones, and where nothing may be fused."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.mil_programs import save

from whisperkit_tools.compile_hints.audio_encoder import AudioEncoder
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.mil.coreml import import_coremltools, quiet_coremltools
from whisperkit_tools.mil.fused_kernels import packed_half
from whisperkit_tools.mil.fusion import fuse
from whisperkit_tools.mil.graph import Graph, read_graph
from whisperkit_tools.mil.kernels import bind
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.schedule import ExecutionTarget, Schedule

DIMS = ModelDimensions(
    n_mels=8, n_audio_ctx=1500, d_model=64, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=96,
    decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=96, n_text_ctx=448, vocab_size=300,
)  # fmt: skip
LENGTH = 32


def export(module: torch.nn.Module, shapes: dict[str, tuple[int, ...]], path: Path) -> Path:
    """Trace a module; inputs named `*_ids` or `*_length` are integers."""
    ct = import_coremltools()
    kinds = {name: "int32" if name in ("input_ids", "cache_length") else "float32" for name in shapes}
    examples = [torch.zeros(shape, dtype=getattr(torch, kinds[name])) for name, shape in shapes.items()]
    with quiet_coremltools(), torch.no_grad():
        traced = torch.jit.trace(module.eval(), examples, check_trace=False)
        ct.convert(
            traced,
            inputs=[ct.TensorType(name, shape, dtype=getattr(np, kinds[name])) for name, shape in shapes.items()],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        ).save(str(path))
    return path


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


DECODER_SHAPES = {
    "input_ids": (1,),
    "cache_length": (1,),
    "key_cache": (1, 128, 1, LENGTH),
    "value_cache": (1, 128, 1, LENGTH),
    "kv_cache_update_mask": (1, LENGTH),
    "encoder_output_embeds": (1, 64, 1, 1500),
    "decoder_key_padding_mask": (1, LENGTH),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fusion") / "AudioEncoder.mlpackage"
    return export(randomise(AudioEncoder(DIMS)), {"melspectrogram_features": (1, 8, 1, 3000)}, path)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fusion") / "TextDecoder.mlpackage"
    return export(randomise(TextDecoder(DIMS, LENGTH, ((1, 3),))), DECODER_SHAPES, path)


def inputs_of(program: Program, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    given = {}
    for name, spec in program.inputs.items():
        shape = [axis or 1 for axis in spec.shape]
        is_float = spec.dtype.startswith("float")
        given[name] = torch.randn(shape, generator=generator) if is_float else torch.tensor([5], dtype=torch.int32)
    return given


def fused_types(path: Path) -> Counter[str]:
    graph = read_graph(path)
    specs = {**graph.inputs, **{name: constant.spec for name, constant in graph.constants.items()}}
    return Counter(node.type for node in fuse(bind(graph), graph.outputs, specs))


def separately(program: Program, graph: Graph, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run the operations one by one as they stand."""
    target = ExecutionTarget("float32", torch.device("cpu"))
    schedule = Schedule(bind(graph), graph.inputs, graph.outputs, (), program.constants(), target)
    with torch.no_grad():
        return schedule.run({**program.constants(), **inputs})


def check_equal(path: Path, inputs: dict[str, torch.Tensor] | None = None) -> None:
    """Compare a program as it is run with its operations one by one, up to rounding."""
    program = Program.load(path)
    inputs = inputs or inputs_of(program)
    wanted = separately(program, read_graph(path), inputs)
    for name, value in program.run(inputs).items():
        assert value.shape == wanted[name].shape
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-4)


def test_encoder(encoder: Path) -> None:
    types = fused_types(encoder)
    assert types["fused_scaled_dot_product_attention"] == 1
    assert types["fused_conv"] == 8
    assert not types.keys() & {"conv", "softmax", "matmul", "batch_norm"}
    check_equal(encoder)


def test_decoder(decoder: Path) -> None:
    types = fused_types(decoder)
    assert types["fused_cached_attention"] == 2
    assert types["softmax"] == 2  # of one position to the audio: the products are quicker by themselves
    assert types["fused_linear"] == 2  # the logits of the frequent tokens, and those of the others
    assert "conv" not in types
    check_equal(decoder)


def test_decoder_with_the_masks_of_a_real_step(decoder: Path) -> None:
    program = Program.load(decoder)
    one_hot = inputs_of(program, seed=1)
    one_hot["kv_cache_update_mask"] = torch.eye(LENGTH)[7:8]
    one_hot["decoder_key_padding_mask"] = torch.where(torch.arange(LENGTH) <= 7, 0.0, -10000.0)[None]
    check_equal(decoder, one_hot)


def test_decoder_projects_the_audio_once(decoder: Path) -> None:
    program = Program.load(decoder)
    assert list(program.executor.schedule.tracked) == ["encoder_output_embeds"]
    inputs = inputs_of(program)
    first = program.run(inputs)
    everything = program.executed_operations
    again = program.run(inputs)
    assert program.executed_operations == everything - 8  # four projections, and their split into heads
    for name, value in first.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)


def test_what_is_kept_lies_in_row_major_order(decoder: Path) -> None:
    program = Program.load(decoder)
    program.run(inputs_of(program))
    kept = list(program.executor.cached.values())
    assert len(kept) == 4
    assert all(value.is_contiguous() for value in kept)


def test_caches_changed_in_place_are_read_anew(decoder: Path) -> None:
    program = Program.load(decoder)
    inputs = inputs_of(program)
    program.run(inputs)
    for name in ("key_cache", "value_cache"):
        inputs[name][..., 3] = 2.0
    found = program.run(inputs)
    wanted = Program.load(decoder).run(inputs)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_nothing_is_fused_with_gradients_or_in_float16(decoder: Path) -> None:
    program = Program.load(decoder)
    assert not any(node.type.startswith("fused") for node in program.schedule.nodes)
    half = Program.load(decoder, precision="float16")
    assert not any(node.type.startswith("fused") for node in half.executor.schedule.nodes)


def attention_program(query_shape: tuple[int, ...], **options: Any) -> tuple[Any, list[Any]]:
    """Attention over query, key and value given as inputs, in one of the ways to write it."""
    import_coremltools()
    from coremltools.converters.mil import Builder as mb

    column, mask, weights_first = options["column"], options["mask"], options["weights_first"]
    *batch, length, channels = query_shape
    shapes = [(*batch, channels, size) if column else (*batch, size, channels) for size in (length, 6, 6)]

    def program(query: Any, key: Any, value: Any, added: Any) -> Any:
        scores = mb.matmul(x=query, y=key, transpose_x=column, transpose_y=not column)
        if mask:
            scores = mb.add(x=added, y=scores) if mask == "first" else mb.add(x=scores, y=added)
        weights = mb.softmax(x=scores, axis=-1)
        if weights_first:
            result = mb.matmul(x=weights, y=value, transpose_y=column)
        else:
            result = mb.matmul(x=value, y=weights, transpose_x=not column, transpose_y=True)
        return mb.identity(x=result, name="y"), mb.identity(x=added, name="same")

    specs = [mb.TensorSpec(shape=shape) for shape in (*shapes, (1, 1, length, 6))]
    return program, specs


@pytest.mark.parametrize("column", [True, False])
@pytest.mark.parametrize("mask", ["", "first", "second"])
@pytest.mark.parametrize("weights_first", [True, False])
def test_attention_in_every_way_to_write_it(tmp_path: Path, column: bool, mask: str, weights_first: bool) -> None:
    written = attention_program((2, 3, 5, 8), column=column, mask=mask, weights_first=weights_first)
    path = save(*written, tmp_path / "Attention.mlpackage", "iOS17")
    assert fused_types(path)["fused_scaled_dot_product_attention"] == 1
    check_equal(path)


@pytest.mark.parametrize("mask", ["", "first", "second"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(
    ("scores", "combined"), [("bkhc,bchq->bkhq", "bchk,bkhq->bchq"), ("nwhu,nuhc->nwhc", "naho,nohx->nahx")]
)
def test_attention_over_the_channel_axis(tmp_path: Path, scores: str, combined: str, heads: int, mask: str) -> None:
    import_coremltools()
    from coremltools.converters.mil import Builder as mb

    def program(key: Any, query: Any, value: Any, added: Any) -> Any:
        product = mb.einsum(values=[key, query], equation=scores)
        if mask:
            product = mb.add(x=added, y=product) if mask == "first" else mb.add(x=product, y=added)
        weights = mb.softmax(x=product, axis=1)
        return mb.einsum(values=[value, weights], equation=combined), mb.identity(x=added)

    shapes = [(2, 6, heads, 8), (2, 8, heads, 5), (2, 8, heads, 6), (2, 6, 1, 1)]
    path = save(program, [mb.TensorSpec(shape=shape) for shape in shapes], tmp_path / "Split.mlpackage", "iOS17")
    assert fused_types(path)["fused_scaled_dot_product_attention"] == 1
    check_equal(path)


def test_what_somebody_else_reads_is_not_fused(tmp_path: Path) -> None:
    import_coremltools()
    from coremltools.converters.mil import Builder as mb

    def program(x: Any) -> Any:
        weights = mb.softmax(x=mb.matmul(x=x, y=x, transpose_y=True), axis=-1)
        return mb.matmul(x=weights, y=x), mb.identity(x=weights)

    path = save(program, [mb.TensorSpec(shape=(1, 2, 5, 4))], tmp_path / "Shared.mlpackage", "iOS17")
    assert "fused_scaled_dot_product_attention" not in fused_types(path)
    check_equal(path)


@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_over_another_axis_is_not_fused(tmp_path: Path, axis: int) -> None:
    import_coremltools()
    from coremltools.converters.mil import Builder as mb

    def program(x: Any) -> Any:
        return mb.matmul(x=mb.softmax(x=mb.matmul(x=x, y=x, transpose_y=True), axis=axis), y=x)

    path = save(program, [mb.TensorSpec(shape=(1, 2, 5, 4))], tmp_path / "Axis.mlpackage", "iOS17")
    assert "fused_scaled_dot_product_attention" not in fused_types(path)
    check_equal(path)


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({}, True),
        ({"bias": np.arange(6, dtype=np.float32)}, True),
        ({"pad_type": "custom", "pad": [0, 0, 1, 1]}, False),
        ({"strides": [1, 2]}, False),
        ({"groups": 2}, False),
    ],
)
@pytest.mark.parametrize("length", [1, 5])
def test_pointwise_convolution(tmp_path: Path, options: dict[str, Any], fused: bool, length: int) -> None:
    import_coremltools()
    from coremltools.converters.mil import Builder as mb

    weight = np.random.default_rng(0).standard_normal((6, 4 // options.get("groups", 1), 1, 1)).astype(np.float32)

    def program(x: Any) -> Any:
        return mb.conv(x=x, weight=weight, **options)

    path = save(program, [mb.TensorSpec(shape=(1, 4, 1, length))], tmp_path / "Conv.mlpackage", "iOS17")
    assert ("fused_conv" in fused_types(path)) == fused
    check_equal(path)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_large_matrix_times_one_vector(tmp_path: Path, exact: bool, with_bias: bool) -> None:
    import_coremltools()
    from coremltools.converters.mil import Builder as mb

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1 << 14, 1 << 8)).astype(np.float16 if exact else np.float32).astype(np.float32)
    bias = rng.standard_normal(1 << 14).astype(np.float32) * with_bias

    def program(x: Any) -> Any:
        return mb.linear(x=x, weight=weight, bias=bias)

    path = save(program, [mb.TensorSpec(shape=(1, 1, 1 << 8))], tmp_path / "Linear.mlpackage", "iOS17")
    assert fused_types(path)["packed_half"] == 1
    check_equal(path)


def test_only_float16_numbers_are_packed() -> None:
    weight = torch.tensor([[0.1, 0.2]])
    assert packed_half(weight) is weight
    beyond = torch.tensor([[1e6, 0.5]])
    assert packed_half(beyond) is beyond


@pytest.mark.parametrize("parts", ["gamma beta", "gamma", "beta", ""])
def test_batch_norm_after_layer_norm(tmp_path: Path, parts: str) -> None:
    import_coremltools()
    from coremltools.converters.mil import Builder as mb

    rng = np.random.default_rng(0)
    vectors = {name: rng.uniform(0.5, 2, 4).astype(np.float32) for name in ("mean", "variance", *parts.split())}

    def program(x: Any) -> Any:
        return mb.batch_norm(x=mb.layer_norm(x=x, axes=[1], epsilon=np.float32(1e-5)), **vectors)

    path = save(program, [mb.TensorSpec(shape=(1, 4, 1, 7))], tmp_path / "Norm.mlpackage", "iOS17")
    assert "batch_norm" not in fused_types(path)
    check_equal(path)
