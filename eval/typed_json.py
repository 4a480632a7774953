"""Dataclasses as JSON and back, checked field by field."""

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from whisperkit_tools.errors import DatasetError

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Return a dataclass as JSON-ready dictionaries, lists, numbers and strings."""
    return asdict(value)


def from_json(cls: type[T], value: Any, where: str = "") -> T:
    """Return a dataclass from parsed JSON. Unknown fields are ignored.

    Args:
        cls: The dataclass.
        value: Parsed JSON.
        where: Names the value in error messages.

    Raises:
        DatasetError: A field is missing or has another type.
    """
    made: T = _decode(cls, value, where or cls.__name__)
    return made


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Convert parsed JSON to the type of a hint."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _decode(next(option for option in arguments if option is not type(None)), value, where)
    if is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin is tuple:
        _expect(value, list, where)
        items = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(items) != len(value):
            raise DatasetError(f"{where} has {len(value)} values, expected {len(items)}")
        return tuple(
            _decode(item, part, f"{where}[{i}]") for i, (item, part) in enumerate(zip(items, value, strict=True))
        )
    if origin is not None:  # Mapping[str, X]
        _expect(value, dict, where)
        return {name: _decode(arguments[1], part, f"{where}.{name}") for name, part in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    _expect(value, kind, where)
    return value


def _decode_dataclass(cls: Any, value: Any, where: str) -> Any:
    _expect(value, dict, where)
    hints, required = _expected_fields(cls)
    missing = [name for name in required if name not in value]
    if missing:
        raise DatasetError(f"{where} lacks {', '.join(missing)}")
    return cls(**{name: _decode(kind, value[name], f"{where}.{name}") for name, kind in hints.items() if name in value})


@cache
def _expected_fields(cls: Any) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return the type of each field, and the names of those without a default. Cached, because a report holds many."""
    hints = get_type_hints(cls)
    required = (f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING)
    return {f.name: hints[f.name] for f in fields(cls)}, tuple(required)


def _expect(value: Any, kind: type, where: str) -> None:
    """Raise `DatasetError` unless the value has the type. A bool is not an int here."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DatasetError(f"{where} is {json.dumps(value)[:60]}, expected {kind.__name__}")
