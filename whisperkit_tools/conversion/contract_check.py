"""Check of a package on disk against the runtime contract."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whisperkit_tools.contract import PackageInterface, TensorInterface
from whisperkit_tools.mil.graph import read_spec


def package_problems(component: str, path: Path, interface: PackageInterface) -> list[str]:
    """Return the differences of a package on disk from the contract, see `interface_problems`."""
    return interface_problems(component, read_spec(path), interface)


def stateful_problems(component: str, path: Path, interfaces: Mapping[str, PackageInterface]) -> list[str]:
    """Return the differences of a package's functions on disk from their interfaces, one line for each."""
    spec = read_spec(path)
    found = {function.name: function for function in spec.description.functions}
    problems = [f"{component}: function {name} is missing" for name in interfaces if name not in found]
    for name in (name for name in interfaces if name in found):
        problems += function_problems(f"{component}, function {name}", found[name], interfaces[name])
    return problems


def interface_problems(component: str, spec: Any, interface: PackageInterface) -> list[str]:
    """Return the differences of a package's declared inputs and outputs from the contract.

    Args:
        component: The package's name, for the messages.
        spec: Its Core ML `Model` protobuf.
        interface: The expected interface.

    Returns:
        One line for each difference. Empty when the contract is kept.
    """
    return function_problems(component, spec.description, interface)


def function_problems(component: str, description: Any, interface: PackageInterface) -> list[str]:
    """Return the differences of a function's or a model's description, a protobuf, from its interface."""
    problems: list[str] = []
    for kind, expected, declared in (
        ("input", interface.inputs, description.input),
        ("output", interface.outputs, description.output),
        ("state", interface.states, description.state),
    ):
        found = {feature.name: feature for feature in declared}
        missing = expected.keys() - found.keys() - interface.optional
        problems += [f"{component}: {kind} {name} is missing" for name in expected if name in missing]
        problems += [f"{component}: {kind} {name} is unknown to the runtime" for name in found if name not in expected]
        for name in (name for name in expected if name in found):
            problems += [f"{component}: {kind} {name} {line}" for line in _differences(found[name], expected[name])]
    return problems


def _differences(feature: Any, expected: TensorInterface) -> list[str]:
    kind = feature.type.WhichOneof("Type")
    if kind not in ("multiArrayType", "stateType"):
        return [f"is a {kind}, expected a multiArrayType"]
    array = feature.type.multiArrayType if kind == "multiArrayType" else feature.type.stateType.arrayType
    lines = []
    if tuple(array.shape) != expected.shape:
        lines.append(f"has declared shape {list(array.shape)}, expected {list(expected.shape)}")
    dtype = array.ArrayDataType.Name(array.dataType).lower()
    if dtype not in expected.accepted:
        lines.append(f"has type {dtype}, expected {' or '.join(expected.accepted)}")
    return lines
