"""Compressed packages: written, read back, loaded by coremltools, sizes said in advance."""

import re

import numpy as np
import pytest
import torch

from whisperkit_tools.errors import BundleError, RecipeError
from whisperkit_tools.files import folder_bytes, sha256
from whisperkit_tools.mil.coreml import import_coremltools, quiet_coremltools
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.package_writer import compressed_nbytes, read_dense, write_compressed
from whisperkit_tools.quantization.palette import palettize

RNG = np.random.default_rng(11)
EMBEDDING = (RNG.standard_t(4, (48, 32)) * 0.1).astype(np.float16)
CONV = (RNG.standard_t(4, (64, 32, 1, 1)) * 0.1).astype(np.float16)
BIAS = RNG.standard_normal(64).astype(np.float16)
GROUPS = {"granularity": "per_grouped_channel", "group_size": 16}
IOS16 = [Compression(nbits) for nbits in (1, 2, 4, 6, 8)] + [Compression(4, outlier_share=0.02)]
IOS16 += [Compression(8, kind="linear"), Compression(8, kind="linear", axis=1)]
IOS18 = [
    *IOS16,
    Compression(3),
    Compression(2, **GROUPS),
    Compression(4, axis=1, **GROUPS),
    Compression(3, per_channel_scale=True),
    Compression(4, cluster_dim=2),
    Compression(4, axis=1, cluster_dim=4, **GROUPS),
    Compression(3, per_channel_scale=True, outlier_share=0.02, **GROUPS),
]
CASES = [("iOS16", option) for option in IOS16] + [("iOS18", option) for option in IOS18]


def package(path, opset):
    """A token's embedding through a convolution and back to logits by the same table."""
    ct = import_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    target = getattr(ct.target, opset)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1,), dtype=types.int32)], opset_version=target)
    def program(ids):
        table = mb.const(val=EMBEDDING, name="embed_tokens_weight")
        row = mb.reshape(x=mb.gather(x=table, indices=ids, axis=0), shape=[1, 32, 1, 1])
        hidden = mb.conv(x=row, weight=mb.const(val=CONV, name="fc1_weight"), bias=mb.const(val=BIAS, name="fc1_bias"))
        halves = mb.split(x=mb.gelu(x=hidden), num_splits=2, axis=1)
        flat = mb.reshape(x=mb.add(x=halves[0], y=halves[1]), shape=[1, 32])
        return mb.linear(x=flat, weight=table, name="logits")

    with quiet_coremltools():
        model = ct.convert(program, convert_to="mlprogram", minimum_deployment_target=target, skip_model_load=True)
        model.author, model.user_defined_metadata["kept"] = "somebody", "yes"
        model.save(str(path))
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return {opset: package(folder / f"{opset}.mlpackage", opset) for opset in ("iOS16", "iOS17", "iOS18")}


def made(option, **arguments):
    return {
        "embed_tokens_weight": palettize(EMBEDDING, option, name="embed_tokens_weight", **arguments),
        "fc1_weight": palettize(CONV, option, name="fc1_weight", **arguments),
    }


@pytest.mark.parametrize(("opset", "option"), CASES, ids=str)
def test_what_is_written_is_what_was_intended(sources, tmp_path, opset, option):
    source, target, intended = sources[opset], tmp_path / "Small.mlpackage", made(option)
    write_compressed(source, intended, target)
    for name, dense in read_dense(target, intended):
        np.testing.assert_array_equal(dense, intended[name].dense())
    assert compressed_nbytes(source, dict.fromkeys(intended, option)) == folder_bytes(target)
    graph, original = read_graph(target), read_graph(source)
    assert (graph.inputs, graph.outputs, graph.metadata) == (original.inputs, original.outputs, original.metadata)
    assert graph.metadata.user_defined["kept"] == "yes"
    np.testing.assert_array_equal(graph.constants["fc1_bias"].value, BIAS)

    dense = Program.load(source)
    with torch.no_grad():
        for name, part in intended.items():
            dense.weights[name].copy_(torch.from_numpy(part.dense().astype(np.float32)))
    wanted = logits(dense)
    for precision, floor_db in (("float32", 70), ("float16", 45)):
        error = np.square(logits(Program.load(target, precision=precision)) - wanted).mean()
        assert error <= np.square(wanted).max() * 10 ** (-floor_db / 10)


def logits(program):
    """Logits of three tokens, float64."""
    rows = [program.predict({"ids": np.array([token])}) for token in (0, 7, 47)]
    return np.concatenate([next(iter(row.values())) for row in rows]).astype(np.float64)


