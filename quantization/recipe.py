"""The recipe: the compression of each weight, as a file that can be read, edited and passed back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

from whisperkit_tools.errors import OptionsError, RecipeError, option
from whisperkit_tools.files import write_whole
from whisperkit_tools.quantization.allocation import StorageOption
from whisperkit_tools.quantization.compression import NBITS, SPEC_VERSIONS, Compression
from whisperkit_tools.strict_json import json_text, parse_json

FORMAT = 1
WeightKey: TypeAlias = tuple[str, str]
"""A component and the name of a weight in it."""

DEFAULT_GROUPS = ((0, 16), (0, 32), (1, 1), (1, 8), (1, 16), (1, 32))
"""Axis and size of the groups to consider: output channels (0) and input channels (1)."""
_MAX_TABLE_BITS = 0.35  # an element
FORMS_ON_REQUEST = ("vectors", "scales", "outliers")
"""Forms that are considered on request only.

Reports say that palettes with scales do not load on the Neural Engine of macOS 26. Of vectors, nothing is reported.
Outliers cost a bit for every element besides their values, and each operation that reads the weight runs twice.

Source: apple/coremltools#2688.
"""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The compression of every weight of a model.

    Attributes:
        source: For each component the sha256 of its uncompressed weights file.
        spec_version: Core ML specification version that the result may require, see `SPEC_VERSIONS`.
        entries: For each weight the chosen compression, with its size and predicted divergence.
    """

    source: Mapping[str, str]
    spec_version: int
    entries: Mapping[WeightKey, StorageOption]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in the recipe."""
        return sum(entry.nbytes for entry in self.entries.values())

    @property
    def divergence(self) -> float:
        """Predicted divergence in nats per token."""
        return sum(entry.divergence for entry in self.entries.values())

    def compressions(self, component: str) -> dict[str, Compression]:
        """Return the compressed weights of one component by name."""
        return {
            name: entry.compression
            for (where, name), entry in self.entries.items()
            if where == component and entry.compression is not None
        }

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON-ready values."""
        tensors: dict[str, dict[str, Any]] = {}
        for (component, name), entry in self.entries.items():
            tensors.setdefault(component, {})[name] = {
                "compression": None if entry.compression is None else entry.compression.to_json(),
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
    """Write a recipe as a whole file or nothing."""
    write_whole(path, json_text(recipe.to_json(), indent=1) + "\n")


def read_recipe(path: Path) -> dict[WeightKey, Compression | None]:
    """Read the compressions of a recipe file. Sizes and divergences in it are ignored.

    Raises:
        RecipeError: The file is missing, not JSON, or not a recipe. The message names all faulty compressions.
    """
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read ({error.strerror}); name a file that {option('recipe_out')} wrote"
        ) from None
    except ValueError as error:
        raise RecipeError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("tensors"), dict):
        raise RecipeError(f'{path} is not a recipe: it has no object "tensors" of components')
    if content.get("format") != FORMAT:
        raise RecipeError(f"{path} has format {content.get('format')!r}, this version of wkt reads {FORMAT}")
    found: dict[WeightKey, Compression | None] = {}
    problems: list[str] = []
    for component, name, settings in _recipe_items(content["tensors"], problems):
        try:
            found[component, name] = None if settings is None else Compression.from_json(settings)
        except RecipeError as error:
            problems.append(f"{component}/{name}: {error.message}")
    if problems:
        raise RecipeError(f"{path}: {'; '.join(problems)}")
    return found


def _recipe_items(tensors: Mapping[str, Any], problems: list[str]) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """Yield component, name and compression settings of well-formed items, and add a line for each other one."""
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
    choices: Mapping[WeightKey, Compression | None],
    shapes: Mapping[WeightKey, Sequence[int]],
    spec_version: int,
) -> None:
    """Check that a recipe belongs to a model and works on its deployment target.

    Raises:
        RecipeError: Weights are missing or unknown, or a compression does not fit a weight or needs a newer target.
            The message names all of them.
    """
    unknown = [f"{c}/{n}" for c, n in choices if (c, n) not in shapes]
    missing = [f"{c}/{n}" for c, n in shapes if (c, n) not in choices]
    if unknown or missing:
        parts = [f"{len(unknown)} weights that the bundle lacks ({_first_names(unknown)})"] if unknown else []
        parts += [f"nothing for {len(missing)} of the bundle's ({_first_names(missing)})"] if missing else []
        raise RecipeError(f"the recipe belongs to another model: it has {' and '.join(parts)}")
    problems = []
    for (component, name), wanted in choices.items():
        if wanted is not None and (misfit := wanted.misfit(shapes[component, name])):
            problems.append(f"{component}/{name} ({wanted}): {misfit}")
    problems += _target_problems([wanted for wanted in choices.values() if wanted is not None], spec_version)
    if problems:
        raise RecipeError("; ".join(problems))


def _target_problems(compressions: Sequence[Compression], spec_version: int) -> list[str]:
    """Return one line for each kind of compression that a deployment target lacks."""
    newer = {str(wanted): wanted.target for wanted in compressions if wanted.spec_version > spec_version}
    here = SPEC_VERSIONS.get(spec_version, f"specification version {spec_version}")
    return [
        f"{wanted} needs deployment target {target}, but the bundle is for {here}; convert the model for that target "
        f"({option('deployment_target')}), or allow other compressions"
        for wanted, target in newer.items()
    ]


