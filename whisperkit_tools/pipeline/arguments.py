"""What the verbs accept: names, paths and opened objects, and values as text or as numbers."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from whisperkit_tools.bundle import DEFAULT_BUNDLES_DIR, Bundle, find_bundle
from whisperkit_tools.contract import COMPONENTS, OPTIONAL_COMPONENTS
from whisperkit_tools.errors import BundleError, OptionsError, option
from whisperkit_tools.folders import recognised
from whisperkit_tools.mil.package import Package
from whisperkit_tools.paths import expanded
from whisperkit_tools.publishing.registry.base import Registry
from whisperkit_tools.publishing.registry.folder import FolderRegistry
from whisperkit_tools.publishing.registry.hub import HubRegistry

_SIZE_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def as_bundle(bundle: Bundle | str | Path | None, bundles_dir: str | Path = DEFAULT_BUNDLES_DIR) -> Bundle:
    """Return an opened bundle.

    Args:
        bundle: An opened bundle, its folder, or None for the last converted one.
        bundles_dir: The folder in which to look for that one.

    Raises:
        BundleError: There is no such bundle, it is incomplete, or the last converted one cannot be determined.
    """
    if bundle is None:
        return find_bundle(Path(bundles_dir))
    return bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)


def as_bundles(bundles: "Bundle | str | Path | Iterable[Bundle | str | Path]") -> list[Bundle]:
    """Return opened bundles from one or several, each opened or as a path.

    Raises:
        BundleError: One of them does not exist or is incomplete.
    """
    several = [bundles] if isinstance(bundles, (Bundle, str, Path)) else list(bundles)
    return [as_bundle(bundle) for bundle in several]


def as_tuple(values: str | Iterable[str]) -> tuple[str, ...]:
    """Return one or several words as a tuple."""
    return (values,) if isinstance(values, str) else tuple(values)


def as_names(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return names that are given one by one, or as text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def as_numbers(field: str, value: str | float | Iterable[float] | None, example: str) -> tuple[float, ...] | None:
    """Return numbers that are given as such, or as text with commas.

    Args:
        field: The option, for the message.
        value: For example `20`, `(20, 10)` or `"20,10"`. None stays None.
        example: A correct value, for the message.

    Raises:
        OptionsError: The text is not a list of numbers.
    """
    if value is None:
        return None
    if isinstance(value, (int, float)):
        return (float(value),)
    try:
        return tuple(float(part) for part in (value.split(",") if isinstance(value, str) else value))
    except ValueError:
        raise OptionsError(f"{option(field)}: {value!r} is not a list of numbers such as {example}") from None


def as_widths(value: str | Iterable[int] | None) -> tuple[int, ...] | None:
    """Return bit widths that are given as integers, or as text with commas.

    Raises:
        OptionsError: The text is not a list of integers.
    """
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
    if not parts or not all(str(part).isdigit() for part in parts):
        raise OptionsError(f"{option('allowed_nbits')}: {value!r} is not a list of bit widths such as 2,3,4")
    return tuple(dict.fromkeys(int(part) for part in parts))


def as_bytes(value: str | int | None) -> int | None:
    """Return the bytes of a size such as `600MB`, `1.5 GB` or `950000`. A MB is a million bytes.

    Raises:
        OptionsError: The text is not a positive size.
    """
    if value is None:
        return None
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMG]B)?\s*", str(value), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise OptionsError(f"{option('target_size')}: {value!r} is not a size such as 600MB")
    return int(float(found[1]) * _SIZE_UNITS[(found[2] or "").upper()])


def open_registry(name: str | Path | Registry, *, revision: str | None = None, repo_type: str = "model") -> Registry:
    """Open the registry that a name stands for.

    Args:
        name: A folder that exists or is written as a path, else a repository on the Hub (`ORG/NAME`).
        revision: Branch of a Hub repository to write to.
        repo_type: `model` or `dataset`, on the Hub.

    Raises:
        OptionsError: A revision is given for a folder.
    """
    if not isinstance(name, (str, Path)):
        return name
    word = str(name)
    if isinstance(name, Path) or Path(word).is_dir() or word.startswith((".", "/", "~")) or word.endswith("/"):
        if revision is not None:
            raise OptionsError(f"{option('revision')} names a branch, and a folder has no branches; omit it")
        return FolderRegistry(expanded(word))
    return HubRegistry(word, revision=revision, repo_type=repo_type)


def find_packages(path: Path) -> dict[str, Package]:
    """Return packages by name: components in the order of the data's way, then those with other names.

    Args:
        path: An `.mlpackage`, or a folder that holds some.

    Raises:
        BundleError: There is nothing at `path`, or no package.
    """
    if not path.exists():
        raise BundleError(f"{path}: no such bundle or package")
    if path.suffix == ".mlpackage" or (path / "Manifest.json").is_file():
        return {path.resolve().name.removesuffix(".mlpackage"): Package(path)}
    found = {package.name.removesuffix(".mlpackage"): package for package in sorted(path.glob("*.mlpackage"))}
    if not found:
        compiled = sorted(item.name for item in path.glob("*.mlmodelc"))
        held = f"only compiled models ({', '.join(compiled)})" if compiled else "no .mlpackage"
        what = "a file" if path.is_file() else f"a folder with {held}"
        known = recognised(path)
        hint = f"it is {known}" if known else "pass what `wkt convert` made"
        raise BundleError(f"{path} is neither a bundle nor an .mlpackage: found {what}; {hint}")
    order = [name for name in COMPONENTS + OPTIONAL_COMPONENTS if name in found]
    return {name: Package(found[name]) for name in [*order, *(name for name in found if name not in order)]}


def find_functions(path: Path, function: str | None) -> dict[str, tuple[Package, str]]:
    """Return package and function of each program, by the package's name, with the function's where it has several.

    Args:
        path: As for `find_packages`.
        function: The only function to return, or None for all of each package, the default one first.

    Raises:
        BundleError: There is nothing at `path`, a package is not an ML Program, or no package has the function.
    """
    found: dict[str, tuple[Package, str]] = {}
    known: set[str] = set()
    for name, package in find_packages(path).items():
        names = package.functions
        if not names:
            raise BundleError(
                f"{package.path}: holds a model that is not an ML Program; convert its source again with coremltools' "
                "convert_to='mlprogram'"
            )
        known.update(names)
        for one in names if function is None else [one for one in names if one == function]:
            found[name if one == names[0] else f"{name}:{one}"] = (package, one)
    if not found:
        raise BundleError(f"{path}: no package has a function {function!r}; there are {', '.join(sorted(known))}")
    return found


def unique_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Return paths by their last part, or by the whole path where two have the same last part."""
    listed = list(dict.fromkeys(paths))
    names = [path.resolve().name.removesuffix(".mlpackage") for path in listed]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, listed, strict=True)}