@pytest.mark.parametrize(("opset", "option"), CASES, ids=str)
def test_coremltools_reads_the_same_weights(sources, tmp_path, opset, option):
    ct = import_coremltools()
    intended = made(option, exact=False)
    write_compressed(sources[opset], intended, tmp_path / "Small.mlpackage")
    with quiet_coremltools():
        model = ct.models.MLModel(str(tmp_path / "Small.mlpackage"), skip_model_load=True)
        dense = ct.optimize.coreml.decompress_weights(model)
        dense.save(str(tmp_path / "Dense.mlpackage"))
    # coremltools names what it makes dense as it likes, so the weights are found by shape.
    stored = [constant.value for constant in read_graph(tmp_path / "Dense.mlpackage").constants.values()]
    for part in intended.values():
        found = [array for array in stored if getattr(array, "shape", None) == part.shape]
        if option.outlier_share:
            assert len(found) == 2
            found = [(found[0].astype(np.float32) + found[1].astype(np.float32)).astype(np.float16)]
        assert len(found) == 1
        np.testing.assert_array_equal(found[0], part.dense())


@pytest.mark.parametrize("opset", ["iOS16", "iOS17", "iOS18"])
def test_integers_are_written_as_coremltools_writes_them(sources, tmp_path, opset):
    ct = import_coremltools()
    part = palettize(CONV, Compression(8, kind="linear"), name="fc1_weight")
    write_compressed(sources[opset], {"fc1_weight": part}, tmp_path / "Small.mlpackage")
    config = ct.optimize.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    with quiet_coremltools():
        model = ct.models.MLModel(str(sources[opset]), skip_model_load=True)
        only = ct.optimize.coreml.OptimizationConfig(op_name_configs={"fc1_weight": config})
        ct.optimize.coreml.linear_quantize_weights(model, only).save(str(tmp_path / "Theirs.mlpackage"))
    ours, theirs = (
        [op for op in read_graph(tmp_path / f"{name}.mlpackage").operations if op.type.startswith("constexpr_")]
        for name in ("Small", "Theirs")
    )
    assert len(ours) == len(theirs) == 1
    assert ours[0].type == theirs[0].type
    described = [
        {key: (value.dtype, value.shape) for key, (value,) in op.inputs.items()} for op in (ours[0], theirs[0])
    ]
    assert described[0] == described[1]


def test_the_table_that_embeds_and_gives_logits_is_stored_once(sources, tmp_path):
    intended = {"embed_tokens_weight": palettize(EMBEDDING, Compression(4), name="embed_tokens_weight")}
    write_compressed(sources["iOS16"], intended, tmp_path / "Small.mlpackage")
    graph = read_graph(tmp_path / "Small.mlpackage")
    assert [op.type for op in graph.operations].count("constexpr_lut_to_dense") == 1
    users = [
        op.type
        for op in graph.operations
        for values in op.inputs.values()
        if any(v.name == "embed_tokens_weight" for v in values)
    ]
    assert users == ["gather", "linear"]
    saved = folder_bytes(sources["iOS16"]) - folder_bytes(tmp_path / "Small.mlpackage")
    assert 0 < saved < EMBEDDING.nbytes


def test_equal_arguments_give_equal_bytes(sources, tmp_path):
    for name in ("a", "b"):
        write_compressed(sources["iOS18"], made(Compression(3, **GROUPS), exact=False), tmp_path / f"{name}.mlpackage")
    first, second = (
        {
            str(path.relative_to(tmp_path / f"{name}.mlpackage")): sha256(path)
            for path in (tmp_path / f"{name}.mlpackage").rglob("*")
            if path.is_file()
        }
        for name in ("a", "b")
    )
    assert first == second


@pytest.mark.parametrize(("opset", "option"), [("iOS16", IOS16[0]), ("iOS17", IOS16[2]), ("iOS18", IOS18[-1])], ids=str)
def test_a_palettized_weight_cannot_be_palettized_again(sources, tmp_path, opset, option):
    write_compressed(sources[opset], made(option), tmp_path / "Small.mlpackage")
    with pytest.raises(RecipeError, match="fc1_weight is compressed already"):
        write_compressed(tmp_path / "Small.mlpackage", made(option), tmp_path / "Again.mlpackage")


