"""The packages that a command is pointed at: those of a bundle, of any folder, or a single one."""

from collections.abc import Iterable
from pathlib import Path


def find_packages(path: Path) -> dict[str, Path]:
    """Packages by name, in the order of the data's way, those with other names last.

    Args:
        path: An `.mlpackage`, or a folder that holds some.

    Raises:
        BundleError: Nothing is there, or no package.
    """
    from whisperkit_tools.contract import COMPONENTS, OPTIONAL_COMPONENTS
    from whisperkit_tools.errors import BundleError

    if not path.exists():
        raise BundleError(f"{path}: no such bundle or package")
    if path.suffix == ".mlpackage" or (path / "Manifest.json").is_file():
        return {path.resolve().name.removesuffix(".mlpackage"): path}
    found = {package.name.removesuffix(".mlpackage"): package for package in sorted(path.glob("*.mlpackage"))}
    if not found:
        compiled = sorted(item.name for item in path.glob("*.mlmodelc"))
        held = f"only compiled models ({', '.join(compiled)})" if compiled else "no .mlpackage"
        what = "a file" if path.is_file() else f"a folder with {held}"
        raise BundleError(f"{path} is neither a bundle nor an .mlpackage: found {what}; pass what `wkt convert` made")
    order = [name for name in COMPONENTS + OPTIONAL_COMPONENTS if name in found]
    return {name: found[name] for name in [*order, *(name for name in found if name not in order)]}


def find_functions(path: Path, function: str | None) -> dict[str, tuple[Path, str]]:
    """Package and function of each program, by the package's name, with the function's where it has several.

    Args:
        path: As for `find_packages`.
        function: The only one to look at, or None for all of each package, the one that is run by default first.

    Raises:
        BundleError: Nothing is there, a package is no ML Program, or no package has the function.
    """
    from whisperkit_tools.errors import BundleError
    from whisperkit_tools.mil.graph import function_names

    found: dict[str, tuple[Path, str]] = {}
    for name, package in find_packages(path).items():
        names = function_names(package)
        if not names:
            raise BundleError(
                f"{package}: holds a model that is no ML Program; convert its source anew with coremltools' "
                "convert_to='mlprogram'"
            )
        for one in names if function is None else [one for one in names if one == function]:
            found[name if one == names[0] else f"{name}:{one}"] = (package, one)
    if not found:
        every = sorted({one for package in find_packages(path).values() for one in function_names(package)})
        raise BundleError(f"{path}: no package has a function {function!r}; there are {', '.join(every)}")
    return found


def unique_names(paths: Iterable[Path]) -> dict[str, Path]:
    """The paths by their last part, and by the whole path where two have the same."""
    listed = list(dict.fromkeys(paths))
    names = [path.resolve().name.removesuffix(".mlpackage") for path in listed]
    return {name if names.count(name) == 1 else str(path): path for name, path in zip(names, listed, strict=True)}
