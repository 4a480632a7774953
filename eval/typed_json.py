"""The records of runs as JSON and back, checked field by field."""

from dataclasses import asdict
from typing import Any, TypeVar

from whisperkit_tools.errors import DatasetError
from whisperkit_tools.records import read_typed

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
    return read_typed(cls, value, where or cls.__name__, error=DatasetError)
