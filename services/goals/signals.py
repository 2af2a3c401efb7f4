"""What Ctrl-C and SIGTERM do, in each part of a program's life."""

import os
import signal
from collections.abc import Callable

_BOTH = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []
"""Those that have ended the program; where one came in a finalizer, Python dropped the exception and went on."""


def leave_at_once() -> None:
    """Let either end the program on the spot, while there is nothing yet to stop.

    By a handler: the kernel drops what the first process of a container has none for. Not by Python's own, which would
    print where the program was.
    """
    for number in _BOTH:
        signal.signal(number, lambda number, _frame: os._exit(128 + number))


def leave_in_order() -> None:
    """Let either end the program by `SystemExit`, so that what it has started is stopped."""
    for number in _BOTH:
        signal.signal(number, _leave)


def ignore() -> None:
    """Let neither cut short a stop that is under way: what it stops would be left behind."""
    for number in _BOTH:
        signal.signal(number, signal.SIG_IGN)


def call(stop: Callable[[], None]) -> None:
    """Call `stop` in the running event loop at each of them."""
    # Not at the top: until it is loaded too, a signal would do nothing.
    import asyncio  # noqa: PLC0415  see above

    for number in _BOTH:
        asyncio.get_running_loop().add_signal_handler(number, stop)
    if _received:
        stop()


def _leave(number: int, _frame: object) -> None:
    _received.append(number)
    ignore()
    raise SystemExit(128 + number)
