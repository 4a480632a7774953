"""`wkt-index.json`: which variants a repository holds, what they are, and what came before them.

A repository is also edited by hand and by other tools, so what is read is checked field by field, and the files that
are really there decide.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from whisperkit_tools.errors import PublishError
from whisperkit_tools.publishing.variant_names import check_variant

INDEX = "wkt-index.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Version:
    """One publication of one variant.

    Attributes:
        variant: The folder's name.
        content: sha256 over the paths and hashes of its files.
        created: When it was published first, ISO 8601 UTC.
        tool_version: Of whisperkit_tools.
        source: What it was converted from.
        source_revision: Commit of the source, where there is one.
        size_bytes: Of all its files.
        metrics: Figure by name, dataset inside: `{"wer": {"librispeech": 2.47}}`.
        unproven: Why it was published without its proof, if it was.
        tag: The release it belongs to.
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
    """All versions, oldest first; a variant's last version is the one that is there, unless it was withdrawn.

    Attributes:
        versions: Of all variants.
        withdrawn: Variant to when.
        table: Digests of the device table's entries that wkt wrote; all others were made by hand.
    """

    versions: tuple[Version, ...] = ()
    withdrawn: Mapping[str, str] = field(default_factory=dict)
    table: tuple[str, ...] = ()

    @classmethod
    def parse(cls, content: bytes | None) -> "Index":
        """Read the file; None is a repository without one.

        Raises:
            PublishError: Not an index that this version reads.
        """
        if content is None:
            return cls()
        try:
            value = json.loads(content)
            found = value["format"]
            if found != FORMAT:
                raise PublishError(f"{INDEX} has format {found!r}, this version of wkt reads {FORMAT}; update it")
            versions = tuple(_version(item) for item in value["versions"])
            withdrawn = {str(name): str(when) for name, when in value.get("withdrawn", {}).items()}
            table = tuple(str(item) for item in value.get("table", []))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PublishError(
                f"{INDEX} is damaged ({type(error).__name__}: {error}); restore it from a commit before"
            ) from error
        return cls(versions, withdrawn, table)

    def to_bytes(self) -> bytes:
        """The file."""
        value = {
            "format": FORMAT,
            "versions": [asdict(item) for item in self.versions],
            "withdrawn": dict(self.withdrawn),
            "table": list(self.table),
        }
        return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    def current(self, variant: str) -> Version | None:
        """The version of a variant that is there now."""
        return self.latest().get(variant)

    def latest(self) -> dict[str, Version]:
        """The present version of each variant, by name."""
        last = {item.variant: item for item in self.versions}
        return {name: last[name] for name in sorted(last) if name not in self.withdrawn}

    def published(self, version: Version) -> "Index":
        """With one more version; the same content again changes only what is said about it.

        Figures that are not at hand this time stay: an evaluation of a content holds as long as the content.
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
        """With a variant withdrawn; its versions stay as history.

        Raises:
            PublishError: It is not there.
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


def _version(value: Any) -> Version:
    if not isinstance(value, dict):
        raise ValueError(f"a version is a {type(value).__name__}")
    for name, kinds in _TYPES.items():
        if name in value and not isinstance(value[name], kinds):
            raise ValueError(f"{name} is a {type(value[name]).__name__}")
    check_variant(value["variant"])
    for kind, figures in value.get("metrics", {}).items():
        if not isinstance(figures, dict) or not all(map(_is_figure, figures.values())):
            raise ValueError(f"the figures of {kind} are no numbers by dataset")
    return Version(**{name: value[name] for name in _TYPES if name in value})


def _is_figure(value: Any) -> bool:
    """A number, or an interval of two."""
    if isinstance(value, list):
        return len(value) == 2 and all(isinstance(end, int | float) for end in value)
    return isinstance(value, int | float) and not isinstance(value, bool)
