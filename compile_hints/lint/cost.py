"""Cost of a program on a chip: FLOPs, bytes, which of them bounds it, and an estimated latency.

`latency = sum over operations of max(FLOPs / peak, bytes / bandwidth) + launches * launch time`. A program handed to
the engine as one piece is one launch; each change of the engine is one more. Operations that leave the Neural Engine
run at the GPU's rates. Estimates are for ordering choices: half of them are off by more than `ChipTable.median_error`.

Source: ane-guide, chapters 9 and 18, measured elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from whisperkit_tools.compile_hints.lint.chips import Chip, ChipTable
from whisperkit_tools.compile_hints.lint.flops import OperationCount, Weight, count_program
from whisperkit_tools.compile_hints.lint.rules import lint_program
from whisperkit_tools.compile_hints.lint.traffic import memory_bytes, operation_key, partitions
from whisperkit_tools.mil.graph import Graph

DEFAULT_DECODER_PASSES = 100


@dataclass(frozen=True, slots=True)
class ProgramEstimate:
    """The cost of one call of a program on one chip.

    Attributes:
        component: The package's name.
        chip: Name of the chip.
        flops: Floating-point operations.
        engine_share: Share of them on the Neural Engine, 0 to 1.
        weight_bytes: Weights streamed: compressed where the chip streams that form, else expanded.
        activation_bytes: Activations, inputs and outputs read from and written to memory.
        intensity: FLOPs for each of these bytes.
        bound: Which term is the largest: `compute`, `bandwidth` or `launch`.
        launches: Hand-overs to an engine.
        compute_s: Sum over the operations of the time the engine's peak allows.
        memory_s: Sum over the operations of the time the bandwidth allows.
        latency_s: The estimated time of one call.
        median_error: Half of the estimates are off by more than this fraction.
        uncounted: Types of operations whose FLOPs are not known and taken as 0.
        open_inputs: Inputs with axes of open size, each of which is counted as 1.
    """

    component: str
    chip: str
    flops: int
    engine_share: float
    weight_bytes: int
    activation_bytes: int
    intensity: float
    bound: str
    launches: int
    compute_s: float
    memory_s: float
    latency_s: float
    median_error: float
    uncounted: tuple[str, ...]
    open_inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BundleEstimate:
    """The cost of a bundle on one chip.

    Attributes:
        bundle: Its name.
        chip: Name of the chip.
        programs: Its components.
        encoder_s: One call of the encoder, None when it has none.
        decoder_step_s: One call of the decoder, None when it has none.
        window_s: A 30-second window: all other components once, the decoder `decoder_passes` times; None when encoder
            or decoder is missing.
        decoder_passes: The assumed number of decoder calls.
        median_error: As in `ProgramEstimate`.
    """

    bundle: str
    chip: str
    programs: tuple[ProgramEstimate, ...]
    encoder_s: float | None
    decoder_step_s: float | None
    window_s: float | None
    decoder_passes: int
    median_error: float


def estimate_program(component: str, graph: Graph, chip: Chip, table: ChipTable) -> ProgramEstimate:
    """Estimate one call of a program.

    Args:
        component: The name to report.
        graph: The program.
        chip: The chip it is to run on.
        table: What holds for all chips.
    """
    residency = lint_program(graph, chip, table)
    on_engine = residency.on_engine
    counts = count_program(graph)
    moved = memory_bytes(graph, on_engine, chip.working_set_bytes.value)
    launches = len(partitions(graph, on_engine))
    times = []
    for count in counts:
        name = operation_key(count.operation)
        times.append(_times(count, moved[name], on_engine[name], chip, table))
    compute_s, memory_s = (sum(time[side] for time in times) for side in (0, 1))
    terms = {"compute": compute_s, "bandwidth": memory_s, "launch": launches * chip.launch_s.value}
    flops = sum(count.flops for count in counts)
    streamed = sum(streamed_bytes(weight, chip) for count in counts for weight in count.weights)
    activations = sum(moved.values())
    return ProgramEstimate(
        component=component,
        chip=chip.name,
        flops=flops,
        engine_share=residency.flops_share,
        weight_bytes=streamed,
        activation_bytes=activations,
        intensity=flops / max(streamed + activations, 1),
        bound=max(terms, key=lambda name: terms[name]),
        launches=launches,
        compute_s=compute_s,
        memory_s=memory_s,
        latency_s=sum(max(time) for time in times) + terms["launch"],
        median_error=table.median_error.value,
        uncounted=tuple(sorted({count.operation.type for count in counts if not count.counted})),
        open_inputs=tuple(name for name, spec in graph.inputs.items() if None in spec.shape),
    )


def streamed_bytes(weight: Weight, chip: Chip) -> int:
    """Return the bytes that count for a weight: stored where the chip streams its form, else expanded."""
    gain = chip.stream_gain.get(weight.form)
    return weight.stored_bytes if gain and gain.value > 0 else weight.dense_bytes


def _times(
    count: OperationCount, activation_bytes: int, on_engine: bool, chip: Chip, table: ChipTable
) -> tuple[float, float]:
    """Return the seconds that an operation takes by the peak and by the bandwidth of where it runs."""
    peak, bandwidth = chip.peak_flops_s.value, chip.bandwidth_bytes_s.value
    if not on_engine:
        peak *= table.elsewhere_peak_ratio.value
        bandwidth *= table.elsewhere_bandwidth_ratio.value
    weights = sum(_weight_cost_bytes(weight, chip, on_engine) for weight in count.weights)
    return count.flops / peak, (activation_bytes + weights) / bandwidth


def _weight_cost_bytes(weight: Weight, chip: Chip, on_engine: bool) -> float:
    """Return the dense bytes that stream as long as the weight does: not all saved bytes save time."""
    gain = chip.stream_gain.get(weight.form)
    share = gain.value if gain and on_engine else 0.0
    return weight.dense_bytes - share * (weight.dense_bytes - weight.stored_bytes)


def estimate_bundle(
    name: str,
    programs: Mapping[str, Graph],
    chip: Chip,
    table: ChipTable,
    decoder_passes: int = DEFAULT_DECODER_PASSES,
) -> BundleEstimate:
    """Estimate encoder, decoder step and a 30-second window.

    Args:
        name: The bundle's name.
        programs: Its programs by package name; which is the encoder and which the decoder follows from the names.
        chip: The chip it is to run on.
        table: What holds for all chips.
        decoder_passes: Decoder calls in a window, forced tokens included; a prefill table replaces as many of
            them as it has positions.
    """
    estimates = {part: estimate_program(part, graph, chip, table) for part, graph in programs.items()}
    parts: dict[str, ProgramEstimate] = {}
    for part, estimate in estimates.items():
        parts.setdefault(role(part), estimate)  # packages come in the order of the data flow: the first one counts
    encoder, decoder = parts.get("encoder"), parts.get("decoder")
    passes = max(decoder_passes - _prefilled_passes(programs), 0)
    window = None
    if encoder and decoder:
        window = sum(estimate.latency_s for estimate in estimates.values()) + (passes - 1) * decoder.latency_s
    return BundleEstimate(
        bundle=name,
        chip=chip.name,
        programs=tuple(estimates.values()),
        encoder_s=encoder.latency_s if encoder else None,
        decoder_step_s=decoder.latency_s if decoder else None,
        window_s=window,
        decoder_passes=passes,
        median_error=table.median_error.value,
    )


def _prefilled_passes(programs: Mapping[str, Graph]) -> int:
    """Return how many positions of the caches a prefill table fills: three, or one of an English-only model."""
    outputs = (out for part, graph in programs.items() if role(part) == "prefill" for out in graph.outputs.values())
    return min((out.shape[3] or 0 for out in outputs if len(out.shape) == 4), default=0)


def role(package: str) -> str:
    """Return a package's role, `prefill`, `encoder`, `decoder` or `other`, by its name, which differs by publisher."""
    lowered = package.lower()
    return next((part for part in ("prefill", "encoder", "decoder") if part in lowered), "other")
