"""The cost model: counts by hand and by torch's own counter, and the order of the published pairs."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.dimensions import SIZES, dimensions
from whisperkit_tools.compile_hints.attention import Cat, SplitHeads, SplitHeadsQ
from whisperkit_tools.compile_hints.audio_encoder import AudioEncoder
from whisperkit_tools.compile_hints.lint.chips import load_chips
from whisperkit_tools.compile_hints.lint.cost import ProgramEstimate, estimate_bundle, estimate_program, role
from whisperkit_tools.compile_hints.lint.flops import count_program, used_weights
from whisperkit_tools.compile_hints.lint.roofline import draw_roofline, require_matplotlib
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.contract import package_interfaces
from whisperkit_tools.conversion.export import PackageMetadata, export_package
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.errors import OptionsError, WktError
from whisperkit_tools.mil.coreml import import_coremltools, quiet_coremltools
from whisperkit_tools.mil.graph import Constant, Graph, Metadata, Operation, read_graph
from whisperkit_tools.mil.tensor_spec import TensorSpec

TABLE = load_chips()
METADATA = Metadata("", "", "", "", 9, "CoreML8", {})
CHIPS = tuple(TABLE.chips)

MODELS = ("tiny", "base", "small", "medium", "large-v3")


def dimensions_of(name: str) -> ModelDimensions:
    return dimensions(SIZES[name].config())


class Sketch:
    """A program of shapes: its constants take no memory, whatever their size."""

    def __init__(self, **inputs: tuple[int, ...]) -> None:
        self.inputs = {name: TensorSpec(name, shape, "float16") for name, shape in inputs.items()}
        self.constants: dict[str, Constant] = {}
        self.operations: list[Operation] = []

    def constant(self, shape: tuple[int, ...], dtype: str = "float16") -> TensorSpec:
        spec = TensorSpec(f"c{len(self.constants)}", shape, dtype)
        self.constants[spec.name] = Constant(spec, np.broadcast_to(np.zeros((), np.float16), shape))
        return spec

    def value(self, value: Any) -> TensorSpec:
        spec = TensorSpec(f"c{len(self.constants)}", np.shape(value), "string" if isinstance(value, str) else "int32")
        self.constants[spec.name] = Constant(spec, value)
        return spec

    def add(self, kind: str, shape: tuple[int, ...], dtype: str = "float16", **inputs: Any) -> TensorSpec:
        bound = {name: spec if isinstance(spec, tuple) else (spec,) for name, spec in inputs.items()}
        out = TensorSpec(f"v{len(self.operations)}", shape, dtype)
        self.operations.append(Operation(kind, out.name, bound, (out,), len(self.operations)))
        return out

    def conv(self, x: TensorSpec, channels: int, kernel: int = 1, length: int | None = None) -> TensorSpec:
        weight = self.constant((channels, x.shape[1] or 0, 1, kernel))
        shape = (1, channels, 1, length or x.shape[3] or 0)
        return self.add("conv", shape, x=x, weight=weight, bias=self.constant((channels,)))

    def matmul(self, x: TensorSpec, y: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        return self.add("matmul", shape, x=x, y=y, transpose_x=self.value(np.array(True)))

    def graph(self, *outputs: TensorSpec) -> Graph:
        named = {spec.name: spec for spec in outputs}
        return Graph(Path("sketch"), "main", METADATA, self.inputs, {}, named, self.constants, tuple(self.operations))

    def attention(self, query: TensorSpec, key: TensorSpec, value: TensorSpec, heads: int) -> TensorSpec:
        width, size = query.shape[1] or 0, (query.shape[3] or 0, key.shape[3] or 0)
        parts = [self.add("reshape", (1, heads, width // heads, x.shape[3] or 0), x=x) for x in (query, key, value)]
        weights = self.add("softmax", (1, heads, *size), x=self.matmul(parts[0], parts[1], (1, heads, *size)))
        spread = self.add("matmul", (1, heads, width // heads, size[0]), x=parts[2], y=weights)
        return self.add("reshape", query.shape, x=spread)

    def feed_forward(self, x: TensorSpec, width: int) -> TensorSpec:
        hidden = self.conv(self.add("layer_norm", x.shape, x=x), width)
        back = self.conv(self.add("gelu", hidden.shape, x=hidden), x.shape[1] or 0)
        return self.add("add", x.shape, x=x, y=back)


def sketch_encoder(dims: ModelDimensions) -> Graph:
    sketch = Sketch(mel=(1, dims.n_mels, 1, 2 * dims.n_audio_ctx))
    width, frames = dims.d_model, dims.n_audio_ctx
    x = sketch.conv(sketch.conv(sketch.inputs["mel"], width, 3), width, 3, frames)
    for _ in range(dims.encoder_layers):
        q, k, v = (sketch.conv(x, width) for _ in range(3))
        attended = sketch.conv(sketch.attention(q, k, v, dims.encoder_attention_heads), width)
        x = sketch.feed_forward(sketch.add("add", x.shape, x=x, y=attended), dims.encoder_ffn_dim)
    return sketch.graph(x)


def sketch_decoder(dims: ModelDimensions, cross_states: bool = False) -> Graph:
    """One step; with `cross_states` the keys and values of the audio are given instead of computed at every step."""
    width, layers, length = dims.d_model, dims.decoder_layers, dims.n_text_ctx
    caches = {f"{kind}{layer}": (1, width, 1, length) for kind in "kv" for layer in range(layers)}
    if cross_states:
        caches |= {f"cross {kind}{layer}": (1, width, 1, dims.n_audio_ctx) for kind in "kv" for layer in range(layers)}
    sketch = Sketch(x=(1, width, 1, 1), memory=(1, width, 1, dims.n_audio_ctx), mask=(1, 1, 1, length), **caches)
    x, memory, mask = (sketch.inputs[name] for name in ("x", "memory", "mask"))
    for layer in range(layers):
        new = [sketch.conv(x, width) for _ in range(3)]
        kept = [sketch.add("mul", (1, width, 1, length), x=sketch.inputs[f"{kind}{layer}"], y=mask) for kind in "kv"]
        key, value = (sketch.add("add", old.shape, x=old, y=update) for old, update in zip(kept, new[1:], strict=True))
        x = sketch.conv(sketch.attention(new[0], key, value, dims.decoder_attention_heads), width)
        if cross_states:
            key, value = (sketch.inputs[f"cross {kind}{layer}"] for kind in "kv")
        else:
            key, value = sketch.conv(memory, width), sketch.conv(memory, width)
        query = sketch.conv(x, width)
        x = sketch.conv(sketch.attention(query, key, value, dims.decoder_attention_heads), width)
        x = sketch.feed_forward(x, dims.decoder_ffn_dim)
    flat = sketch.add("reshape", (1, 1, width), x=x)
    return sketch.graph(
        sketch.add("linear", (1, 1, dims.vocab_size), x=flat, weight=sketch.constant((dims.vocab_size, width)))
    )


def torch_flops(module: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """What torch's counter counts: two for each multiply-accumulate, nothing else."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*inputs)
    return int(counter.get_total_flops())


