"""The errors that the library raises for a user's mistake or a failed gate, and the exit codes they map to.

A message says what is wrong, the value that was found, what is allowed, and what to do. Where several things
are wrong at once, it names all of them.
"""

from typing import ClassVar


class WktError(Exception):
    """Base of all errors a command reports in one line, without a traceback."""

    exit_code: ClassVar[int] = 1


class OptionsError(WktError):
    """Options are out of range or contradict each other, whatever they are used on."""

    exit_code: ClassVar[int] = 2


class CheckpointError(WktError):
    """A checkpoint cannot be found, read, or is not a complete Whisper."""


class ConversionError(WktError):
    """A checkpoint cannot be exported with the options asked for."""


class BundleError(WktError):
    """A bundle or package is missing, damaged, ambiguous, or does not keep the runtime's contract."""


class RecipeError(WktError):
    """A compression recipe is malformed or belongs to another model."""


class AudioError(WktError):
    """Audio cannot be found or decoded."""


class DatasetError(WktError):
    """A dataset cannot be found or read."""


class EvaluationError(WktError):
    """An evaluation cannot be run as asked, or examples of it failed."""


class PublishError(WktError):
    """A bundle cannot be published or pulled."""


class UnsupportedOperationError(WktError):
    """An ML Program holds an operation that the executor does not know."""


class QualityGateError(WktError):
    """An artifact was made, measured, and found not good enough."""

    exit_code: ClassVar[int] = 3
