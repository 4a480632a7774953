"""Checks of the names of variants in a repository.

Source: the on-device runtime (argmaxinc/argmax-oss-swift, v0.18 to v1.1.0) downloads by the glob `*<variant>/*`, which
must match one folder only.
"""

import re
from collections.abc import Iterable

from whisperkit_tools import contract
from whisperkit_tools.errors import PublishError

_VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*_[A-Za-z0-9][A-Za-z0-9._-]*")
RESERVED = frozenset({"reports"})
MAX_CHARACTERS = 96


def is_variant(name: str) -> bool:
    """Whether a name is `<org>_<model>[_turbo][_<N>MB]`, and means nothing else in a path or a glob."""
    return bool(_VARIANT.fullmatch(name)) and ".." not in name and name not in RESERVED and len(name) <= MAX_CHARACTERS


def check_variant(name: str) -> None:
    """Check a single name.

    Raises:
        PublishError: It is not `<org>_<model>[_turbo][_<N>MB]`, or could mean something in a path or a glob.
    """
    if not is_variant(name):
        raise PublishError(
            f"{name!r} is not a variant's name: expected <org>_<model>[_turbo][_<N>MB] of at most {MAX_CHARACTERS} "
            "letters, digits, '.', '-' and '_'; convert the model again under another name, or rename the folder"
        )


def check_together(names: Iterable[str]) -> None:
    """Check that the download pattern of each name finds only its own folder.

    Raises:
        PublishError: A name ends with another one. All such pairs are named.
    """
    known = sorted(set(names))
    # Some file systems do not distinguish upper and lower case.
    clashes = [
        (longer, shorter)
        for shorter in known
        for longer in known
        if longer != shorter and longer.lower().endswith(shorter.lower())
    ]
    if clashes:
        lines = "; ".join(f"{longer} ends with {shorter}" for longer, shorter in clashes)
        raise PublishError(f"a device that asks for one variant would get two: {lines}; rename one of each pair")


def check_globs(names: Iterable[str], paths: Iterable[str]) -> None:
    """Check that no file elsewhere in the repository matches the download pattern of a variant.

    The runtime's `*` matches `/` too, so `reports/<variant>/x.json` would count as a second folder.

    Raises:
        PublishError: A file does. The first three are named.
    """
    known = sorted(set(names))
    found = [
        f"{path} (for {name})"
        for path in sorted(paths)
        for name in known
        if f"{name}/" in path and not path.startswith(f"{name}/")
    ]
    if found:
        raise PublishError(
            f"the device's download pattern *<variant>/* also finds {', '.join(found[:3])}"
            f"{f' and {len(found) - 3} more' if len(found) > 3 else ''}; rename or remove these files"
        )


def variants_of(paths: Iterable[str]) -> dict[str, list[str]]:
    """Return the variant folders of a repository: those with the three packages, whoever published them.

    Returns:
        Sorted paths of each folder by its name.
    """
    folders: dict[str, list[str]] = {}
    for path in paths:
        top, _, rest = path.partition("/")
        if rest:
            folders.setdefault(top, []).append(path)
    return {name: sorted(inside) for name, inside in sorted(folders.items()) if _is_variant(name, inside)}


def _is_variant(name: str, paths: list[str]) -> bool:
    components = {
        path.removeprefix(f"{name}/").split("/")[0].split(".")[0]
        for path in paths
        if ".mlmodel" in path or ".mlpackage" in path
    }
    return set(contract.COMPONENTS) <= components
