"""Weights files and compressed weights, against coremltools' reader and its decompression."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.coreml import import_coremltools, quiet_coremltools
from whisperkit_tools.mil.kernels import kernels
from whisperkit_tools.mil.ops.constexpr import unpack
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.tensor_spec import TensorSpec, numpy_dtype
from whisperkit_tools.mil.weights_file import BlobFile, WeightsWriter, unpack_bits

RNG = np.random.default_rng(11)
CONV = RNG.standard_normal((32, 16, 1, 1)).astype(np.float32)
LINEAR = RNG.standard_normal((64, 32)).astype(np.float32)


# --- the weights file -----------------------------------------------------------------------------------------------


@given(width=st.sampled_from([1, 2, 3, 4, 6, 8]), count=st.integers(0, 70), data=st.data())
@settings(deadline=None, max_examples=60)
def test_bits_come_back(width: int, count: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=count, max_size=count))
    bits = "".join(f"{value:0{width}b}"[::-1] for value in values)
    packed = np.array([int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8)], np.uint8)
    np.testing.assert_array_equal(unpack_bits(packed, width, count), values)
    np.testing.assert_array_equal(unpack(torch.from_numpy(packed), width, count).numpy(), values)


def test_signed_bits() -> None:
    packed = np.array([0x80, 0xF7], np.uint8)
    np.testing.assert_array_equal(unpack_bits(packed, 4, 4, signed=True), [0, -8, 7, -1])


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "uint8", "int16", "uint16", "int32"])
def test_blobs_as_coremltools_writes_them(tmp_path: Path, dtype: str) -> None:
    import_coremltools()
    from coremltools.libmilstoragepython import _BlobStorageWriter as Writer

    suffix = {"float16": "fp16", "float32": "float"}.get(dtype, dtype)
    first, second = (RNG.integers(0, 100, shape).astype(dtype) for shape in ((3, 5), (7,)))
    writer = Writer(str(tmp_path / "weight.bin"))
    write: Callable[[Any], int] = getattr(writer, f"write_{suffix}_data")
    as_written = [array.view(np.uint16) if dtype == "float16" else array for array in (first, second)]
    offsets = [write(array.flatten()) for array in as_written]
    del writer
    blobs = BlobFile(tmp_path / "weight.bin")
    found = [
        blobs.find(offset, TensorSpec("w", array.shape, dtype))
        for offset, array in zip(offsets, (first, second), strict=True)
    ]
    blobs.close()
    np.testing.assert_array_equal(found[0].read(), first)
    np.testing.assert_array_equal(found[1].read(), second)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6])
def test_blobs_of_less_than_eight_bits(tmp_path: Path, width: int) -> None:
    import_coremltools()
    from coremltools.libmilstoragepython import _BlobStorageWriter as Writer

    values = RNG.integers(0, 2**width, 21).astype(np.uint8)
    writer = Writer(str(tmp_path / "weight.bin"))
    offset = getattr(writer, f"write_uint{width}_data")(values)
    del writer
    blobs = BlobFile(tmp_path / "weight.bin")
    found = blobs.find(offset, TensorSpec("w", (3, 7), f"uint{width}")).read()
    blobs.close()
    np.testing.assert_array_equal(found.reshape(-1), values)


@pytest.mark.parametrize(
    "dtype",
    [
        "float16",
        "float32",
        "int4",
        "int8",
        "int16",
        "int32",
        "uint1",
        "uint2",
        "uint3",
        "uint4",
        "uint6",
        "uint8",
        "uint16",
        "uint32",
    ],
)
def test_data_types_are_numbered_as_coremltools_numbers_them(tmp_path: Path, dtype: str) -> None:
    import_coremltools()
    from coremltools.libmilstoragepython import _BlobStorageWriter as Writer

    values = np.ones(8, numpy_dtype(dtype))
    writer = Writer(str(tmp_path / "weight.bin"))
    suffix = {"float16": "fp16", "float32": "float"}.get(dtype, dtype)
    offset = getattr(writer, f"write_{suffix}_data")(values.view(np.uint16) if dtype == "float16" else values)
    del writer
    written = (tmp_path / "weight.bin").read_bytes()
    with WeightsWriter(tmp_path / "own.bin") as own:
        assert own.add(dtype, 8, values) == offset
    assert (tmp_path / "own.bin").read_bytes()[offset : offset + 64] == written[offset : offset + 64]


def test_an_entry_is_copied_from_one_file_to_another(tmp_path: Path) -> None:
    values = RNG.integers(0, 8, 21).astype(np.uint8)
    with WeightsWriter(tmp_path / "first.bin") as first:
        first.add("float16", 3, np.ones(3, np.float16))
        offset = first.add("uint3", 21, values)
    with WeightsWriter(tmp_path / "second.bin") as second:
        copied = second.copy(tmp_path / "first.bin", offset)
        with pytest.raises(BundleError, match="there is no record at byte 1; make the package again"):
            second.copy(tmp_path / "first.bin", 1)
    blobs = BlobFile(tmp_path / "second.bin")
    np.testing.assert_array_equal(blobs.find(copied, TensorSpec("w", (21,), "uint3")).read(), values)
    blobs.close()


# --- compressed weights ---------------------------------------------------------------------------------------------


def model(opset: str, precision: str = "FLOAT32") -> Any:
    """A convolution and a linear layer, as an `MLModel`."""
    ct = import_coremltools()
    from coremltools.converters.mil import Builder as mb

    def program(x: Any) -> Any:
        hidden = mb.conv(x=x, weight=mb.const(val=CONV, name="conv_weight"))
        rows = mb.transpose(x=mb.squeeze(x=hidden, axes=[2]), perm=[0, 2, 1])
        return mb.linear(x=rows, weight=mb.const(val=LINEAR, name="linear_weight"), name="y")

    target = getattr(ct.target, opset)
    built = mb.program(input_specs=[mb.TensorSpec(shape=(1, 16, 1, 5))], opset_version=target)(program)
    return ct.convert(
        built,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        skip_model_load=True,
        compute_precision=getattr(ct.precision, precision),
    )


def palettize(joint: bool = False, **options: Any) -> Callable[[Any, Any], Any]:
    def compress(cto: Any, target: Any) -> Any:
        config = cto.OpPalettizerConfig(weight_threshold=0, **options)
        whole = cto.OptimizationConfig(global_config=config)
        return cto.palettize_weights(target, whole, joint_compression=joint)

    return compress


def quantize(joint: bool = False, **options: Any) -> Callable[[Any, Any], Any]:
    def compress(cto: Any, target: Any) -> Any:
        config = cto.OpLinearQuantizerConfig(weight_threshold=0, **options)
        whole = cto.OptimizationConfig(global_config=config)
        return cto.linear_quantize_weights(target, whole, joint_compression=joint)

    return compress


def prune(cto: Any, target: Any) -> Any:
    config = cto.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=0)
    return cto.prune_weights(target, cto.OptimizationConfig(global_config=config))


GROUPS = {"mode": "uniform", "granularity": "per_grouped_channel", "group_size": 8}
COMPRESSIONS: dict[str, tuple[str, tuple[Callable[[Any, Any], Any], ...], set[str]]] = {
    **{
        f"palette {nbits}": ("iOS16", (palettize(mode="uniform", nbits=nbits),), {"lut_to_dense"})
        for nbits in (1, 2, 4, 6, 8)
    },
    "int8": ("iOS16", (quantize(mode="linear_symmetric"),), {"affine_dequantize"}),
    "uint8": ("iOS16", (quantize(mode="linear", dtype="uint8"),), {"affine_dequantize"}),
    "sparse": ("iOS16", (prune,), {"sparse_to_dense"}),
    "palette 3, tensor": ("iOS18", (palettize(mode="uniform", nbits=3),), {"lut_to_dense"}),
    "palette 2, groups": ("iOS18", (palettize(nbits=2, **GROUPS),), {"lut_to_dense"}),
    "palette 4, groups, scale": (
        "iOS18",
        (palettize(nbits=4, enable_per_channel_scale=True, **GROUPS),),
        {"lut_to_dense", "blockwise_shift_scale"},
    ),
    "palette 2, int8 entries": (
        "iOS18",
        (palettize(nbits=2, **GROUPS), quantize(joint=True, mode="linear_symmetric", granularity="per_tensor")),
        {"lut_to_dense", "blockwise_shift_scale"},
    ),
    "int4, blocks": (
        "iOS18",
        (quantize(mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=8),),
        {"blockwise_shift_scale"},
    ),
    "uint4, channels": (
        "iOS18",
        (quantize(mode="linear", dtype="uint4", granularity="per_channel"),),
        {"blockwise_shift_scale"},
    ),
    "sparse, iOS 18": ("iOS18", (prune,), {"sparse_to_dense"}),
    "sparse palette": (
        "iOS18",
        (prune, palettize(joint=True, mode="uniform", nbits=3)),
        {"lut_to_sparse", "sparse_to_dense"},
    ),
    "sparse int8": (
        "iOS18",
        (prune, quantize(joint=True, mode="linear_symmetric")),
        {"sparse_blockwise_shift_scale", "sparse_to_dense"},
    ),
}


@pytest.fixture(scope="module")
def dense() -> dict[str, Any]:
    return {opset: model(opset) for opset in ("iOS16", "iOS18")}


def compressed(dense: dict[str, Any], name: str) -> tuple[Any, set[str]]:
    ct = import_coremltools()
    opset, steps, kinds = COMPRESSIONS[name]
    result = dense[opset]
    with quiet_coremltools():
        for step in steps:
            result = step(ct.optimize.coreml, result)
    return result, {f"constexpr_{kind}" for kind in kinds}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressed_weights_as_coremltools_decompresses_them(name: str, dense: dict[str, Any], tmp_path: Path) -> None:
    ct = import_coremltools()
    small, kinds = compressed(dense, name)
    small.save(str(tmp_path / "Small.mlpackage"))
    with quiet_coremltools():
        ct.optimize.coreml.decompress_weights(small).save(str(tmp_path / "Dense.mlpackage"))
    found, wanted = (Program.load(tmp_path / f"{kind}.mlpackage") for kind in ("Small", "Dense"))
    assert {op.type for op in found.operations if op.type.startswith("constexpr_")} == kinds
    assert not any(op.type.startswith("constexpr_") for op in wanted.operations)
    x = RNG.standard_normal((1, 16, 1, 5)).astype(np.float32)
    np.testing.assert_allclose(found.predict({"x": x})["y"], wanted.predict({"x": x})["y"], rtol=1e-4, atol=1e-4)
    # Made dense once: the second call runs what depends on the input alone.
    assert found.executed_operations == wanted.executed_operations
    half = Program.load(tmp_path / "Small.mlpackage", precision="float16")
    np.testing.assert_allclose(half.predict({"x": x})["y"], wanted.predict({"x": x})["y"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["palette 2", "palette 2, groups", "palette 4, groups, scale", "sparse palette"])
def test_gradients_reach_palettes(name: str, dense: dict[str, Any], tmp_path: Path) -> None:
    small, _ = compressed(dense, name)
    small.save(str(tmp_path / "Small.mlpackage"))
    program = Program.load(tmp_path / "Small.mlpackage").requires_grad_(True)
    x = torch.from_numpy(RNG.standard_normal((1, 16, 1, 5)).astype(np.float32))
    program.run(x=x)["y"].square().sum().backward()
    palettes = {name: weight for name, weight in program.weights.items() if "lut" in name or "scale" in name}
    assert len(palettes) >= 2
    for parameter in palettes.values():
        assert parameter.grad is not None
        place = int(parameter.grad.abs().argmax())
        step = 1e-2
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.view(-1)[place] += sign * step
                values.append(float(program.run(x=x)["y"].double().square().sum()))
                parameter.view(-1)[place] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert float(parameter.grad.view(-1)[place]) == pytest.approx(slope, rel=2e-2)


def test_palettes_are_parameters_and_indices_are_not(dense: dict[str, Any], tmp_path: Path) -> None:
    small, _ = compressed(dense, "palette 4")
    small.save(str(tmp_path / "Small.mlpackage"))
    program = Program.load(tmp_path / "Small.mlpackage")
    shapes = {name: tuple(weight.shape) for name, weight in program.weights.items() if name.endswith(":lut")}
    assert set(shapes.values()) == {(16,)}
    assert not any(name.endswith(":indices") for name in program.weights)
    assert {buffer.dtype for name, buffer in program.named_buffers() if name.endswith(":indices")} == {torch.uint8}


def test_a_changed_palette_is_noticed(dense: dict[str, Any], tmp_path: Path) -> None:
    small, _ = compressed(dense, "palette 4")
    small.save(str(tmp_path / "Small.mlpackage"))
    program = Program.load(tmp_path / "Small.mlpackage")
    x = torch.ones(1, 16, 1, 5)
    before = program.run(x=x)["y"]
    with torch.no_grad():
        for weight in program.weights.values():
            weight.mul_(2)
    torch.testing.assert_close(program.run(x=x)["y"], before * 4)


@given(data=st.data(), nbits=st.sampled_from([1, 2, 3]), vector=st.sampled_from([1, 2, 3]), masked=st.booleans())
@settings(deadline=None, max_examples=40)
def test_grouped_vector_palettes(data: st.DataObject, nbits: int, vector: int, masked: bool) -> None:
    import_coremltools()
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import (
        constexpr_lut_to_dense,
        constexpr_lut_to_sparse,
        constexpr_sparse_to_dense,
    )

    groups = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    shape = [count * data.draw(st.integers(1, 3)) for count in groups]
    axis = data.draw(st.integers(0, len(shape) - 1))
    indices = RNG.integers(0, 2**nbits, shape).astype(np.uint8)
    lut = RNG.standard_normal((*groups, 2**nbits, vector)).astype(np.float32)
    kernel = kernels()["constexpr_lut_to_dense"].function
    if not masked:
        expected = constexpr_lut_to_dense.decompress(indices, lut, np.int32(axis))
        found = kernel(torch.from_numpy(indices), torch.from_numpy(lut), vector_axis=axis)
        np.testing.assert_array_equal(found.numpy(), expected)
        return
    mask = RNG.integers(0, 2, shape).astype(np.uint8)
    values = indices[mask != 0]
    wide, entries = constexpr_lut_to_sparse.decompress(mask, values, lut, np.int32(axis))
    tensors = [torch.from_numpy(array) for array in (mask, values, lut)]
    found_mask, found_entries = kernels()["constexpr_lut_to_sparse"].function(*tensors, vector_axis=axis)
    np.testing.assert_array_equal(found_mask.numpy(), wide)
    np.testing.assert_array_equal(found_entries.numpy(), entries)
    dense = kernels()["constexpr_sparse_to_dense"].function(found_entries, found_mask)
    np.testing.assert_array_equal(dense.numpy(), constexpr_sparse_to_dense.decompress(entries, wide))


@given(data=st.data(), with_offset=st.booleans())
@settings(deadline=None, max_examples=40)
def test_scales_and_offsets_by_block(data: st.DataObject, with_offset: bool) -> None:
    import_coremltools()
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_blockwise_shift_scale

    blocks = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    shape = [count * data.draw(st.integers(1, 3)) for count in blocks]
    values = RNG.integers(-8, 8, shape).astype(np.int8)
    scale = RNG.standard_normal(blocks).astype(np.float32)
    offset = RNG.integers(-8, 8, blocks).astype(np.int8) if with_offset else None
    expected = constexpr_blockwise_shift_scale.decompress(values, scale, offset)
    tensors = [torch.from_numpy(array) for array in (values, scale, offset) if array is not None]
    found = kernels()["constexpr_blockwise_shift_scale"].function(*tensors)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_a_weight_stored_in_float16_for_float32() -> None:
    kernel = kernels()["constexpr_cast"].function
    found = kernel(torch.ones(2, dtype=torch.float16), output_dtype="fp32", out_dtype=torch.float32)
    assert found.dtype == torch.float32