def encoder_flops(dims: ModelDimensions, implementation: Any = None) -> int:
    with torch.device("meta"):
        module = AudioEncoder(dims, implementation).eval()
        return torch_flops(module, torch.zeros(1, dims.n_mels, 1, 2 * dims.n_audio_ctx))


def decoder_flops(dims: ModelDimensions) -> int:
    rows, length = dims.d_model * dims.decoder_layers, dims.n_text_ctx
    with torch.device("meta"):
        module = TextDecoder(dims, kv_length=length).eval()
        caches = (torch.zeros(1, rows, 1, length) for _ in range(2))
        ids = (torch.zeros(1, dtype=torch.int32) for _ in range(2))
        masks = (torch.zeros(1, length), torch.zeros(1, dims.d_model, 1, dims.n_audio_ctx), torch.zeros(1, length))
        return torch_flops(module, *ids, *caches, *masks)


def macs(graph: Graph) -> int:
    return sum(count.macs for count in count_program(graph))


def estimate(graph: Graph, chip: str) -> ProgramEstimate:
    return estimate_program("it", graph, TABLE.chip(chip), TABLE)


def only_count(sketch: Sketch) -> tuple[int, int]:
    """Multiply-accumulates and FLOPs of a program's last operation."""
    count = count_program(sketch.graph())[-1]
    assert count.counted
    return count.macs, count.flops


