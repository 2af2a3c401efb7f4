"""Waiting for what can only be asked for again and again: in other processes, in a database, behind a network."""

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(holds: Callable[[], Awaitable[object]], what: str = "it", seconds: float = 100.0) -> None:
    """Ask every 20 ms until it holds; a `TimeoutError` names `what` has not come about within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while not await holds():  # noqa: ASYNC110  it is not in this process, so it cannot be an event
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise TimeoutError(f"{what}: not within {seconds:g} s") from None


def wait_until(holds: Callable[[], object], what: str = "it", seconds: float = 300.0) -> None:
    """The same for code without an event loop; asks every 100 ms."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)