def _first_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@dataclass(frozen=True, slots=True)
class AllowedCompressions:
    """The compressions that the user allows.

    Attributes:
        nbits: Allowed bit widths. None for all that the deployment target supports except 1, at which errors are too
            large for a quadratic prediction.
        group_size: Channels that share a palette, 1 or more, along either axis. None considers `DEFAULT_GROUPS`.
        keep: Patterns of weights that stay float16, matched against `NAME` and `COMPONENT/NAME`.
        outlier_shares: Shares of outliers to consider besides none, where `forms` allows outliers.
        forms: Names from `FORMS_ON_REQUEST` of the forms to consider besides those that are always considered.
    """

    nbits: tuple[int, ...] | None = None
    group_size: int | None = None
    keep: tuple[str, ...] = ()
    outlier_shares: tuple[float, ...] = (0.005,)
    forms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionsError: A bit width is unsupported, the group size is not positive, or a form is unknown.
        """
        wrong = [str(n) for n in self.nbits or () if n not in NBITS]
        if wrong:
            raise OptionsError(f"{option('allowed_nbits')}: {unsupported_widths(wrong)}")
        if self.nbits is not None and not self.nbits:
            raise OptionsError(f"{option('allowed_nbits')} is empty; choose from {', '.join(map(str, NBITS))}")
        if self.group_size is not None and self.group_size < 1:
            raise OptionsError(f"{option('group_size')} is {self.group_size}, expected 1 or more channels")
        if unknown := [name for name in self.forms if name not in FORMS_ON_REQUEST]:
            plural = "s" if len(unknown) > 1 else ""
            raise OptionsError(
                f"{option('allow')}: unknown form{plural} {', '.join(map(repr, unknown))}; choose from "
                f"{', '.join(FORMS_ON_REQUEST)}"
            )


def unsupported_widths(widths: Sequence[object]) -> str:
    """Return a message about bit widths that no palette can have."""
    plural = "s" if len(widths) > 1 else ""
    return f"unsupported bit width{plural} {', '.join(map(str, widths))}; choose from {', '.join(map(str, NBITS))}"


def allowed_for(
    shape: Sequence[int], allowed: AllowedCompressions, spec_version: int, *, outliers: bool = True
) -> list[Compression]:
    """Return the compressions to consider for a weight of `shape` on a deployment target.

    Args:
        shape: The weight's shape.
        allowed: The compressions that the user allows.
        spec_version: Specification version of the package.
        outliers: Whether outliers can be added in all operations that read the weight.
    """
    found: list[Compression] = []
    for nbits in allowed.nbits or NBITS[1:]:
        found.append(Compression(nbits))
        if nbits == 8 and (linear := Compression(8, kind="linear")).table_bits(shape) <= _MAX_TABLE_BITS:
            found.append(linear)
        found += _grouped(shape, nbits, allowed.group_size)
        if outliers and nbits <= 4 and "outliers" in allowed.forms:
            found += [Compression(nbits, outlier_share=share) for share in allowed.outlier_shares]
        if nbits in (4, 6, 8) and "vectors" in allowed.forms:
            found.append(Compression(nbits, cluster_dim=2))
        if "scales" in allowed.forms:
            found += [Compression(nbits, axis=axis, per_channel_scale=True) for axis in (0, 1)]
    return [wanted for wanted in found if wanted.spec_version <= spec_version and not wanted.misfit(shape)]


def _grouped(shape: Sequence[int], nbits: int, group_size: int | None) -> list[Compression]:
    """Return palettes for groups along either axis, but for those whose tables are too large for what groups gain.

    At 8 bits one palette is accurate enough, and palettes for groups take long to fit.
    """
    if nbits > 6 and group_size is None:
        return []
    groups = DEFAULT_GROUPS if group_size is None else ((0, group_size), (1, group_size))
    found = [Compression(nbits, "per_grouped_channel", group_size=size, axis=axis) for axis, size in groups]
    return [
        wanted
        for wanted in found
        if not wanted.misfit(shape)
        and wanted.group_size < shape[wanted.axis]
        and (group_size is not None or wanted.table_bits(shape) <= _MAX_TABLE_BITS)
    ]


def check_allowed(allowed: AllowedCompressions, spec_version: int) -> None:
    """Check that a deployment target supports what the user allows.

    Raises:
        OptionsError: It lacks a bit width, groups or a form. The message names the target that supports them.
    """
    compressions = [Compression(nbits) for nbits in allowed.nbits or ()]
    if allowed.group_size is not None:
        compressions.append(Compression(4, "per_grouped_channel", group_size=allowed.group_size))
    if "vectors" in allowed.forms:
        compressions.append(Compression(4, cluster_dim=2))
    if "scales" in allowed.forms:
        compressions.append(Compression(4, per_channel_scale=True))
    if lines := _target_problems(compressions, spec_version):
        raise OptionsError("; ".join(lines))


def match_patterns(keys: Sequence[WeightKey], patterns: Sequence[str]) -> set[WeightKey]:
    """Return the weights that patterns match.

    Raises:
        OptionsError: Some patterns match nothing. The message names all of them.
    """
    matches = {pattern: {key for key in keys if _matches(key, pattern)} for pattern in patterns}
    if unmatched := [pattern for pattern, found in matches.items() if not found]:
        shown = ", ".join("/".join(key) for key in keys[:4])
        raise OptionsError(f"{option('keep')} {' '.join(unmatched)} matches no weight; weights are called {shown}, ...")
    return set().union(*matches.values())


def _matches(key: WeightKey, pattern: str) -> bool:
    component, name = key
    return fnmatchcase(name, pattern) or fnmatchcase(f"{component}/{name}", pattern)
