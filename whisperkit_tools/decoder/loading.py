"""Loading the packages of a bundle for transcription."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.decoder.adapters import ArrayModelAdapter
from whisperkit_tools.decoder.models import DraftedModels, Models
from whisperkit_tools.decoder.stateful import StatefulDecoder
from whisperkit_tools.errors import BundleError, OptionsError, option
from whisperkit_tools.files import sha256
from whisperkit_tools.mil.backend import TensorModel
from whisperkit_tools.mil.package import Package
from whisperkit_tools.mil.tensor_spec import Precision

BACKENDS = ("torch", "coreml")
# Source: the on-device runtime's defaults.
_DEFAULT_UNITS = {contract.MEL: "cpu_and_gpu", contract.ENCODER: "cpu_and_ne", contract.DECODER: "cpu_and_ne"}
_DEFAULT_UNITS[contract.VERIFIER] = _DEFAULT_UNITS[contract.DECODER]


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
    loader = _Loader(precision, backend, compute_units, device)
    load = partial(loader.load, bundle)
    return Models(
        load(contract.MEL),
        load(contract.ENCODER),
        load_decoder(bundle.package(contract.DECODER), partial(load, contract.DECODER)),
        prefill=load(contract.PREFILL) if bundle.has(contract.PREFILL) else None,
        device=loader.tensor_device,
        dtype=loader.dtype,
    )


def load_drafted_models(
    bundle: Bundle,
    draft: Bundle,
    *,
    precision: Precision = "float32",
    backend: str = "torch",
    compute_units: str | None = None,
    device: str = "cpu",
) -> DraftedModels:
    """Load a bundle and a draft for it. Where both have the same encoder, it is loaded once.

    Args:
        bundle: The bundle, with TextDecoderVerify.
        draft: The bundle of a smaller model with the same vocabulary.
        precision: As for `load_models`, of both.
        backend: As for `load_models`.
        compute_units: As for `load_models`.
        device: As for `load_models`.

    Raises:
        BundleError: The bundle has no TextDecoderVerify, a decoder has its caches as states, a package is damaged, or
            the two do not belong together.
        OptionsError: There is no such backend, or this machine lacks the device.
        UnsupportedOperationError: This machine lacks the backend, or a program has unknown operations.
    """
    loader = _Loader(precision, backend, compute_units, device)
    tolerance = _tolerance(bundle, "float16" if loader.dtype == torch.float16 else "float32")
    for one in (bundle, draft):
        if one.package(contract.DECODER).is_stateful:
            raise BundleError(
                f"{one.path}: its decoder has its caches as states, and a draft needs them as inputs; convert it with "
                f"{option('stateful', False)}"
            )
    own = load_models(bundle, precision=precision, backend=backend, compute_units=compute_units, device=device)
    same = encoder_digest(bundle) == encoder_digest(draft)
    small = Models(
        own.mel,
        own.encoder if same else loader.load(draft, contract.ENCODER),
        loader.load(draft, contract.DECODER),
        device=own.device,
        dtype=own.dtype,
    )
    return DraftedModels(
        own.mel,
        own.encoder,
        own.decoder,
        own.prefill,
        own.device,
        own.dtype,
        verifier=loader.load(bundle, contract.VERIFIER),
        tolerance=tolerance,
        draft=small,
        draft_verifier=loader.load(draft, contract.VERIFIER) if draft.has(contract.VERIFIER) else None,
    )


def encoder_digest(bundle: Bundle) -> str:
    """Return a digest of a bundle's AudioEncoder: of its program and weights, without what it says about itself.

    Raises:
        BundleError: The package is damaged.
    """
    package = bundle.package(contract.ENCODER)
    spec = package.spec()
    spec.description.ClearField("metadata")
    weights = package.path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    parts = [hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()]
    parts += [sha256(weights)] if weights.is_file() else []
    return " ".join(parts)


def _tolerance(bundle: Bundle, precision: str) -> float:
    """Return the difference of two logits below which a choice is repeated.

    Raises:
        BundleError: The bundle has no decoder for several tokens, or does not say how exact it is.
    """
    record = bundle.manifest.speculation
    if not bundle.has(contract.VERIFIER) or record is None or precision not in record.tolerance:
        raise BundleError(
            f"{bundle.path} cannot verify what a draft wrote: it has no {contract.VERIFIER} with a record in its "
            f"manifest; convert it with {option('draft_tokens', contract.VERIFIED_TOKENS)}"
        )
    return record.tolerance[precision]


@dataclass(frozen=True, slots=True)
class _Loader:
    """Loads packages for one backend, see `load_models`."""

    precision: Precision
    backend: str
    compute_units: str | None
    device: str

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise OptionsError(f"{option('backend')} is {self.backend!r}; choose from {', '.join(BACKENDS)}")
        if not self.on_core_ml:
            _check_device(self.device)

    @property
    def on_core_ml(self) -> bool:
        return self.backend == "coreml"

    @property
    def tensor_device(self) -> str:
        return "cpu" if self.on_core_ml else self.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.on_core_ml or self.precision == "float16" else torch.float32

    def load(self, bundle: Bundle, component: str, function: str = contract.STEP_FUNCTION) -> TensorModel:
        package = bundle.package(component)
        if not self.on_core_ml:
            return package.program(function, precision=self.precision, device=self.device)
        default = _DEFAULT_UNITS.get(component)
        units = "cpu_only" if default is None else self.compute_units or default
        return ArrayModelAdapter(package.core_ml(function, compute_units=units))


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
