"""Core ML and coremltools: silent import, running a package on macOS, and the device of each operation.

coremltools takes one to two seconds to import, so this module imports it only where it is used. On import it warns that
this torch was not among those it was tested with and, off macOS, once for every native library it lacks. None of that
concerns somebody who converts or transcribes.
"""

import importlib
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whisperkit_tools.errors import BundleError, UnsupportedOperationError, option
from whisperkit_tools.mil.graph import Graph, read_graph
from whisperkit_tools.mil.tensor_spec import TensorSpec

COMPUTE_UNITS = ("all", "cpu_only", "cpu_and_gpu", "cpu_and_ne")


@contextmanager
def quiet_coremltools(*, verbose: bool = False) -> Iterator[None]:
    """Suppress coremltools' own warnings, through `logging` and through `warnings`, inside the block.

    Errors still pass. The logger's level is restored afterwards.

    Args:
        verbose: Let everything through.
    """
    if verbose:
        yield
        return
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def import_coremltools(*, verbose: bool = False) -> Any:
    """Import coremltools, silently unless `verbose`, and return the module.

    The first import takes one to two seconds, so callers import it where they use it.
    """
    with quiet_coremltools(verbose=verbose):
        return importlib.import_module("coremltools")


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
        """Compile and load a package.

        The first time, Core ML prepares the package for the device, which may take minutes.

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
        # Core ML takes no function name for a package with a single function.
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


def require_compute_plan() -> None:
    """Check that Core ML can be asked.

    Raises:
        UnsupportedOperationError: This is not macOS.
    """
    if sys.platform != "darwin":
        raise UnsupportedOperationError(
            f"Core ML's compute plan exists on macOS 14.4 and later only, this is {sys.platform}; "
            f"without {option('measured')} the rules are applied, which works anywhere"
        )


def planned_devices(path: Path, function: str = "main", compute_units: str = "cpu_and_ne") -> dict[str, str]:
    """Ask Core ML on which device it will run each operation of a package.

    Args:
        path: The `.mlpackage`.
        function: The function of the program.
        compute_units: `all`, `cpu_only`, `cpu_and_gpu` or `cpu_and_ne`.

    Returns:
        `ane`, `gpu` or `cpu` by the name of the operation's first output; constants are omitted.

    Raises:
        UnsupportedOperationError: This is not macOS.
        BundleError: Core ML cannot compile the package.
    """
    require_compute_plan()
    coremltools = import_coremltools()
    from coremltools.models.compute_plan import MLComputePlan

    units = getattr(coremltools.ComputeUnit, compute_units.upper())
    with tempfile.TemporaryDirectory() as folder:
        try:
            with quiet_coremltools():
                compiled = coremltools.models.utils.compile_model(str(path), str(Path(folder) / "model.mlmodelc"))
                plan = MLComputePlan.load_from_path(path=compiled, compute_units=units)
        except Exception as error:  # Core ML raises bare exceptions
            raise BundleError(f"{path}: Core ML cannot compile it ({error})") from error
        devices: dict[str, str] = {}
        for operation in plan.model_structure.program.functions[function].block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is not None and operation.outputs:
                devices[operation.outputs[0].name] = _device(type(usage.preferred_compute_device).__name__)
    return devices


def _device(class_name: str) -> str:
    """Short name of coremltools' `MLNeuralEngineComputeDevice`, `MLGPUComputeDevice` or `MLCPUComputeDevice`."""
    return "ane" if "Neural" in class_name else "gpu" if "GPU" in class_name else "cpu"
