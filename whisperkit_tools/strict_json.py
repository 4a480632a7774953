"""Parsing of JSON that comes from elsewhere: every flaw of a document is one kind of error with one line of text.

Python's parser accepts `NaN`, integers of any length, and nesting that ends in a stack overflow. Here they are
flaws, as a missing bracket is. Halves of surrogate pairs, which no file can hold, become question marks.
"""

import json
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from whisperkit_tools import limits

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """A document is not JSON, or exceeds the limits of `limits`."""


def parse_json(content: str | bytes) -> Any:
    """Return the value of a JSON document.

    Args:
        content: The document. Bytes are UTF-8.

    Raises:
        JsonError: It is not JSON, too long, nested too deeply, or holds a number that is none.
    """
    if len(content) > limits.JSON_BYTES:
        raise JsonError(f"{len(content)} bytes are more than the {limits.JSON_BYTES} that are allowed")
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_constant)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise JsonError(str(error)) from error
    _check_depth(value)
    return _whole_characters(value) if _HALF_PAIR.search(text) else value


def _integer(text: str) -> int:
    if len(text) > limits.JSON_DIGITS:
        raise JsonError(f"an integer of {len(text)} digits; the maximum is {limits.JSON_DIGITS}")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise JsonError(f"the number {text[:20]} is too large")
    return value


def _constant(text: str) -> float:
    raise JsonError(f"{text} is not a number in JSON")


def _too_deep() -> JsonError:
    return JsonError(f"nested deeper than {limits.JSON_DEPTH} levels")


def _check_depth(value: Any) -> None:
    """Go through the containers level by level."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limits.JSON_DEPTH):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for children in inner for child in children if isinstance(child, (dict, list))]
        if not level:
            return
    raise _too_deep()


def _whole_characters(value: Any) -> Any:
    """Return the value with halves of surrogate pairs, which no file can hold, replaced by question marks."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_characters(item) for item in value]
    return value


def json_text(
    value: Any, *, indent: int | None = 2, sort_keys: bool = False, default: Callable[[Any], Any] | None = None
) -> str:
    """Return a value as a JSON document without a line end. Characters beyond ASCII are kept.

    A number that is not finite becomes null, because JSON has none. Half of a surrogate pair, as Python reads it from
    a file name that is not UTF-8, becomes a question mark.
    """
    encode = partial(json.dumps, indent=indent, ensure_ascii=False, sort_keys=sort_keys, default=default)
    try:
        text = encode(value, allow_nan=False)
    except ValueError:
        text = encode(_finite(value))
    return text.encode("utf-8", "replace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
