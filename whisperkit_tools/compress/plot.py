"""Divergence against size, predicted and measured, beside ggml's block formats: as JSON and as a plot."""

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whisperkit_tools.compress.measured_sizes import FormatComparison
from whisperkit_tools.compress.planner import CompressionPlan, CompressionTarget, Planner
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.files import write_whole
from whisperkit_tools.quantization.compression import NBITS, Compression
from whisperkit_tools.strict_json import json_text

_POINTS = 24
_STYLES: dict[str, dict[str, Any]] = {
    "uniform": {"color": "0.6", "marker": "s", "ls": ":", "lw": 1, "ms": 4, "label": "one width for all, predicted"},
    "mixed": {"color": "tab:blue", "ls": "--", "lw": 1.2, "label": "mixed widths, predicted"},
    "plans": {"color": "tab:blue", "marker": "o", "lw": 2, "ms": 5, "label": "mixed widths, measured"},
    "block_formats": {
        "color": "tab:orange", "marker": "D", "lw": 1.2, "ms": 6, "label": "ggml's block formats, measured",
    },
    "chosen": {"color": "tab:red", "marker": "*", "ls": "", "ms": 15, "label": "this bundle"},
}  # fmt: skip
_SHOWN = 4.0  # curves are shown to this factor beyond the measured points


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


def plot_curves(planner: Planner, plan: CompressionPlan, path: Path, compared: FormatComparison | None = None) -> None:
    """Write a PNG, and the numbers as JSON beside it.

    Args:
        planner: Predicts the curves.
        plan: The plan of the bundle, which is marked.
        path: The PNG file.
        compared: Measured points. None draws predictions alone.

    Raises:
        OptionsError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    found: dict[str, Any] = curves(planner)
    chosen: dict[str, Any] = {"bits": plan.bits, "nbytes": plan.nbytes, "predicted_kl": plan.recipe.divergence}
    if compared is not None:
        chosen["kl"] = compared.chosen.kl
        found["block_formats"] = [asdict(one) for one in compared.block_formats]
        found["plans"] = [asdict(one) for one in compared.plans]
        found["speech"] = {"windows": compared.windows, "tokens": compared.tokens}
    found["chosen"] = [chosen]
    write_whole(path.with_suffix(".json"), json_text(found, indent=1) + "\n")
    _draw(Figure(figsize=(8, 5.2), layout="constrained"), found, planner, path)


def require_matplotlib() -> None:
    """Check that plots can be drawn.

    Raises:
        OptionsError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionsError(f"{option('plot')} needs matplotlib; install it with: pip install 'whisperkit-tools[plot]'")


# --- drawing ---------------------------------------------------------------------------------------------------------


def _draw(figure: Any, found: dict[str, Any], planner: Planner, path: Path) -> None:
    axes = figure.subplots()
    for label, style in _STYLES.items():
        points = _points(found.get(label, ()))
        if points:
            axes.plot(*zip(*points, strict=True), zorder=3 if label == "chosen" else 2, **style)
    original = f"{planner.weights.nbytes / 1e6:.3g} MB uncompressed"
    axes.set_title(f"{planner.weights.bundle.name}, {original}{_speech(found)}", fontsize=10)
    axes.set(xlabel="encoder and decoder, MB", ylabel="KL divergence, nats a token", xscale="log", yscale="log")
    _limit(axes, found)
    _label_points(axes, found)
    _label_chosen(axes, found["chosen"][0])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=9)
    axes.legend(frameon=False, fontsize=9)
    axes.grid(True, which="major", alpha=0.3)
    axes.grid(True, which="minor", axis="x", alpha=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _points(given: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return sizes in MB and divergences, the measured one where there is one, the smallest size first."""
    points = [(one["nbytes"] / 1e6, one.get("kl", one["predicted_kl"])) for one in given]
    return sorted((size, kl) for size, kl in points if kl > 0)


def _speech(found: dict[str, Any]) -> str:
    speech = found.get("speech")
    if not speech:
        return ""
    count = "1 utterance" if speech["windows"] == 1 else f"{speech['windows']} utterances"
    return f"\nmeasured on {count}, {speech['tokens']} tokens"


def _limit(axes: Any, found: dict[str, Any]) -> None:
    """Show what was measured, and the curves around it. Without measurements, show everything."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    points = _points([*found.get("block_formats", ()), *found.get("plans", ())])
    if points:
        (left, right), values = (points[0][0], points[-1][0]), [kl for _, kl in (*points, *_points(found["chosen"]))]
        sizes = [left, right, found["chosen"][0]["nbytes"] / 1e6]
        axes.set_xlim(min(sizes) / 1.25, max(sizes) * 1.15)
        axes.xaxis.set_major_locator(MaxNLocator(8))
        axes.xaxis.set_minor_locator(NullLocator())
        if found["chosen"][0]["predicted_kl"] > 0:
            values.append(found["chosen"][0]["predicted_kl"])
        axes.set_ylim(min(values) / _SHOWN, max(values) * _SHOWN)


def _label_points(axes: Any, found: dict[str, Any]) -> None:
    """Name the block formats, and without them the uniform widths."""
    for one in found.get("block_formats", ()):
        place = (one["nbytes"] / 1e6, one["kl"])
        if one["kl"] > 0:
            _annotate(axes, one["name"], place, (7, 5), color=_STYLES["block_formats"]["color"])
    for one in () if "block_formats" in found else found["uniform"]:
        text = f"{one['bits']:.0f} bit" + ("s" if one["bits"] > 1 else "")
        _annotate(axes, text, (one["nbytes"] / 1e6, one["predicted_kl"]), (7, 5), color="0.35")


def _label_chosen(axes: Any, chosen: dict[str, Any]) -> None:
    """Label the bundle, and show how far its prediction was off."""
    size, predicted = chosen["nbytes"] / 1e6, chosen["predicted_kl"]
    kl = chosen.get("kl", predicted)
    if not kl > 0:
        return
    lines = [f"{size:.3g} MB, {chosen['bits']:.2f} bits an element"]
    if "kl" in chosen:
        lines.append(f"KL {kl:.2g}, predicted {predicted:.2g}")
        axes.plot([size, size], [predicted, kl], color="tab:red", lw=1, ls="--", marker="_", zorder=2)
    left, right = axes.get_xlim()
    near_left = size < left * (right / left) ** 0.3  # elsewhere the lower left is free, because curves fall
    _annotate(
        axes, "\n".join(lines), (size, kl), (12 if near_left else -12, -8), color="tab:red", fontsize=9,
        ha="left" if near_left else "right", va="top", zorder=4,
    )  # fmt: skip


def _annotate(axes: Any, text: str, place: tuple[float, float], offset: tuple[int, int], **style: Any) -> None:
    background = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1}
    axes.annotate(
        text,
        place,
        offset,
        textcoords="offset points",
        bbox=background,
        **{"fontsize": 8, "zorder": 1.5, "annotation_clip": True, **style},
    )
