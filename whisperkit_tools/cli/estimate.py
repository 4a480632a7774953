"""`wkt estimate`: what a bundle costs on a chip."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from whisperkit_tools.compile_hints.lint.chips import Chip, ChipTable
    from whisperkit_tools.compile_hints.lint.cost import BundleEstimate


@click.command()
@click.argument("paths", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--chip", "chip_names", default="m1,m5", show_default=True, help="Chips, separated by commas.")
@click.option(
    "--tokens",
    default=100,
    show_default=True,
    type=click.IntRange(1, 448),
    help="Decoder passes assumed in a 30-second window, forced tokens included.",
)
@click.option("--function", help="Only this function of a package with several [default: all].")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a roofline picture (PNG).")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    paths: tuple[Path, ...], chip_names: str, tokens: int, function: str | None, plot: Path | None, as_json: bool
) -> None:
    """Estimate FLOPs, memory traffic and latency of bundles on Apple chips.

    The estimates are for ordering choices, not promises in milliseconds: the error beside each is the model's
    median error.
    """
    from dataclasses import asdict

    from whisperkit_tools.compile_hints.lint.roofline import draw_roofline, require_matplotlib

    table, chips = _chips(chip_names)
    if plot:
        require_matplotlib()
    estimates = _estimates(paths, chips, table, tokens, function)
    if plot:
        draw_roofline(estimates, table, plot)
    if as_json:
        figures = {chip.name: _rates(chip) for chip in chips}
        content = {
            "assumption": _assumption(estimates),
            "median_error": asdict(table.median_error),
            "chips": figures,
            "estimates": [asdict(estimate) for estimate in estimates],
        }
        click.echo(json.dumps(content, indent=2))
    else:
        _print(estimates, chips, table)
        if plot:
            click.echo(f"picture: {plot}")


def _chips(names: str) -> tuple["ChipTable", list["Chip"]]:
    from whisperkit_tools.compile_hints.lint.chips import load_chips

    table = load_chips()
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    try:
        chips = [table.chip(name) for name in dict.fromkeys(chosen)]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--chip") from error
    if not chips:
        raise click.BadParameter(f"names no chip; known are {', '.join(table.chips)}", param_hint="--chip")
    return table, chips


def _estimates(
    paths: tuple[Path, ...], chips: list["Chip"], table: "ChipTable", tokens: int, function: str | None
) -> list["BundleEstimate"]:
    from whisperkit_tools.cli.arguments import find_functions, unique_names
    from whisperkit_tools.compile_hints.lint.cost import estimate_bundle
    from whisperkit_tools.mil.graph import read_graph

    found = []
    for name, path in unique_names(paths).items():
        functions = find_functions(path, function)
        programs = {part: read_graph(package, one) for part, (package, one) in functions.items()}
        found += [estimate_bundle(name, programs, chip, table, tokens) for chip in chips]
    return found


def _rates(chip: "Chip") -> dict[str, object]:
    from dataclasses import asdict

    names = ("peak_flops_s", "bandwidth_bytes_s", "launch_s", "working_set_bytes")
    return {name: asdict(getattr(chip, name)) for name in names}


def _assumption(estimates: list["BundleEstimate"]) -> str:
    passes = " or ".join(str(count) for count in dict.fromkeys(estimate.decoder_passes for estimate in estimates))
    return f"a 30-second window is every component once and the decoder {passes} times"


def _print(estimates: list["BundleEstimate"], chips: list["Chip"], table: "ChipTable") -> None:
    error = table.median_error.value
    head = (
        f"{'component':<26} {'chip':<7} {'GFLOP':>9} {'MB':>9} {'FLOP/byte':>9}  {'bound':<9} {'launches':>8}  latency"
    )
    for bundle in dict.fromkeys(estimate.bundle for estimate in estimates):
        click.echo(f"{bundle}\n  {head}")
        chosen = [estimate for estimate in estimates if estimate.bundle == bundle]
        # By component, so that the chips of one stand below each other.
        for program in (
            program for programs in zip(*(item.programs for item in chosen), strict=True) for program in programs
        ):
            size = program.weight_bytes + program.activation_bytes
            click.echo(
                f"  {program.component:<26} {program.chip:<7} {program.flops / 1e9:>9.3f} {size / 1e6:>9.2f} "
                f"{program.intensity:>9.1f}  {program.bound:<9} {program.launches:>8}  "
                f"{_time(program.latency_s, error)}"
            )
            if program.uncounted:
                click.echo(f"    not counted: {', '.join(program.uncounted)}")
            if program.open_inputs:
                click.echo(f"    too low: axes of open size count as 1, in {', '.join(program.open_inputs)}")
        click.echo("")
    _print_comparison(estimates, error)
    click.echo(f"\nAssumed: {_assumption(estimates)}.")
    click.echo(f"Error: median {error:.0%}, {table.median_error.kind} ({table.median_error.source}).")
    for chip in chips:
        peak, bandwidth = chip.peak_flops_s, chip.bandwidth_bytes_s
        click.echo(
            f"{chip.name}: {peak.value / 1e12:.2f} TFLOP/s ({peak.kind}), {bandwidth.value / 1e9:.1f} GB/s "
            f"({bandwidth.kind}), {chip.launch_s.value * 1e3:.2f} ms a launch ({chip.launch_s.kind})"
        )


def _print_comparison(estimates: list["BundleEstimate"], error: float) -> None:
    """Print encoder, step and window of each bundle on each chip, and the window against the first of the chip."""
    width = max(len(estimate.bundle) for estimate in estimates)
    click.echo(f"{'bundle':<{width}} {'chip':<7} {'encoder':>18} {'decoder step':>18} {'30-second window':>18}")
    first: dict[str, float] = {}
    for estimate in estimates:
        window = estimate.window_s
        ratio = f"  {window / first[estimate.chip]:.2f}x" if window and estimate.chip in first else ""
        if window:
            first.setdefault(estimate.chip, window)
        times = (estimate.encoder_s, estimate.decoder_step_s, window)
        columns = " ".join(f"{_time(time, error) if time is not None else '-':>18}" for time in times)
        click.echo(f"{estimate.bundle:<{width}} {estimate.chip:<7} {columns}{ratio}")


def _time(seconds: float, error: float) -> str:
    return f"{seconds * 1e3:.3g} ms ±{error:.0%}" if seconds < 1 else f"{seconds:.3g} s ±{error:.0%}"
