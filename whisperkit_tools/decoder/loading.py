"""Loading the packages of a bundle for transcription."""

from collections.abc import Callable
from functools import partial

import torch

from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.decoder.adapters import ArrayModelAdapter
from whisperkit_tools.decoder.models import Models
from whisperkit_tools.decoder.stateful import StatefulDecoder
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.mil.backend import TensorModel
from whisperkit_tools.mil.package import Package
from whisperkit_tools.mil.tensor_spec import Precision

BACKENDS = ("torch", "coreml")
# Source: the on-device runtime's defaults.
_DEFAULT_UNITS = {contract.MEL: "cpu_and_gpu", contract.ENCODER: "cpu_and_ne", contract.DECODER: "cpu_and_ne"}


def load_models(
    bundle: Bundle,
    *,
    precision: Precision = "float32",
    backend: str = "torch",
    compute_units: str | None = None,
    device: str = "cpu",
) -> Models:
    """Load the packages of a bundle, a stateful decoder as well as one with its caches as inputs.

    Args:
        bundle: The bundle.
        precision: For `torch`: `float32`, or `float16` to round every operation's result as the device does.
        backend: `torch` or `coreml`.
        compute_units: For `coreml`: units of the three components. None for the runtime's own choice of each. The
            prefill, which is a lookup, always runs on the CPU.
        device: For `torch`: `cpu`, `cuda` or `mps`.

    Raises:
        BundleError: A package is missing or damaged, or they do not belong together.
        OptionsError: There is no such backend, or this machine lacks the device.
        UnsupportedOperationError: This machine lacks the backend, or a program has unknown operations.
    """
    if backend not in BACKENDS:
        raise OptionsError(f"{option('backend')} is {backend!r}; choose from {', '.join(BACKENDS)}")
    on_core_ml = backend == "coreml"
    if not on_core_ml:
        _check_device(device)

    def load(component: str, function: str = contract.STEP_FUNCTION) -> TensorModel:
        package = bundle.package(component)
        if not on_core_ml:
            return package.program(function, precision=precision, device=device)
        default = _DEFAULT_UNITS.get(component)
        units = "cpu_only" if default is None else compute_units or default
        return ArrayModelAdapter(package.core_ml(function, compute_units=units))

    return Models(
        load(contract.MEL),
        load(contract.ENCODER),
        load_decoder(bundle.package(contract.DECODER), partial(load, contract.DECODER)),
        prefill=load(contract.PREFILL) if bundle.has(contract.PREFILL) else None,
        device="cpu" if on_core_ml else device,
        dtype=torch.float16 if on_core_ml or precision == "float16" else torch.float32,
    )


def load_decoder(package: Package, load: Callable[[str], TensorModel]) -> TensorModel | StatefulDecoder:
    """Load a decoder in the form that its package has.

    Args:
        package: A TextDecoder.
        load: Loads one of its functions.

    Raises:
        BundleError: The package is damaged.
    """
    step = load(contract.STEP_FUNCTION)
    return StatefulDecoder(step, load(contract.WINDOW_FUNCTION)) if package.is_stateful else step


def _check_device(device: str) -> None:
    """Refuse a device on which PyTorch cannot compute here.

    Raises:
        OptionsError: Naming the devices that this machine has.
    """
    kind = device.partition(":")[0]
    is_there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not is_there.get(kind, False):
        here = " and ".join(name for name, there in is_there.items() if there)
        raise OptionsError(f"{option('device')} is {device!r}, but PyTorch computes on {here} here")
