"""Roofline plot of the cost model: each chip's roof, and the components below it."""

from collections.abc import Sequence
from pathlib import Path

from whisperkit_tools.compile_hints.lint.chips import ChipTable
from whisperkit_tools.compile_hints.lint.cost import BundleEstimate, ProgramEstimate
from whisperkit_tools.errors import OptionsError, WktError

MARKERS = "osD^vP*X<>hp"


def require_matplotlib() -> None:
    """Check that pictures can be drawn.

    Raises:
        WktError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise WktError("a plot needs matplotlib; install it: pip install 'whisperkit-tools[plot]'") from error


def draw_roofline(estimates: Sequence[BundleEstimate], table: ChipTable, target: Path) -> None:
    """Draw attained FLOP/s over FLOPs per byte, one colour for each chip, one marker for each component.

    Args:
        estimates: What to draw.
        table: Holds the chips' rates.
        target: The PNG file to write.

    Raises:
        WktError: matplotlib is not installed, or the folder does not exist.
        OptionsError: The file is not a PNG.
        OSError: The file cannot be written.
    """
    require_matplotlib()
    if target.suffix.lower() != ".png":
        raise OptionsError(f"{target} is not a PNG file; give the picture a name that ends with .png")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [(estimate, program) for estimate in estimates for program in estimate.programs if program.flops]
    chips = list(dict.fromkeys(estimate.chip for estimate in estimates))
    several = len({estimate.bundle for estimate in estimates}) > 1
    labels = list(dict.fromkeys(_label(estimate, program, several) for estimate, program in drawn))
    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    low = min((program.intensity for _, program in drawn), default=1.0) / 3
    high = max([program.intensity for _, program in drawn] + [500.0]) * 3
    for index, name in enumerate(chips):
        roof, label = _roof(table, name, low, high)
        axes.plot(*roof, color=f"C{index}", label=label)
    for estimate, program in drawn:
        marker = MARKERS[labels.index(_label(estimate, program, several)) % len(MARKERS)]
        color = f"C{chips.index(estimate.chip)}"
        face = color if program.engine_share >= 0.5 else "none"
        attained = program.flops / program.latency_s
        axes.plot(program.intensity, attained, marker, color=color, markersize=9, markerfacecolor=face)
    for index, label in enumerate(labels):
        axes.plot([], [], MARKERS[index % len(MARKERS)], color="black", label=label)
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="FLOPs per byte of memory traffic")
    axes.set_ylabel("FLOP/s; hollow: not on the Neural Engine")
    axes.set_title(f"Neural Engine rooflines, estimated (median error {table.median_error.value:.0%})")
    axes.grid(True, which="major", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    try:
        figure.savefig(target, dpi=120, format="png")
    except FileNotFoundError as error:
        raise WktError(f"cannot write {target}: there is no folder {target.parent}") from error


def _roof(table: ChipTable, name: str, low: float, high: float) -> tuple[tuple[list[float], list[float]], str]:
    """The line of a chip's roof between two intensities, and its label."""
    chip = table.chips[name]
    peak, bandwidth = chip.peak_flops_s, chip.bandwidth_bytes_s
    ridge = max(peak.value / bandwidth.value, low)
    label = f"{chip.title}: {peak.value / 1e12:.2f} TFLOP/s, {bandwidth.value / 1e9:.0f} GB/s ({peak.kind})"
    return ([low, ridge, high], [min(low * bandwidth.value, peak.value), peak.value, peak.value]), label


def _label(estimate: BundleEstimate, program: ProgramEstimate, several: bool) -> str:
    return f"{estimate.bundle}: {program.component}" if several else program.component
