"""The metadata at the head of a model card: YAML between two lines of dashes, read with limits.

YAML's aliases let 600 bytes stand for gigabytes, and a card comes from elsewhere. No card needs them.
"""

import re
from typing import Any

import yaml

from whisperkit_tools import limits
from whisperkit_tools.files import first_line

_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


class FrontMatterError(ValueError):
    """The metadata are not YAML, or exceed the limits of `limits`."""


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Return the metadata of a card, empty without any, and the text after them.

    Args:
        text: The card, with `\\n` as line ends.

    Raises:
        FrontMatterError: They are not YAML, not a mapping, too long, nested too deeply, or use aliases.
    """
    found = _FRONT.match(text)
    if found is None:
        return {}, text
    metadata = _parse(found[1])
    if not isinstance(metadata, dict):
        raise FrontMatterError("not a mapping")
    return metadata, text[found.end() :]


def _parse(front: str) -> Any:
    if len(front) > limits.YAML_BYTES:
        raise FrontMatterError(f"{len(front)} characters are more than the {limits.YAML_BYTES} that are allowed")
    try:
        _check_events(front)
        return yaml.safe_load(front) or {}
    except yaml.YAMLError as error:
        raise FrontMatterError(_described(error)) from error
    except (RecursionError, ValueError, OverflowError) as error:  # a date that no calendar has, for example
        if isinstance(error, FrontMatterError):
            raise
        raise FrontMatterError(first_line(error)) from error


def _check_events(front: str) -> None:
    """Go through the document before anything is built from it."""
    depth = 0
    for event in yaml.parse(front, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise FrontMatterError(f"an alias (*{event.anchor}) in line {event.start_mark.line + 2}; write it out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > limits.YAML_DEPTH:
            raise FrontMatterError(f"nested deeper than {limits.YAML_DEPTH} levels")


def _described(error: yaml.YAMLError) -> str:
    """Return an error of the library, which has several lines, in one."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = f" in line {mark.line + 2}" if mark is not None else ""
    return f"{problem or first_line(error)}{where}"
