"""Ctrl-C that counts even where a library swallows it.

A `KeyboardInterrupt` may be raised anywhere, in a library's `except:` around an import or in a destructor too, where it
is lost. So that it was asked for is sticky_sigint, and commands look between their stages.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked = threading.Event()


@contextmanager
def sticky_sigint() -> Iterator[None]:
    """Remember each Ctrl-C in addition to raising it, and print no traceback where none can be raised."""
    _asked.clear()
    before = signal.getsignal(signal.SIGINT)
    # A caller that ignores the signal, as a shell does for its background jobs, or handles it otherwise wants that.
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    hook = sys.unraisablehook

    def unraisable(args: "sys.UnraisableHookArgs", /) -> None:
        if not issubclass(args.exc_type, KeyboardInterrupt):
            hook(args)

    signal.signal(signal.SIGINT, _remember)
    sys.unraisablehook = unraisable  # Python prints what a destructor raises
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, before)


def _remember(number: int, frame: FrameType | None) -> None:
    _asked.set()
    raise KeyboardInterrupt


def check_interrupted() -> None:
    """Raise a `KeyboardInterrupt` that was swallowed."""
    if _asked.is_set():
        raise KeyboardInterrupt
