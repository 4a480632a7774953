"""The device table of a repository, `config.json`: the variants that the runtime recommends to each device.

Source: argmaxinc/argmax-oss-swift v0.18 to v1.1.0. The longest identifier prefix wins; a repository whose `name` is
contained in "whisperkit-coreml-fallback" inherits the runtime's built-in table.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whisperkit_tools.errors import OptionsError, PublishError, option
from whisperkit_tools.files import sha256_of_json
from whisperkit_tools.strict_json import json_text, parse_json

TABLE = "config.json"
VERSION = "0.4"
_INHERITING = "whisperkit-coreml-fallback"
_EXPECTED = (
    'is not a device table: expected {"name": ..., "device_support": [{"chips", "identifiers", "models": {"default", '
    '"supported"}}]}'
)


@dataclass(frozen=True, slots=True)
class ChipFamily:
    """Devices that get the same recommendation.

    Attributes:
        chips: Their chips, for people.
        identifiers: Prefixes of the devices' identifiers.
        max_bytes: Maximum bytes of encoder and decoder together.
    """

    chips: str
    identifiers: tuple[str, ...]
    max_bytes: int


# Identifiers are Apple's model identifiers. The sizes are ours, chosen for the memory that an app may use on a family's
# smallest device and the limits of the older Neural Engines; a policy file replaces them.
FAMILIES = (
    ChipFamily("A12, A13", ("iPhone11", "iPhone12", "iPad11", "iPad12"), 160_000_000),
    ChipFamily("A14", ("iPhone13", "iPad13"), 650_000_000),
    ChipFamily(
        "A15, A16, A17 Pro, A18, A19",
        ("iPhone14", "iPhone15", "iPhone16", "iPhone17", "iPhone18", "iPad14", "iPad15", "iPad16"),
        1_000_000_000,
    ),
    ChipFamily(
        "M1", ("MacBookPro17,1", "MacBookPro18", "MacBookAir10,1", "Macmini9", "iMac21", "Mac13"), 1_000_000_000
    ),
    ChipFamily("M2 and later", ("Mac14", "Mac15", "Mac16", "Mac17"), 3_500_000_000),
)


@dataclass(frozen=True, slots=True)
class TableVariant:
    """A variant, as far as the table depends on it.

    Attributes:
        name: Name of its folder.
        model_bytes: Bytes of encoder and decoder together.
        turbo: Whether it has the latency layout, which M1-class Neural Engines do not run for large models.
        wer: Word error rate in percent, where it was measured.
        stateful: Whether its caches are states, a form that the open runtime does not load.
    """

    name: str
    model_bytes: int
    turbo: bool
    wer: float | None = None
    stateful: bool = False


@dataclass(frozen=True, slots=True)
class DeviceTable:
    """The file, and the digests of the entries that wkt wrote."""

    content: bytes
    made: tuple[str, ...]


def build_table(
    repo_id: str,
    variants: Sequence[TableVariant],
    present: bytes | None,
    policy: Mapping[str, Any] | None = None,
    made: Collection[str] = (),
) -> DeviceTable:
    """Return the table for the variants of a repository.

    Args:
        repo_id: Id of the repository, which gives the table its name.
        variants: All variants of the repository.
        present: The present file. Entries that were made by hand survive, as far as their variants exist.
        policy: A table to publish instead of the recommendation.
        made: Digests of the entries that wkt wrote and nobody changed.

    Raises:
        PublishError: The present file is not a table.
        OptionsError: The policy is not a table, or names variants that do not exist.
    """
    names = {item.name for item in variants}
    if policy is not None:
        return DeviceTable(_to_bytes(_from_policy(policy, names, repo_id)), ())
    table = _parse(present)
    by_hand = [entry for entry in table.get("device_support", []) if _digest(entry) not in made]
    kept = [entry for entry in (_valid(item, names) for item in by_hand) if entry is not None]
    taken = {identifier for entry in kept for identifier in entry["identifiers"]}
    ours = [entry for family in FAMILIES if (entry := _recommend(family, variants, taken)) is not None]
    content = {
        **table,
        "name": table_name(str(table.get("name", repo_id))),
        "version": str(table.get("version", VERSION)),
        "device_support": [*kept, *ours],
    }
    return DeviceTable(_to_bytes(content), tuple(map(_digest, ours)))


def _from_policy(policy: Mapping[str, Any], names: set[str], repo_id: str) -> dict[str, Any]:
    if not _is_table(policy):
        raise OptionsError(f"{option('device_table')} {_EXPECTED}")
    missing = sorted(_named(policy) - names)
    if missing:
        raise OptionsError(
            f"{option('device_table')} names variants that are not in the repository: {', '.join(missing)}; "
            f"it has: {', '.join(sorted(names)) or 'none'}"
        )
    return {"version": VERSION, **policy, "name": table_name(str(policy.get("name", repo_id)))}


def _digest(entry: Any) -> str:
    return sha256_of_json(entry)[:16]


def table_name(repo_id: str) -> str:
    """Return the table's name, which must not inherit another project's table."""
    name = repo_id.rsplit("/", maxsplit=1)[-1]
    return f"{name}-wkt" if name in _INHERITING else name


def _recommend(family: ChipFamily, variants: Sequence[TableVariant], taken: set[str]) -> dict[str, Any] | None:
    """Return an entry with the variants that fit, the best as the default, or None where there is none to make."""
    identifiers = [item for item in family.identifiers if item not in taken]
    fitting = [item for item in variants if item.model_bytes <= family.max_bytes and not item.stateful]
    if "M1" in family.chips:
        fitting = [item for item in fitting if not (item.turbo and item.model_bytes > 650_000_000)]
    if not identifiers or not fitting:
        return None
    # The lowest measured WER, otherwise the largest: within one family of models more bytes transcribe better.
    best = min(fitting, key=lambda item: (item.wer is None, item.wer or 0.0, -item.model_bytes, item.name))
    return {
        "chips": family.chips,
        "identifiers": identifiers,
        "models": {"default": best.name, "supported": sorted(item.name for item in fitting)},
    }


def _valid(entry: Any, names: set[str]) -> dict[str, Any] | None:
    """Return a hand-made entry without the variants that are gone, or None when none is left."""
    supported = [name for name in entry["models"]["supported"] if name in names]
    if not supported:
        return None
    default = entry["models"]["default"]
    models = {**entry["models"], "default": default if default in names else supported[0], "supported": supported}
    return {**entry, "models": models}


def _named(table: Mapping[str, Any]) -> set[str]:
    entries = [entry["models"] for entry in table.get("device_support", [])]
    return {name for models in entries for name in (models["default"], *models["supported"])}


def _parse(content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {}
    try:
        table = parse_json(content)
    except ValueError as error:
        raise PublishError(
            f"the repository's {TABLE} is not JSON ({error}); repair it, or pass a table with {option('device_table')}"
        ) from error
    if not _is_table(table):
        raise PublishError(f"the repository's {TABLE} {_EXPECTED}")
    return dict(table)


def _is_table(table: Any) -> bool:
    if not isinstance(table, Mapping) or not isinstance(table.get("device_support", []), list):
        return False
    return all(_is_entry(entry) for entry in table.get("device_support", []))


def _is_entry(entry: Any) -> bool:
    models = entry.get("models") if isinstance(entry, dict) else None
    if not isinstance(models, dict) or not isinstance(entry.get("identifiers"), list):
        return False
    if not isinstance(models.get("default"), str) or not isinstance(models.get("supported"), list):
        return False
    return all(isinstance(name, str) for name in (*entry["identifiers"], *models["supported"]))


def _to_bytes(table: Mapping[str, Any]) -> bytes:
    return (json_text(table) + "\n").encode()