def test_other_compressed_weights_are_carried_over(sources, tmp_path):
    first, second = ({name: part} for name, part in made(Compression(4)).items())
    write_compressed(sources["iOS18"], first, tmp_path / "One.mlpackage")
    write_compressed(tmp_path / "One.mlpackage", second, tmp_path / "Two.mlpackage")
    for name, dense in read_dense(tmp_path / "Two.mlpackage", [*first, *second]):
        np.testing.assert_array_equal(dense, {**first, **second}[name].dense())


@pytest.mark.parametrize("option", [Compression(3), Compression(4, **GROUPS), Compression(4, cluster_dim=2)], ids=str)
@pytest.mark.parametrize("opset", ["iOS16", "iOS17"])
def test_forms_that_the_target_lacks_are_refused(sources, tmp_path, opset, option):
    with pytest.raises(
        RecipeError, match=f"fc1_weight with {option} needs iOS 18 / macOS 15, the package is for iOS 1[67]"
    ):
        write_compressed(sources[opset], made(option), tmp_path / "Small.mlpackage")
    assert list(tmp_path.iterdir()) == []


def test_all_that_is_wrong_is_named(sources, tmp_path):
    short = palettize(CONV[:32], Compression(2), name="fc1_weight")
    with pytest.raises(RecipeError) as caught:
        write_compressed(sources["iOS16"], {"fc1_weight": short, "fc9_weight": short}, tmp_path / "Small.mlpackage")
    assert "fc1_weight has shape [64, 32, 1, 1], the palette is for [32, 32, 1, 1]" in str(caught.value)
    assert "there is no weight fc9_weight" in str(caught.value)
    with pytest.raises(RecipeError, match=re.escape("there is no weight fc9_weight")):
        compressed_nbytes(sources["iOS16"], {"fc9_weight": Compression(2)})


def test_outliers_only_where_they_can_be_added(sources, tmp_path):
    bias = palettize(BIAS, Compression(2, outlier_share=0.05), name="fc1_bias")
    with pytest.raises(RecipeError, match=r"fc1_bias has outliers, and conv '.*' cannot add them"):
        write_compressed(sources["iOS16"], {"fc1_bias": bias}, tmp_path / "Small.mlpackage")


def test_an_existing_package_is_not_replaced(sources, tmp_path):
    (tmp_path / "Small.mlpackage").mkdir()
    with pytest.raises(BundleError, match="exists"):
        write_compressed(sources["iOS16"], made(Compression(2)), tmp_path / "Small.mlpackage")


def test_what_reads_back_differently_does_not_come_into_place(sources, tmp_path, monkeypatch):
    from whisperkit_tools.quantization import compressed_ops as forms

    monkeypatch.setattr(forms, "pack_bits", lambda elements, width: pack(elements ^ 1, width))
    from whisperkit_tools.mil.weights_file import pack_bits as pack

    with pytest.raises(BundleError, match="read back differently"):
        write_compressed(sources["iOS16"], made(Compression(4)), tmp_path / "Small.mlpackage")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_source_leaves_nothing_behind(sources, tmp_path):
    import shutil

    shutil.copytree(sources["iOS16"], tmp_path / "Damaged.mlpackage")
    weights = next((tmp_path / "Damaged.mlpackage").rglob("weight.bin"))
    weights.write_bytes(weights.read_bytes()[:-200])
    with pytest.raises(BundleError, match="truncated"):
        write_compressed(tmp_path / "Damaged.mlpackage", made(Compression(4)), tmp_path / "Small.mlpackage")
    assert [path.name for path in tmp_path.iterdir()] == ["Damaged.mlpackage"]


def test_a_missing_weight_cannot_be_read(sources):
    with pytest.raises(BundleError, match="has no weights named nothing"):
        list(read_dense(sources["iOS16"], ["nothing"]))


@pytest.mark.parametrize("nbits", [4])
def test_the_demo_in_whole(demo_bundle, tmp_path, nbits):
    for component in ("AudioEncoder", "TextDecoder"):
        source = demo_bundle / f"{component}.mlpackage"
        constants = read_graph(source).constants
        names = [n for n, c in constants.items() if c.in_weights_file and len(c.spec.shape) > 1 and c.spec.size >= 2048]
        intended = {
            name: palettize(constants[name].value, Compression(nbits), name=name, exact=False) for name in names
        }
        target = tmp_path / f"{component}.mlpackage"
        write_compressed(source, intended, target)
        assert compressed_nbytes(source, {name: Compression(nbits) for name in names}) == folder_bytes(target)
