"""Recognising a folder that was given where another is wanted, and the command that it is for."""

import itertools
from pathlib import Path

from whisperkit_tools.errors import option

_LOOKED_AT = 2000  # entries of a folder; a folder with more is none of ours
_SHOWN = 4
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "adapter_model.safetensors")
_TABLES = ("metadata.json", "metadata.jsonl", "metadata.csv", "metadata.tsv")


def recognised(path: Path) -> str:
    """Return what a path is and the command for it, such as `a checkpoint; convert it first: wkt convert X`.

    Returns:
        Empty where it is nothing that `wkt` knows.
    """
    try:
        return _recognised(path)
    except OSError:
        return ""


def _recognised(path: Path) -> str:
    if path.suffix == ".mlpackage" or (path / "Manifest.json").is_file():
        return f"a single package; give the bundle that holds it, {path.parent}"
    if not path.is_dir():
        return ""
    names = {item.name for item in itertools.islice(path.iterdir(), _LOOKED_AT)}
    if "wkt-index.json" in names:
        return f"a registry; list its variants with `wkt versions {path}` and download one with `wkt pull`"
    if _is_bundle(names):
        return f"a bundle; show it with `wkt info {path}`, compress it with `wkt palettize {path}`"
    if "results.jsonl" in names:
        return f"a run of `wkt evaluate`; show it with `wkt report {path}`"
    if "report.json" in names:
        return "a comparison of runs; give the folders of its runs to `wkt report`"
    if ("config.json" in names and names.intersection(_WEIGHTS)) or "adapter_config.json" in names:
        return f"a checkpoint; convert it first: `wkt convert {path}`"
    if names.intersection(_TABLES) or any(name.endswith((".trans.txt", ".nlp")) for name in names):
        return f"a dataset; evaluate a bundle on it: `wkt evaluate BUNDLE` with {option('dataset', path)}"
    return _folder_of(path, names)


def _folder_of(path: Path, names: set[str]) -> str:
    """Return what the folders inside are, where they are alike."""
    below = {name: {item.name for item in itertools.islice((path / name).iterdir(), _LOOKED_AT)}
             for name in sorted(names) if (path / name).is_dir() and not name.startswith(".")}  # fmt: skip
    bundles = [name for name, inside in below.items() if _is_bundle(inside)]
    runs = [name for name, inside in below.items() if "results.jsonl" in inside]
    for what, found in (("bundles", bundles), ("runs", runs)):
        if found:
            shown = ", ".join(found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
            return f"a folder of {what}; give one of them: {shown}"
    return ""


def _is_bundle(names: set[str]) -> bool:
    return "wkt.json" in names or any(name.endswith((".mlpackage", ".mlmodelc")) for name in names)
