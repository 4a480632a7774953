"""Reading a package's program, and packages that are damaged or hold something else."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.mil_programs import WEIGHT, save, step_program

from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.mil.graph import model_file, read_graph, read_spec
from whisperkit_tools.mil.package import Package
from whisperkit_tools.mil.program import Program


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The step program in float32."""
    return save(*step_program("fp32"), tmp_path_factory.mktemp("mil") / "Step.mlpackage")


def test_reading_a_graph_waits_for_neither_torch_nor_coremltools(package: Path) -> None:
    code = (
        "import sys; from whisperkit_tools.mil.graph import read_graph; "
        f"graph = read_graph({str(package)!r}); "
        "print(len(graph.operations), *({'torch', 'coremltools'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["8"]


def test_constants_are_read_when_they_are_asked_for(package: Path) -> None:
    constants = read_graph(package).constants
    assert constants["project_weight"].in_weights_file
    np.testing.assert_array_equal(constants["project_weight"].value, WEIGHT)
    assert not constants["reduced_axes_0"].in_weights_file
    assert constants["reduced_axes_0"].value.tolist() == [1]


def test_what_an_operation_reads(package: Path) -> None:
    graph = read_graph(package)
    linear = graph.operations[0]
    assert {spec.name for spec in linear.reads} == {linear.inputs[name][0].name for name in ("x", "weight", "bias")}


def test_the_specification_of_a_package(package: Path) -> None:
    assert model_file(package) == package / "Data/com.apple.CoreML/model.mlmodel"
    spec = read_spec(package)
    assert spec.WhichOneof("Type") == "mlProgram"
    assert Package.open(package).spec() == spec


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such package"),
        (lambda path: (path / "Manifest.json").unlink(), "is not an .mlpackage"),
        (lambda path: (path / "Manifest.json").write_text("{"), "Manifest.json is not valid JSON"),
        (lambda path: (path / "Manifest.json").write_text(json.dumps({})), "Manifest.json names no model"),
        (lambda path: model_file(path).unlink(), "model.mlmodel is missing"),
        (lambda path: model_file(path).write_bytes(b""), "holds no model"),
        (lambda path: model_file(path).write_bytes(model_file(path).read_bytes()[:-9]), "is damaged"),
        (lambda path: weights_file(path).unlink(), "the weights file is missing"),
        (lambda path: weights_file(path).write_bytes(b""), "cannot be read"),
        (lambda path: weights_file(path).write_bytes(weights_file(path).read_bytes()[:-999]), "truncated"),
        (lambda path: weights_file(path).write_bytes(weights_file(path).read_bytes()[:90]), "cannot be read"),
        (lambda path: weights_file(path).write_bytes(bytes(weights_file(path).stat().st_size)), "there is no record"),
    ],
)  # fmt: skip
def test_damaged_packages(package: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    copy = shutil.copytree(package, tmp_path / "Copy.mlpackage")
    damage(copy)
    with pytest.raises(BundleError, match=message) as caught:
        Program.load(copy)
    assert "\n" not in str(caught.value)


def weights_file(path: Path) -> Path:
    return path / "Data/com.apple.CoreML/weights/weight.bin"


def test_other_model_types_are_refused(tmp_path: Path, package: Path) -> None:
    import_coremltools()
    from coremltools.proto import Model_pb2

    copy = shutil.copytree(package, tmp_path / "Network.mlpackage")
    spec = Model_pb2.Model(specificationVersion=5)
    spec.neuralNetwork.SetInParent()
    model_file(copy).write_bytes(spec.SerializeToString())
    with pytest.raises(BundleError, match="is a model of type 'neuralNetwork'; only ML Programs can be run"):
        Program.load(copy)


def test_a_value_that_nothing_computes(tmp_path: Path, package: Path) -> None:
    import_coremltools()
    from coremltools.proto import Model_pb2

    copy = shutil.copytree(package, tmp_path / "Dangling.mlpackage")
    spec = Model_pb2.Model.FromString(model_file(copy).read_bytes())
    block = spec.mlProgram.functions["main"].block_specializations["CoreML6"]
    next(op for op in block.operations if op.type == "tanh").inputs["x"].arguments[0].name = "nowhere"
    model_file(copy).write_bytes(spec.SerializeToString())
    with pytest.raises(BundleError, match=r"the program is damaged .*uses 'nowhere', which nothing computes"):
        read_graph(copy)
