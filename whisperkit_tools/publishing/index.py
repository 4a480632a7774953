"""The index of a repository, `wkt-index.json`: its variants with all their versions, and queries on them.

A repository is also edited by hand and by other tools. So the index is checked field by field on reading, and the files
that exist decide which variants there are.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from whisperkit_tools.errors import PublishError
from whisperkit_tools.publishing.registry.base import Registry, Snapshot
from whisperkit_tools.publishing.variant_names import check_variant, variants_of
from whisperkit_tools.strict_json import json_text, parse_json

INDEX = "wkt-index.json"
FORMAT = 1
_UNITS = {"wer": "WER {} (%)", "qoi": "QoI {} (%)", "rtfx": "speed {} (x real time)"}


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """One publication of one variant.

    Attributes:
        variant: Name of the folder.
        content: Digest of its files.
        created: Time of its first publication, ISO 8601 UTC.
        tool_version: Version of whisperkit_tools.
        source: The checkpoint that it was converted from.
        source_revision: Commit of the source, if it has one.
        size_bytes: Bytes of all its files.
        metrics: Figures by kind, by dataset: `{"wer": {"librispeech": 2.47}}`.
        unproven: The reason why it was published without its proof, if it was.
        tag: The release that it belongs to.
        supersedes: `content` of the version before it.
    """

    variant: str
    content: str
    created: str
    tool_version: str
    source: str
    source_revision: str | None
    size_bytes: int
    metrics: Mapping[str, Any] = field(default_factory=dict)
    unproven: str | None = None
    tag: str | None = None
    supersedes: str | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """All versions, oldest first. The last version of a variant is the present one, unless it was withdrawn.

    Attributes:
        versions: Versions of all variants.
        withdrawn: Time of withdrawal by variant.
        table: Digests of the device table's entries that wkt wrote. All others were made by hand.
    """

    versions: tuple[PublishedVersion, ...] = ()
    withdrawn: Mapping[str, str] = field(default_factory=dict)
    table: tuple[str, ...] = ()

    @classmethod
    def parse(cls, content: bytes | None) -> "Index":
        """Read the file, or return an empty index where the repository has none.

        Raises:
            PublishError: Not an index that this version reads.
        """
        if content is None:
            return cls()
        try:
            value = parse_json(content)
            found = value["format"]
            if found != FORMAT:
                raise PublishError(
                    f"{INDEX} has format {found!r}, this version of wkt reads {FORMAT}; update whisperkit-tools"
                )
            versions = tuple(_version(item) for item in value["versions"])
            withdrawn = {str(name): str(when) for name, when in value.get("withdrawn", {}).items()}
            table = tuple(str(item) for item in value.get("table", []))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PublishError(
                f"{INDEX} is damaged ({type(error).__name__}: {error}); restore it from an earlier commit"
            ) from error
        return cls(versions, withdrawn, table)

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        value = {
            "format": FORMAT,
            "versions": [asdict(item) for item in self.versions],
            "withdrawn": dict(self.withdrawn),
            "table": list(self.table),
        }
        return (json_text(value, sort_keys=True) + "\n").encode()

    def current(self, variant: str) -> PublishedVersion | None:
        """Return the present version of a variant, or None."""
        return self.latest().get(variant)

    def latest(self) -> dict[str, PublishedVersion]:
        """Return the present version of each variant by its name."""
        last = {item.variant: item for item in self.versions}
        return {name: last[name] for name in sorted(last) if name not in self.withdrawn}

    def published(self, version: PublishedVersion) -> "Index":
        """Return the index with one more version. The same content again changes only the statements about it.

        Figures that are not at hand this time stay, because an evaluation holds as long as the content.
        """
        before = self.current(version.variant)
        withdrawn = {name: when for name, when in self.withdrawn.items() if name != version.variant}
        if before is not None and before.content == version.content:
            same = replace(
                version,
                created=before.created,
                supersedes=before.supersedes,
                tag=version.tag or before.tag,
                metrics=_merged(before.metrics, version.metrics),
            )
            versions = tuple(same if item is before else item for item in self.versions)
            return replace(self, versions=versions, withdrawn=withdrawn)
        newest = replace(version, supersedes=before.content if before else None)
        return replace(self, versions=(*self.versions, newest), withdrawn=withdrawn)

    def without(self, variant: str, when: str) -> "Index":
        """Return the index with a variant withdrawn. Its versions stay as history.

        Raises:
            PublishError: There is no such variant.
        """
        if self.current(variant) is None:
            known = ", ".join(self.latest()) or "none"
            raise PublishError(f"no variant {variant!r} in {INDEX}; there are: {known}")
        return replace(self, withdrawn={**self.withdrawn, variant: when})


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    kinds = sorted({*old, *new})
    return {kind: {**old.get(kind, {}), **new.get(kind, {})} for kind in kinds}


_TYPES: dict[str, tuple[type, ...]] = {
    "variant": (str,),
    "content": (str,),
    "created": (str,),
    "tool_version": (str,),
    "source": (str,),
    "source_revision": (str, type(None)),
    "size_bytes": (int,),
    "metrics": (dict,),
    "unproven": (str, type(None)),
    "tag": (str, type(None)),
    "supersedes": (str, type(None)),
}


def _version(value: Any) -> PublishedVersion:
    if not isinstance(value, dict):
        raise ValueError(f"a version is a {type(value).__name__}")
    for name, kinds in _TYPES.items():
        if name in value and not isinstance(value[name], kinds):
            raise ValueError(f"{name} is a {type(value[name]).__name__}")
    check_variant(value["variant"])
    for kind, figures in value.get("metrics", {}).items():
        if not isinstance(figures, dict) or not all(map(_is_figure, figures.values())):
            raise ValueError(f"the figures of {kind} are not numbers by dataset")
    return PublishedVersion(**{name: value[name] for name in _TYPES if name in value})


def _is_figure(value: Any) -> bool:
    """Whether a value is a number or an interval."""
    if isinstance(value, list):
        return len(value) == 2 and all(isinstance(end, int | float) for end in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def list_variants(registry: Registry, revision: str | None = None) -> list[dict[str, Any]]:
    """Return one row for each variant of a repository.

    Returns:
        `variant`, `state` (published, withdrawn, by another tool), present `size_bytes`, `versions` newest first.

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


def compare_versions(registry: Registry, first: str, second: str, revision: str | None = None) -> list[dict[str, Any]]:
    """Return the figures of two variants or versions side by side.

    Args:
        registry: The registry that has them.
        first: Name of a variant, or the first characters of a version's content.
        second: The same.
        revision: A tag or a commit; None for the present state.

    Returns:
        `figure`, `first`, `second` and `difference`, None where one of them has no such figure.

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


def _find(index: Index, word: str) -> PublishedVersion:
    """Return a version by its variant's name, or by the first characters of its content."""
    current = index.current(word)
    if current is not None:
        return current
    found = [item for item in index.versions if len(word) >= 4 and item.content.startswith(word)]
    if len({item.content for item in found}) != 1:
        known = ", ".join(f"{name} ({item.content[:12]})" for name, item in index.latest().items()) or "none"
        what = "several versions are" if found else "no version is"
        raise PublishError(f"{what} called {word!r} in {INDEX}; there are: {known}")
    return found[0]
