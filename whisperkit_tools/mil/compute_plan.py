"""What Core ML itself decides: the device of each operation, on macOS."""

import sys
import tempfile
from pathlib import Path

from whisperkit_tools.errors import BundleError, UnsupportedOperationError
from whisperkit_tools.mil.quiet import import_coremltools, quiet_coremltools


def require_compute_plan() -> None:
    """Check that Core ML can be asked.

    Raises:
        UnsupportedOperationError: This is not macOS.
    """
    if sys.platform != "darwin":
        raise UnsupportedOperationError(
            f"Core ML's compute plan exists on macOS 14.4 and later only, this is {sys.platform}; "
            "without --measured the rules are applied, which works anywhere"
        )


def planned_devices(path: Path, function: str = "main", compute_units: str = "cpu_and_ne") -> dict[str, str]:
    """Ask Core ML on which device it will run each operation of a package.

    Args:
        path: The `.mlpackage`.
        function: The function of the program.
        compute_units: `all`, `cpu_only`, `cpu_and_gpu` or `cpu_and_ne`.

    Returns:
        `ane`, `gpu` or `cpu` by the name of the operation's first output; constants are left out.

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
