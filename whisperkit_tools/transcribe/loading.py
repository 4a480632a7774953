"""A bundle's packages to the models that the decoding loop calls."""

import torch

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.errors import UnsupportedOperationError
from whisperkit_tools.mil.backend import load_backend
from whisperkit_tools.mil.program import Program
from whisperkit_tools.mil.specs import Precision
from whisperkit_tools.transcribe.models import Component, Models, NumpyComponent

# Source: the on-device runtime's defaults.
_DEFAULT_UNITS = {"MelSpectrogram": "cpu_and_gpu", "AudioEncoder": "cpu_and_ne", "TextDecoder": "cpu_and_ne"}


def load_models(
    bundle: Bundle,
    *,
    precision: Precision = "float32",
    backend: str = "torch",
    compute_units: str | None = None,
    device: str = "cpu",
) -> Models:
    """Load the three packages of a bundle.

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
    if backend == "coreml":
        components = [_core_ml(bundle, name, compute_units or units) for name, units in _DEFAULT_UNITS.items()]
        return Models(*components, dtype=torch.float16)
    _check_device(device)
    programs = [Program.load(bundle.package(name), precision=precision, device=device) for name in _DEFAULT_UNITS]
    dtype = torch.float16 if precision == "float16" else torch.float32
    return Models(*programs, device=device, dtype=dtype)


def _core_ml(bundle: Bundle, name: str, compute_units: str) -> Component:
    return NumpyComponent(load_backend(bundle.package(name), "coreml", compute_units=compute_units))


def _check_device(device: str) -> None:
    """Raise `UnsupportedOperationError` unless PyTorch can compute there."""
    kind = device.partition(":")[0]
    is_there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not is_there.get(kind, False):
        here = ", ".join(name for name, there in is_there.items() if there)
        raise UnsupportedOperationError(f"PyTorch cannot compute on {device!r} here; it can on {here}")
