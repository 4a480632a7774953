"""Registering kernels and binding a graph's operations to them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.mil_operations import METADATA, as_constant

from whisperkit_tools.errors import UnsupportedOperationError
from whisperkit_tools.mil.graph import Graph, Operation
from whisperkit_tools.mil.kernels import bind, kernels, make_kernel
from whisperkit_tools.mil.tensor_spec import TensorSpec

X = TensorSpec("x", (2, 3), "float32")


def graph(*operations: Operation, **constants) -> Graph:
    inputs = {"x": X, "n": TensorSpec("n", (1,), "int32")}
    named = {name: as_constant(name, value) for name, value in constants.items()}
    return Graph(Path("test"), "main", METADATA, inputs, {}, {}, named, operations)


def operation(kind: str, module: str = "", **inputs: tuple[TensorSpec, ...]) -> Operation:
    return Operation(kind, f"the {kind}", inputs, (X,), 0, module)


def test_a_kernels_parameters_come_from_its_signature() -> None:
    def function(x, y=None, *rest, axis, out_dtype=None):
        return x

    kernel = make_kernel("made", function, moves_only=True)
    assert (kernel.tensors, kernel.variadic, kernel.values) == (("x", "y"), "rest", ("axis", "out_dtype"))
    assert kernel.moves_only


def test_functions_of_torch_are_kernels_themselves() -> None:
    found = kernels()
    assert found["acos"].function is torch.acos
    assert found["acos"].tensors == ("x",)
    assert found["greater"].function is torch.gt
    assert found["greater"].tensors == ("x", "y")


def test_constants_become_values_and_tensors_become_arguments() -> None:
    read = operation("clip", x=(X,), alpha=(as_constant("low", 0.5).spec,), beta=(as_constant("high", 2.0).spec,))
    assert [spec.name for spec in read.reads] == ["x", "low", "high"]
    (node,) = bind(graph(read, low=0.5, high=2.0))
    assert (node.arguments, node.values, node.dynamic) == (("x",), {"alpha": 0.5, "beta": 2.0}, {})
    assert node.reads == ("x",)


def test_a_value_known_only_at_run_time_is_dynamic() -> None:
    sliced = operation(
        "slice_by_size", x=(X,), begin=(TensorSpec("n", (1,), "int32"),), size=(as_constant("size", [1]).spec,)
    )
    (node,) = bind(graph(sliced, size=np.array([1])))
    assert node.values == {"size": [1]}
    assert node.dynamic == {"begin": "n"}
    assert node.reads == ("x", "n")


def test_omitted_arguments_are_none_or_dropped() -> None:
    weight = TensorSpec("w", (3,), "float32")
    (node,) = bind(graph(operation("layer_norm", x=(X,), beta=(weight,))))
    assert node.arguments == ("x", None, "w")
    (node,) = bind(graph(operation("layer_norm", x=(X,))))
    assert node.arguments == ("x",)


def test_results_that_may_share_memory() -> None:
    nodes = bind(graph(operation("squeeze", x=(X,)), operation("cast", x=(X,)), operation("exp", x=(X,))))
    assert [node.may_share_memory for node in nodes] == [True, True, False]


def test_all_unsupported_operations_are_named_at_once() -> None:
    message = (
        r"2 operations cannot be executed:\n"
        r"  lstm: 'the lstm', operation 0 of function 'main', traced from decoder.0\n"
        r"  exp \(with base\): 'the exp', operation 0 of function 'main'\n  Supported are: abs, "
    )
    with pytest.raises(UnsupportedOperationError, match=message):
        bind(graph(operation("lstm", "decoder.0", x=(X,)), operation("exp", x=(X,), base=(X,))))