def spec(*shape: int) -> TensorSpec:
    return TensorSpec("x", shape, "float16")


def test_convolutions_by_hand():
    sketch = Sketch()
    sketch.add("conv", (1, 16, 1, 50), x=spec(1, 8, 1, 100), weight=sketch.constant((16, 4, 1, 3)))  # two groups
    assert only_count(sketch) == (9600, 19200)  # 16 * 50 outputs, 4 * 3 products each
    sketch.conv(spec(1, 8, 1, 10), 4)
    assert only_count(sketch) == (320, 680)  # 4 * 10 outputs, 8 products each, and the bias
    sketch.add("conv_transpose", (1, 4, 1, 20), x=spec(1, 8, 1, 10), weight=sketch.constant((8, 4, 1, 2)))
    assert only_count(sketch) == (640, 1280)  # 8 * 10 inputs, 4 * 2 products each


def test_products_by_hand():
    sketch = Sketch()
    sketch.add("linear", (3, 5), x=spec(3, 7), weight=sketch.constant((5, 7)), bias=sketch.constant((5,)))
    assert only_count(sketch) == (105, 225)
    sketch.add("matmul", (2, 3, 5), x=spec(2, 3, 7), y=spec(2, 7, 5))
    assert only_count(sketch) == (210, 420)
    sketch.matmul(spec(2, 7, 3), spec(2, 7, 5), (2, 3, 5))
    assert only_count(sketch) == (210, 420)
    operands = (spec(1, 64, 1, 20), spec(1, 30, 1, 64))
    sketch.add("einsum", (1, 30, 1, 20), values=operands, equation=sketch.value("bchq,bkhc->bkhq"))
    assert only_count(sketch) == (64 * 20 * 30, 2 * 64 * 20 * 30)
    query, key, value = spec(1, 2, 3, 8), spec(1, 2, 5, 8), spec(1, 2, 5, 4)
    sketch.add("scaled_dot_product_attention", (1, 2, 3, 4), query=query, key=key, value=value)
    assert only_count(sketch) == (2 * 3 * 5 * 12, 2 * 2 * 3 * 5 * 12 + 5 * 30)


@pytest.mark.parametrize(
    ("kind", "flops"),
    [("add", 60), ("gelu", 60), ("softmax", 300), ("layer_norm", 420), ("batch_norm", 120), ("reshape", 0)],
)
def test_other_operations_by_hand(kind, flops):
    sketch = Sketch()
    sketch.add(kind, (3, 20), x=spec(3, 20))
    assert only_count(sketch) == (0, flops)


def test_a_reduction_counts_its_input_and_an_unknown_operation_is_reported():
    sketch = Sketch(x=(3, 20))
    sketch.add("reduce_max", (3, 1), x=sketch.inputs["x"])
    assert only_count(sketch) == (0, 60)
    sketch.add("frobnicate", (3, 1), x=sketch.inputs["x"])
    assert estimate(sketch.graph(), "m1").uncounted == ("frobnicate",)


@pytest.mark.parametrize("name", ["tiny", "large-v3"])
def test_counts_at_true_sizes_are_those_of_torch(name):
    dims = dimensions_of(name)
    assert 2 * macs(sketch_encoder(dims)) == encoder_flops(dims)
    assert 2 * macs(sketch_decoder(dims)) == decoder_flops(dims)


SMALL = ModelDimensions(
    n_mels=80,
    d_model=128,
    encoder_layers=1,
    encoder_attention_heads=4,
    encoder_ffn_dim=256,
    decoder_layers=2,
    decoder_attention_heads=4,
    decoder_ffn_dim=256,
    n_text_ctx=64,
    vocab_size=2000,
)


