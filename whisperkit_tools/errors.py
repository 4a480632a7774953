"""Errors of the library, their exit codes, and how a message mentions an option.

A message states what is wrong, the value that was found, what is allowed, and what to do. Where several things are
wrong at once, it names all of them. The library names options by their field (`option("kv_length")`). Each front end
shows that field in its own spelling: Python as a keyword, the command line as a flag.
"""

import re
from collections.abc import Callable
from typing import ClassVar

# Private-use characters, which no option, path or transcript contains.
_OPEN, _CLOSE = "\ue000", "\ue001"
_OPTION = re.compile(f"{_OPEN}([a-z0-9_]+)(?:=([^{_CLOSE}]*))?{_CLOSE}")


def option(name: str, value: object = None) -> str:
    """Mention an option in a message.

    Args:
        name: The field of the config, or the keyword of the function, that the user sets.
        value: The value to recommend, or None to mention the option alone.

    Returns:
        A marker that `show_options` replaces by the spelling of a front end.

    Example:
        >>> str(OptionsError(f"{option('kv_length')} is 4; the minimum is 8"))
        'kv_length is 4; the minimum is 8'
    """
    return f"{_OPEN}{name}{_CLOSE}" if value is None else f"{_OPEN}{name}={value}{_CLOSE}"


def show_options(message: str, spell: Callable[[str, str | None], str] | None = None) -> str:
    """Replace each mention of an option.

    Args:
        message: Text with marks from `option`.
        spell: Spells a field and the recommended value, if any. The default spells them as Python keywords.
    """
    return _OPTION.sub(lambda found: (spell or _as_keyword)(found[1], found[2]), message)


def _as_keyword(name: str, value: str | None) -> str:
    return name if value is None else f"{name}={value}"


class WktError(Exception):
    """Base of all errors that a command reports in one line, without a traceback.

    `str(error)` spells the options of the message as Python keywords. `message` is the text with its marks.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        """Return the message with options spelled as Python keywords."""
        return show_options(self.message)

    @property
    def options(self) -> tuple[str, ...]:
        """Fields of the options that the message mentions, in order and without repetition."""
        return tuple(dict.fromkeys(found[1] for found in _OPTION.finditer(self.message)))


class OptionsError(WktError):
    """A value that the user gave is out of range, unknown, or contradicts another one."""

    exit_code: ClassVar[int] = 2


class CheckpointError(WktError):
    """A checkpoint cannot be found or read, or is not a complete Whisper."""


class ConversionError(WktError):
    """A checkpoint cannot be exported."""


class BundleError(WktError):
    """A bundle or package is missing, damaged, ambiguous, or violates the runtime's contract."""


class RecipeError(WktError):
    """A compression recipe is malformed or belongs to another model."""


class AudioError(WktError):
    """Audio cannot be found or decoded."""


class DatasetError(WktError):
    """A dataset cannot be found or read."""


class EvaluationError(WktError):
    """An evaluation cannot run, or some of its examples failed."""


class PublishError(WktError):
    """A bundle cannot be published or pulled."""


class UnsupportedOperationError(WktError):
    """An ML Program holds an operation that the executor does not implement."""


class QualityGateError(WktError):
    """An artifact was made, measured, and found not good enough."""

    exit_code: ClassVar[int] = 3
