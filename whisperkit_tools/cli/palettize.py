"""`wkt palettize`: a bundle to the smallest one that passes the quality gate."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import whisperkit_tools as wkt
from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show, show_json
from whisperkit_tools.cli.progress import ConsoleProgress

if TYPE_CHECKING:
    from whisperkit_tools.compress.config import PalettizeResult
    from whisperkit_tools.compress.planner import CompressionPlan

_size = options.options(
    click.option(
        "--bits",
        metavar="mixed|N",
        help="mixed: the best width for each weight. It searches for the size, unless an option below names one. N: "
        "the same width for all weights.  [default: mixed]",
    ),
    click.option("--target-bits", type=float, help="Average bits per element, tables included."),
    click.option("--target-size", metavar="SIZE", help="Size of encoder and decoder, for example 600MB."),
    click.option(
        "--max-kl",
        type=float,
        help="Maximum KL divergence from the uncompressed bundle, in nats per token.",
    ),
    click.option("--recipe", type=options.PATH, help="Follow a recipe file."),
    click.option("--recipe-out", type=options.PATH, help="Write the recipe to a file, for editing and --recipe."),
    click.option("--allowed-nbits", metavar="N,N", help="Bit widths that mixed may use.  [default: all but 1]"),
    click.option(
        "--group-size",
        type=int,
        help="Channels that share a palette (iOS 18).  [default: 8, 16 and 32 where they pay off]",
    ),
    click.option(
        "--allow",
        default="",
        metavar="FORM,FORM",
        help="Further forms that mixed may use: vectors, scales, outliers. Reports say that palettes with scales do "
        "not load on the Neural Engine of macOS 26.",
    ),
    click.option(
        "--keep",
        multiple=True,
        metavar="PATTERN",
        help="Keep weights in float16, by NAME or COMPONENT/NAME. Repeatable.",
    ),
    click.option(
        "--tune-palettes",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        metavar="STEPS",
        help="Tune the palettes by gradient descent on the divergence, for this many steps.",
    ),
)

_gate = options.options(
    click.option(
        "--qoi-min",
        type=float,
        default=95.0,
        show_default=True,
        help="Gate: minimum percentage of examples that are no worse.",
    ),
    click.option(
        "--wer-delta-max",
        type=float,
        default=1.0,
        show_default=True,
        help="Gate: maximum rise of the word error rate, in percentage points.",
    ),
    click.option("--confident", is_flag=True, help="Gate: judge by the pessimistic end of each 95 % interval."),
    click.option(
        "--calibration",
        metavar="DIR|DATASET",
        help="Speech on which sensitivity is measured: a folder of audio, or a dataset that `wkt evaluate` accepts.  "
        "[default: the demo's]",
    ),
    click.option(
        "--gate-audio",
        metavar="DIR|DATASET",
        help="Gate examples: audio with a .txt beside each file, or a dataset that `wkt evaluate` accepts.  "
        "[default: the demo's]",
    ),
    click.option(
        "--allow-overlap",
        is_flag=True,
        help="Let the gate judge on recordings that were used for calibration or tuning. The manifest states it.",
    ),
    click.option(
        "--reference",
        type=options.PATH,
        metavar="BUNDLE",
        help="Gate: bundle to compare with.  [default: the uncompressed bundle]",
    ),
    click.option("--gate-examples", type=click.IntRange(1), help="Maximum number of gate examples.  [default: all]"),
    click.option(
        "--windows", type=click.IntRange(1), default=8, show_default=True, help="Maximum number of calibration windows."
    ),
    click.option(
        "--trials",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        help="Maximum number of candidates of a search.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Random seed."),
)


@click.command()
@click.argument("bundle", metavar="[BUNDLE]", required=False, type=options.PATH)
@_size
@_gate
@click.option("-o", "--output-dir", type=options.PATH, help="Folder that holds bundles.  [default: the bundle's]")
@click.option(
    "--profile",
    type=options.PATH,
    metavar="DIR",
    help="Folder for measurements that later runs reuse.  [default: .profiles beside the bundle]",
)
@click.option(
    "--keep-rejected",
    is_flag=True,
    help="Keep a result that does not pass the gate, under a name that cannot be published.",
)
@click.option(
    "--plot",
    type=options.PATH,
    metavar="FILE.png",
    help="Plot divergence against size, predicted and measured on the gate's speech, beside ggml's block formats. The "
    "numbers are in a JSON file beside it. Measuring takes seconds for each point.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and make nothing.")
@options.force
@options.json_output
def command(bundle: Path | None, as_json: bool, dry_run: bool, **chosen: Any) -> None:
    """Compress a bundle to the smallest size that passes the quality gate.

    BUNDLE is a folder that `wkt convert` made, or any bundle of the on-device runtime [default: the last converted].
    Its packages are run on speech to measure how much each weight matters. Later runs reuse these measurements.

    The result is verified by running it, and compared with the uncompressed bundle on the gate's examples. When
    nothing passes, the command exits 3, prints how close it came, and keeps nothing.
    """
    with ConsoleProgress() as progress:
        if dry_run:
            plan = wkt.palettize(bundle, **chosen, dry_run=True, progress=progress)
        else:
            result = wkt.palettize(bundle, **chosen, progress=progress).result
    if dry_run:
        _show_plan(plan, as_json)
    else:
        _show_result(result, as_json)


def _show_plan(plan: "CompressionPlan", as_json: bool) -> None:
    if as_json:
        show_json(_plan_json(plan))
        return
    show(f"{'weight':<60} {'stored as':<38} {'bytes':>10}  predicted KL")
    for (component, name), entry in plan.recipe.entries.items():
        stored = "float16" if entry.compression is None else str(entry.compression)
        show(f"{component + '/' + name:<60} {stored:<38} {entry.nbytes:>10}  {entry.divergence:.2e}")
    gap = f", at most {100 * plan.gap:.3f} % from the best" if plan.gap else ""
    show(
        f"\n{plan.nbytes / 1e6:.3f} MB of {plan.original_nbytes / 1e6:.3f} MB, {plan.bits:.3f} bits an element, "
        f"predicted KL {plan.recipe.divergence:.5f} nats a token{gap}"
    )
    if plan.measured is not None:
        parts = ", ".join(f"{name} {value:.5f}" for name, value in plan.measured.parts.items())
        show(f"measured on held-out speech: KL {plan.measured.together:.5f} nats a token (alone: {parts})")


def _plan_json(plan: "CompressionPlan") -> dict[str, Any]:
    return {
        "bundle": str(plan.bundle),
        "nbytes": plan.nbytes,
        "original_nbytes": plan.original_nbytes,
        "bits": plan.bits,
        "predicted_kl": plan.recipe.divergence,
        "held_out_kl": None if plan.measured is None else plan.measured.together,
        "allocation_gap": plan.gap,
        "recipe": plan.recipe.to_json(),
    }


def _show_result(result: "PalettizeResult", as_json: bool) -> None:
    if as_json:
        show_json(_result_json(result))
        return
    from whisperkit_tools.compress.manifest_section import describe
    from whisperkit_tools.compress.measured_sizes import describe_size

    for trial in result.trials:
        show(describe(trial))
    if result.tuning is not None:
        show(f"tuning          KL {result.tuning[0]:.5f} to {result.tuning[1]:.5f} on the calibration speech")
    if result.compared is not None:
        for one in (result.compared.chosen, *result.compared.block_formats):
            show(describe_size(one))
    show(result.path)


def _result_json(result: "PalettizeResult") -> dict[str, Any]:
    return {
        **_plan_json(result.plan),
        "path": str(result.path),
        "predicted_nbytes": result.plan.nbytes,
        "nbytes": result.nbytes,
        "gate": asdict(result.verdict),
        "trials": [asdict(trial) for trial in result.trials],
        "psnr_db": result.psnr_db,
        "tuning": result.tuning,
        "compared": asdict(result.compared) if result.compared is not None else None,
    }
