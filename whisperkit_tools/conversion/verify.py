"""The check of an existing bundle: its files' hashes, the runtime's contract, and parity with its checkpoint."""

from dataclasses import dataclass

from whisperkit_tools import contract
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.checkpoint import Checkpoint
from whisperkit_tools.checkpoint.model import dimensions
from whisperkit_tools.contract import (
    COMPONENTS,
    PREFILL,
    VERIFIER,
    package_interfaces,
    stateful_interfaces,
    verifier_interface,
)
from whisperkit_tools.conversion.components import Components, to_reference_form
from whisperkit_tools.conversion.contract_check import package_problems, stateful_problems
from whisperkit_tools.conversion.parity import ComponentParity, ParityGate
from whisperkit_tools.conversion.prefill.evidence import prefill_contract_problems, prefill_problems
from whisperkit_tools.demo import verification_speech
from whisperkit_tools.errors import BundleError, CheckpointError
from whisperkit_tools.manifest import ConversionRecord
from whisperkit_tools.progress import Progress, SilentProgress


@dataclass(frozen=True, slots=True)
class Verification:
    """The findings.

    Attributes:
        files: Differences from the manifest's hashes.
        contract: Differences from what the runtime reads.
        parity: Shortfalls against the checkpoint.
        measured: The figures that `parity` follows from. Empty where there was no checkpoint.
    """

    files: tuple[str, ...]
    contract: tuple[str, ...]
    parity: tuple[str, ...]
    measured: tuple[ComponentParity, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """All differences and shortfalls."""
        return self.files + self.contract + self.parity


def verify_bundle(
    bundle: Bundle,
    checkpoint: Checkpoint | None,
    gate: ParityGate | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check a bundle. Its parity is measured on speech of the demo.

    Args:
        bundle: The bundle.
        checkpoint: Its source, or None to leave parity unchecked.
        gate: The parity that is required, or None for the default.
        progress: Receives the stages.

    Raises:
        BundleError: A package cannot be read at all, although its hashes are right.
    """
    listener: Progress = progress or SilentProgress()
    with listener.stage(bundle.name, "hashes"):
        files = bundle.differing_files()
    with listener.stage(bundle.name, "contract"):
        breaches = _contract_problems(bundle)
    measured: list[ComponentParity] = []
    if checkpoint is not None and not files and not breaches:
        measured = _measure(bundle, checkpoint, listener)
    parity = [line for item in measured for line in item.shortfalls(gate or ParityGate())]
    if measured and checkpoint is not None and bundle.has(PREFILL):
        with listener.stage(PREFILL, "speech"):
            parity += prefill_problems(bundle, checkpoint)
    return Verification(tuple(files), tuple(breaches), tuple(parity), tuple(measured))


def bundle_is_stateful(bundle: Bundle) -> bool:
    """Return whether the decoder's caches are states, a form that today's open runtime does not load."""
    try:
        return bool(bundle.package(contract.DECODER).graph().states)
    except BundleError:  # `verify_bundle` says what is wrong with it
        return False


def _contract_problems(bundle: Bundle) -> list[str]:
    try:
        dims = dimensions(bundle.read_json("config.json"), str(bundle.asset("config.json")))
        decoder = bundle.package(contract.DECODER).graph()
    except (BundleError, CheckpointError) as error:
        return [str(error)]
    stateful = bool(decoder.states)
    cache = {**decoder.inputs, **decoder.states}.get(contract.KEY_CACHE)
    kv_length = (cache.shape[3] if cache and len(cache.shape) == 4 else None) or dims.n_text_ctx
    word_timestamps = contract.ALIGNMENT in decoder.outputs
    interfaces = package_interfaces(dims, kv_length, word_timestamps=word_timestamps)
    names: tuple[str, ...] = COMPONENTS
    if bundle.has(VERIFIER) and (tokens := bundle.manifest.speculation and bundle.manifest.speculation.tokens):
        interfaces[VERIFIER] = verifier_interface(dims, kv_length, tokens, word_timestamps=word_timestamps)
        names = (*COMPONENTS, VERIFIER)
    problems = [f"{name} is missing" for name in ("tokenizer.json",) if not (bundle.path / name).is_file()]
    for name in names:
        try:
            if stateful and name == contract.DECODER:
                functions = stateful_interfaces(dims, kv_length, word_timestamps=word_timestamps)
                problems += stateful_problems(name, bundle.package(name).path, functions)
            else:
                problems += package_problems(name, bundle.package(name).path, interfaces[name])
        except Exception as error:  # protobuf and coremltools raise many kinds for a damaged model file
            problems.append(f"{name}: cannot be read ({type(error).__name__}: {error})")
    return problems + prefill_contract_problems(bundle, dims)


def _measure(bundle: Bundle, checkpoint: Checkpoint, progress: Progress) -> list[ComponentParity]:
    conversion = bundle.manifest.conversion or ConversionRecord()
    heads = tuple((layer, head) for layer, head in conversion.alignment_heads) or None
    length = checkpoint.dims.n_text_ctx if conversion.kv_length is None else conversion.kv_length
    components = Components(checkpoint, length, heads, verification_speech())
    measured = []
    for name in COMPONENTS:
        with progress.stage(name, "parity"):
            reference = components.reference(name, to_reference_form(components.load(name)))
            measured.append(reference.compare(bundle.package(name).path))
    return measured


def source_of(bundle: Bundle) -> tuple[str, str | None, dict[str, str]] | None:
    """Return name, revision and weight hashes of the checkpoint that a bundle records, or None."""
    source = bundle.manifest.source
    if source is None or not source.name or bundle.manifest.conversion is None:
        return None
    return source.name, source.revision, dict(source.sha256)
