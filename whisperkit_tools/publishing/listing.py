"""Reading a repository: its variants with their versions, and two of them side by side."""

from dataclasses import asdict
from typing import Any

from whisperkit_tools.errors import PublishError
from whisperkit_tools.publishing.index import INDEX, Index, Version
from whisperkit_tools.publishing.registry.base import Registry, Snapshot
from whisperkit_tools.publishing.variant_names import variants_of

_UNITS = {"wer": "WER {} (%)", "qoi": "QoI {} (%)", "rtfx": "speed {} (x real time)"}


def list_variants(registry: Registry, revision: str | None = None) -> list[dict[str, Any]]:
    """One row a variant: name, present size, state (published, withdrawn, by another tool), versions newest first.

    Raises:
        PublishError: The repository cannot be read.
    """
    snapshot, index = _read(registry, revision)
    present = variants_of(snapshot.files)
    names = sorted({*present, *(item.variant for item in index.versions)})
    return [_row(name, present, snapshot, index) for name in names]


def _row(name: str, present: dict[str, list[str]], snapshot: Snapshot, index: Index) -> dict[str, Any]:
    versions = [item for item in reversed(index.versions) if item.variant == name]
    state = "withdrawn" if name not in present else "published" if versions else "by another tool"
    return {
        "variant": name,
        "state": state,
        "size_bytes": sum(snapshot.files[path].size_bytes for path in present.get(name, [])),
        "versions": [{**asdict(item), "metrics": dict(item.metrics)} for item in versions],
    }


def compare(registry: Registry, first: str, second: str, revision: str | None = None) -> list[dict[str, Any]]:
    """Figure by figure: `figure`, `first`, `second` (None where one has none) and `difference`.

    Raises:
        PublishError: One of them is not in the index.
    """
    _, index = _read(registry, revision)
    left, right = _find(index, first), _find(index, second)
    rows = [_figure("size (MB)", left.size_bytes / 1e6, right.size_bytes / 1e6)]
    for kind, label in _UNITS.items():
        here, there = left.metrics.get(kind, {}), right.metrics.get(kind, {})
        rows += [_figure(label.format(name), here.get(name), there.get(name)) for name in sorted({*here, *there})]
    return rows


def _figure(name: str, first: float | None, second: float | None) -> dict[str, Any]:
    difference = None if first is None or second is None else second - first
    return {"figure": name, "first": first, "second": second, "difference": difference}


def _read(registry: Registry, revision: str | None) -> tuple[Snapshot, Index]:
    snapshot = registry.snapshot(revision)
    if snapshot.commit is None:
        raise PublishError(registry.absent)
    return snapshot, Index.parse(registry.read(INDEX, snapshot))


def _find(index: Index, word: str) -> Version:
    """A version by its variant's name, or by the first characters of its content."""
    current = index.current(word)
    if current is not None:
        return current
    found = [item for item in index.versions if len(word) >= 4 and item.content.startswith(word)]
    if len({item.content for item in found}) != 1:
        known = ", ".join(f"{name} ({item.content[:12]})" for name, item in index.latest().items()) or "none"
        what = "several versions are" if found else "no version is"
        raise PublishError(f"{what} called {word!r} in {INDEX}; there are: {known}")
    return found[0]
