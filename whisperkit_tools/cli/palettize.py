"""`wkt palettize`: a bundle to the smallest one that still transcribes as well."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from whisperkit_tools.compress.compressor import Palettizer
    from whisperkit_tools.compress.config import Palettization, PalettizeConfig, Plan
    from whisperkit_tools.compress.planner import Aim, Ticks

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@click.command()
@click.argument("bundle_path", metavar="[BUNDLE]", required=False, type=click.Path(path_type=Path))
@click.option("--bits", default=None, metavar="mixed|N",
              help="mixed: the best width for each weight (searches the size unless one is named below); "
                   "N: the same for all [default: mixed].")  # fmt: skip
@click.option("--target-bits", type=float, help="Bits an element on average, tables included.")
@click.option("--target-size", metavar="SIZE", help="Size of encoder and decoder, for example 600MB.")
@click.option("--max-kl", type=float, help="Most KL divergence from the uncompressed bundle, in nats a token.")
@click.option("--recipe", type=click.Path(path_type=Path), help="Do what a recipe file says.")
@click.option(
    "--recipe-out", type=click.Path(path_type=Path), help="Write the recipe to a file, to edit and give back."
)
@click.option("--allowed-nbits", metavar="N,N", help="Bit widths that mixed may use [default: all but 1].")
@click.option("--group-size", type=int, help="Channels that share a palette (iOS 18) [default: 16 where it pays].")
@click.option("--keep", multiple=True, metavar="PATTERN",
              help="Weights that stay float16, by NAME or COMPONENT/NAME; repeatable.")  # fmt: skip
@click.option("--tune-palettes", "tune_steps", type=click.IntRange(min=0), default=0, metavar="STEPS",
              help="Adjust the tables by gradient on the divergence.")  # fmt: skip
@click.option("--qoi-min", type=float, default=95.0, show_default=True,
              help="Gate: least percentage of examples that are no worse.")  # fmt: skip
@click.option("--wer-delta-max", type=float, default=1.0, show_default=True,
              help="Gate: most that the word error rate may rise, in percentage points.")  # fmt: skip
@click.option("--confident", is_flag=True, help="Gate: judge by the pessimistic end of each 95 % interval.")
@click.option("--calibration", metavar="DIR|DATASET",
              help="Speech on which sensitivity is measured [default: the demo's].")  # fmt: skip
@click.option("--gate-audio", metavar="DIR|DATASET",
              help="The gate's examples: audio, each with a .txt beside it, or what `wkt evaluate` takes "
                   "[default: the demo's].")  # fmt: skip
@click.option("--reference", type=click.Path(path_type=Path), metavar="BUNDLE",
              help="The gate: what to be no worse than [default: the uncompressed bundle].")  # fmt: skip
@click.option("--gate-examples", type=click.IntRange(min=1), help="Most examples of the gate [default: all].")
@click.option("--windows", type=click.IntRange(min=1), default=8, show_default=True, help="Most calibration windows.")
@click.option("--trials", type=click.IntRange(min=1), default=8, show_default=True, help="Most candidates of a search.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is drawn.")
@click.option("-o", "--output-dir", type=click.Path(path_type=Path),
              help="The folder that holds bundles [default: the bundle's].")  # fmt: skip
@click.option("--profile", "profile_dir", type=click.Path(path_type=Path), metavar="DIR",
              help="Where what was measured is kept [default: .profiles beside the bundle].")  # fmt: skip
@click.option("--keep-rejected", is_flag=True, help="Keep what does not pass, under a name that cannot be published.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.png",
              help="Plot predicted divergence against size, the numbers beside it.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan and make nothing.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(bundle_path: Path | None, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Compress a bundle to the smallest size that passes the quality gate.

    BUNDLE is a folder that `wkt convert` made, or any bundle of the on-device runtime [default: the last converted].
    Its packages are run on speech to find out how much each weight matters; what was found is kept and used again.

    The result is verified by running it, and judged on the gate's examples against the uncompressed bundle. When
    nothing passes, the command exits 3, says how near it came, and puts nothing into place.
    """
    if options["plot"] is not None and options["plot"].suffix.lower() != ".png":
        raise click.BadParameter(f"{options['plot']} does not end in .png", param_hint="--plot")
    from whisperkit_tools.cli.progress import ConsoleProgress
    from whisperkit_tools.compress.compressor import Palettizer

    config = _config(options)
    with _ticking() as ticks:
        work = Palettizer(_bundle(bundle_path), config, ConsoleProgress(), ticks)
        if dry_run:
            plan = work.plan(config.aim or _middle())
            _written(work, plan, options)
        else:
            result = work.run()
            _written(work, result.plan, options)
    if dry_run:
        click.echo(json.dumps(_plan_json(plan), indent=2) if as_json else _plan_text(plan))
    else:
        click.echo(json.dumps(_result_json(result), indent=2) if as_json else _result_text(result))


def _middle() -> "Aim":
    """What a dry run shows of a search: where it starts."""
    from whisperkit_tools.compress.planner import Aim

    return Aim(target_bits=4.5)


