"""From a bundle and calibration speech to a recipe: what the weights are, what each option costs, and which to take."""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.contract import MODEL_COMPONENTS
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow
from whisperkit_tools.errors import BundleError, OptionsError, RecipeError
from whisperkit_tools.files import folder_bytes, sha256
from whisperkit_tools.mil.graph import Graph
from whisperkit_tools.quantization.allocation import Allocation, Candidate, within_divergence, within_size
from whisperkit_tools.quantization.compression import NBITS, Compression
from whisperkit_tools.quantization.package_writer import compressed_nbytes
from whisperkit_tools.quantization.palette import Palettized, palettize, whole_histogram
from whisperkit_tools.quantization.recipe import (
    Entry,
    Key,
    Recipe,
    Wishes,
    check_recipe,
    check_wishes,
    kept,
    options_for,
    read_recipe,
)
from whisperkit_tools.quantization.sensitivity import (
    Curvature,
    FisherOptions,
    compressible,
    curvatures,
    predicted_divergence,
)
from whisperkit_tools.quantization.sensitivity_cache import Profile, StoredCurvature
from whisperkit_tools.quantization.sizes import dense_nbytes, stored_nbytes

Ticks = Callable[[str, int, int], None]
"""Told what is being done, how many parts of it are done, and how many there are."""

_CORRECTIONS = 5
_AT_ONCE = 1 << 27  # elements of a weight under several options at a time, some 25 bytes each
_DAMPING = 0.1  # of the mean importance
_LINEAR = {("conv", "weight"), ("linear", "weight"), ("matmul", "x"), ("matmul", "y"), ("gather", "x")}
_COMPRESSED = ("constexpr_lut_to_dense", "constexpr_lut_to_sparse", "constexpr_sparse_to_dense")


class Model:
    """The uncompressed weights of a bundle's encoder and decoder.

    Attributes:
        bundle: The bundle.
        shapes: Shapes of the weights that can be compressed, by component and name.
        spec_version: Core ML specification version of the result.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Look at the packages.

        Raises:
            BundleError: The bundle is compressed already, stateful, or has nothing to compress.
        """
        self.bundle = bundle
        self._graphs: dict[str, Graph] = {name: bundle.package(name).graph() for name in MODEL_COMPONENTS}
        if any(graph.states for graph in self._graphs.values()):
            raise BundleError(
                f"{bundle.path} keeps its caches in states, through which sensitivity cannot be measured; compress the "
                "form with caches as inputs: convert without --stateful"
            )
        compressed = {op.type for graph in self._graphs.values() for op in graph.operations} & set(_COMPRESSED)
        if compressed:
            raise BundleError(
                f"{bundle.path} is compressed already ({', '.join(sorted(compressed))}); palettes of palettes lose "
                "quality for nothing: pass the uncompressed bundle it was made from, or convert the model again"
            )
        self.shapes: dict[Key, tuple[int, ...]] = {
            (component, name): tuple(axis or 0 for axis in graph.constants[name].spec.shape)
            for component, graph in self._graphs.items()
            for name in compressible(graph)
        }
        if not self.shapes:
            raise BundleError(f"{bundle.path} has no float16 weights to compress")
        self.spec_version = min(graph.metadata.spec_version for graph in self._graphs.values())
        self.fixed_nbytes = self.nbytes - sum(dense_nbytes(shape) for shape in self.shapes.values())

    @property
    def packages(self) -> dict[str, Path]:
        """The packages that are compressed, by component."""
        return {name: self.bundle.package(name).path for name in MODEL_COMPONENTS}

    @property
    def nbytes(self) -> int:
        """Bytes of encoder and decoder."""
        return sum(folder_bytes(path) for path in self.packages.values())

    @property
    def elements(self) -> int:
        """Elements of all weights that can be compressed."""
        return sum(prod(shape) for shape in self.shapes.values())

    def weights_sha256(self) -> dict[str, str]:
        """For each component the digest of its weights file."""
        return {name: sha256(next(iter(sorted(path.rglob("weight*.bin"))))) for name, path in self.packages.items()}

    def weight(self, key: Key) -> NDArray[np.float16]:
        """Read a weight."""
        value: NDArray[np.float16] = self._graphs[key[0]].constants[key[1]].value
        return value

    def adds_outliers(self, key: Key) -> bool:
        """Whether all that read a weight are linear in it, so that a sparse part can be added to their results."""
        component, name = key
        readers = [
            (op.type, parameter)
            for op in self._graphs[component].operations
            for parameter, values in op.inputs.items()
            if any(value.name == name for value in values)
        ]
        return name not in self._graphs[component].outputs and set(readers) <= _LINEAR

    def largest_component(self) -> int:
        """Elements of all constants of the larger component."""
        return max(sum(constant.spec.size for constant in graph.constants.values()) for graph in self._graphs.values())


