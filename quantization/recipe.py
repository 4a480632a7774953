"""The recipe: what is done to each weight, as a file that can be read, edited and given back."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from whisperkit_tools.errors import OptionsError, RecipeError
from whisperkit_tools.quantization.compression import NBITS, SPEC_VERSIONS, Compression

FORMAT = 1
Key = tuple[str, str]
"""A component and the name of a weight in it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What is done to one weight, and what is expected of it.

    Attributes:
        option: How it is stored; None keeps float16.
        nbytes: Bytes in the weights file.
        divergence: Predicted, in nats a token.
    """

    option: Compression | None
    nbytes: int
    divergence: float


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is done to every weight of a model.

    Attributes:
        source: For each component the sha256 of its uncompressed weights file.
        spec_version: Core ML specification version that the result may need, see `SPEC_VERSIONS`.
        entries: What is done, by component and name.
    """

    source: Mapping[str, str]
    spec_version: int
    entries: Mapping[Key, Entry]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights named."""
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def divergence(self) -> float:
        """Predicted, in nats a token."""
        return sum(entry.divergence for entry in self.entries.values())

    def compressions(self, component: str) -> dict[str, Compression]:
        """The weights of one component that are compressed."""
        return {
            name: entry.option
            for (where, name), entry in self.entries.items()
            if where == component and entry.option is not None
        }

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain values."""
        tensors: dict[str, dict[str, Any]] = {}
        for (component, name), entry in self.entries.items():
            tensors.setdefault(component, {})[name] = {
                "compression": None if entry.option is None else entry.option.to_json(),
                "nbytes": entry.nbytes,
                "divergence": float(f"{entry.divergence:.6g}"),
            }
        return {
            "format": FORMAT,
            "source": dict(self.source),
            "spec_version": self.spec_version,
            "nbytes": self.nbytes,
            "divergence": float(f"{self.divergence:.6g}"),
            "tensors": tensors,
        }


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe; the file is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(recipe.to_json(), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def read_recipe(path: Path) -> dict[Key, Compression | None]:
    """Read what a recipe file says is to be done; sizes and divergences in it are not read.

    Raises:
        RecipeError: No such file, no JSON, or not a recipe; all that is wrong with its compressions is named.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); name a file that --recipe-out wrote") from None
    except ValueError as error:
        raise RecipeError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("tensors"), dict):
        raise RecipeError(f'{path} is not a recipe: it has no object "tensors" of components')
    if content.get("format") != FORMAT:
        raise RecipeError(f"{path} has format {content.get('format')!r}, this version of wkt reads {FORMAT}")
    found: dict[Key, Compression | None] = {}
    problems: list[str] = []
    for component, name, settings in _listed(content["tensors"], problems):
        try:
            found[component, name] = None if settings is None else Compression.from_json(settings)
        except RecipeError as error:
            problems.append(f"{component}/{name}: {error}")
    if problems:
        raise RecipeError(f"{path}: {'; '.join(problems)}")
    return found


def _listed(tensors: Mapping[str, Any], problems: list[str]) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    for component, weights in tensors.items():
        if not isinstance(weights, dict):
            problems.append(f"{component}: expected an object of weights")
            continue
        for name, entry in weights.items():
            settings = entry.get("compression", "missing") if isinstance(entry, dict) else "missing"
            if settings is not None and not isinstance(settings, dict):
                problems.append(f'{component}/{name}: expected {{"compression": {{"nbits": 4}}}}, or null for float16')
                continue
            yield component, name, settings


def check_recipe(
    choices: Mapping[Key, Compression | None], shapes: Mapping[Key, Sequence[int]], spec_version: int
) -> None:
    """Check that a recipe belongs to a model and can be had on its deployment target.

    Raises:
        RecipeError: Weights are missing or unknown, an option does not fit a weight, or needs a newer target; all of
            them are named.
    """
    unknown = [f"{c}/{n}" for c, n in choices if (c, n) not in shapes]
    missing = [f"{c}/{n}" for c, n in shapes if (c, n) not in choices]
    if unknown or missing:
        parts = [f"{len(unknown)} weights that the bundle lacks ({_few(unknown)})"] if unknown else []
        parts += [f"nothing for {len(missing)} of the bundle's ({_few(missing)})"] if missing else []
        raise RecipeError(f"the recipe belongs to another model: it has {' and '.join(parts)}")
    problems = []
    for (component, name), option in choices.items():
        if option is not None and (misfit := option.misfit(shapes[component, name])):
            problems.append(f"{component}/{name} ({option}): {misfit}")
    problems += needs_newer(choices, spec_version)
    if problems:
        raise RecipeError("; ".join(problems))


def needs_newer(choices: Mapping[Key, Compression | None], spec_version: int) -> list[str]:
    """One line for each kind of option that a deployment target lacks."""
    newer = {str(o): o.target for o in choices.values() if o is not None and o.spec_version > spec_version}
    here = SPEC_VERSIONS.get(spec_version, f"specification version {spec_version}")
    return [
        f"{option} needs deployment target {target}, but the bundle is for {here}; convert the model with "
        "`wkt convert --deployment-target` for it, or allow other options"
        for option, target in newer.items()
    ]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user allows.

    Attributes:
        nbits: Bit widths that may be used; None for all that the deployment target has but 1, at which errors are too
            large for a quadratic prediction.
        group_size: Channels that share a palette; None for one palette a weight alone; 0 for both.
        keep: Patterns of weights that stay float16, matched against `NAME` and `COMPONENT/NAME`.
        outlier_shares: Shares of outliers to consider besides none.
    """

    nbits: tuple[int, ...] | None = None
    group_size: int | None = None
    keep: tuple[str, ...] = ()
    outlier_shares: tuple[float, ...] = (0.005,)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionsError: A bit width is unknown, or the group size is not positive.
        """
        wrong = [str(n) for n in self.nbits or () if n not in NBITS]
        if wrong:
            raise OptionsError(f"{', '.join(wrong)} bits are not to be had; allowed are {', '.join(map(str, NBITS))}")
        if self.nbits is not None and not self.nbits:
            raise OptionsError(f"no bit widths are allowed; choose from {', '.join(map(str, NBITS))}")
        if self.group_size is not None and self.group_size < 1:
            raise OptionsError(f"--group-size is {self.group_size}, expected 1 or more channels")


DEFAULT_GROUP_SIZE = 16
_IOS18 = 9


def options_for(shape: Sequence[int], wishes: Wishes, spec_version: int, *, outliers: bool = True) -> list[Compression]:
    """The compressions to consider for a weight of `shape`, on a deployment target.

    Args:
        shape: Of the weight.
        wishes: What is allowed.
        spec_version: Of the package.
        outliers: Whether all that read the weight can add outliers.
    """
    found: list[Compression] = []
    for nbits in wishes.nbits or NBITS[1:]:
        found.append(Compression(nbits))
        if outliers and nbits <= 4:
            found += [Compression(nbits, outlier_share=share) for share in wishes.outlier_shares]
        group = wishes.group_size or DEFAULT_GROUP_SIZE
        if nbits <= 6 or wishes.group_size:  # at 8 bits tables cost more than groups gain
            found.append(Compression(nbits, "per_grouped_channel", group_size=group))
        if nbits in (4, 6, 8):
            found.append(Compression(nbits, cluster_dim=2))
    return [option for option in found if option.spec_version <= spec_version and not option.misfit(shape)]


def check_wishes(wishes: Wishes, spec_version: int) -> None:
    """Check that a deployment target has what is wished for.

    Raises:
        RecipeError: It lacks a bit width or groups; the message names the target that is needed.
    """
    options: list[Compression] = [Compression(nbits) for nbits in wishes.nbits or ()]
    if wishes.group_size is not None:
        options.append(Compression(4, "per_grouped_channel", group_size=wishes.group_size))
    if lines := needs_newer({("", str(at)): option for at, option in enumerate(options)}, spec_version):
        raise RecipeError("; ".join(lines))


def kept(names: Sequence[Key], patterns: Sequence[str]) -> set[Key]:
    """The weights that patterns match.

    Raises:
        RecipeError: A pattern matches nothing; all such are named.
    """
    matches = {pattern: {key for key in names if _matches(key, pattern)} for pattern in patterns}
    if nothing := [pattern for pattern, found in matches.items() if not found]:
        shown = ", ".join("/".join(key) for key in names[:4])
        raise RecipeError(f"--keep {' '.join(nothing)} matches no weight; weights are called {shown}, ...")
    return set().union(*matches.values())


def _matches(key: Key, pattern: str) -> bool:
    component, name = key
    return fnmatchcase(name, pattern) or fnmatchcase(f"{component}/{name}", pattern)
