"""`wkt estimate`: the costs of bundles on chips."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import whisperkit_tools as wkt
from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show, show_json

if TYPE_CHECKING:
    from whisperkit_tools.compile_hints.lint.chips import Chip, ChipTable
    from whisperkit_tools.compile_hints.lint.cost import BundleEstimate


@click.command()
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=options.PATH)
@click.option("--chip", default="m1,m5", show_default=True, help="Chips, separated by commas.")
@click.option(
    "--tokens",
    default=100,
    show_default=True,
    type=click.IntRange(1, 448),
    help="Assumed decoder passes in a 30-second window, forced tokens included.",
)
@options.function
@click.option("--plot", type=options.FILE, help="Write a roofline chart (PNG).")
@options.json_output
def command(bundles: tuple[Path, ...], as_json: bool, plot: Path | None, **chosen: Any) -> None:
    """Estimate FLOPs, memory traffic and latency of bundles on Apple chips.

    BUNDLE is a bundle or a single package. The estimates are made for comparing alternatives. They are not promises in
    milliseconds: the error beside each figure is the median error of the model.
    """
    found = wkt.estimate(bundles, plot=plot, **chosen)
    if as_json:
        show_json(
            {
                "assumption": _assumption(found.estimates),
                "median_error": asdict(found.table.median_error),
                "chips": {chip.name: _rates(chip) for chip in found.chips},
                "estimates": [asdict(estimate) for estimate in found.estimates],
            }
        )
        return
    _print(found.estimates, found.chips, found.table)
    if plot:
        show(f"picture: {plot}")


def _rates(chip: "Chip") -> dict[str, object]:
    names = ("peak_flops_s", "bandwidth_bytes_s", "launch_s", "working_set_bytes")
    return {name: asdict(getattr(chip, name)) for name in names}


def _assumption(estimates: Sequence["BundleEstimate"]) -> str:
    passes = " or ".join(str(count) for count in dict.fromkeys(estimate.decoder_passes for estimate in estimates))
    return f"a 30-second window is every component once and the decoder {passes} times"


def _print(estimates: Sequence["BundleEstimate"], chips: Sequence["Chip"], table: "ChipTable") -> None:
    error = table.median_error.value
    head = (
        f"{'component':<26} {'chip':<7} {'GFLOP':>9} {'MB':>9} {'FLOP/byte':>9}  {'bound':<9} {'launches':>8}  latency"
    )
    for bundle in dict.fromkeys(estimate.bundle for estimate in estimates):
        show(f"{bundle}\n  {head}")
        chosen = [estimate for estimate in estimates if estimate.bundle == bundle]
        # By component, so that the chips of one stand below each other.
        for program in (
            program for programs in zip(*(item.programs for item in chosen), strict=True) for program in programs
        ):
            size = program.weight_bytes + program.activation_bytes
            show(
                f"  {program.component:<26} {program.chip:<7} {program.flops / 1e9:>9.3f} {size / 1e6:>9.2f} "
                f"{program.intensity:>9.1f}  {program.bound:<9} {program.launches:>8}  "
                f"{_time(program.latency_s, error)}"
            )
            if program.uncounted:
                show(f"    not counted: {', '.join(program.uncounted)}")
            if program.open_inputs:
                show(f"    too low: axes of open size count as 1, in {', '.join(program.open_inputs)}")
        show("")
    _print_comparison(estimates, error)
    show(f"\nAssumed: {_assumption(estimates)}.")
    show(f"Error: median {error:.0%}, {table.median_error.kind} ({table.median_error.source}).")
    for chip in chips:
        peak, bandwidth = chip.peak_flops_s, chip.bandwidth_bytes_s
        show(
            f"{chip.name}: {peak.value / 1e12:.2f} TFLOP/s ({peak.kind}), {bandwidth.value / 1e9:.1f} GB/s "
            f"({bandwidth.kind}), {chip.launch_s.value * 1e3:.2f} ms a launch ({chip.launch_s.kind})"
        )


def _print_comparison(estimates: Sequence["BundleEstimate"], error: float) -> None:
    """Print encoder, step and window of each bundle on each chip, and the window against the first of the chip."""
    width = max(len(estimate.bundle) for estimate in estimates)
    show(f"{'bundle':<{width}} {'chip':<7} {'encoder':>18} {'decoder step':>18} {'30-second window':>18}")
    first: dict[str, float] = {}
    for estimate in estimates:
        window = estimate.window_s
        ratio = f"  {window / first[estimate.chip]:.2f}x" if window and estimate.chip in first else ""
        if window:
            first.setdefault(estimate.chip, window)
        times = (estimate.encoder_s, estimate.decoder_step_s, window)
        columns = " ".join(f"{_time(time, error) if time is not None else '-':>18}" for time in times)
        show(f"{estimate.bundle:<{width}} {estimate.chip:<7} {columns}{ratio}")


def _time(seconds: float, error: float) -> str:
    return f"{seconds * 1e3:.3g} ms ±{error:.0%}" if seconds < 1 else f"{seconds:.3g} s ±{error:.0%}"