@dataclass(frozen=True, slots=True)
class Aim:
    """How far to compress; exactly one is set.

    Attributes:
        nbits: The same for every weight.
        target_bits: Bits an element, tables and all, on average over the weights that can be compressed.
        target_bytes: Bytes of encoder and decoder.
        max_kl: Most predicted divergence.
        recipe: A file that says it for every weight.
    """

    nbits: int | None = None
    target_bits: float | None = None
    target_bytes: int | None = None
    max_kl: float | None = None
    recipe: Path | None = None

    def __post_init__(self) -> None:
        """Check that one is set, and its value.

        Raises:
            OptionsError: None or several are, or the value makes no sense.
        """
        values = (self.nbits, self.target_bits, self.target_bytes, self.max_kl, self.recipe)
        if sum(value is not None for value in values) != 1:
            raise OptionsError("name one aim: --bits, --target-bits, --target-size, --max-kl or --recipe")
        numbers = [value for value in values[1:4] if isinstance(value, int | float)]
        if any(not 0 < value < float("inf") for value in numbers):
            raise OptionsError(f"the aim is {numbers[0]}, expected a positive number")
        if self.nbits is not None and self.nbits not in NBITS:
            raise OptionsError(f"{self.nbits} bits are not to be had; allowed are {', '.join(map(str, NBITS))}")


