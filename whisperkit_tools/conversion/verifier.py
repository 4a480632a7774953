"""`TextDecoderVerify`: the decoder on several tokens at once, and how far its logits are from those of single steps.

It is a package of its own beside `TextDecoder`. Today's open runtime loads bundles with it and does not use it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from whisperkit_tools import contract
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.compile_hints.verify_decoder import VerifyTextDecoder
from whisperkit_tools.contract import PackageInterface
from whisperkit_tools.conversion.contract_check import package_problems
from whisperkit_tools.conversion.export import PackageMetadata, export_package
from whisperkit_tools.conversion.parity import ComponentParity
from whisperkit_tools.decoder.session import CacheSession
from whisperkit_tools.decoder.speculative import Verifier
from whisperkit_tools.errors import ConversionError, OptionsError, option
from whisperkit_tools.manifest import SpeculationRecord
from whisperkit_tools.mil.package import Package
from whisperkit_tools.mil.tensor_spec import Precision
from whisperkit_tools.signals import psnr_db

MAX_TOKENS = 32
PRECISIONS: tuple[Precision, ...] = ("float32", "float16")
_STEPS = 60  # tokens on which the two are compared
_LIKELIEST = 100  # logits that can be chosen, of each step
_MARGIN = 4.0  # times the largest difference that was found
_MIN_TOLERANCE = 1e-3


def check_draft_tokens(tokens: int, *, stateful: bool, verify: bool) -> None:
    """Refuse a number of tokens that no package can have, and bundles that cannot have one.

    Raises:
        OptionsError: Naming the option.
    """
    if not 2 <= tokens <= MAX_TOKENS:
        raise OptionsError(f"{option('draft_tokens')} is {tokens}, allowed are 2 to {MAX_TOKENS}")
    if stateful:
        raise OptionsError(
            f"{option('draft_tokens')} needs a decoder with its caches as inputs; omit {option('stateful', True)}"
        )
    if not verify:
        raise OptionsError(
            f"{option('draft_tokens')} needs the packages to be run, because the distance of their logits is recorded; "
            f"set {option('verify', True)}"
        )


def export_verifier(
    decoder: TextDecoder,
    interface: PackageInterface,
    path: Path,
    *,
    deployment_target: str,
    metadata: PackageMetadata,
) -> None:
    """Export the decoder on several tokens.

    Args:
        decoder: The decoder in the runtime's form, with float16 parameters.
        interface: From `contract.verifier_interface`.
        path: The package. It must not exist.
        deployment_target: A key of `DEPLOYMENT_TARGETS`.
        metadata: The description that the package carries.

    Raises:
        ConversionError: coremltools cannot convert the decoder, or the package has another interface.
    """
    module = VerifyTextDecoder(decoder).eval()
    export_package(module, interface, path, deployment_target=deployment_target, metadata=metadata)
    if problems := package_problems(path.stem, path, interface):
        raise ConversionError(f"the export does not keep its interface: {'; '.join(problems)}")


def compare_with_steps(
    decoder: Package, verifier: Package, embeds: Tensor, start: int
) -> tuple[ComponentParity, SpeculationRecord]:
    """Compare both packages on the same tokens, in both precisions.

    Args:
        decoder: TextDecoder.
        verifier: TextDecoderVerify.
        embeds: Audio embeddings of speech, `[1, D, 1, n_audio_ctx]`.
        start: The first token. The others are the likeliest ones.

    Returns:
        PSNR of the logits, and the differences with the tolerances that follow.
    """
    tokens: list[int] = [start]
    exact = _single_steps(decoder, embeds, tokens, "float32")
    psnr: dict[str, float] = {}
    differences: dict[str, float] = {}
    count = 0
    for precision in PRECISIONS:
        steps = exact if precision == "float32" else _single_steps(decoder, embeds, tokens, precision)
        count, together = _together(decoder, verifier, embeds, tokens, precision)
        psnr[precision] = psnr_db(exact.numpy(), together.numpy())
        differences[precision] = largest_difference(steps, together)
    tolerances = {name: max(_MIN_TOLERANCE, _MARGIN * value) for name, value in differences.items()}
    parity = ComponentParity(contract.VERIFIER, {contract.LOGITS: psnr["float32"]}, {contract.LOGITS: psnr["float16"]})
    return parity, SpeculationRecord(tokens=count, difference=differences, tolerance=tolerances)


def largest_difference(steps: Tensor, together: Tensor) -> float:
    """Return by how much the difference of two logits of one step changes, at most, among the likeliest.

    Args:
        steps: `[T, V]`, of single steps.
        together: `[T, V]`, of several tokens at once.
    """
    chosen = steps.topk(min(_LIKELIEST, steps.shape[1]), dim=1).indices
    change = (together - steps).gather(1, chosen)
    return float((change.amax(1) - change.amin(1)).max())


def _single_steps(decoder: Package, embeds: Tensor, tokens: list[int], precision: Precision) -> Tensor:
    """Decode `tokens` one by one, and return the logits `[T, V]`. A first run adds the likeliest tokens."""
    session = _session(decoder, precision)
    session.begin(_as(embeds, precision))
    rows = []
    grows = len(tokens) == 1
    for position in range(min(_STEPS, session.length) if grows else len(tokens)):
        rows.append(session.step(tokens[position], position).logits)
        if grows and position + 1 < min(_STEPS, session.length):
            tokens.append(int(rows[-1].argmax()))
    return torch.stack(rows)


def _together(
    decoder: Package, verifier: Package, embeds: Tensor, tokens: Sequence[int], precision: Precision
) -> tuple[int, Tensor]:
    """Decode the same tokens, as many in a call as the package takes. Return that number, and the logits `[T, V]`."""
    session = _session(decoder, precision)
    several = Verifier(verifier.program(precision=precision), session)
    session.begin(_as(embeds, precision))
    rows, at = [], 0
    while at < len(tokens):
        some = tokens[at : at + several.tokens]
        steps = several.run(some, at) if several.fits(at) else [session.step(some[0], at)]
        rows += [step.logits for step in steps]
        at += len(steps)
    return several.tokens, torch.stack(rows)


def _session(decoder: Package, precision: Precision) -> CacheSession:
    return CacheSession(decoder.program(precision=precision), dtype=_dtype(precision))


def _as(embeds: Tensor, precision: Precision) -> Tensor:
    return embeds.to(_dtype(precision))


def _dtype(precision: Precision) -> torch.dtype:
    return torch.float16 if precision == "float16" else torch.float32