def export(module: torch.nn.Module, component: str, path: Path) -> Path:
    interface = package_interfaces(SMALL, SMALL.n_text_ctx, word_timestamps=False)[component]
    metadata = PackageMetadata("", "", "", "", {})
    export_package(module.half().eval(), interface, path, deployment_target="ios16", metadata=metadata)
    return path


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Graph]:
    """Converted encoders that differ in nothing but their attention."""
    folder = tmp_path_factory.mktemp("encoders")
    kinds = {"cat": Cat(), "split-heads": SplitHeads(), "split-heads-q": SplitHeadsQ()}
    return {
        name: read_graph(export(AudioEncoder(SMALL, kind), "AudioEncoder", folder / f"{name}.mlpackage"))
        for name, kind in kinds.items()
    }


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("decoder") / "TextDecoder.mlpackage"
    return export(TextDecoder(SMALL, kv_length=SMALL.n_text_ctx), "TextDecoder", path)


def test_counts_of_converted_programs_are_those_of_torch(encoders, decoder):
    assert {2 * macs(graph) for graph in encoders.values()} == {encoder_flops(SMALL)}
    assert 2 * macs(read_graph(decoder)) == decoder_flops(SMALL)


def test_order_per_head_before_plain_encoder(encoders):
    """Published: 1.86x to 2.85x faster on iPhone 12 to 15 than the plain port, large-v3 650 ms to 350 ms."""
    for chip in CHIPS:
        cat, heads, chunks = (estimate(graph, chip).latency_s for graph in encoders.values())
        assert chunks <= heads < cat
        assert cat / chunks > 1.3


@pytest.mark.parametrize("sketch", [sketch_encoder, sketch_decoder])
def test_order_tiny_to_large(sketch):
    graphs = [sketch(dimensions_of(name)) for name in MODELS]
    for chip in CHIPS:
        times = [estimate(graph, chip).latency_s for graph in graphs]
        assert times == sorted(times)
        assert times[-1] > 5 * times[0]


@pytest.mark.parametrize("name", MODELS)
def test_order_stateful_before_stateless_step(name):
    """Published: 8.4 to 4.6 ms a step. The program is sketched: audio keys and values are given, not projected anew."""
    stateless, stateful = (sketch_decoder(dimensions_of(name), given) for given in (False, True))
    assert macs(stateful) < macs(stateless)
    for chip in CHIPS:
        assert estimate(stateful, chip).latency_s < estimate(stateless, chip).latency_s


@pytest.mark.parametrize(("slower", "faster"), [("a14", "a15"), ("a15", "a16"), ("m1", "m5"), ("a12", "a14")])
def test_order_of_chips(slower, faster):
    for graph in (sketch_encoder(dimensions_of("small")), sketch_decoder(dimensions_of("small"))):
        assert estimate(graph, faster).latency_s < estimate(graph, slower).latency_s


def test_the_large_encoder_is_in_the_published_range():
    """About 650 ms on iPhone in the plain layout: the estimate is not asked for more than the order of magnitude."""
    assert 0.2 < estimate(sketch_encoder(dimensions_of("large-v3")), "a16").latency_s < 2.0


def compressed(path: Path, target: Path, kind: str) -> Graph:
    """The package, its weights compressed by coremltools."""
    ct = import_coremltools()
    optimize = ct.optimize.coreml
    with quiet_coremltools():
        model = ct.models.MLModel(str(path), skip_model_load=True)
        if kind == "lut":
            config = optimize.OptimizationConfig(
                optimize.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=100)
            )
            model = optimize.palettize_weights(model, config)
        else:
            config = optimize.OptimizationConfig(optimize.OpLinearQuantizerConfig(weight_threshold=100))
            model = optimize.linear_quantize_weights(model, config)
        model.save(str(target))
    return read_graph(target)


def test_order_palettized_before_float16_decoder(decoder, tmp_path):
    """Published: decoding is bandwidth-bound, so palettes speed the decoder up where the chip streams them."""
    dense, palettes = read_graph(decoder), compressed(decoder, tmp_path / "lut.mlpackage", "lut")
    sizes = [sum(weight.stored_bytes for weight in used_weights(graph).values()) for graph in (dense, palettes)]
    assert sizes[1] < 0.3 * sizes[0]
    for chip in CHIPS:
        before, after = estimate(dense, chip), estimate(palettes, chip)
        assert after.flops == before.flops
        if TABLE.chip(chip).stream_gain["lut"].value:
            assert after.latency_s < before.latency_s
            assert after.weight_bytes < 0.35 * before.weight_bytes
        else:
            assert after.latency_s == pytest.approx(before.latency_s)
            assert after.weight_bytes == before.weight_bytes


