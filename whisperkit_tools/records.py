"""Typed JSON objects: frozen dataclasses that check what they read and write it again unchanged."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from whisperkit_tools.errors import BundleError, WktError

T = TypeVar("T")

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
        return cast("Self", _Reader(where).object(cls, value, ""))

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


@dataclass(frozen=True, slots=True)
class _Reader:
    """Builds dataclasses from JSON values, checking the type of every field.

    Attributes:
        where: The file or object that the values come from, for messages.
        error: Raised for a value of another type.
        advice: End of its message; empty for none.
        exact: Values stay as they are, so that they can be written again unchanged, and unknown fields are an error.
            Otherwise integers become floats where those are expected, and unknown fields are ignored.
    """

    where: str
    error: type[WktError] = BundleError
    advice: str = _ADVICE
    exact: bool = True

    def object(self, cls: type, value: Any, name: str) -> Any:
        """Return a dataclass from a JSON object."""
        if not isinstance(value, dict):
            raise self._mismatch(value, "an object", name)
        known = _known(cls)
        missing = [key for key, item in known.items() if key not in value and _is_required(item)]
        if missing:
            raise self._flaw(f"{self._subject(name)} has no {' and '.join(missing)}")
        types_of = _types(cls)
        found = {
            item.name: self.read(types_of[item.name], value[key], f"{name}.{key}" if name else key)
            for key, item in known.items()
            if key in value
        }
        unknown = {key: one for key, one in value.items() if key not in known}
        if issubclass(cls, Record):
            return cls(**found, extra=unknown, keys=tuple(value))
        if unknown and self.exact:
            listed = ", ".join(unknown)
            raise self.error(f"{self._subject(name)} has {listed}, which this version of wkt does not know")
        try:
            return cls(**found)
        except ValueError as error:
            raise self._flaw(f"{self._subject(name)}: {error}") from error

    def read(self, kind: Any, value: Any, name: str) -> Any:
        """Check a value against the type of its field. Lists become tuples, objects of a dataclass that class."""
        if kind is Any:
            return value
        origin, inner = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            wanted = next(one for one in inner if one is not type(None))
            return None if value is None and type(None) in inner else self.read(wanted, value, name)
        if origin is tuple:
            return self._tuple(inner, value, name)
        if origin in (Mapping, dict):
            if not isinstance(value, dict):
                raise self._mismatch(value, "an object", name)
            return {key: self.read(inner[1], one, f"{name}.{key}") for key, one in value.items()}
        if is_dataclass(kind):
            return self.object(cast("type", kind), value, name)
        classes, expected = _SCALARS[kind]
        if not isinstance(value, classes) or (isinstance(value, bool) and kind is not bool):
            raise self._mismatch(value, expected, name)
        return float(cast("float", value)) if kind is float and not self.exact else value

    def _tuple(self, inner: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise self._mismatch(value, "a list", name)
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis or len(inner) == 1 else inner
        if len(kinds) != len(value):
            raise self._mismatch(value, f"a list of {len(kinds)}", name)
        return tuple(
            self.read(kind, one, f"{name}[{at}]") for at, (kind, one) in enumerate(zip(kinds, value, strict=True))
        )

    def _mismatch(self, value: Any, expected: str, name: str) -> WktError:
        return self._flaw(f"{self._subject(name)} is {repr(value)[:80]}, expected {expected}")

    def _flaw(self, message: str) -> WktError:
        return self.error(f"{message}; {self.advice}" if self.advice else message)

    def _subject(self, name: str) -> str:
        return f"{self.where}: {name}" if name else self.where


def read_typed(cls: type[T], value: Any, where: str, *, error: type[WktError], advice: str = "", name: str = "") -> T:
    """Return a dataclass from a JSON value. Unknown fields are ignored.

    Integers become floats where those are expected.

    Args:
        cls: The dataclass. Its hints say what is allowed, as for `Record`.
        value: The value, expected to be an object.
        where: The file or object that it comes from, for messages.
        error: Raised for a value of another type.
        advice: What the user can do, as the end of that error's message.
        name: Path of the value in that file; empty for the whole.

    Raises:
        WktError: Of type `error`: a field is missing or has another type. The message names file, field and value.
    """
    return cast("T", _Reader(where, error, advice, exact=False).object(cls, value, name))


def _is_required(item: Any) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


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
