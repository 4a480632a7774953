"""A single operation of a program, in the executor and in coremltools' value inference."""

import copy
from pathlib import Path
from typing import Any

import numpy as np

from whisperkit_tools.mil.coreml import import_coremltools, quiet_coremltools
from whisperkit_tools.mil.graph import Constant, Graph, Metadata, Operation
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.tensor_spec import TensorSpec

METADATA = Metadata("", "", "", "", 9, "CoreML8", {})
RNG = np.random.default_rng(7)


def randn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def as_constant(name: str, value: Any) -> Constant:
    if isinstance(value, str):
        return Constant(TensorSpec(name, (), "string"), value)
    array = np.asarray(value)
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype == np.int64:
        array = array.astype(np.int32)
    return Constant(TensorSpec(name, array.shape, str(array.dtype)), array)


def run(
    op_type: str,
    inputs: dict[str, Any],
    *,
    outputs: tuple[str, ...] = ("float32",),
    shapes: tuple[tuple[int | None, ...], ...] = ((None,),),
    **options: Any,
) -> Any:
    """Run an operation whose inputs are all constants. `outputs` and `shapes` declare its results."""
    constants: dict[str, Constant] = {}
    bound: dict[str, tuple[TensorSpec, ...]] = {}
    for parameter, value in inputs.items():
        values = value if isinstance(value, tuple) else (value,)
        named = [as_constant(f"{parameter}{index}", item) for index, item in enumerate(values)]
        constants.update((constant.spec.name, constant) for constant in named)
        bound[parameter] = tuple(constant.spec for constant in named)
    declared = zip(outputs, shapes if len(shapes) == len(outputs) else shapes * len(outputs), strict=True)
    specs = tuple(TensorSpec(f"out{index}", shape, dtype) for index, (dtype, shape) in enumerate(declared))
    operation = Operation(op_type, "op", bound, specs, 0)
    graph = Graph(Path("test"), "main", METADATA, {}, {}, {spec.name: spec for spec in specs}, constants, (operation,))
    results = [value.numpy() for value in Program(graph, **options).run().values()]
    return results[0] if len(results) == 1 else tuple(results)


def inferred(op_type: str, inputs: dict[str, Any], opset: str = "iOS17") -> Any:
    """Return the result of coremltools' value inference: an array, or a tuple of them."""
    ct = import_coremltools()
    from coremltools.converters.mil import Builder as mb

    found: list[Any] = []

    def program() -> Any:
        # A copy: coremltools computes some in place.
        given = {key: list(value) if isinstance(value, tuple) else copy.copy(value) for key, value in inputs.items()}
        result = getattr(mb, op_type)(**given)
        found.append(result)
        return mb.identity(x=np.float32(0))

    with quiet_coremltools(), np.errstate(all="ignore"):
        mb.program(input_specs=[], opset_version=getattr(ct.target, opset))(program)
    variables = found[0] if isinstance(found[0], (list, tuple)) else (found[0],)
    values = tuple(variable.val for variable in variables)
    assert all(value is not None for value in values), f"{op_type} has no value inference"
    return values[0] if len(values) == 1 else values


def check_inferred(op_type: str, inputs: dict[str, Any], opset: str = "iOS17", tolerance: float = 1e-5) -> None:
    expected = inferred(op_type, inputs, opset)
    several = isinstance(expected, tuple)
    arrays = [np.asarray(value) for value in (expected if several else (expected,))]
    found = run(
        op_type,
        inputs,
        outputs=tuple(str(array.dtype) for array in arrays),
        shapes=tuple(array.shape for array in arrays),
    )
    for wanted, got in zip(arrays, found if several else (found,), strict=True):
        assert got.shape == wanted.shape
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


X = randn(2, 3, 4)
INTS = np.array([[5, -5, 7], [-7, 3, 4]], np.int32)
DIVISORS = np.array([[3, 3, -2], [2, -2, 4]], np.int32)
