"""Handles Ctrl-C and SIGTERM in each phase of a program."""

import os
import signal
from collections.abc import Callable

_BOTH = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []
"""Signals that should already have ended the program: if one arrives in a finalizer, Python drops the exception."""


def leave_at_once() -> None:
    """Let either signal end the program immediately, while there is nothing to stop yet.

    This needs a handler: the kernel ignores signals without one for the first process of a container. Python's own
    handler would print a traceback.
    """
    for number in _BOTH:
        signal.signal(number, lambda number, _frame: os._exit(128 + number))


def leave_in_order() -> None:
    """Let either signal raise `SystemExit`, so that everything the program has started is stopped."""
    for number in _BOTH:
        signal.signal(number, _leave)


def ignore() -> None:
    """Ignore both signals during a stop: an interrupted stop would leave processes behind."""
    for number in _BOTH:
        signal.signal(number, signal.SIG_IGN)


def call(stop: Callable[[], None]) -> None:
    """Call `stop` in the running event loop on each signal."""
    # Not at the top: a signal during this import would be lost.
    import asyncio  # noqa: PLC0415  see above

    for number in _BOTH:
        asyncio.get_running_loop().add_signal_handler(number, stop)
    if _received:
        stop()


def _leave(number: int, _frame: object) -> None:
    _received.append(number)
    ignore()
    raise SystemExit(128 + number)