def test_int8_streams_from_the_m2_on(decoder, tmp_path):
    dense, quantized = read_graph(decoder), compressed(decoder, tmp_path / "int8.mlpackage", "int8")
    assert estimate(quantized, "m1").weight_bytes == estimate(dense, "m1").weight_bytes
    assert estimate(quantized, "m2").weight_bytes < 0.6 * estimate(dense, "m2").weight_bytes
    assert estimate(quantized, "m2").latency_s < estimate(dense, "m2").latency_s


@pytest.mark.parametrize(("chip", "published"), [("m1", 2.37), ("m5", 1.7)])
def test_four_bit_palettes_gain_what_was_measured_elsewhere(chip, published):
    """A weight-bound stack of 1x1 convolutions."""

    def stack(palettes: bool) -> float:
        sketch = Sketch(x=(1, 2048, 1, 1))
        weight = sketch.constant((2048, 2048, 1, 1))
        if palettes:
            indices, lut = sketch.constant((2048, 2048, 1, 1), "uint4"), sketch.constant((16,))
            weight = sketch.add("constexpr_lut_to_dense", (2048, 2048, 1, 1), indices=indices, lut=lut)
        out = sketch.add("conv", (1, 2048, 1, 1), x=sketch.inputs["x"], weight=weight)
        found = estimate(sketch.graph(out), chip)
        assert found.memory_s > found.compute_s
        return found.memory_s

    assert stack(False) / stack(True) == pytest.approx(published, rel=0.03)


def test_a_tensor_beyond_the_working_set_goes_through_memory():
    def through(length: int) -> int:
        sketch = Sketch(x=(1, 1, 1, 32))
        middle = sketch.add("add", (1, 1000, 1, length), x=sketch.inputs["x"], y=sketch.inputs["x"])
        out = sketch.add("reduce_sum", (1, 1, 1, 32), x=sketch.add("relu", middle.shape, x=middle))
        return estimate(sketch.graph(out), "m1").activation_bytes

    ends = 32 * 2 * 2
    assert through(1000) == ends  # 2 MB stay
    assert through(1001) == ends + 4 * 2 * 1000 * 1001  # written and read, twice


@pytest.mark.parametrize(("also_read", "other_state"), [(False, False), (True, False), (False, True)])
def test_a_slice_is_written_into_its_state_in_place(also_read, other_state):
    """Where nobody else sees the updated value; elsewhere the whole is written."""
    sketch = Sketch(x=(1, 64, 1, 1))
    state, other = (TensorSpec(name, (1, 64, 1, 32), "float16") for name in ("state", "other"))
    old = sketch.add("read_state", state.shape, input=state)
    new = sketch.add("slice_update", state.shape, x=old, update=sketch.inputs["x"])
    target = other if other_state else state
    sketch.operations.append(Operation("write_state", "write", {"input": (target,), "data": (new,)}, (), 2))
    result = sketch.add("reduce_sum", (1, 64, 1, 1), x=new if also_read else old)
    graph = sketch.graph(result)
    graph.states.update(state=state, other=other)
    whole, column = 64 * 32 * 2, 64 * 2
    if also_read:  # read and written as a whole: the state read, the input read, the whole written; then the sum
        assert estimate(graph, "m1").activation_bytes == 2 * whole + column + column
    elif other_state:
        assert estimate(graph, "m1").activation_bytes == 3 * whole + column + column
    else:
        assert estimate(graph, "m1").activation_bytes == whole + column + column


def test_a_state_is_read_where_it_is_used_and_written_as_a_whole():
    sketch = Sketch(x=(1, 64, 1, 32))
    state = TensorSpec("state", (1, 64, 1, 32), "float16")
    old = sketch.add("read_state", state.shape, input=state)
    new = sketch.add("add", state.shape, x=old, y=sketch.inputs["x"])
    sketch.operations.append(Operation("write_state", "write", {"input": (state,), "data": (new,)}, (), 2))
    graph = sketch.graph(sketch.add("reduce_sum", (1, 1, 1, 32), x=new))
    graph.states["state"] = state
    assert estimate(graph, "m1").activation_bytes == 3 * 64 * 32 * 2 + 64  # state and input read, state and sum written


