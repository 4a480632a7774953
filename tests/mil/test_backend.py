"""Choosing what runs a package, and Core ML itself on macOS."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisperkit_tools.errors import UnsupportedOperationError
from whisperkit_tools.mil.backend import load_backend
from whisperkit_tools.mil.coreml import COMPUTE_UNITS, import_coremltools, quiet_coremltools
from whisperkit_tools.mil.program import Program

on_macos = pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on macOS only")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`gelu(conv(x))` in float16."""
    ct = import_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    weight = np.random.default_rng(0).standard_normal((32, 64, 1, 1)).astype(np.float16)

    def program(x: Any) -> Any:
        return mb.gelu(x=mb.conv(x=x, weight=weight), mode="EXACT", name="y")

    path = tmp_path_factory.mktemp("backend") / "Model.mlpackage"
    with quiet_coremltools():
        specs = [mb.TensorSpec(shape=(1, 64, 1, 100), dtype=types.fp16)]
        built = mb.program(input_specs=specs, opset_version=ct.target.iOS16)(program)
        ct.convert(built, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS16, skip_model_load=True).save(
            str(path)
        )
    return path


def test_torch_backend(package: Path) -> None:
    backend = load_backend(package, precision="float16")
    assert isinstance(backend, Program)
    assert backend.precision == "float16"


def test_unknown_backend(package: Path) -> None:
    with pytest.raises(ValueError, match="backend is 'onnx', expected 'torch' or 'coreml'"):
        load_backend(package, backend="onnx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="compute units are 'gpu', expected one of all, cpu_only"):
        load_backend(package, backend="coreml", compute_units="gpu")


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is there")
def test_core_ml_is_refused_elsewhere(package: Path) -> None:
    with pytest.raises(UnsupportedOperationError, match=r"Core ML runs on macOS only, this is .*use the torch backend"):
        load_backend(package, backend="coreml")


@on_macos
@pytest.mark.parametrize("compute_units", COMPUTE_UNITS)
def test_core_ml_agrees_with_torch(package: Path, compute_units: str) -> None:
    x = np.random.default_rng(1).standard_normal((1, 64, 1, 100)).astype(np.float16)
    core_ml = load_backend(package, backend="coreml", compute_units=compute_units)
    expected = load_backend(package, precision="float16").predict({"x": x})["y"]
    given = {"x": x}
    found = core_ml.predict(given)["y"]
    assert given["x"] is x
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=2e-2, atol=2e-2)
    assert dict(core_ml.inputs) == dict(load_backend(package).inputs)
