"""Planning: from the sensitivity of the weights and a target to the compression of each weight."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.compress.plan_measurement import PARTS, PartDivergences, part_of
from whisperkit_tools.compress.weight_inventory import WeightInventory
from whisperkit_tools.contract import MODEL_COMPONENTS
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.progress import Progress, SilentProgress
from whisperkit_tools.quantization.allocation import Allocation, StorageOption, within_divergence, within_size
from whisperkit_tools.quantization.compensation import accepts, compensate
from whisperkit_tools.quantization.compression import NBITS, Compression, dense_nbytes, stored_nbytes
from whisperkit_tools.quantization.input_moments import estimate_moments
from whisperkit_tools.quantization.package_writer import compressed_nbytes
from whisperkit_tools.quantization.palette import GroupHistograms, Palettized, palettize
from whisperkit_tools.quantization.recipe import (
    AllowedCompressions,
    Recipe,
    WeightKey,
    allowed_for,
    check_allowed,
    check_recipe,
    match_patterns,
    read_recipe,
    unsupported_widths,
)
from whisperkit_tools.quantization.sensitivity import FisherOptions, estimate_curvatures, predicted_divergence
from whisperkit_tools.quantization.sensitivity_cache import SensitivityCache, StoredCurvature

_CORRECTIONS = 20
_ELEMENTS_AT_ONCE = 1 << 27  # of a weight under several compressions at a time, some 25 bytes each
_DAMPING = 0.1  # of the mean importance
_LARGE = 0.05  # of the largest table: smaller ones are predicted, not measured


@dataclass(frozen=True, slots=True)
class CompressionTarget:
    """How far to compress. Exactly one field is set.

    Attributes:
        nbits: The same bit width for every weight.
        target_bits: Mean bits per element over the compressible weights, tables included.
        target_bytes: Bytes of encoder and decoder.
        max_kl: Maximum predicted divergence, in nats per token.
        recipe: A recipe file with the compression of every weight.
    """

    nbits: int | None = None
    target_bits: float | None = None
    target_bytes: int | None = None
    max_kl: float | None = None
    recipe: Path | None = None

    def __post_init__(self) -> None:
        """Check that one field is set, and its value.

        Raises:
            OptionsError: None or several are set, or the value is out of range.
        """
        values = (self.nbits, self.target_bits, self.target_bytes, self.max_kl, self.recipe)
        if sum(value is not None for value in values) != 1:
            names = ", ".join(map(option, ("bits", "target_bits", "target_size", "max_kl")))
            raise OptionsError(f"set exactly one target: {names} or {option('recipe')}")
        numbers = {"target_bits": self.target_bits, "target_size": self.target_bytes, "max_kl": self.max_kl}
        for name, value in numbers.items():
            if value is not None and not 0 < value < float("inf"):
                raise OptionsError(f"{option(name)} is {value}, expected a positive number")
        if self.nbits is not None and self.nbits not in NBITS:
            raise OptionsError(f"{option('bits')}: {unsupported_widths([self.nbits])}")


@dataclass(frozen=True, slots=True)
class CompressionPlan:
    """The compression of a bundle before it is made.

    Attributes:
        bundle: The uncompressed bundle.
        recipe: The compression of each weight.
        gap: Upper bound of the relative improvement that a better allocation could bring.
        nbytes: Bytes of encoder and decoder.
        original_nbytes: Bytes of encoder and decoder of the uncompressed bundle.
        bits: Mean bits per element over the compressible weights, tables included.
        measured: Divergences on held-out speech. None where they were not measured.
    """

    bundle: Path
    recipe: Recipe
    gap: float
    nbytes: int
    original_nbytes: int
    bits: float
    measured: PartDivergences | None = None


class Planner:
    """Chooses the compression of each weight.

    Attributes:
        weights: The uncompressed weights.
        cache: Sensitivities, storage options and palettes computed so far.
        allowed: The compressions that the user allows.
    """

    def __init__(
        self,
        weights: WeightInventory,
        cache: SensitivityCache,
        allowed: AllowedCompressions,
        progress: Progress | None = None,
    ) -> None:
        """Check the allowed compressions against the model.

        Raises:
            OptionsError: The deployment target lacks an allowed compression, or a pattern matches nothing.
        """
        check_allowed(allowed, weights.spec_version)
        self.weights, self.cache, self.allowed = weights, cache, allowed
        self._progress = progress or SilentProgress()
        self._uncompressed = match_patterns(tuple(weights.shapes), allowed.keep)
        self._weights_sha256 = weights.weights_sha256()
        self._curvatures: dict[str, StoredCurvature] = {}
        self._corrections = dict.fromkeys(PARTS, 1.0)
        self._measured_ratios: dict[tuple[WeightKey, int], float] = {}

    # --- sensitivity -------------------------------------------------------------------------------------------------

    def sense(self, windows: Callable[[], Sequence[SpeechWindow]], options: FisherOptions) -> None:
        """Estimate the curvature and the moments of inputs, unless the cache has them."""
        if not all(self.cache.has_curvature(name) for name in MODEL_COMPONENTS):
            estimate_curvatures(
                self.weights.packages, windows(), options, self.cache.save_curvature, self._progress, self.cache
            )
        if not all(self.cache.has_moments(name) for name in MODEL_COMPONENTS):
            estimate_moments(self.weights.packages, windows(), self.cache.save_moments, self._progress)

    def _stored(self, component: str) -> StoredCurvature:
        if component not in self._curvatures:
            self._curvatures[component] = self.cache.curvature(component)
        return self._curvatures[component]

    def curvature(self, key: WeightKey) -> NDArray[np.float32]:
        """Return the diagonal of the curvature of one weight, of its shape."""
        return self._stored(key[0]).read(key[1])

    def divergence(self, key: WeightKey, palettized: Palettized) -> float:
        """Return the predicted divergence of one palettized weight alone, in nats per token."""
        return self._predictor(key)(palettized)

    def _predictor(self, key: WeightKey) -> Callable[[Palettized], float]:
        weight, diagonal = self.weights.weight(key), self.curvature(key)
        gradients = self._stored(key[0]).gradients(key[1])

        def predict(palettized: Palettized) -> float:
            change = palettized.dense().astype(np.float32)
            change -= weight
            return predicted_divergence(diagonal, change, gradients)

        return predict

    # --- storage options ---------------------------------------------------------------------------------------------

    def palette(self, key: WeightKey, compression: Compression) -> Palettized:
        """Return a weight under a compression, from the cache or made now."""
        found = self.cache.palette(key, compression)
        if found is None:
            found = self._compensated(key, self._fitted(key, compression))
            self.cache.save_palette(key, found)
        return found

    def _fitted(self, key: WeightKey, compression: Compression) -> Palettized:
        return palettize(self.weights.weight(key), compression, importance(self.curvature(key)), key[1])

    def _compensated(self, key: WeightKey, palettized: Palettized) -> Palettized:
        """Let a layer's inputs compensate each other's errors where that is possible."""
        moment = self.cache.moment(key) if accepts(palettized.compression, palettized.shape) else None
        return palettized if moment is None else compensate(palettized, self.weights.weight(key), moment)

    def options(self, key: WeightKey, compressions: Sequence[Compression]) -> list[StorageOption]:
        """Return size and divergence of compressions of a weight, from the cache or computed now."""
        missing = [wanted for wanted in compressions if self.cache.option(key, wanted) is None]
        if missing:
            self.cache.add_options(key, self._measured(key, missing))
        return [found for wanted in compressions if (found := self.cache.option(key, wanted)) is not None]

    def _measured(self, key: WeightKey, compressions: Sequence[Compression]) -> list[StorageOption]:
        """Compute options with nearly optimal palettes. The bundle is made with optimal ones."""
        weight, factors, predict = self.weights.weight(key), importance(self.curvature(key)), self._predictor(key)
        histograms = GroupHistograms(weight, compressions, factors, key[1])

        def measure(wanted: Compression) -> StorageOption:
            made = palettize(weight, wanted, factors, key[1], exact=False, histograms=histograms)
            return StorageOption(wanted, made.nbytes, predict(made))

        with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, _ELEMENTS_AT_ONCE // weight.size))) as pool:
            return list(pool.map(measure, compressions))

    def table(self) -> dict[WeightKey, list[StorageOption]]:
        """Return all storage options of all weights. The last one of each weight is float16."""
        found = {}
        for number, (key, shape) in enumerate(self.weights.shapes.items(), start=1):
            found[key] = [*self._corrected(key, self._compressions(key, shape)), self._float16(key)]
            self._progress.advance("options", number, len(self.weights.shapes))
        return found

    def _corrected(self, key: WeightKey, compressions: Sequence[Compression]) -> list[StorageOption]:
        factor = self._corrections[part_of(self.weights, key)]
        return [
            replace(found, divergence=factor * self._measured_ratio(key, found) * found.divergence)
            for found in self.options(key, compressions)
        ]

    def _measured_ratio(self, key: WeightKey, found: StorageOption) -> float:
        return self._measured_ratios.get((key, found.compression.nbits), 1.0) if found.compression else 1.0

    def measure_token_embedding(self, measure: Callable[[Mapping[WeightKey, Palettized]], float]) -> None:
        """Measure the token embedding at every width, in place of predicting it. Later calls do nothing.

        It is the largest weight by far, and a factor that holds for small errors does not hold for large ones. The form
        of least predicted divergence stands for all forms of its width. Each chunk of rows is measured alone.

        Args:
            measure: Returns the divergence of palettes.
        """
        if self._measured_ratios:
            return
        sizes = {key: prod(self.weights.shapes[key]) for key in sorted(self.weights.embeddings)}
        for key, elements in sizes.items():
            if elements >= _LARGE * max(sizes.values()):  # not the positions
                self._measure_widths(key, measure)

    def _measure_widths(self, key: WeightKey, measure: Callable[[Mapping[WeightKey, Palettized]], float]) -> None:
        options = self.options(key, self._compressions(key, self.weights.shapes[key]))
        weight, factors = self.weights.weight(key), importance(self.curvature(key))
        for nbits in sorted({found.compression.nbits for found in options if found.compression}):
            of_width = [found for found in options if found.compression and found.compression.nbits == nbits]
            best = min(of_width, key=lambda found: found.divergence)
            if best.compression is not None and best.divergence > 0:
                # Nearly optimal palettes, which take a fourth of the time: most of these are never chosen.
                made = palettize(weight, best.compression, factors, key[1], exact=False)
                measured = measure({key: made})
                self._measured_ratios[key, nbits] = measured / best.divergence

    def correct(self, ratios: Mapping[str, float]) -> None:
        """Multiply the predictions of later plans by a ratio for each part."""
        for part, ratio in ratios.items():
            self._corrections[part] *= ratio

    def _float16(self, key: WeightKey) -> StorageOption:
        return StorageOption(None, dense_nbytes(self.weights.shapes[key]), 0.0)

    def _compressions(self, key: WeightKey, shape: tuple[int, ...]) -> list[Compression]:
        if key in self._uncompressed:
            return []
        outliers = self.weights.allows_outliers(key)
        return allowed_for(shape, self.allowed, self.weights.spec_version, outliers=outliers)

    # --- recipes -----------------------------------------------------------------------------------------------------

    def check(self, target: CompressionTarget) -> None:
        """Check a target before any work. This needs no curvature.

        Raises:
            OptionsError: The target cannot be reached.
            RecipeError: A recipe file does not fit the model.
        """
        if target.recipe is not None or target.nbits is not None:
            self._choices(target)
        elif target.target_bytes is not None:
            self._check_nbytes(target.target_bytes)
        elif target.target_bits is not None:
            least_bits = 8 * self._smallest_weights_nbytes() / self.weights.elements
            if target.target_bits < least_bits:
                raise OptionsError(
                    f"{option('target_bits')} is {target.target_bits:g}, below the minimum of {least_bits:.3f} bits an "
                    f"element, tables included; request more, allow fewer bits ({option('allowed_nbits')}), or keep "
                    f"fewer weights ({option('keep')})"
                )

    def _check_nbytes(self, nbytes: int) -> None:
        least = self.least_nbytes()
        if nbytes < least:
            raise OptionsError(
                f"{nbytes / 1e6:.3f} MB is below the smallest possible size, {least / 1e6:.3f} MB, of which "
                f"{self.weights.fixed_nbytes / 1e6:.3f} MB cannot be compressed; request a larger size, allow fewer "
                f"bits ({option('allowed_nbits')}), or keep fewer weights ({option('keep')})"
            )

    def plan(self, target: CompressionTarget) -> CompressionPlan:
        """Return the plan for a target.

        Raises:
            OptionsError: The target cannot be reached.
            RecipeError: A recipe file does not fit the model.
        """
        return self._as_plan(*self.recipe(target))

    def plan_within(self, nbytes: int) -> CompressionPlan:
        """Return the plan of minimum divergence within a size of encoder and decoder.

        Raises:
            OptionsError: It is below the smallest possible size.
        """
        return self._as_plan(*self._recipe_within(nbytes))

    def _as_plan(self, recipe: Recipe, gap: float) -> CompressionPlan:
        return CompressionPlan(
            bundle=self.weights.bundle.path,
            recipe=recipe,
            gap=gap,
            nbytes=self.predicted_nbytes(recipe),
            original_nbytes=self.weights.nbytes,
            bits=8 * recipe.nbytes / self.weights.elements,
        )

    def recipe(self, target: CompressionTarget) -> tuple[Recipe, float]:
        """Return the recipe for a target, and the allocation's gap. Raises errors as `plan` does."""
        if target.recipe is not None or target.nbits is not None:
            return self._chosen(self._choices(target)), 0.0
        if target.max_kl is not None:
            return self._allocated(functools.partial(within_divergence, limit=target.max_kl))
        if target.target_bits is not None:
            budget = int(target.target_bits * self.weights.elements / 8)
            return self._allocated(functools.partial(within_size, budget_bytes=budget))
        return self._recipe_within(int(target.target_bytes or 0))

    def _recipe_within(self, nbytes: int) -> tuple[Recipe, float]:
        self._check_nbytes(nbytes)
        budget = nbytes - self.weights.fixed_nbytes
        for _ in range(_CORRECTIONS):
            recipe, gap = self._allocated(functools.partial(within_size, budget_bytes=budget))
            # Compression makes the program itself a little larger.
            over = self.predicted_nbytes(recipe) - nbytes
            if over <= 0:
                break
            budget = max(budget - over, self._smallest_weights_nbytes())
        return recipe, gap

    def _allocated(self, solve: Callable[[list[list[StorageOption]]], Allocation]) -> tuple[Recipe, float]:
        table = self.table()
        found = solve(list(table.values()))
        chosen = [options[at] for options, at in zip(table.values(), found.chosen, strict=True)]
        return self._recipe(dict(zip(table, chosen, strict=True))), found.gap

    def _choices(self, target: CompressionTarget) -> dict[WeightKey, Compression | None]:
        """Return the compression of every weight for a target that leaves no choice."""
        if target.recipe is None:
            return self._uniform(target.nbits or 0)
        choices = read_recipe(target.recipe)
        check_recipe(choices, self.weights.shapes, self.weights.spec_version)
        return {key: choices[key] for key in self.weights.shapes}

    def _uniform(self, nbits: int) -> dict[WeightKey, Compression | None]:
        group = self.allowed.group_size
        wanted = Compression(nbits, "per_grouped_channel", group_size=group) if group else Compression(nbits)
        check_allowed(AllowedCompressions(nbits=(nbits,), group_size=group), self.weights.spec_version)
        # Weights that cannot be grouped evenly get one palette.
        return {
            key: None if key in self._uncompressed else Compression(nbits) if wanted.misfit(shape) else wanted
            for key, shape in self.weights.shapes.items()
        }

    def _chosen(self, choices: dict[WeightKey, Compression | None]) -> Recipe:
        found = {}
        for number, (key, wanted) in enumerate(choices.items(), start=1):
            found[key] = self._float16(key) if wanted is None else self._corrected(key, [wanted])[0]
            self._progress.advance("options", number, len(choices))
        return self._recipe(found)

    def _recipe(self, chosen: dict[WeightKey, StorageOption]) -> Recipe:
        return Recipe(self._weights_sha256, self.weights.spec_version, chosen)

    # --- bounds ------------------------------------------------------------------------------------------------------

    def bounds(self) -> tuple[int, int]:
        """Return the smallest and the largest size of encoder and decoder that a search considers."""
        least = self.least_nbytes()
        return least, max(least, self.predicted_nbytes(self._most_faithful()))

    def _most_faithful(self) -> Recipe:
        """Return the recipe of minimum divergence that compresses every weight that may be compressed."""
        chosen = {}
        for key, options in self.table().items():
            compressed = [found for found in options if found.compression is not None] or options
            chosen[key] = min(compressed, key=lambda found: (found.divergence, found.nbytes))
        return self._recipe(chosen)

    def _smallest(self) -> dict[WeightKey, Compression | None]:
        return {
            key: min([None, *self._compressions(key, shape)], key=functools.partial(stored_nbytes, shape))
            for key, shape in self.weights.shapes.items()
        }

    def _smallest_weights_nbytes(self) -> int:
        """Return the bytes of the weights alone under the smallest recipe."""
        return sum(map(stored_nbytes, self.weights.shapes.values(), self._smallest().values()))

    def least_nbytes(self) -> int:
        """Return the bytes of encoder and decoder under the smallest recipe."""
        return self.predicted_nbytes(
            self._recipe({key: StorageOption(wanted, 0, 0.0) for key, wanted in self._smallest().items()})
        )

    def predicted_nbytes(self, recipe: Recipe) -> int:
        """Return the exact bytes of encoder and decoder under a recipe."""
        return sum(
            compressed_nbytes(package, recipe.compressions(name)) for name, package in self.weights.packages.items()
        )


def importance(curvature: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the importance with which palettes are fitted: the curvature's profiles over rows and over columns.

    A few windows estimate single weights poorly, and palettes that rely on these estimates fit those windows only. The
    means over rows and over columns are estimated well. Their product, plus a little of its mean, leaves palettes no
    freedom to fit the windows.
    """
    rows = curvature.reshape(next((size for size in curvature.shape if size > 1), 1), -1)
    mean = float(rows.mean())
    if not mean > 0:
        return np.ones_like(curvature)
    product = rows.mean(1, keepdims=True) * (rows.mean(0, keepdims=True) / np.float32(mean))
    found: NDArray[np.float32] = product + np.float32(_DAMPING * mean)
    return found.reshape(curvature.shape)