class Planner:
    """Decides what is done to each weight."""

    def __init__(self, model: Model, profile: Profile, wishes: Wishes, ticks: Ticks) -> None:
        """Check the wishes against the model.

        Raises:
            RecipeError: The deployment target lacks what is wished for, or a pattern matches nothing.
        """
        check_wishes(wishes, model.spec_version)
        self.model, self.profile, self.wishes, self._ticks = model, profile, wishes, ticks
        self._kept = kept(tuple(model.shapes), wishes.keep)
        self._weights_sha256 = model.weights_sha256()
        self._curvatures: dict[str, StoredCurvature] = {}

    # --- sensitivity -------------------------------------------------------------------------------------------------

    def sense(self, windows: Callable[[], Sequence[SpeechWindow]], options: FisherOptions) -> None:
        """Estimate the curvature, unless the profile has it."""
        if not all(self.profile.has_curvature(name) for name in MODEL_COMPONENTS):
            curvatures(self.model.packages, windows(), options, self._sensed, self._ticks, self.profile)

    def _sensed(self, component: str, found: Curvature) -> None:
        self.profile.save_curvature(component, found)

    def _stored(self, component: str) -> StoredCurvature:
        if component not in self._curvatures:
            self._curvatures[component] = self.profile.curvature(component)
        return self._curvatures[component]

    def curvature(self, key: Key) -> NDArray[np.float32]:
        """The diagonal of the curvature of one weight."""
        return self._stored(key[0]).read(key[1])

    def divergence(self, key: Key, palettized: Palettized) -> float:
        """What a weight alone is predicted to cause under a palette, in nats a token."""
        return self._predictor(key)(palettized)

    def _predictor(self, key: Key) -> Callable[[Palettized], float]:
        weight, diagonal = self.model.weight(key), self.curvature(key)
        gradients = self._stored(key[0]).gradients(key[1])

        def predict(palettized: Palettized) -> float:
            change = palettized.dense().astype(np.float32)
            change -= weight
            return predicted_divergence(diagonal, change, gradients)

        return predict

    # --- options -----------------------------------------------------------------------------------------------------

    def palette(self, key: Key, option: Compression) -> Palettized:
        """A weight under an option, from the profile or made now."""
        found = self.profile.palette(key, option)
        if found is None:
            found = palettize(self.model.weight(key), option, importance(self.curvature(key)), key[1])
            self.profile.save_palette(key, found)
        return found

    def candidates(self, key: Key, options: Sequence[Compression]) -> list[Candidate]:
        """What options cost and spoil; from the profile where known."""
        missing = [option for option in options if self.profile.candidate(key, option) is None]
        if missing:
            self.profile.add_candidates(key, self._measured(key, missing))
        return [found for option in options if (found := self.profile.candidate(key, option)) is not None]

    def _measured(self, key: Key, options: Sequence[Compression]) -> list[Candidate]:
        """What options cost and spoil. Palettes that are nearly the best will do; a bundle is made with the best."""
        weight, weights, predict = self.model.weight(key), importance(self.curvature(key)), self._predictor(key)
        points = whole_histogram(weight, weights, key[1])

        def measure(option: Compression) -> Candidate:
            made = palettize(weight, option, weights, key[1], exact=False, points=points)
            return Candidate(option, made.nbytes, predict(made))

        with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, _AT_ONCE // weight.size))) as pool:
            return list(pool.map(measure, options))

    def table(self) -> dict[Key, list[Candidate]]:
        """All candidates of all weights."""
        found = {}
        for number, (key, shape) in enumerate(self.model.shapes.items(), start=1):
            dense = Candidate(None, dense_nbytes(shape), 0.0)
            found[key] = [*self.candidates(key, self._options(key, shape)), dense]
            self._ticks("options", number, len(self.model.shapes))
        return found

    def _options(self, key: Key, shape: tuple[int, ...]) -> list[Compression]:
        if key in self._kept:
            return []
        return options_for(shape, self.wishes, self.model.spec_version, outliers=self.model.adds_outliers(key))

    # --- recipes -----------------------------------------------------------------------------------------------------

    def check(self, aim: Aim) -> None:
        """Find out before any work, and before the curvature is known, whether an aim can be reached.

        Raises:
            RecipeError: It cannot, or a recipe file does not fit the model.
        """
        if aim.recipe is not None or aim.nbits is not None:
            self._choices(aim)
        elif aim.target_bytes is not None:
            self._check_nbytes(aim.target_bytes)
        elif aim.target_bits is not None:
            least_bits = 8 * self._least_weights() / self.model.elements
            if aim.target_bits < least_bits:
                raise RecipeError(
                    f"{aim.target_bits:g} bits an element are below the fewest possible, {least_bits:.3f} with tables; "
                    "ask for more, allow fewer bits (--allowed-nbits), or keep fewer weights"
                )

    def _check_nbytes(self, nbytes: int) -> None:
        least = self.least_nbytes()
        if nbytes < least:
            raise RecipeError(
                f"{nbytes / 1e6:.3f} MB is below the smallest possible, {least / 1e6:.3f} MB: "
                f"{self.model.fixed_nbytes / 1e6:.3f} MB cannot be compressed; ask for a larger size, allow fewer bits "
                "(--allowed-nbits), or keep fewer weights"
            )

    def recipe(self, aim: Aim) -> tuple[Recipe, float]:
        """The recipe for an aim, and the allocation's gap.

        Raises:
            RecipeError: The aim cannot be reached, or a recipe file does not fit the model.
        """
        if aim.recipe is not None or aim.nbits is not None:
            return self._chosen(self._choices(aim)), 0.0
        if aim.max_kl is not None:
            return self._allocated(lambda tensors: within_divergence(tensors, float(aim.max_kl or 0)))
        if aim.target_bits is not None:
            budget = int(aim.target_bits * self.model.elements / 8)
            return self._allocated(lambda tensors: within_size(tensors, budget))
        return self.within(int(aim.target_bytes or 0))

    def within(self, nbytes: int) -> tuple[Recipe, float]:
        """The best recipe for a size of encoder and decoder.

        Raises:
            RecipeError: It is below the smallest possible.
        """
        self._check_nbytes(nbytes)
        budget = nbytes - self.model.fixed_nbytes
        for _ in range(_CORRECTIONS):
            recipe, gap = self._allocated(functools.partial(within_size, budget_bytes=budget))
            # The program itself grows a little with what is compressed.
            over = self.predicted_nbytes(recipe) - nbytes
            if over <= 0:
                break
            budget = max(budget - over, self._least_weights())
        return recipe, gap

    def _allocated(self, solve: Callable[[list[list[Candidate]]], Allocation]) -> tuple[Recipe, float]:
        table = self.table()
        found = solve(list(table.values()))
        chosen = [options[at] for options, at in zip(table.values(), found.chosen, strict=True)]
        return self._recipe(dict(zip(table, chosen, strict=True))), found.gap

    def _choices(self, aim: Aim) -> dict[Key, Compression | None]:
        """What an aim that leaves nothing to choose says of every weight."""
        if aim.recipe is None:
            return self._uniform(aim.nbits or 0)
        choices = read_recipe(aim.recipe)
        check_recipe(choices, self.model.shapes, self.model.spec_version)
        return {key: choices[key] for key in self.model.shapes}

    def _uniform(self, nbits: int) -> dict[Key, Compression | None]:
        group = self.wishes.group_size
        option = Compression(nbits, "per_grouped_channel", group_size=group) if group else Compression(nbits)
        check_wishes(Wishes(nbits=(nbits,), group_size=group), self.model.spec_version)
        # What cannot be grouped evenly takes one palette.
        return {
            key: None if key in self._kept else Compression(nbits) if option.misfit(shape) else option
            for key, shape in self.model.shapes.items()
        }

    def _chosen(self, choices: dict[Key, Compression | None]) -> Recipe:
        found = {}
        for number, (key, option) in enumerate(choices.items(), start=1):
            dense = Candidate(None, dense_nbytes(self.model.shapes[key]), 0.0)
            found[key] = dense if option is None else self.candidates(key, [option])[0]
            self._ticks("options", number, len(choices))
        return self._recipe(found)

    def _recipe(self, chosen: dict[Key, Candidate]) -> Recipe:
        entries = {key: Entry(c.option, c.nbytes, c.divergence) for key, c in chosen.items()}
        return Recipe(self._weights_sha256, self.model.spec_version, entries)

    def most_faithful(self) -> Recipe:
        """The best recipe there is that still compresses whatever may be."""
        chosen = {}
        for key, options in self.table().items():
            compressed = [c for c in options if c.option is not None] or options
            chosen[key] = min(compressed, key=lambda c: (c.divergence, c.nbytes))
        return self._recipe(chosen)

    def _smallest(self) -> dict[Key, Compression | None]:
        return {
            key: min([None, *self._options(key, shape)], key=functools.partial(stored_nbytes, shape))
            for key, shape in self.model.shapes.items()
        }

    def _least_weights(self) -> int:
        """Bytes of the weights alone under the smallest recipe there is."""
        return sum(map(stored_nbytes, self.model.shapes.values(), self._smallest().values()))

    def least_nbytes(self) -> int:
        """Bytes of encoder and decoder under the smallest recipe there is."""
        chosen = {key: Candidate(option, 0, 0.0) for key, option in self._smallest().items()}
        return self.predicted_nbytes(self._recipe(chosen))

    def predicted_nbytes(self, recipe: Recipe) -> int:
        """Bytes of encoder and decoder under a recipe, exactly."""
        return sum(
            compressed_nbytes(package, recipe.compressions(name)) for name, package in self.model.packages.items()
        )


def importance(curvature: NDArray[np.float32]) -> NDArray[np.float32]:
    """What palettes are fitted with: the root of the curvature, and a little of its mean everywhere.

    A few windows tell single weights badly apart, and palettes that trust them serve those windows only: on other
    speech the curvature itself does worse than no importance at all, its root several times better than either.
    """
    root = np.sqrt(curvature)
    mean = float(root.mean())
    return root + np.float32(_DAMPING * mean) if mean > 0 else np.ones_like(curvature)
