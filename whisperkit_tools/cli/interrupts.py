"""Ctrl-C, SIGTERM and SIGHUP that clean up alike, and count even where a library swallows them.

A `KeyboardInterrupt` may be raised anywhere, in a library's `except:` around an import or in a destructor too, where it
is lost. So the signal is remembered, and commands look between their stages.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# A service manager and a closing terminal end a command by the latter two. They do not exist on Windows.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_asked: list[int] = []


@contextmanager
def sticky_interrupts() -> Iterator[None]:
    """Turn each of the signals into a remembered `KeyboardInterrupt`. Print no traceback where none can be raised."""
    _asked.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A caller that ignores a signal, as nohup does and a shell for background jobs, or handles it itself wants that.
    ours = (signal.default_int_handler, signal.SIG_DFL)
    before = {number: signal.getsignal(number) for number in _SIGNALS if signal.getsignal(number) in ours}
    hook = sys.unraisablehook

    def unraisable(args: "sys.UnraisableHookArgs", /) -> None:
        if not issubclass(args.exc_type, KeyboardInterrupt):
            hook(args)

    for number in before:
        signal.signal(number, _remember)
    if before:
        sys.unraisablehook = unraisable  # Python prints what a destructor raises
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _remember(number: int, frame: FrameType | None) -> None:
    _asked.append(number)
    raise KeyboardInterrupt


def check_interrupted() -> None:
    """Raise a `KeyboardInterrupt` that was swallowed."""
    if _asked:
        raise KeyboardInterrupt


def exit_code_of_signal() -> int:
    """Return the exit code of a command that a signal ended, as shells have it: 128 and the signal's number."""
    return 128 + (_asked[0] if _asked else signal.SIGINT)