def _bundle(path: Path | None) -> Any:
    from whisperkit_tools.bundle import Bundle, find_bundle
    from whisperkit_tools.errors import BundleError

    if path is not None:
        return Bundle.open(path)
    try:
        return find_bundle()
    except BundleError as error:
        raise BundleError(str(error).replace("with --bundle", "as BUNDLE")) from None


def _config(options: dict[str, Any]) -> "PalettizeConfig":
    from whisperkit_tools.compress.config import PalettizeConfig
    from whisperkit_tools.quantization.gate import Gate
    from whisperkit_tools.quantization.recipe import Wishes
    from whisperkit_tools.quantization.search import SearchOptions

    taken = ["output_dir", "calibration", "gate_audio", "reference", "gate_examples", "windows", "seed"]
    taken += ["tune_steps", "profile_dir", "force", "keep_rejected"]
    try:
        gate = Gate(
            options["qoi_min"], options["wer_delta_max"], options["max_kl"], options["confident"], options["seed"]
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return PalettizeConfig(
        aim=_aim(options),
        wishes=Wishes(_widths(options["allowed_nbits"]), options["group_size"], options["keep"]),
        gate=gate,
        search=SearchOptions(trials=options["trials"]),
        **{name: options[name] for name in taken},
    )


def _aim(options: dict[str, Any]) -> "Aim | None":
    from whisperkit_tools.compress.planner import Aim

    bits, size = options["bits"], options["target_size"]
    uniform = None if bits in (None, "mixed") else _number(bits)
    given = {
        "nbits": uniform,
        "target_bits": options["target_bits"],
        "target_bytes": None if size is None else parse_size(size),
        "max_kl": options["max_kl"],
        "recipe": options["recipe"],
    }
    if all(value is None for value in given.values()):
        return None
    return Aim(**given)


def _number(text: str) -> int:
    if not text.isdigit():
        raise click.BadParameter(f"{text!r} is neither 'mixed' nor a number of bits", param_hint="--bits")
    return int(text)


def _widths(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts):
        raise click.BadParameter(f"{text!r} is no list of bit widths such as 2,3,4", param_hint="--allowed-nbits")
    return tuple(dict.fromkeys(int(part) for part in parts))


def parse_size(text: str) -> int:
    """Bytes of a size such as `600MB`, `1.5 GB` or `950000`; a MB is a million bytes.

    Raises:
        click.BadParameter: It is no size.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMG]B)?\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise click.BadParameter(f"{text!r} is no size such as 600MB", param_hint="--target-size")
    return int(float(found[1]) * _UNITS[(found[2] or "").upper()])


@contextmanager
def _ticking() -> Iterator["Ticks"]:
    """A bar on stderr with the time left, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tick(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)
            if done >= total:
                bars.remove_task(tasks.pop(what))

        yield tick


def _written(work: "Palettizer", plan: "Plan", options: dict[str, Any]) -> None:
    """Write the recipe and the plot that were asked for."""
    if options["recipe_out"]:
        from whisperkit_tools.quantization.recipe import write_recipe

        write_recipe(plan.recipe, options["recipe_out"])
    if options["plot"]:
        from whisperkit_tools.compress.plot import plot_curves

        plot_curves(work.planner, plan, options["plot"])


def _plan_json(plan: "Plan") -> dict[str, Any]:
    return {
        "bundle": str(plan.bundle),
        "nbytes": plan.nbytes,
        "original_nbytes": plan.original_nbytes,
        "bits": plan.bits,
        "predicted_kl": plan.recipe.divergence,
        "allocation_gap": plan.gap,
        "recipe": plan.recipe.to_json(),
    }


def _plan_text(plan: "Plan") -> str:
    lines = [f"{'weight':<60} {'stored as':<38} {'bytes':>10}  predicted KL"]
    for (component, name), entry in plan.recipe.entries.items():
        stored = "float16" if entry.option is None else str(entry.option)
        lines.append(f"{component + '/' + name:<60} {stored:<38} {entry.nbytes:>10}  {entry.divergence:.2e}")
    gap = f", at most {100 * plan.gap:.3f} % from the best" if plan.gap else ""
    lines.append(
        f"\n{plan.nbytes / 1e6:.3f} MB of {plan.original_nbytes / 1e6:.3f} MB, {plan.bits:.3f} bits an element, "
        f"predicted KL {plan.recipe.divergence:.5f} nats a token{gap}"
    )
    return "\n".join(lines)


def _result_json(result: "Palettization") -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **_plan_json(result.plan),
        "path": str(result.path),
        "predicted_nbytes": result.plan.nbytes,
        "nbytes": min(trial.nbytes for trial in result.trials if trial.verdict == result.verdict),
        "gate": asdict(result.verdict),
        "trials": [asdict(trial) for trial in result.trials],
        "psnr_db": result.psnr_db,
        "tuning": result.tuning,
    }


def _result_text(result: "Palettization") -> str:
    from whisperkit_tools.compress.manifest_section import describe

    lines = [describe(trial) for trial in result.trials]
    if result.tuning is not None:
        lines.append(f"tuning          KL {result.tuning[0]:.5f} to {result.tuning[1]:.5f} on the calibration speech")
    lines.append(f"{result.path}")
    return "\n".join(lines)
