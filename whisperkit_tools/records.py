"""Typed JSON objects: frozen dataclasses that check what they read and write it again unchanged."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Self, Union, cast, get_args, get_origin, get_type_hints

from whisperkit_tools.errors import BundleError

_ADVICE = "convert or download the bundle again"
_SCALARS: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "a string"),
    bool: ((bool,), "true or false"),
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A JSON object with known keys.

    A subclass declares one field for each key. The field's type says what is allowed: `str`, `bool`, `int`, `float`,
    `X | None`, `tuple[X, ...]` for a list, `Mapping[str, X]` for an object with free keys, a dataclass for an object
    with known ones, `Any` for JSON that no code reads. A key that is not a Python name stands in the field's
    metadata as `key`.

    Attributes:
        extra: Values of keys that this version does not know.
        keys: Keys in the order of the file that was read; None for a new record, which writes all its fields.
    """

    extra: Mapping[str, Any] = field(default_factory=dict)
    keys: tuple[str, ...] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_json(cls, value: Any, where: str) -> Self:
        """Read a JSON value.

        Args:
            value: The value, expected to be an object.
            where: The file or object that it comes from, for messages.

        Raises:
            BundleError: A value has another type than its field. The message names file, field, value and type.
        """
        return cast("Self", _read_object(cls, value, where, ""))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object. Of a record that was read, keys that were absent stay absent, unless they are set."""
        kind: type = type(self)
        known = _known(kind)
        if self.keys is None:
            written = list(known)
        else:
            written = [key for key in self.keys if key in known or key in self.extra]
            written += [key for key, item in known.items() if key not in self.keys and not self._unset(item)]
        written += [key for key in self.extra if key not in written]
        return {key: _plain(getattr(self, known[key].name)) if key in known else self.extra[key] for key in written}

    def _unset(self, item: Any) -> bool:
        default = item.default if item.default_factory is MISSING else item.default_factory()
        return bool(getattr(self, item.name) == default)


@cache
def _known(cls: type) -> dict[str, Any]:
    """Return the fields of a dataclass by their JSON keys."""
    items = (item for item in fields(cls) if item.name not in ("extra", "keys"))
    return {str(item.metadata.get("key", item.name)): item for item in items}


@cache
def _types(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _read_object(cls: type, value: Any, where: str, name: str) -> Any:
    """Build a dataclass from a JSON object, checking the type of every field."""
    if not isinstance(value, dict):
        raise _mismatch(value, "an object", where, name)
    known = _known(cls)
    missing = [key for key, item in known.items() if key not in value and _is_required(item)]
    if missing:
        raise BundleError(f"{where}: {name} has no {' and '.join(missing)}; {_ADVICE}")
    found = {
        item.name: _read(_types(cls)[item.name], value[key], where, f"{name}.{key}" if name else key)
        for key, item in known.items()
        if key in value
    }
    unknown = {key: one for key, one in value.items() if key not in known}
    if issubclass(cls, Record):
        return cls(**found, extra=unknown, keys=tuple(value))
    if unknown:
        raise BundleError(f"{where}: {name} has {', '.join(unknown)}, which this version of wkt does not know")
    try:
        return cls(**found)
    except ValueError as error:
        raise BundleError(f"{where}: {name}: {error}; {_ADVICE}") from error


def _is_required(item: Any) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _read(kind: Any, value: Any, where: str, name: str) -> Any:
    """Check a JSON value against the type of its field. Lists become tuples, objects of a dataclass that class."""
    if kind is Any:
        return value
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (wanted,) = (one for one in inner if one is not type(None))
        return None if value is None else _read(wanted, value, where, name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _mismatch(value, "a list", where, name)
        return tuple(_read(inner[0], one, where, f"{name}[{index}]") for index, one in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _mismatch(value, "an object", where, name)
        return {key: _read(inner[1], one, where, f"{name}.{key}") for key, one in value.items()}
    if is_dataclass(kind):
        return _read_object(cast("type", kind), value, where, name)
    classes, expected = _SCALARS[kind]
    if not isinstance(value, classes) or (isinstance(value, bool) and kind is not bool):
        raise _mismatch(value, expected, where, name)
    return value


def _mismatch(value: Any, expected: str, where: str, name: str) -> BundleError:
    subject = f"{where}: {name}" if name else where
    return BundleError(f"{subject} is {repr(value)[:80]}, expected {expected}; {_ADVICE}")


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Record):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return value