def test_a_look_up_streams_its_rows_and_a_launch_is_paid_for_each_engine():
    sketch = Sketch(ids=(1,))
    sketch.inputs["ids"] = replace(sketch.inputs["ids"], dtype="int32")
    row = sketch.add("gather", (1, 64), x=sketch.constant((50000, 64)), indices=sketch.inputs["ids"])
    graph = sketch.graph(sketch.add("relu", (1, 64), x=row))
    assert estimate(graph, "m5").weight_bytes == 128
    assert (estimate(graph, "m1").launches, estimate(graph, "m5").launches) == (2, 1)
    assert estimate(graph, "m1").bound == "launch"
    assert estimate(graph, "m1").latency_s > 2 * 0.00023


def test_latency_is_the_larger_term_of_each_operation_and_the_launches():
    sketch = Sketch(x=(1, 1024, 1, 1500))
    graph = sketch.graph(sketch.conv(sketch.inputs["x"], 1024))
    found, chip = estimate(graph, "m1"), TABLE.chip("m1")
    flops = 2 * 1024 * 1024 * 1500 + 1024 * 1500
    size = 2 * 1024 * 1024 + 2 * 1024 + 2 * 2 * 1024 * 1500
    assert (found.flops, found.weight_bytes + found.activation_bytes) == (flops, size)
    assert found.intensity == pytest.approx(flops / size)
    assert found.latency_s == pytest.approx(max(flops / 3.25e12, size / 51e9) + 0.00023)
    assert (found.bound, found.median_error, chip.peak_flops_s.kind) == ("compute", 0.31, "measured elsewhere")


def test_a_window_is_every_component_once_and_the_decoder_often():
    def relu() -> Graph:
        sketch = Sketch(x=(1, 32))
        return sketch.graph(sketch.add("relu", (1, 32), x=sketch.inputs["x"]))

    programs = {"my-mel": relu(), "whisper_encoder_v2": relu(), "Decoder-step": relu()}
    found = estimate_bundle("theirs", programs, TABLE.chip("m1"), TABLE, decoder_passes=10)
    assert found.decoder_step_s == found.encoder_s
    assert found.window_s == pytest.approx(12 * found.encoder_s)
    for length in (1, 3):  # English-only, and with a language and a task
        sketch = Sketch(x=(1, 64, 1, length))
        table = sketch.graph(sketch.add("relu", (1, 64, 1, length), x=sketch.inputs["x"]))
        prefilled = {**programs, "TextDecoderContextPrefill": table}
        found = estimate_bundle("ours", prefilled, TABLE.chip("m1"), TABLE, decoder_passes=10)
        assert found.decoder_passes == 10 - length
    alone = estimate_bundle("encoder", {"AudioEncoder": relu()}, TABLE.chip("m1"), TABLE)
    assert (alone.decoder_step_s, alone.window_s) == (None, None)
    assert [role(name) for name in prefilled] == ["other", "encoder", "decoder", "prefill"]


@pytest.fixture
def bundle_estimates() -> list[Any]:
    graph = sketch_encoder(dimensions_of("tiny"))
    return [estimate_bundle("one", {"AudioEncoder": graph}, TABLE.chip(chip), TABLE) for chip in ("m1", "m5")]


def test_the_roofline_is_a_picture(bundle_estimates, tmp_path):
    draw_roofline(bundle_estimates, TABLE, tmp_path / "roof.png")
    head = (tmp_path / "roof.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert math.prod(int.from_bytes(head[at : at + 4], "big") for at in (16, 20)) > 500_000


def test_what_stops_a_picture_is_said(bundle_estimates, tmp_path, monkeypatch):
    with pytest.raises(OptionsError, match=r"is not a PNG file; give the picture a name that ends with \.png"):
        draw_roofline(bundle_estimates, TABLE, tmp_path / "roof.jpg")
    with pytest.raises(WktError, match="there is no folder"):
        draw_roofline(bundle_estimates, TABLE, tmp_path / "none" / "roof.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(WktError, match=r"pip install 'whisperkit-tools\[plot\]'"):
        require_matplotlib()
