"""Predicted divergence against size, as JSON and as a plot."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from whisperkit_tools.compress.planner import CompressionPlan, CompressionTarget, Planner
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.files import write_whole
from whisperkit_tools.quantization.compression import NBITS, Compression

_POINTS = 24
_LABELS = {"mixed": "mixed, the minimum at each size", "uniform": "the same width for all", "chosen": "this bundle"}
_STYLES: dict[str, dict[str, Any]] = {
    "mixed": {"color": "tab:blue", "lw": 2},
    "uniform": {"color": "0.5", "marker": "s", "ls": "--", "lw": 1, "ms": 5},
    "chosen": {"color": "tab:red", "marker": "o", "ls": "", "ms": 8},
}


def curves(planner: Planner) -> dict[str, list[dict[str, float]]]:
    """Return size and predicted divergence of uniform palettes, and of allocations over the whole range of sizes."""
    table = planner.table()
    least = sum(min(c.nbytes for c in options) for options in table.values())
    most = sum(min(options, key=lambda c: c.divergence or -1).nbytes for options in table.values())
    mixed = []
    for at in range(_POINTS):
        bits = 8 * least * (most / least) ** (at / (_POINTS - 1)) / planner.weights.elements
        recipe, _ = planner.recipe(CompressionTarget(target_bits=bits * (1 + 1e-9)))
        mixed.append({"bits": bits, "nbytes": planner.predicted_nbytes(recipe), "predicted_kl": recipe.divergence})
    uniform = []
    for nbits in NBITS:
        if Compression(nbits).spec_version <= planner.weights.spec_version:
            recipe, _ = planner.recipe(CompressionTarget(nbits=nbits))
            point = {"bits": float(nbits), "nbytes": planner.predicted_nbytes(recipe)}
            uniform.append({**point, "predicted_kl": recipe.divergence})
    return {"mixed": mixed, "uniform": uniform}


def plot_curves(planner: Planner, plan: CompressionPlan, path: Path) -> None:
    """Write a PNG, and the numbers as JSON beside it.

    Raises:
        OptionsError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    found: dict[str, Any] = curves(planner)
    found["chosen"] = [{"bits": plan.bits, "nbytes": plan.nbytes, "predicted_kl": plan.recipe.divergence}]
    write_whole(path.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    _draw(Figure(figsize=(7.5, 4.8), layout="constrained"), found, planner, path)


def require_matplotlib() -> None:
    """Check that plots can be drawn.

    Raises:
        OptionsError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionsError(f"{option('plot')} needs matplotlib; install it with: pip install 'whisperkit-tools[plot]'")


def _draw(figure: Any, found: dict[str, Any], planner: Planner, path: Path) -> None:
    axes = figure.subplots()
    for label, style in _STYLES.items():
        points = [(p["nbytes"] / 1e6, p["predicted_kl"]) for p in found[label] if p["predicted_kl"] > 0]
        if points:
            axes.plot(*zip(*points, strict=True), label=_LABELS[label], **style)
    for point in found["uniform"]:
        place = (point["nbytes"] / 1e6, point["predicted_kl"])
        text = f"{point['bits']:.0f} bit" + ("s" if point["bits"] > 1 else "")
        axes.annotate(text, place, (7, 5), textcoords="offset points", fontsize=8, color="0.35")
    chosen = found["chosen"][0]
    if chosen["predicted_kl"] > 0:
        place = (chosen["nbytes"] / 1e6, chosen["predicted_kl"])
        text = f"{chosen['nbytes'] / 1e6:.3g} MB\n{chosen['bits']:.2f} bits an element"
        axes.annotate(
            text, place, (-14, -14), textcoords="offset points", fontsize=9, ha="right", va="top", color="tab:red",
            arrowprops={"arrowstyle": "-", "color": "tab:red", "lw": 0.8},
        )  # fmt: skip
    axes.set_title(f"{planner.weights.bundle.name}, {planner.weights.nbytes / 1e6:.3g} MB uncompressed", fontsize=10)
    axes.set(xlabel="encoder and decoder, MB", ylabel="predicted KL divergence, nats a token")
    axes.set(xscale="log", yscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=9)
    axes.legend(frameon=False)
    axes.grid(True, which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
