"""Loaded packages as their users see them, whatever runs them, and one function that loads them.

A loaded package maps named values to named values. `TensorModel` does so on torch tensors, `ArrayModel` on NumPy arrays
with the signature of coremltools' `MLModel.predict`. `Program` is both, `CoreMLProgram` is an `ArrayModel`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from whisperkit_tools.mil.tensor_spec import Precision, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

BackendName: TypeAlias = Literal["torch", "coreml"]


class LoadedModel(Protocol):
    """The interface of a loaded package."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs by name."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs by name."""
        ...

    @property
    def states(self) -> Mapping[str, TensorSpec]:
        """The states by name."""
        ...

    def make_state(self) -> Any:
        """Return fresh states, all zero, with `read_state(name)` and `write_state(name, value)`."""
        ...


class TensorModel(LoadedModel, Protocol):
    """A package that runs on torch tensors."""

    def run(self, inputs: "Mapping[str, Tensor]", /, *, state: Any = None) -> "Mapping[str, Tensor]":
        """Run on tensors by input name, and on states, and return tensors by output name."""
        ...


class ArrayModel(LoadedModel, Protocol):
    """A package that runs on NumPy arrays."""

    def predict(self, data: Any, state: Any = None) -> Any:
        """Run on arrays by input name, and on states, and return arrays by output name."""
        ...


def load_backend(
    path: str | Path,
    backend: BackendName = "torch",
    *,
    compute_units: str = "all",
    precision: Precision = "float32",
    device: str = "cpu",
    function: str = "main",
) -> ArrayModel:
    """Load a package for running.

    Args:
        path: The `.mlpackage`.
        backend: `torch` runs anywhere; `coreml` needs macOS.
        compute_units: For `coreml`: `all`, `cpu_only`, `cpu_and_gpu` or `cpu_and_ne`.
        precision: For `torch`: see `Program.load`.
        device: For `torch`: `cpu`, `cuda` or `mps`.
        function: The function of a package with several.

    Raises:
        BundleError: The package cannot be read, or Core ML cannot load it.
        UnsupportedOperationError: The program holds operations that the executor lacks, or this machine has no Core ML.
        ValueError: No backend has the name.
    """
    if backend == "torch":
        from whisperkit_tools.mil.program import Program

        return Program.load(path, precision=precision, device=device, function=function)
    if backend == "coreml":
        from whisperkit_tools.mil.coreml import CoreMLProgram

        return CoreMLProgram.load(path, compute_units=compute_units, function=function)
    raise ValueError(f"backend is {backend!r}, expected 'torch' or 'coreml'")
