"""Importing coremltools without the notices that it prints to everybody.

On import coremltools warns that this torch was not among those it was tested with and, off macOS, once for every
native library it lacks. None of that concerns somebody who converts or transcribes.
"""

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_coremltools(*, verbose: bool = False) -> Iterator[None]:
    """Hold back coremltools' own warnings, through `logging` and through `warnings`, inside the block.

    Errors still pass. The logger's level is put back afterwards.

    Args:
        verbose: Let everything through.
    """
    if verbose:
        yield
        return
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def import_coremltools(*, verbose: bool = False) -> Any:
    """Import coremltools, silently unless `verbose`, and return the module.

    It takes one to two seconds the first time, so callers import it where they use it.
    """
    with quiet_coremltools(verbose=verbose):
        return importlib.import_module("coremltools")
