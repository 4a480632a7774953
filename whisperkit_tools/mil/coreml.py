"""Running a package through Core ML itself, on macOS."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whisperkit_tools.errors import BundleError, UnsupportedOperationError
from whisperkit_tools.mil.graph import Graph, read_graph
from whisperkit_tools.mil.quiet import import_coremltools, quiet_coremltools
from whisperkit_tools.mil.tensor_spec import TensorSpec

COMPUTE_UNITS = ("all", "cpu_only", "cpu_and_gpu", "cpu_and_ne")


class CoreMLProgram:
    """A package loaded by Core ML, with the interface of `Program`."""

    def __init__(self, graph: Graph, model: Any) -> None:
        """Wrap a loaded `coremltools.models.MLModel`."""
        self.path = graph.path
        self.metadata = graph.metadata
        self.operations = graph.operations
        self._inputs = graph.inputs
        self._outputs = graph.outputs
        self.states: Mapping[str, TensorSpec] = graph.states
        self._model = model

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs by name."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs by name."""
        return self._outputs

    @classmethod
    def load(cls, path: str | Path, *, compute_units: str = "all", function: str = "main") -> "CoreMLProgram":
        """Compile and load a package; the first time Core ML prepares it for the device, which may take minutes.

        Args:
            path: The `.mlpackage`.
            compute_units: `all`, `cpu_only`, `cpu_and_gpu` or `cpu_and_ne`.
            function: The function of a package with several.

        Raises:
            BundleError: The package cannot be read, or Core ML refuses it.
            UnsupportedOperationError: This is not macOS.
            ValueError: The compute units are not known.
        """
        if compute_units not in COMPUTE_UNITS:
            raise ValueError(f"compute units are {compute_units!r}, expected one of {', '.join(COMPUTE_UNITS)}")
        if sys.platform != "darwin":
            raise UnsupportedOperationError(
                f"Core ML runs on macOS only, this is {sys.platform}; use the torch backend, which runs anywhere"
            )
        graph = read_graph(path, function)
        coremltools = import_coremltools()
        units = getattr(coremltools.ComputeUnit, compute_units.upper())
        # Core ML takes no function name for a package that has but one.
        chosen = None if function == "main" else function
        try:
            with quiet_coremltools():
                model = coremltools.models.MLModel(str(path), compute_units=units, function_name=chosen)
        except Exception as error:  # Core ML raises bare exceptions
            raise BundleError(f"{path}: Core ML cannot load it ({error})") from error
        return cls(graph, model)

    def make_state(self) -> Any:
        """Return coremltools' `MLState`, all zero; None for a program without states."""
        return self._model.make_state() if self.states else None

    def predict(self, data: Any, state: Any = None) -> Any:
        """Run on NumPy arrays by input name (or a list of such dictionaries) and return arrays by output name.

        Args:
            data: The inputs.
            state: From `make_state` of this program, or of another function with the same states.
        """
        # A copy: coremltools replaces float16 arrays in the dictionary that it is given.
        given = [dict(item) for item in data] if isinstance(data, list) else dict(data)
        return self._model.predict(given) if state is None else self._model.predict(given, state=state)
