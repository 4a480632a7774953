"""What a bundle contains, whether it is intact, where its operations run, and what they cost."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.checkpoint import Checkpoint, open_checkpoint
from whisperkit_tools.compile_hints.lint.chips import Chip, ChipTable, load_chips
from whisperkit_tools.compile_hints.lint.cost import BundleEstimate, estimate_bundle
from whisperkit_tools.compile_hints.lint.roofline import draw_roofline, require_matplotlib
from whisperkit_tools.compile_hints.lint.rules import Residency, lint_program, rules
from whisperkit_tools.conversion.verify import Verification, bundle_is_stateful, source_of, verify_bundle
from whisperkit_tools.errors import CheckpointError, OptionsError, QualityGateError, option
from whisperkit_tools.files import folder_bytes
from whisperkit_tools.languages import base_language
from whisperkit_tools.mil.coreml import planned_devices, require_compute_plan
from whisperkit_tools.mil.graph import Graph
from whisperkit_tools.mil.package import Package
from whisperkit_tools.mil.size_check import damage_reported
from whisperkit_tools.pipeline.arguments import as_bundle, as_tuple, find_functions, unique_names
from whisperkit_tools.progress import Progress


@dataclass(frozen=True, slots=True)
class PackageLint:
    """One program on a chip.

    Attributes:
        report: Which operations stay on the Neural Engine, with the findings that are not ignored.
        devices: The device that Core ML plans for each operation; None without `measured`.
    """

    report: Residency
    devices: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class LintReport:
    """Programs of a bundle or package on a chip.

    Attributes:
        path: The bundle or package.
        chip: The chip.
        packages: By name of the package, with the function's where it has several.
    """

    path: Path
    chip: Chip
    packages: Mapping[str, PackageLint]

    @property
    def n_findings(self) -> int:
        """How many findings there are in all programs."""
        return sum(len(package.report.findings) for package in self.packages.values())

    def require_clean(self) -> None:
        """Check that there are no findings.

        Raises:
            QualityGateError: There are some.
        """
        count = self.n_findings
        if count:
            found = "1 finding" if count == 1 else f"{count} findings"
            raise QualityGateError(
                f"{self.path}: {found} on {self.chip.title}; accept those of a rule with {option('ignore', 'RULE')}"
            )


def lint(
    path: str | Path | Bundle | Package,
    *,
    chip: str = "a14",
    function: str | None = None,
    ignore: str | Sequence[str] = (),
    measured: bool = False,
) -> LintReport:
    """List the operations that will leave the Neural Engine, the reasons, and what the layout wastes.

    Args:
        path: A bundle or a package, opened or by path.
        chip: The oldest chip that must run it.
        function: The only function to look at, of a package with several. None for all.
        ignore: Rules whose findings are omitted.
        measured: Also ask Core ML for its compute plan (macOS only).

    Raises:
        OptionsError: The chip or a rule is unknown.
        BundleError: There is nothing at `path`, or a package is not an ML Program.

    Example:
        >>> import whisperkit_tools as wkt
        >>> found = wkt.lint("bundles/acme_whisper-demo", chip="m1")
        >>> round(found.packages["AudioEncoder"].report.flops_share, 1)
        1.0
    """
    table = load_chips()
    chosen, ignored, place = _chip(table, chip), as_tuple(ignore), _place(path)
    if unknown := sorted(set(ignored) - rules().keys()):
        raise OptionsError(f"{option('ignore')}: unknown rule {', '.join(unknown)}; known are {', '.join(rules())}")
    if measured:
        require_compute_plan()
    packages = {}
    for name, (package, part) in find_functions(place, function).items():
        with damage_reported(package.path):
            report = lint_program(package.graph(part), chosen, table)
        kept = tuple(finding for finding in report.findings if finding.rule not in ignored)
        devices = planned_devices(package.path, part) if measured else None
        packages[name] = PackageLint(replace(report, findings=kept), devices)
    return LintReport(place, chosen, packages)


def _place(path: str | Path | Bundle | Package) -> Path:
    return Path(path) if isinstance(path, (str, Path)) else path.path


def _chip(table: ChipTable, name: str) -> Chip:
    """Return a chip by name.

    Raises:
        OptionsError: It is unknown.
    """
    try:
        return table.chip(name)
    except ValueError as error:
        raise OptionsError(f"{option('chip')}: {error}") from error


@dataclass(frozen=True, slots=True)
class Estimates:
    """Costs of bundles on chips.

    Attributes:
        estimates: For each bundle, one for each chip.
        chips: The chips.
        table: The table that they come from, with the median error of the model.
    """

    estimates: tuple[BundleEstimate, ...]
    chips: tuple[Chip, ...]
    table: ChipTable


def estimate(
    bundles: str | Path | Bundle | Package | Iterable[str | Path | Bundle | Package],
    *,
    chip: str | Sequence[str] = "m1,m5",
    tokens: int = 100,
    function: str | None = None,
    plot: str | Path | None = None,
) -> Estimates:
    """Estimate FLOPs, memory traffic and latency of bundles on Apple chips.

    Args:
        bundles: One or several bundles or packages, opened or by path.
        chip: Names of chips, separated by commas or as a list.
        tokens: Assumed decoder passes in a 30-second window, forced tokens included.
        function: The only function to look at, of a package with several. None for all.
        plot: File for a roofline chart (PNG).

    Raises:
        OptionsError: A chip is unknown.
        BundleError: There is nothing at a path, or a package is not an ML Program.

    Example:
        >>> import whisperkit_tools as wkt
        >>> costs = wkt.estimate("bundles/acme_whisper-demo", chip="m1")
        >>> [program.component for program in costs.estimates[0].programs]
        ['MelSpectrogram', 'AudioEncoder', 'TextDecoder']
    """
    table = load_chips()
    names = [name.strip() for word in as_tuple(chip) for name in word.split(",") if name.strip()]
    chips = [_chip(table, name) for name in dict.fromkeys(names)]
    if not chips:
        raise OptionsError(f"{option('chip')} names no chip; known are {', '.join(table.chips)}")
    if plot is not None:
        require_matplotlib()
    several = [bundles] if isinstance(bundles, (str, Path, Bundle, Package)) else bundles
    paths = [_place(bundle) for bundle in several]
    found: list[BundleEstimate] = []
    for name, path in unique_names(paths).items():
        functions = find_functions(path, function)
        programs = {part: package.graph(one) for part, (package, one) in functions.items()}
        with damage_reported(path):
            found += [estimate_bundle(name, programs, one, table, tokens) for one in chips]
    if plot is not None:
        draw_roofline(found, table, Path(plot))
    return Estimates(tuple(found), tuple(chips), table)


@dataclass(frozen=True, slots=True)
class BundleVerification:
    """The state of a bundle.

    Attributes:
        bundle: The bundle.
        found: Differences from the manifest, the runtime's contract and the checkpoint.
        parity_skipped: The reason why parity was not checked; None when it was.
        is_stateful: Whether the decoder's caches are states.
    """

    bundle: Bundle
    found: Verification
    parity_skipped: str | None
    is_stateful: bool

    def require(self) -> None:
        """Check that nothing differs.

        Raises:
            QualityGateError: Naming all that differs.
        """
        if self.found.problems:
            raise QualityGateError(f"{self.bundle.path} does not verify: {'; '.join(self.found.problems)}")


def verify(
    bundle: Bundle | str | Path,
    *,
    source: str | Path | Checkpoint | None = None,
    parity: bool = True,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> BundleVerification:
    """Check a bundle's hashes, runtime contract and parity.

    Args:
        bundle: The bundle, opened or by folder.
        source: The checkpoint to compare with. None for the one that the bundle records.
        parity: Compare with the checkpoint. Otherwise only hashes and contract are checked.
        allow_pickle: Read a pickled source, without running code in it.
        progress: Receives stages.

    Raises:
        BundleError: The bundle is incomplete, or a package cannot be read although its hashes are right.
        CheckpointError: `source` cannot be read, or holds other weights.

    Example:
        >>> import whisperkit_tools as wkt
        >>> wkt.verify("bundles/acme_whisper-demo", parity=False).found.problems
        ()
    """
    opened = as_bundle(bundle)
    checkpoint, reason = _checkpoint(opened, source, allow_pickle) if parity else (None, option("parity", False))
    found = verify_bundle(opened, checkpoint, progress=progress)
    return BundleVerification(opened, found, reason, bundle_is_stateful(opened))


def _checkpoint(
    bundle: Bundle, source: str | Path | Checkpoint | None, allow_pickle: bool
) -> tuple[Checkpoint | None, str | None]:
    """Open the checkpoint to compare with, or return the reason why there is none."""
    recorded = source_of(bundle)
    if recorded is None:
        return None, "the bundle does not record how it was converted"
    name, revision, hashes = recorded
    try:
        checkpoint = (
            source
            if isinstance(source, Checkpoint)
            else open_checkpoint(str(source or name), revision=None if source else revision, allow_pickle=allow_pickle)
        )
    except CheckpointError as error:
        if source:
            raise
        return None, f"its source cannot be opened ({error.message}); name a copy with {option('source')}"
    if hashes and sorted(checkpoint.content_sha256.values()) != sorted(hashes.values()):
        if source:
            raise CheckpointError(
                f"{checkpoint.source} holds other weights than {name}, from which the bundle was converted"
            )
        return None, f"{name} holds other weights now than those converted; name the original with {option('source')}"
    return checkpoint, None


def describe(bundle: Bundle | str | Path) -> dict[str, Any]:
    """Return what a bundle contains: components with inputs, outputs, sizes and operations, and its manifest."""
    opened = as_bundle(bundle)
    components = {name: _component(opened, name) for name in opened.components()}
    return {
        "name": opened.name,
        "bytes": folder_bytes(opened.path),
        "loads_in_runtime": not any(component["states"] for component in components.values()),
        "defaults": _defaults(opened),
        "components": components,
        "manifest": {key: value for key, value in opened.manifest.to_json().items() if key != "files"},
    }


def _defaults(bundle: Bundle) -> dict[str, str]:
    """Return the language and task that a fine-tune states, which transcription takes where none are given."""
    if not (bundle.path / "generation_config.json").is_file():
        return {}
    given = bundle.read_json("generation_config.json")
    language, task = given.get("language"), given.get("task")
    found = {
        "language": base_language(language) if isinstance(language, str) else None,
        "task": task if isinstance(task, str) else None,
    }
    return {name: value for name, value in found.items() if value}


def _component(bundle: Bundle, name: str) -> dict[str, Any]:
    package = bundle.package(name)
    first, *others = package.functions
    graph, parity = package.graph(first), bundle.manifest.parity
    return {
        "bytes": package.nbytes,
        "opset": graph.metadata.opset,
        "license": graph.metadata.license,
        **_program(graph),
        "functions": {one: _program(package.graph(one)) for one in others},
        "psnr_db": parity.psnr_db.get(name, {}) if parity else {},
    }


def _program(graph: Graph) -> dict[str, Any]:
    """Return inputs, outputs, states and operations of one function."""
    return {
        "inputs": {key: f"{spec.dtype}{list(spec.shape)}" for key, spec in graph.inputs.items()},
        "outputs": {key: f"{spec.dtype}{list(spec.shape)}" for key, spec in graph.outputs.items()},
        "states": {key: f"{spec.dtype}{list(spec.shape)}" for key, spec in graph.states.items()},
        "operations": dict(Counter(operation.type for operation in graph.operations).most_common()),
    }
