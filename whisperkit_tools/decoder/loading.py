"""A bundle's packages to the models that the decoding loop calls."""

from typing import Any

import torch

from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.contract import STEP_FUNCTION, WINDOW_FUNCTION
from whisperkit_tools.decoder.session import Component, Models, NumpyComponent
from whisperkit_tools.decoder.stateful import StatefulDecoder, StatefulSession
from whisperkit_tools.errors import UnsupportedOperationError
from whisperkit_tools.mil.tensor_spec import Precision

_PREFILL = contract.PREFILL
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
    """Load the packages of a bundle.

    Args:
        bundle: The bundle.
        precision: For `torch`: `float32`, or `float16` to round every operation's result as the device does.
        backend: `torch` or `coreml`.
        compute_units: For `coreml`; None for the runtime's own choice for each package.
        device: For `torch`.

    Raises:
        BundleError: A package is missing or damaged, or they do not belong together.
        UnsupportedOperationError: This machine lacks the backend or the device, or a program has unknown operations.
    """
    if bundle.package(contract.DECODER).is_stateful:
        return _stateful_models(bundle, precision, backend, compute_units, device)
    if backend == "coreml":
        components = [_core_ml(bundle, name, compute_units or units) for name, units in _DEFAULT_UNITS.items()]
        prefill: Component | None = _core_ml(bundle, _PREFILL, "cpu_only") if bundle.has(_PREFILL) else None
        return Models(*components, prefill=prefill, dtype=torch.float16)
    _check_device(device)
    programs = [bundle.package(name).program(precision=precision, device=device) for name in _DEFAULT_UNITS]
    prefill = None
    if bundle.has(_PREFILL):
        prefill = bundle.package(_PREFILL).program(precision=precision, device=device)
    dtype = torch.float16 if precision == "float16" else torch.float32
    return Models(*programs, prefill=prefill, device=device, dtype=dtype)


def _stateful_models(
    bundle: Bundle, precision: Precision, backend: str, compute_units: str | None, device: str
) -> Models:
    """As `load_models`, for a bundle whose decoder has two functions on one state."""

    def load(name: str, function: str = "main") -> Any:
        if backend == "coreml":
            return _core_ml(bundle, name, compute_units or _DEFAULT_UNITS.get(name, "cpu_only"), function)
        return bundle.package(name).program(precision=precision, device=device, function=function)

    if backend != "coreml":
        _check_device(device)
    half = backend == "coreml" or precision == "float16"
    return Models(
        load(contract.MEL),
        load(contract.ENCODER),
        StatefulDecoder(load(contract.DECODER, STEP_FUNCTION), load(contract.DECODER, WINDOW_FUNCTION)),
        prefill=load(_PREFILL) if bundle.has(_PREFILL) else None,
        session=StatefulSession,
        device="cpu" if backend == "coreml" else device,
        dtype=torch.float16 if half else torch.float32,
    )


def _core_ml(bundle: Bundle, name: str, compute_units: str, function: str = "main") -> NumpyComponent:
    return NumpyComponent(bundle.package(name).core_ml(function, compute_units=compute_units))


def _check_device(device: str) -> None:
    """Raise `UnsupportedOperationError` unless PyTorch can compute there."""
    kind = device.partition(":")[0]
    is_there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not is_there.get(kind, False):
        here = ", ".join(name for name, there in is_there.items() if there)
        raise UnsupportedOperationError(f"PyTorch cannot compute on {device!r} here; it can on {here}")
