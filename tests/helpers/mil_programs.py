"""Small programs that tests run, saved as packages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from whisperkit_tools.mil.coreml import import_coremltools, quiet_coremltools

RNG = np.random.default_rng(3)
WEIGHT = RNG.standard_normal((3000, 64)).astype(np.float16)
MIXED = RNG.standard_normal((8, 64)).astype(np.float16)
TABLE = RNG.standard_normal((10, 8)).astype(np.float16)


def save(program: Callable[..., Any], specs: list[Any], path: Path, opset: str = "iOS16", **options: Any) -> Path:
    """Build a program and save it as a package in float32, as it stands.

    Args:
        program: What `mb.program` decorates.
        specs: Its inputs.
        path: The package to write.
        opset: The deployment target, by coremltools' name.
        options: Arguments of `coremltools.convert` that take the place of these or join them.
    """
    ct = import_coremltools()
    from coremltools.converters.mil import Builder as mb

    target = getattr(ct.target, opset)
    with quiet_coremltools():
        built = mb.program(input_specs=specs, opset_version=target)(program)
        settings = {
            "convert_to": "mlprogram",
            "minimum_deployment_target": target,
            "skip_model_load": True,
            "compute_precision": ct.precision.FLOAT32,
            "pass_pipeline": ct.PassPipeline.EMPTY,
        }
        model = ct.convert(built, **{**settings, **options})
        model.author, model.license, model.short_description = "A. Author", "MIT", "for tests"
        model.user_defined_metadata["key"] = "value"
        model.save(str(path))
    return path


def step_program(dtype: str, expensive: np.ndarray = WEIGHT) -> tuple[Callable[..., Any], list[Any]]:
    """Return a program with an expensive part that depends on the input `memory` alone, and the input `token`."""
    import_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    element = getattr(types, dtype)
    numpy_type = np.float16 if dtype == "fp16" else np.float32

    def program(token: Any, memory: Any) -> Any:
        projected = mb.linear(x=memory, weight=mb.const(val=expensive.astype(numpy_type), name="project_weight"))
        reduced = mb.reduce_mean(x=projected, axes=[1], keep_dims=False, name="reduced")
        row = mb.gather(x=mb.const(val=TABLE.astype(numpy_type), name="table"), indices=token, axis=0)
        mixed = mb.linear(x=memory, weight=mb.const(val=MIXED.astype(numpy_type), name="mix_weight"))
        combined = mb.add(x=mb.reduce_sum(x=mixed, axes=[0], keep_dims=True), y=row)
        return mb.tanh(x=combined, name="mixed"), mb.identity(x=reduced, name="summary")

    specs = [mb.TensorSpec(shape=(1,), dtype=types.int32), mb.TensorSpec(shape=(50, 64), dtype=element)]
    return program, specs


def expected(token: int, memory: np.ndarray, weight: np.ndarray = WEIGHT) -> dict[str, np.ndarray]:
    memory = memory.astype(np.float64)
    mixed = np.tanh((memory @ MIXED.T.astype(np.float64)).sum(0, keepdims=True) + TABLE[[token]])
    return {"mixed": mixed, "summary": (memory @ weight.T.astype(np.float64)).mean(1)}


def check(found: dict[str, Any], wanted: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(np.asarray(found[name]), value, rtol=tolerance, atol=tolerance)
