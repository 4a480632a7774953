"""Predicted divergence against size, as numbers and as a plot."""

import json
from pathlib import Path
from typing import Any

from whisperkit_tools.errors import RecipeError
from whisperkit_tools.palettization_plan import Aim, Planner
from whisperkit_tools.quantization.options import NBITS, Compression

_POINTS = 24


def curves(planner: Planner) -> dict[str, list[dict[str, float]]]:
    """Size in bytes and predicted divergence of uniform palettes, and of the allocation over the whole range."""
    table = planner.table()
    least = sum(min(c.nbytes for c in options) for options in table.values())
    most = sum(min(options, key=lambda c: c.divergence or -1).nbytes for options in table.values())
    mixed = []
    for at in range(_POINTS):
        bits = 8 * least * (most / least) ** (at / (_POINTS - 1)) / planner.model.elements
        recipe, _ = planner.recipe(Aim(target_bits=bits * (1 + 1e-9)))
        mixed.append({"bits": bits, "nbytes": planner.predicted_nbytes(recipe), "predicted_kl": recipe.divergence})
    uniform = []
    for nbits in NBITS:
        if Compression(nbits).spec_version <= planner.model.spec_version:
            recipe, _ = planner.recipe(Aim(nbits=nbits))
            point = {"bits": float(nbits), "nbytes": planner.predicted_nbytes(recipe)}
            uniform.append({**point, "predicted_kl": recipe.divergence})
    return {"mixed": mixed, "uniform": uniform}


def plot_curves(planner: Planner, plan: Any, path: Path) -> None:
    """Write a PNG, and the numbers as JSON beside it.

    Raises:
        RecipeError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RecipeError("--plot needs matplotlib; install it with: pip install 'whisperkit-tools[plot]'") from None
    found: dict[str, Any] = curves(planner)
    found["chosen"] = [{"bits": plan.bits, "nbytes": plan.nbytes, "predicted_kl": plan.recipe.divergence}]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, style in (("mixed", "-"), ("uniform", "s--"), ("chosen", "o")):
        points = [(p["nbytes"] / 1e6, p["predicted_kl"]) for p in found[label] if p["predicted_kl"] > 0]
        axes.plot(*zip(*points, strict=True), style, label=label) if points else None
    axes.set(xlabel="encoder and decoder, MB", ylabel="predicted KL, nats a token", yscale="log")
    axes.legend()
    axes.grid(True, which="both", alpha=0.3)
    figure.savefig(path, dpi=150)
