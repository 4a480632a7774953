"""Comparison of a compressed bundle with ggml's block formats, on the gate's speech."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from whisperkit_tools.compress.divergence_meter import DenseWeights, DivergenceMeter, block_format_weights
from whisperkit_tools.compress.measured_sizes import FormatComparison, MeasuredSize
from whisperkit_tools.compress.planner import CompressionPlan, Planner
from whisperkit_tools.compress.workspace import Workspace
from whisperkit_tools.contract import MODEL_COMPONENTS
from whisperkit_tools.quantization.block_formats import BLOCK_FORMATS, BlockFormat, block_format_nbytes
from whisperkit_tools.quantization.package_writer import read_dense
from whisperkit_tools.quantization.recipe import Recipe

_EXAMPLES = 12


def compare(work: Workspace, planned: CompressionPlan, folder: Path | None = None) -> FormatComparison | None:
    """Measure a bundle, the block formats, and plans at their sizes. None where the gate's speech has no words.

    Args:
        work: The workspace.
        planned: The bundle's plan.
        folder: The written bundle. None for the untuned palettes of the plan.
    """
    windows = work.comparison_windows(_EXAMPLES)
    if not windows:
        work.progress.note("the gate's audio has no speech, so nothing is compared with block formats")
        return None
    packages = work.weights.packages
    sizes = {one.name: _nbytes(work, one) for one in BLOCK_FORMATS.values()}
    plans = {name: work.planner.plan_within(size) for name, size in sizes.items() if size >= work.planner.bounds()[0]}
    weights: list[DenseWeights] = [
        _planned(work.planner, planned.recipe) if folder is None else _written(folder, planned.recipe),
        *(block_format_weights(packages, one) for one in BLOCK_FORMATS.values()),
        *(_planned(work.planner, plan.recipe) for plan in plans.values()),
    ]
    meter = DivergenceMeter(packages, windows)
    with work.progress.stage("comparison", "measure"):
        found = iter(meter.measure(weights))
    return FormatComparison(
        windows=len(windows),
        tokens=meter.tokens,
        chosen=MeasuredSize("", planned.nbytes, next(found), planned.recipe.divergence),
        block_formats=tuple(MeasuredSize(name, size, next(found)) for name, size in sizes.items()),
        plans=tuple(MeasuredSize(n, p.nbytes, next(found), p.recipe.divergence) for n, p in plans.items()),
    )


def _nbytes(work: Workspace, wanted: BlockFormat) -> int:
    return sum(block_format_nbytes(work.bundle.package(name).graph(), wanted) for name in MODEL_COMPONENTS)


def _planned(planner: Planner, recipe: Recipe) -> DenseWeights:
    """Return the weights of a recipe's palettes, which the cache has or which are made now."""

    def weights(component: str) -> Iterable[tuple[str, NDArray[Any]]]:
        for key, entry in recipe.entries.items():
            if key[0] == component and entry.compression is not None:
                yield key[1], planner.palette(key, entry.compression).dense()

    return weights


def _written(folder: Path, recipe: Recipe) -> DenseWeights:
    """Return the compressed weights of a written bundle."""

    def weights(component: str) -> Iterable[tuple[str, NDArray[Any]]]:
        return read_dense(folder / f"{component}.mlpackage", recipe.compressions(component))

    return weights
